//! `top_k` at its edges: ties, nothing to find, numbers that are too large, and arguments that are refused.

use half::f16;
use tercet::{Distance, Int8Rows, Matrix, Own, TopK};

/// The distances and indices of a search, of one query or several.
fn search<const K: usize>(top: &TopK, queries: &[f32], stored: &[f32], dim: usize) -> (Vec<f32>, Vec<i64>) {
    let queries = Matrix::new(queries, dim).unwrap();
    let (mut distances, mut indices) = (vec![-1.0; queries.rows() * K], vec![-7; queries.rows() * K]);
    let top = TopK { k: K, ..*top };
    top.on(queries, Matrix::new(stored, dim).unwrap()).search(&mut distances, &mut indices).unwrap();
    (distances, indices)
}

/// As many queries as go by each of both ways: a few, and many.
const COUNTS: [usize; 2] = [2, 40];

#[test]
fn of_equal_rows_the_first_ones_are_found_in_order() {
    for count in COUNTS {
        for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
            let stored = vec![1.0f32; 3 * 700];
            let top = TopK { distance, ..Default::default() };
            let (distances, indices) = search::<9>(&top, &vec![1.0; 3 * count], &stored, 3);
            assert_eq!(distances, vec![0.0; 9 * count]);
            assert_eq!(indices, (0..count).flat_map(|_| 0..9).collect::<Vec<i64>>());
        }
    }
}

/// Squared distances of 1 + 2^-23 and of 1, in that order: both roots are 1 in f32, and the lower index is found.
#[test]
fn equal_roots_of_different_squares_are_ties() {
    for count in COUNTS {
        let stored = [1.0f32, 0.0003, 1.0, 0.0];
        assert_eq!(1.0 + stored[1] * stored[1], 1.0 + f32::EPSILON);
        let (squared, top) = (TopK::default(), TopK { distance: Distance::Euclidean, ..Default::default() });
        let (distances, indices) = search::<1>(&squared, &vec![0.0; 2 * count], &stored, 2);
        assert_eq!((distances[0], indices[0]), (1.0, 1));
        let (distances, indices) = search::<1>(&top, &vec![0.0; 2 * count], &stored, 2);
        assert_eq!((distances[0], indices[0]), (1.0, 0));
    }
}

#[test]
fn without_rows_nothing_is_found() {
    for count in COUNTS {
        let (distances, indices) = search::<3>(&TopK::default(), &vec![0.5; 4 * count], &[], 4);
        assert_eq!(distances, vec![f32::INFINITY; 3 * count]);
        assert_eq!(indices, vec![-1; 3 * count]);
    }
}

#[test]
fn rows_too_far_are_neighbours_at_infinity_and_huge_ones_keep_their_difference() {
    for count in COUNTS {
        let stored = [3e38f32, 0.0, 1e20, f32::INFINITY, f32::NAN];
        let (distances, indices) = search::<5>(&TopK::default(), &vec![1e20 + 1e14; count], &stored, 1);
        let expected = (1e20f32 + 1e14 - 1e20).powi(2);
        assert_eq!(indices[..5], [2, 0, 1, -1, -1]);
        assert_eq!(distances[..5], [expected, f32::INFINITY, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
    }
}

/// Numbers beyond f16 are infinite where they are stored.
#[test]
fn exact_rows_decide_where_the_stored_ones_overflow() {
    for count in COUNTS {
        let exact = [1e6f32, 7.0, 1e6 + 1.0];
        let stored = exact.map(f16::from_f32);
        let queries = vec![1e6f32 + 1.0; count];
        let (mut distances, mut indices) = (vec![0.0; 2 * count], vec![0; 2 * count]);
        let top = TopK { k: 2, ..Default::default() };
        let search = top.on(Matrix::new(&queries, 1).unwrap(), Matrix::new(&stored, 1).unwrap());
        search.exact(Matrix::new(&exact, 1).unwrap()).search(&mut distances, &mut indices).unwrap();
        assert_eq!((&distances[..2], &indices[..2]), (&[0.0, 1.0][..], &[2, 0][..]));
    }
}

/// Rows far from the origin, where products of rows have no digit left of a distance.
#[test]
fn rows_far_from_the_origin_keep_their_order() {
    let stored: Vec<f32> = (0..2000).map(|i| 4096.0 + i as f32 / 1024.0).collect();
    let queries: Vec<f32> = (0..100).map(|i| stored[20 * i]).collect();
    let (distances, indices) = search::<2>(&TopK::default(), &queries, &stored, 1);
    for i in 0..100 {
        let second = if i == 0 { 1 } else { 20 * i as i64 - 1 };
        assert_eq!(indices[2 * i..][..2], [20 * i as i64, second]);
        assert_eq!(distances[2 * i..][..2], [0.0, (1.0f32 / 1024.0).powi(2)]);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (x, stored) = ([0f32; 6], [0f32; 9]);
    let queries = Matrix::new(&x, 3).unwrap();
    let rows = Matrix::new(&stored, 3).unwrap();
    let (mut distances, mut indices) = ([0f32; 4], [0i64; 4]);
    let top = TopK { k: 2, ..Default::default() };
    let none = TopK { k: 0, ..top };
    let message = |result: Result<(), tercet::Error>| result.unwrap_err().to_string();
    let refused = message(none.on(queries, rows).search(&mut distances, &mut indices));
    assert_eq!(refused, "k: expected at least 1, got 0");
    let refused = message(top.on(queries, Matrix::new(&stored[..8], 2).unwrap()).search(&mut distances, &mut indices));
    assert_eq!(refused, "stored: expected rows of 3 numbers, as the queries, got [4, 2]");
    let refused = message(top.on(Matrix::new(&x[..0], 3).unwrap(), rows).search(&mut [], &mut []));
    assert_eq!(refused, "queries: expected at least one row and one column, got [0, 3]");
    let refused = message(top.on(queries, rows).search(&mut distances[..3], &mut indices));
    assert_eq!(refused, "distances: expected 4 numbers, got 3");
    let refused = message(top.on(queries, rows).search(&mut distances, &mut indices[..3]));
    assert_eq!(refused, "indices: expected 4 numbers, got 3");
    let refused = message(top.on(queries, rows).own(Own::Rows(&[1])).search(&mut distances, &mut indices));
    assert_eq!(refused, "own: expected 2 numbers, got 1");
    let refused = message(top.on(queries, rows).exact(queries).search(&mut distances, &mut indices));
    assert_eq!(refused, "exact: expected [3, 3], as the stored rows, got [2, 3]");
    let wide = [0f64; 9];
    let refused = message(top.on(queries, Matrix::new(&wide, 3).unwrap()).search(&mut distances, &mut indices));
    assert_eq!(refused, "stored: expected f32, f16, bf16 or int8, got f64");
    let queries = Matrix::new(&wide[..6], 3).unwrap();
    let refused = message(top.on(queries, rows).search(&mut [0f64; 4], &mut indices));
    assert_eq!(refused, "stored: expected f64, as the queries, got f32");
    let refused =
        message(top.on(queries, Matrix::new(&wide, 3).unwrap()).exact(rows).search(&mut [0f64; 4], &mut indices));
    assert_eq!(refused, "exact: expected none for f64, got f32");
    let refused = Int8Rows::new(&[0; 5], &[1.0, 2.0], 3).unwrap_err().to_string();
    assert_eq!(refused, "data: expected 3 integers for each of 2 scales, got 5");
}
