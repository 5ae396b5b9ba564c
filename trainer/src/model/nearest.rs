//! The nearest embeddings of many, in memory for the results alone.

use crate::model::vectors::Vectors;
use rayon::prelude::*;
use tercet::{Matrix, TopK};

/// The `k` nearest of rows of `dim` numbers for some of the queries, and how far they are; of equally far ones the first.
pub fn nearest_rows(rows: &[f32], dim: usize, queries: &Vectors, some: &[usize], k: usize) -> Vec<Vec<(usize, f32)>> {
    let between = |query: usize, row: usize| queries.measure().between(queries.row(query), &rows[row * dim..][..dim]);
    if k == 0 {
        return vec![Vec::new(); some.len()];
    }
    let Some(distance) = queries.measure().of_batches() else {
        // No other distance has a search of its own.
        let all = |&query: &usize| {
            let mut all: Vec<(usize, f32)> = (0..rows.len() / dim).map(|row| (row, between(query, row))).collect();
            all.sort_by(|x, y| x.1.total_cmp(&y.1).then(x.0.cmp(&y.0)));
            all.truncate(k);
            all
        };
        return some.par_iter().map(all).collect();
    };
    let of_some: Vec<f32> = some.iter().flat_map(|&query| queries.row(query)).copied().collect();
    let (mut distances, mut indices) = (vec![0.0; some.len() * k], vec![0; some.len() * k]);
    let top = TopK { k, distance, ..Default::default() };
    let matrix = |rows| Matrix::new(rows, dim).expect("whole rows");
    top.on(matrix(&of_some), matrix(rows)).search(&mut distances, &mut indices).expect("shapes that go together");
    // The distances as `verify` computes them.
    let nearest = some.par_iter().zip(indices.par_chunks_exact(k)).map(|(&query, rows)| {
        let found = rows.iter().filter(|row| **row >= 0).map(|&row| (row as usize, between(query, row as usize)));
        found.collect()
    });
    nearest.collect()
}

/// What is done with each query's neighbours: of some of the embeddings, the `k` nearest others of them all. Few enough
/// queries are searched for at a time that the neighbours of all need not be in memory.
pub fn for_nearest_others<T: Send>(
    vectors: &Vectors,
    some: &[usize],
    k: usize,
    then: impl Fn(usize, &[(usize, f32)]) -> T + Sync,
) -> Vec<T> {
    /// Neighbours that are in memory at a time.
    const TOGETHER: usize = 1 << 21;
    let of = |queries: &[usize]| -> Vec<T> {
        // One more, which is the query itself; where as many equal ones come first, it is not among them.
        let nearest = nearest_rows(vectors.as_slice(), vectors.dim(), vectors, queries, (k + 1).min(vectors.len()));
        let one = |(&query, mut nearest): (&usize, Vec<(usize, f32)>)| {
            nearest.retain(|(row, _)| *row != query);
            nearest.truncate(k);
            then(query, &nearest)
        };
        queries.par_iter().zip(nearest).map(one).collect()
    };
    some.chunks((TOGETHER / (k + 1)).max(1)).flat_map(of).collect()
}
