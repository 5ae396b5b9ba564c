//! Whose picture it is: the nearest people of a gallery.

use crate::gallery::index::Index;
use crate::gallery::store::Gallery;
use crate::model::nearest::nearest_rows;
use crate::model::vectors::Vectors;
use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

/// What a person with several samples counts by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// The nearest of their samples.
    #[default]
    Nearest,
    /// The mean of their samples' embeddings.
    Mean,
}

/// A person, and how far they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Match {
    pub name: String,
    pub distance: f32,
    /// Where the nearest sample came from; none for a mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

/// The people that a picture may show, nearest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    pub nearest: Vec<Match>,
    /// Who it is: the nearest, if they are no farther than the threshold.
    pub person: Option<String>,
}

/// The `top` nearest people for each query. A query whose nearest person is farther than `threshold` shows nobody.
pub fn search(
    gallery: &Gallery,
    index: &Index,
    queries: &Vectors,
    top: usize,
    by: By,
    threshold: f32,
) -> Result<Vec<Answer>> {
    let found = match by {
        By::Nearest => of_samples(index, queries, top),
        By::Mean => of_means(index, queries, top),
    };
    let answer = |people: Vec<Found>| -> Result<Answer> {
        let nearest = people.into_iter().map(|Found { person, sample, distance }| {
            let sample = sample.map(|sample| gallery.source(sample)).transpose()?;
            Ok(Match { name: gallery.name(person)?, distance, sample })
        });
        let nearest: Vec<Match> = nearest.collect::<Result<_>>()?;
        let person = nearest.first().filter(|first| first.distance <= threshold).map(|first| first.name.clone());
        Ok(Answer { nearest, person })
    };
    found.into_iter().map(answer).collect()
}

/// A person by number.
#[derive(Clone, Copy)]
struct Found {
    person: i64,
    sample: Option<i64>,
    distance: f32,
}

/// People by their nearest samples. So many rows are looked for that each query has enough people among them.
fn of_samples(index: &Index, queries: &Vectors, top: usize) -> Vec<Vec<Found>> {
    let rows = index.people().len();
    let mut open: Vec<usize> = (0..queries.len()).collect();
    let mut found = vec![Vec::new(); queries.len()];
    let mut k = (4 * top).min(rows);
    while !open.is_empty() && rows > 0 {
        let nearest = nearest_rows(index.embeddings(), index.dim(), queries, &open, k);
        for (&query, nearest) in open.iter().zip(nearest) {
            let people: &mut Vec<Found> = &mut found[query];
            people.clear();
            for (row, distance) in nearest {
                let person = index.people()[row];
                if people.len() < top && !people.iter().any(|other| other.person == person) {
                    people.push(Found { person, sample: Some(index.samples()[row]), distance });
                }
            }
        }
        if k == rows {
            break;
        }
        open.retain(|&query| found[query].len() < top);
        k = (4 * k).min(rows);
    }
    found
}

/// People by the means of their samples.
fn of_means(index: &Index, queries: &Vectors, top: usize) -> Vec<Vec<Found>> {
    let (dim, of_directions) = (index.dim(), index.distance().of_directions());
    let mut people: Vec<(i64, &[f32])> = Vec::new();
    let mut rest = index.embeddings();
    for of in index.people().chunk_by(|one, next| one == next) {
        let (own, others) = rest.split_at(of.len() * dim);
        people.push((of[0], own));
        rest = others;
    }
    let mut means = vec![0f32; people.len() * dim];
    means.par_chunks_exact_mut(dim).zip(&people).for_each_init(
        || vec![0f64; dim],
        |mean, (out, (_, rows))| {
            mean.fill(0.0);
            for row in rows.chunks_exact(dim) {
                mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            // Directions are compared as vectors of length 1, whatever the sum is divided by.
            let divisor = match of_directions {
                true => mean.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12),
                false => (rows.len() / dim) as f64,
            };
            out.iter_mut().zip(mean.iter()).for_each(|(out, x)| *out = (x / divisor) as f32);
        },
    );
    let all: Vec<usize> = (0..queries.len()).collect();
    let nearest = nearest_rows(&means, dim, queries, &all, top.min(people.len()));
    let person = |(row, distance): (usize, f32)| Found { person: people[row].0, sample: None, distance };
    nearest.into_iter().map(|rows| rows.into_iter().map(person).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gallery::store::{Made, New};
    use crate::model::distance::Distance;
    use crate::process::fingerprint::Fingerprint;

    /// The nearest people with their distances, and who it is.
    type Told = (Vec<(String, f32)>, Option<String>);

    /// Ada at 0 and 10, Emmy at 4, Sofia at 7 and 8.
    fn gallery(dir: &std::path::Path, distance: Distance) -> Gallery {
        let made = Made { model: Fingerprint::of(b"m"), encoder: "resnet18".into(), dim: 1, distance };
        let mut gallery = Gallery::open_or_make(&dir.join("g"), &made).unwrap();
        for (name, x) in [("Ada", 0.0), ("Emmy", 4.0), ("Sofia", 7.0), ("Ada", 10.0), ("Sofia", 8.0)] {
            let source = format!("{name} at {x}");
            let picture = Fingerprint::of(source.as_bytes());
            let new = New { name, picture, source: &source, embedding: &[x], note: None };
            gallery.enroll(&[new]).unwrap();
        }
        gallery
    }

    #[test]
    fn people_come_once_by_their_nearest_sample_or_their_mean() {
        for distance in [Distance::Euclidean, Distance::Lp(3.0)] {
            let dir = tempfile::tempdir().unwrap();
            let gallery = gallery(dir.path(), distance);
            let index = Index::of(&gallery).unwrap();
            let queries = Vectors::new(vec![9.5, 3.0], 1, distance);
            let told = |top, by, threshold| -> Vec<Told> {
                let answers = search(&gallery, &index, &queries, top, by, threshold).unwrap();
                let of = |answer: Answer| {
                    (answer.nearest.into_iter().map(|m| (m.name, m.distance)).collect(), answer.person)
                };
                answers.into_iter().map(of).collect()
            };
            let of = |people: &[(&str, f32)]| people.iter().map(|(name, d)| (name.to_string(), *d)).collect::<Vec<_>>();
            let nearest = told(3, By::Nearest, 1.0);
            assert_eq!(nearest[0], (of(&[("Ada", 0.5), ("Sofia", 1.5), ("Emmy", 5.5)]), Some("Ada".into())));
            assert_eq!(nearest[1], (of(&[("Emmy", 1.0), ("Ada", 3.0), ("Sofia", 4.0)]), Some("Emmy".into())));
            let means = told(2, By::Mean, 1.0);
            assert_eq!(means[0], (of(&[("Sofia", 2.0), ("Ada", 4.5)]), None));
            assert_eq!(means[1], (of(&[("Emmy", 1.0), ("Ada", 2.0)]), Some("Emmy".into())));
            assert_eq!(told(9, By::Nearest, 0.4)[0].1, None);
            assert_eq!(told(9, By::Nearest, 0.4)[0].0.len(), 3);
        }
    }

    #[test]
    fn an_index_is_made_again_when_it_is_lost_torn_or_stale() {
        let dir = tempfile::tempdir().unwrap();
        let mut gallery = gallery(dir.path(), Distance::Euclidean);
        let file = dir.path().join("g.index.safetensors");
        let rows = |gallery: &Gallery| Index::of(gallery).unwrap().embeddings().to_vec();
        let whole = [0.0, 10.0, 4.0, 7.0, 8.0];
        assert_eq!(rows(&gallery), whole);
        let kept = std::fs::read(&file).unwrap();
        for torn in [&b""[..], b"no index", &kept[..kept.len() - 4]] {
            std::fs::write(&file, torn).unwrap();
            assert_eq!(rows(&gallery), whole);
            assert_eq!(std::fs::read(&file).unwrap().len(), kept.len());
        }
        gallery.remove("Ada", None).unwrap();
        assert_eq!(rows(&gallery), [4.0, 7.0, 8.0]);
        std::fs::write(&file, &kept).unwrap();
        assert_eq!(rows(&gallery), [4.0, 7.0, 8.0], "of an earlier state");
    }

    #[test]
    fn an_empty_gallery_knows_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut gallery = gallery(dir.path(), Distance::Euclidean);
        let removed = ["Ada", "Emmy", "Sofia"].map(|name| gallery.remove(name, None).unwrap());
        assert_eq!(removed, [2, 1, 2]);
        let index = Index::of(&gallery).unwrap();
        let queries = Vectors::new(vec![1.0], 1, Distance::Euclidean);
        for by in [By::Nearest, By::Mean] {
            let answers = search(&gallery, &index, &queries, 5, by, 1e9).unwrap();
            assert_eq!(answers, [Answer { nearest: vec![], person: None }]);
        }
    }
}
