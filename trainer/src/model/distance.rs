//! The distance between two embeddings, named as on the command line; everything that compares embeddings computes it
//! here.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What `--distance` says. A model is measured by the distance that it was trained with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Distance {
    /// `Σ (x - y)²`.
    #[default]
    SquaredEuclidean,
    /// `√Σ (x - y)²`.
    Euclidean,
    /// `1 - x·y / (‖x‖ ‖y‖)`.
    Cosine,
    /// `(Σ |x - y|^p)^(1/p)`.
    Lp(f64),
}

impl Distance {
    /// The name that `--distance` takes.
    pub fn name(self) -> String {
        match self {
            Self::SquaredEuclidean => "squared-euclidean".into(),
            Self::Euclidean => "euclidean".into(),
            Self::Cosine => "cosine".into(),
            Self::Lp(p) => format!("lp:{p}"),
        }
    }

    /// The name for people and in `model.json`, such as "squared Euclidean".
    pub fn title(self) -> String {
        match self {
            Self::SquaredEuclidean => "squared Euclidean".into(),
            Self::Euclidean => "Euclidean".into(),
            Self::Cosine => "cosine".into(),
            Self::Lp(p) => format!("L{p}"),
        }
    }

    /// The distance with this title.
    pub fn from_title(title: &str) -> Option<Self> {
        let named = [Self::SquaredEuclidean, Self::Euclidean, Self::Cosine].into_iter();
        named.chain(title.strip_prefix('L').and_then(Self::power)).find(|distance| distance.title() == title)
    }

    /// Whether rows must be brought to length 1 for this distance: the cosine compares directions alone.
    pub fn of_directions(self) -> bool {
        self == Self::Cosine
    }

    /// The distance between two embeddings, by direct difference: exactly 0 for equal rows, and the same for `(a, b)`
    /// and `(b, a)`. For the cosine, rows must have length 1, or be 0.
    pub fn between(self, a: &[f32], b: &[f32]) -> f32 {
        match self {
            Self::SquaredEuclidean => squared_distance(a, b),
            Self::Euclidean => squared_distance(a, b).sqrt(),
            // ‖a - b‖² = 2 - 2 a·b, without the cancellation of 1 - a·b. A row of zeros has no direction: a·b = 0.
            Self::Cosine if is_zero(a) || is_zero(b) => 1.0,
            Self::Cosine => 0.5 * squared_distance(a, b),
            Self::Lp(p) => power_distance(a, b, p),
        }
    }

    /// The distance as losses that mine a batch take it: none of them takes powers.
    pub fn of_batches(self) -> Option<tercet::Distance> {
        match self {
            Self::SquaredEuclidean => Some(tercet::Distance::SquaredEuclidean),
            Self::Euclidean => Some(tercet::Distance::Euclidean),
            Self::Cosine => Some(tercet::Distance::Cosine),
            Self::Lp(_) => None,
        }
    }

    fn power(text: &str) -> Option<Self> {
        text.parse().ok().filter(|p: &f64| *p > 0.0).map(Self::Lp)
    }
}

impl From<Distance> for tercet::PairedDistance {
    fn from(distance: Distance) -> Self {
        match distance {
            Distance::SquaredEuclidean => Self::SquaredEuclidean,
            Distance::Euclidean => Self::Euclidean,
            Distance::Cosine => Self::Cosine,
            Distance::Lp(p) => Self::Lp { p, eps: 0.0 },
        }
    }
}

impl From<Distance> for String {
    fn from(distance: Distance) -> Self {
        distance.name()
    }
}

impl TryFrom<String> for Distance {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Distance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "squared-euclidean" => Ok(Self::SquaredEuclidean),
            "euclidean" => Ok(Self::Euclidean),
            "cosine" => Ok(Self::Cosine),
            _ => text.strip_prefix("lp:").and_then(Self::power).ok_or_else(|| {
                "expected squared-euclidean, euclidean, cosine, or lp:P with a P above 0, such as lp:1 or lp:inf".into()
            }),
        }
    }
}

fn is_zero(row: &[f32]) -> bool {
    row.iter().all(|&v| v == 0.0)
}

/// `Σ (x - y)²`.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, which the compiler keeps in vector registers: it may not reorder a single sum.
    let mut sums = [0f32; 8];
    let (xs, ys) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = xs.remainder().iter().zip(ys.remainder());
    let rest: f32 = rest.map(|(x, y)| (x - y) * (x - y)).sum();
    for (x, y) in xs.zip(ys) {
        for k in 0..8 {
            sums[k] += (x[k] - y[k]) * (x[k] - y[k]);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `m (Σ (|x - y| / m)^p)^(1/p)` with the largest difference `m`: without it a large `p` rounds all powers to 0 or infinity.
fn power_distance(a: &[f32], b: &[f32], p: f64) -> f32 {
    let differences = || a.iter().zip(b).map(|(x, y)| f64::from((x - y).abs()));
    let largest = differences().fold(0.0, f64::max);
    if largest == 0.0 || p.is_infinite() || largest.is_infinite() {
        return largest as f32;
    }
    let sum: f64 = differences().map(|d| (d / largest).powf(p)).sum();
    (largest * sum.powf(1.0 / p)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_exact_on_integers_whatever_the_length() {
        for dim in [1, 3, 8, 17, 128] {
            let a: Vec<f32> = (0..dim).map(|k| (k % 5) as f32).collect();
            let b: Vec<f32> = (0..dim).map(|k| (k % 3) as f32).collect();
            let expected: f32 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
            assert_eq!(squared_distance(&a, &b), expected);
            assert_eq!(squared_distance(&a, &a), 0.0);
        }
    }

    #[test]
    fn each_distance_by_hand() {
        let (a, b) = ([3f32, 0.0, -1.0], [0f32, 4.0, -1.0]);
        let of = |text: &str, a: &[f32], b: &[f32]| text.parse::<Distance>().unwrap().between(a, b);
        for (text, expected) in
            [("squared-euclidean", 25.0), ("euclidean", 5.0), ("lp:1", 7.0), ("lp:2", 5.0), ("lp:inf", 4.0)]
        {
            assert_eq!(of(text, &a, &b), expected, "{text}");
            assert_eq!((of(text, &b, &a), of(text, &a, &a)), (expected, 0.0), "{text}");
        }
        // 4 (1 + 0.75^400)^(1/400): 4^400 is more than f64 holds.
        assert_eq!(of("lp:1000", &a, &b), 4.0);
        assert_eq!(of("lp:1000", &[0.003], &[0.0]), 0.003);
        // Directions at 90 and 60 degrees and opposite; a row of zeros is at 1 from everything, as in the losses.
        let root = 0.75f32.sqrt();
        for (a, b, expected) in [
            ([1.0, 0.0], [0.0, 1.0], 1.0),
            ([1.0, 0.0], [0.5, root], 0.5),
            ([1.0, 0.0], [-1.0, 0.0], 2.0),
            ([1.0, 0.0], [1.0, 0.0], 0.0),
            ([0.0, 0.0], [1.0, 0.0], 1.0),
            ([0.0, 0.0], [0.0, 0.0], 1.0),
        ] {
            assert!((of("cosine", &a, &b) - expected).abs() < 1e-6, "{a:?} {b:?}");
        }
    }

    #[test]
    fn it_is_the_losses_distance() {
        use tercet::{Matrix, PairwiseDistance};
        let rows: Vec<f32> = (0..4 * 7).map(|i| ((i * 37 % 23) as f32 - 11.0) / 7.0).collect();
        let unit: Vec<f32> = rows
            .chunks(7)
            .flat_map(|row| {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                row.iter().map(move |v| v / norm)
            })
            .collect();
        for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
            let x = Matrix::new(&rows, 7).unwrap();
            let mut expected = [0f32; 16];
            let all = PairwiseDistance { distance: distance.of_batches().unwrap(), ..Default::default() };
            all.distances(x, x, &mut expected).unwrap();
            let own = if distance.of_directions() { &unit } else { &rows };
            for i in 0..4 {
                for j in 0..4 {
                    let got = distance.between(&own[7 * i..][..7], &own[7 * j..][..7]);
                    let there = expected[4 * i + j];
                    assert!((got - there).abs() <= 1e-5 * there.max(1.0), "{distance:?}: {got}, {there}");
                }
            }
        }
    }

    #[test]
    fn names_and_titles_lead_back() {
        for text in ["squared-euclidean", "euclidean", "cosine", "lp:1", "lp:2.5", "lp:inf"] {
            let distance: Distance = text.parse().unwrap();
            assert_eq!(distance.name(), text);
            assert_eq!(Distance::from_title(&distance.title()), Some(distance));
            let json = serde_json::to_string(&distance).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Distance>(&json).unwrap(), distance);
        }
        for text in ["Euclidean", "lp", "lp:0", "lp:-1", "lp:nan", "manhattan", ""] {
            assert!(text.parse::<Distance>().unwrap_err().contains("lp:P"), "{text}");
        }
        assert_eq!((Distance::from_title("euclidean"), Distance::from_title("L0")), (None, None));
    }
}
