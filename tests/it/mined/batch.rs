//! Batches of labelled rows, alone or with a reference set: the cases of mined losses and of `pairwise_distance`.

use proptest::prelude::*;
use tercet::{Distance, Element, Matrix, Own, Precision, Reduction, Reference, Stats};

use crate::support::Numbers;
use crate::support::property::Limits;

/// Statistics of so many valid and active terms, and of these mean distances to positives and to negatives.
pub fn stats([valid, active]: [u64; 2], [positive, negative]: [f64; 2], too_many_pairs: bool) -> Stats {
    let mut stats = Stats::default();
    stats.too_many_pairs = too_many_pairs;
    (stats.valid, stats.active) = (valid, active);
    (stats.mean_positive_distance, stats.mean_negative_distance) = (positive, negative);
    stats
}

/// What the embeddings look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content {
    /// Uniform in [-scale, scale).
    Uniform { scale: f64 },
    /// Integers from -2 to 2, moved by `offset`: equal distances, coincident points, exact zeros of the hinge.
    Lattice { offset: f64 },
    /// A large common offset, which must cancel.
    Offset,
    /// All rows close to one unit vector.
    Collapsed,
    /// Even and odd classes far from each other, their rows close together.
    Clusters,
    /// Some rows all zero, some equal.
    Degenerate,
    /// Most rows at one place, the others far from it; the differences of these are below the last digit of the first.
    Far,
}

/// How the rows are labelled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Labelling {
    /// At random, `each` rows per class on average.
    Random { each: usize },
    /// One class.
    One,
    /// A class of its own for every row.
    Singletons,
    /// Two classes, in turn.
    Two,
    /// One class of all rows except the last few, each of which has its own.
    Large,
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub rows: usize,
    pub dim: usize,
    /// Numbers between the end of a row and the start of the next.
    pub gap: usize,
    /// Numbers before the first row.
    pub offset: usize,
    pub content: Content,
    pub labelling: Labelling,
    pub seed: u64,
    /// `None`: the batch is its own reference.
    pub reference: Option<Set>,
}

/// What the reference set is like; its numbers are of the same kind as the batch's.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    pub rows: usize,
    pub own: OwnRows,
}

#[derive(Clone, Copy, Debug)]
pub enum OwnRows {
    None,
    /// Anchor a is row `a + offset` of the set, if there is such a row.
    Offset(i64),
    /// Some anchors are rows of the set, some are not.
    Rows,
}

fn sets(largest: usize) -> impl Strategy<Value = Option<Set>> {
    let rows: Vec<usize> = [1, 2, 5, 63, 64, 65, 130, 257].into_iter().filter(|rows| *rows <= largest).collect();
    let rows = proptest::sample::select(rows);
    let rows = prop_oneof![1 => rows, 1 => 1..=largest];
    let own = prop_oneof![
        1 => Just(OwnRows::None),
        1 => (-3i64..70).prop_map(OwnRows::Offset),
        1 => Just(OwnRows::Offset(i64::MIN)),
        2 => Just(OwnRows::Rows),
    ];
    proptest::option::weighted(0.4, (rows, own).prop_map(|(rows, own)| Set { rows, own }))
}

pub fn batches(largest: usize) -> impl Strategy<Value = Batch> {
    let contents = prop_oneof![
        4 => proptest::sample::select(vec![1.0, 0.1, 30.0]).prop_map(|scale| Content::Uniform { scale }),
        2 => proptest::sample::select(vec![0.0, 1000.0]).prop_map(|offset| Content::Lattice { offset }),
        1 => Just(Content::Offset),
        1 => Just(Content::Collapsed),
        1 => Just(Content::Clusters),
        1 => Just(Content::Degenerate),
        1 => Just(Content::Far),
    ];
    let labels = prop_oneof![
        6 => proptest::sample::select(vec![2, 4, 8]).prop_map(|each| Labelling::Random { each }),
        1 => Just(Labelling::One),
        1 => Just(Labelling::Singletons),
        1 => Just(Labelling::Two),
        1 => Just(Labelling::Large),
    ];
    let boundaries = [1, 2, 3, 4, 7, 8, 9, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 255, 256, 257, 300];
    let boundaries: Vec<usize> = boundaries.into_iter().filter(|n| *n <= largest).collect();
    let rows = prop_oneof![3 => proptest::sample::select(boundaries), 1 => 1..=largest];
    let dims = proptest::sample::select(vec![1, 2, 3, 5, 8, 17, 31, 33, 64, 127, 128, 513]);
    (contents, labels, rows, dims, 0usize..5, 0usize..3, any::<u64>(), sets(largest)).prop_map(
        |(content, labelling, rows, dim, gap, offset, seed, reference)| {
            // The oracle is slow: many rows only if they are short.
            let all = rows + reference.map_or(0, |set| set.rows);
            let few = |rows: usize| if all * all * dim > 1_000_000 { rows.min(40) } else { rows };
            let reference = reference.map(|set| Set { rows: few(set.rows), ..set });
            Batch { rows: few(rows), dim, gap, offset, content, labelling, seed, reference }
        },
    )
}

/// Numbers that T holds exactly, in the forms for the backend and for the oracle.
pub struct Data<T> {
    /// As the backend reads them, with offset and gaps.
    pub laid_out: Vec<T>,
    pub exact: Vec<f64>,
    pub labels: Vec<i64>,
    /// One number, or one per row.
    pub upstream: Vec<f64>,
    pub reference: Option<Other<T>>,
}

/// A case as the oracles take it.
#[derive(Clone, Copy)]
pub struct Exact<'a> {
    pub embeddings: Matrix<'a, f64>,
    pub labels: &'a [i64],
    pub set: Option<&'a Reference<Matrix<'a, f64>, &'a [i64]>>,
    pub upstream: &'a [f64],
}

/// The reference set of a case.
pub struct Other<T> {
    pub batch: Batch,
    pub laid_out: Vec<T>,
    pub exact: Vec<f64>,
    pub labels: Vec<i64>,
    pub own: Own<Vec<i64>>,
}

impl<T: Element> Data<T> {
    pub fn new(batch: &Batch, reduction: Reduction) -> Self {
        let mut numbers = Numbers(batch.seed);
        let Batch { rows, dim, .. } = *batch;
        let others = batch.reference.map_or(0, |set| set.rows);
        let (mut exact, mut labels) = content::<T>(batch, rows + others, &mut numbers);
        let (mut other_exact, mut other_labels) = (exact.split_off(rows * dim), labels.split_off(rows));
        let reference = batch.reference.map(|set| {
            let own = match set.own {
                OwnRows::None => Own::None,
                OwnRows::Offset(offset) => Own::Offset(offset),
                OwnRows::Rows => Own::Rows(
                    (0..rows)
                        .map(|_| match numbers.below(4) {
                            0 => -1 - numbers.below(3) as i64,
                            1 => (others + numbers.below(3)) as i64,
                            _ => numbers.below(others) as i64,
                        })
                        .collect::<Vec<_>>(),
                ),
            };
            for a in 0..rows {
                if let Some(row) = own_row(&own, a, others) {
                    other_exact[row * dim..][..dim].copy_from_slice(&exact[a * dim..][..dim]);
                    other_labels[row] = labels[a];
                }
            }
            let batch = Batch { rows: others, reference: None, ..batch.clone() };
            Other { laid_out: lay_out(&batch, &other_exact), exact: other_exact, labels: other_labels, own, batch }
        });
        let count = if reduction == Reduction::None { rows } else { 1 };
        let upstream = (0..count).map(|_| T::Scalar::from_f64(2.0 * numbers.unit()).to_f64()).collect();
        Self { laid_out: lay_out(batch, &exact), exact, labels, upstream, reference }
    }

    pub fn matrix(&self, batch: &Batch) -> Matrix<'_, T> {
        rows_of(&self.laid_out, batch)
    }

    /// The reference set as backends take it.
    pub fn set(&self) -> Option<Reference<Matrix<'_, T>, &[i64]>> {
        let other = self.reference.as_ref()?;
        Some(Reference {
            embeddings: rows_of(&other.laid_out, &other.batch),
            labels: &other.labels,
            own: borrowed(&other.own),
        })
    }

    /// The reference set as the oracle takes it.
    pub fn exact_set(&self, dim: usize) -> Option<Reference<Matrix<'_, f64>, &[i64]>> {
        let other = self.reference.as_ref()?;
        let embeddings = Matrix::new(&other.exact, dim).unwrap();
        Some(Reference { embeddings, labels: &other.labels, own: borrowed(&other.own) })
    }

    /// The anchors, followed by the reference set.
    pub fn all_exact(&self) -> Vec<f64> {
        [&self.exact[..], self.reference.as_ref().map_or(&[], |other| &other.exact)].concat()
    }

    /// The labels of the rows that positives and negatives are drawn from.
    pub fn other_labels(&self) -> &[i64] {
        self.reference.as_ref().map_or(&self.labels, |other| &other.labels)
    }

    /// The place in [`all_exact`](Self::all_exact) of row `j` of those that positives and negatives are drawn from.
    pub fn other(&self, j: usize) -> usize {
        if self.reference.is_some() { self.labels.len() + j } else { j }
    }

    /// Which row of those that positives and negatives are drawn from is the anchor itself.
    pub fn own(&self, a: usize) -> Option<usize> {
        match &self.reference {
            None => Some(a),
            Some(other) => own_row(&other.own, a, other.labels.len()),
        }
    }

    /// How many pairs of an anchor and a row of its class there are, the anchor itself among them.
    #[cfg(feature = "cuda")]
    pub fn pairs_of_a_class(&self) -> usize {
        let others = self.other_labels();
        self.labels.iter().map(|label| others.iter().filter(|other| *other == label).count()).sum()
    }

    pub fn is_positive(&self, a: usize, j: usize) -> bool {
        self.labels[a] == self.other_labels()[j] && self.own(a) != Some(j)
    }

    pub fn is_negative(&self, a: usize, j: usize) -> bool {
        self.labels[a] != self.other_labels()[j]
    }

    pub fn scalars(numbers: &[f64]) -> Vec<T::Scalar> {
        numbers.iter().map(|x| T::Scalar::from_f64(*x)).collect()
    }
}

fn rows_of<'a, T: Element>(laid_out: &'a [T], batch: &Batch) -> Matrix<'a, T> {
    Matrix::strided(&laid_out[batch.offset..], batch.rows, batch.dim, batch.dim + batch.gap).unwrap()
}

fn borrowed(own: &Own<Vec<i64>>) -> Own<&[i64]> {
    match own {
        Own::None => Own::None,
        Own::Offset(offset) => Own::Offset(*offset),
        Own::Rows(rows) => Own::Rows(rows),
    }
}

fn own_row(own: &Own<Vec<i64>>, a: usize, others: usize) -> Option<usize> {
    let row = match own {
        Own::None => return None,
        Own::Offset(offset) => offset.checked_add(a as i64)?,
        Own::Rows(rows) => rows[a],
    };
    usize::try_from(row).ok().filter(|row| *row < others)
}

/// Puts NaN before and between the rows: it must not matter.
fn lay_out<T: Element>(batch: &Batch, exact: &[f64]) -> Vec<T> {
    let Batch { rows, dim, gap, offset, .. } = *batch;
    let mut laid_out = vec![T::from_f64(f64::NAN); offset + rows * (dim + gap)];
    for (row, from) in exact.chunks(dim).enumerate() {
        for (to, from) in laid_out[offset + row * (dim + gap)..].iter_mut().zip(from) {
            *to = T::from_f64(*from);
        }
    }
    laid_out
}

/// `rows` rows of the batch's content, and their labels.
fn content<T: Element>(batch: &Batch, rows: usize, numbers: &mut Numbers) -> (Vec<f64>, Vec<i64>) {
    let Batch { dim, content, labelling, .. } = *batch;
    let labels: Vec<i64> = (0..rows)
        .map(|i| match labelling {
            Labelling::Random { each } => numbers.below(rows.div_ceil(each)) as i64 * 1_000_003 - 17,
            Labelling::One => i64::MAX,
            Labelling::Singletons => i64::MIN + i as i64,
            Labelling::Two => (i % 2) as i64,
            Labelling::Large => {
                if i + 3 < rows {
                    5
                } else {
                    -(i as i64)
                }
            }
        })
        .collect();
    let direction: Vec<f64> = (0..dim).map(|_| numbers.unit()).collect();
    let norm = direction.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-3);
    let mut exact: Vec<f64> = Vec::new();
    for (row, label) in labels.iter().enumerate() {
        let copied = row > 0 && numbers.below(4) == 0;
        let from = if copied { numbers.below(row) } else { 0 };
        for k in 0..dim {
            let value = match content {
                Content::Uniform { scale } => scale * numbers.unit(),
                Content::Lattice { offset } => offset + numbers.below(5) as f64 - 2.0,
                Content::Offset => 1000.0 + numbers.unit(),
                Content::Collapsed => direction[k] / norm + 1e-3 * numbers.unit(),
                Content::Clusters => {
                    let center = if label % 2 == 0 { 10.0 } else { -10.0 } * direction[k];
                    center + 1e-2 * numbers.unit()
                }
                Content::Degenerate if copied => exact[from * dim + k],
                Content::Degenerate if row % 5 == 0 => 0.0,
                Content::Degenerate => numbers.unit(),
                Content::Far if row % 4 < 3 => 1000.0 * direction[k],
                Content::Far => 0.1 * direction[k] + 1e-6 * numbers.unit(),
            };
            exact.push(T::from_f64(value).to_f64());
        }
    }
    (exact, labels)
}

pub fn distances() -> impl Strategy<Value = Distance> {
    proptest::sample::select(vec![Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine])
}

/// The precisions to draw from: on devices half of the time the default.
pub fn precisions(limits: Limits) -> impl Strategy<Value = Precision> {
    let on_devices = [Precision::Highest, Precision::Highest, Precision::High, Precision::Medium];
    proptest::sample::select(if limits.any_precision { on_devices.to_vec() } else { vec![Precision::Highest] })
}
