//! A batch of embeddings made ready for tiles of distances: in the type of arithmetic, normalised, sorted by class, and
//! moved to where products lose little.
//!
//! `d² = n_i + n_j - 2 x_i·x_j` with `n = ‖x‖²` costs one product, but its error is relative to `n_i + n_j`: far from the
//! origin nothing is left of a small distance. Translation changes no difference, so the rows are moved when their mean
//! is farther from the origin than they are from their mean. They are moved by one of the rows, not by the mean:
//! differences of numbers of one grid are exact, and equal distances stay equal.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::blocks;
use super::gemm::View;
use super::rows::Rows;
use super::simd::V;
use crate::Distance;
use crate::constants::MIN_NORM;
use crate::element::{ByScalar, ScalarFn};
use crate::{Element, Matrix, Scalar};

/// Rows of one task.
const TASK_ROWS: usize = 64;

/// What a row was divided by, and whether that is `MIN_NORM`, because the row's norm is below it.
type Norm<A> = (A, bool);

/// The sums of a block of rows; rows whose squares overflow do not count.
struct Sums<A> {
    count: usize,
    /// Of each column; empty for cosine, which needs none.
    columns: Vec<A>,
    /// Of all squares.
    squares: f64,
}

/// A block of rows that is made ready.
struct Part<'a, A> {
    x: &'a mut [A],
    /// If rows are normalised.
    norms: Option<&'a mut [Norm<A>]>,
    squares: &'a mut [A],
    sums: &'a mut Sums<A>,
    /// Whether a number is NaN or infinite.
    bad: &'a mut bool,
}

/// Rows in the type of arithmetic, in the order asked for.
pub struct Batch<A> {
    pub metric: Distance,
    pub rows: usize,
    pub dim: usize,
    /// The embeddings, normalised if the loss does so.
    pub x: Vec<A>,
    /// The norm of each row; empty without normalisation.
    norms: Vec<Norm<A>>,
    /// `‖x‖²` of each row.
    squares: Vec<A>,
    /// Of each block of [`TASK_ROWS`] rows.
    sums: Vec<Sums<A>>,
    /// Whether a number is NaN or infinite, or a norm to divide by overflowed.
    pub poisoned: bool,
}

impl<A: Scalar> Batch<A> {
    /// Row `i` is row `order[i]` of `matrix`.
    pub fn new<T: Element<Scalar = A>>(
        matrix: &Matrix<'_, T>,
        order: &[u32],
        metric: Distance,
        normalize: bool,
    ) -> Self {
        let (rows, dim) = (order.len(), matrix.dim());
        let cosine = metric == Distance::Cosine;
        let normalize = normalize || cosine;
        let blocks = rows.div_ceil(TASK_ROWS);
        let mut x = vec![A::ZERO; rows * dim];
        let mut norms = vec![(A::ONE, false); if normalize { rows } else { 0 }];
        let mut squares = vec![A::ZERO; rows];
        let sums = || Sums { count: 0, columns: vec![A::ZERO; if cosine { 0 } else { dim }], squares: 0.0 };
        let mut sums: Vec<Sums<A>> = std::iter::repeat_with(sums).take(blocks).collect();
        let mut bad = vec![false; blocks];
        let of_norms = blocks::cut(normalize.then_some(&mut norms[..]), TASK_ROWS, blocks);
        let parts = x.chunks_mut(TASK_ROWS * dim).zip(of_norms).zip(squares.chunks_mut(TASK_ROWS));
        let parts = parts.zip(&mut sums).zip(&mut bad);
        let parts = parts.map(|((((x, norms), squares), sums), bad)| Part { x, norms, squares, sums, bad }).collect();
        // While a block is in the cache.
        blocks::for_each(parts, |block, part: Part<'_, A>| {
            for (to, &from) in part.x.chunks_exact_mut(dim).zip(&order[block * TASK_ROWS..]) {
                T::widen(matrix.row(from as usize), to);
            }
            A::of_scalar(&FINISH)(part, dim);
        });
        Self { metric, rows, dim, x, norms, squares, sums, poisoned: bad.contains(&true) }
    }

    pub fn row(&self, i: usize) -> &[A] {
        &self.x[i * self.dim..][..self.dim]
    }

    /// Turns the gradient with respect to row `i` of `x` into that with respect to the given row, in place. The part
    /// along the row is gone afterwards.
    pub fn through_normalization(&self, i: usize, gradient: &mut [A]) {
        let Some(&(norm, flat)) = self.norms.get(i) else { return };
        // Through u = x / norm:  (g - (g·u) u) / norm.
        if !flat {
            let u = self.row(i);
            let along = -dot(gradient, u);
            add_scaled(gradient, along, u);
        }
        gradient.iter_mut().for_each(|g| *g = *g / norm);
    }

    /// What the distance of rows `i` and `j` is compared by, from the rows themselves: `Σ (x - y)²`, also for Euclidean
    /// distances, or `1 - u·v`.
    pub fn direct(&self, i: usize, j: usize) -> A {
        direct(self.metric, self.row(i), self.row(j))
    }

    /// The distance, from what it is [compared](Self::direct) by.
    pub fn distance(&self, compared: A) -> A {
        if self.is_root() { compared.sqrt() } else { compared }
    }

    /// Whether no number of row `i` is NaN or infinite.
    pub fn is_finite(&self, i: usize) -> bool {
        self.row(i).iter().all(|x| x.is_finite())
    }

    pub fn is_root(&self) -> bool {
        matches!(self.metric, Distance::Euclidean)
    }

    /// The [`slope`](Self::slope) without the division by the distance.
    pub fn slope_factor(&self) -> A {
        match self.metric {
            Distance::SquaredEuclidean => A::ONE + A::ONE,
            _ => A::ONE,
        }
    }

    /// The gradient of the distance with respect to row `i` of `x` is `slope (x_i - x_j)`, for cosine `-slope x_j`.
    pub fn slope(&self, distance: A) -> A {
        match self.metric {
            Distance::Euclidean if distance > A::ZERO => A::ONE / distance,
            Distance::Euclidean => A::ZERO,
            _ => self.slope_factor(),
        }
    }

    /// Adds `weight` times the gradient of the distance with respect to row `i` of `x` to `gradient`; `weight`
    /// includes the [`slope`](Self::slope).
    pub fn pull(&self, gradient: &mut [A], weight: A, i: usize, j: usize) {
        match self.metric {
            Distance::Cosine => add_scaled(gradient, -weight, self.row(j)),
            _ => add_scaled_difference(gradient, weight, self.row(i), self.row(j)),
        }
    }
}

/// Rows sorted by class.
pub struct Classes {
    /// For each sorted row its given index; within a class they ascend, so that the first of equals is the lowest.
    pub order: Vec<u32>,
    /// For each given row its place in the sorted order.
    pub position: Vec<u32>,
    /// For each sorted row, where its class starts and ends.
    pub ranges: Vec<(u32, u32)>,
}

impl Classes {
    pub fn new(labels: &[i64]) -> Self {
        let count = u32::try_from(labels.len()).expect("checked: fewer rows than u32 has numbers");
        let mut order: Vec<u32> = (0..count).collect();
        order.sort_unstable_by_key(|&i| (labels[i as usize], i));
        let mut position = vec![0; labels.len()];
        for (sorted, &given) in (0..).zip(&order) {
            position[given as usize] = sorted;
        }
        let mut ranges = Vec::with_capacity(labels.len());
        for class in order.chunk_by(|&i, &j| labels[i as usize] == labels[j as usize]) {
            let start = ranges.len() as u32;
            ranges.extend(class.iter().map(|_| (start, start + class.len() as u32)));
        }
        Self { order, position, ranges }
    }

    /// The other rows of row `i`'s class.
    pub fn positives(&self, i: usize) -> impl Iterator<Item = usize> + use<> {
        let (start, end) = self.ranges[i];
        (start as usize..end as usize).filter(move |&p| p != i)
    }

    /// How many other rows there are in row `i`'s class.
    pub fn count_positives(&self, i: usize) -> usize {
        let (start, end) = self.ranges[i];
        (end - start) as usize - 1
    }

    /// Whether row `i` has both a positive and a negative.
    pub fn is_valid(&self, i: usize) -> bool {
        let (start, end) = self.ranges[i];
        end - start > 1 && ((end - start) as usize) < self.ranges.len()
    }
}

/// Rows as products see them. A distance by products is compared as `n_i + n_j - factor x_i·x_j`.
pub struct Products<A> {
    /// The rows after the move; `None` if they stay where they are.
    moved: Option<Vec<A>>,
    /// `‖x‖²` of each row after the move; 1/2 for cosine.
    pub norms: Vec<A>,
    /// What products are multiplied by: 2, or 1 for cosine.
    pub factor: A,
    /// A distance by products differs from one from the rows themselves by at most `error (n_i + n_j) + tiny`.
    pub error: A,
    /// The part of the bound in [`error`](Self::error) that does not depend on the norms.
    pub tiny: A,
    /// Below `near (n_i + n_j)` a distance by products has lost too many digits.
    pub near: A,
    /// Whether the squares overflow, so that products tell nothing.
    pub huge: bool,
}

impl<A: Scalar> Products<A> {
    /// Moves the rows and takes their norms. With u the unit roundoff, products are off by `D u (n_i + n_j)` and norms
    /// by `(D / 4 + 8) u n` in the worst case, sums over rows themselves by `(D / 4 + 8) u d`, `d <= 2 (n_i + n_j)`;
    /// the move and the additions give 7 u, the root and the square of a threshold 8 u more. Together less than
    /// `(2 D + 64) u = (D + 32) ε`.
    fn build(batch: &Batch<A>, by: Option<&[A]>) -> Self {
        let (dim, cosine) = (batch.dim, batch.metric == Distance::Cosine);
        let half = A::ONE / (A::ONE + A::ONE);
        let mut norms = if cosine { vec![half; batch.rows] } else { batch.squares.clone() };
        let mut moved = by.map(|_| vec![A::ZERO; batch.x.len()]);
        if let (Some(moved), Some(by)) = (&mut moved, by) {
            let parts = moved.chunks_mut(TASK_ROWS * dim).zip(norms.chunks_mut(TASK_ROWS)).collect();
            blocks::for_each(parts, |block, (moved, norms): (&mut [A], &mut [A])| {
                let x = &batch.x[block * TASK_ROWS * dim..][..moved.len()];
                for ((to, x), norm) in moved.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).zip(norms) {
                    for ((to, x), by) in to.iter_mut().zip(x).zip(by) {
                        *to = *x - *by;
                    }
                    *norm = squares(to);
                }
            });
        }
        // NaN is left out: kept as the largest, it would hide the others.
        let largest = norms.iter().fold(A::ZERO, |m, &n| if n > m { n } else { m });
        Self {
            moved,
            norms,
            factor: if cosine { A::ONE } else { A::ONE + A::ONE },
            error: A::from_f64((dim as f64 + 32.0) * A::EPSILON.to_f64()),
            tiny: A::TINY,
            near: if cosine { A::ZERO } else { A::from_f64(1.0 / 64.0) },
            huge: !(largest * A::from_f64(16.0)).is_finite(),
        }
    }

    /// Turns the products of one row, whose norm is `norm`, with rows whose norms are `norms` into squared distances,
    /// or cosine distances. Returns whether one of them is [near](Self::near).
    pub fn to_distances(&self, products: &mut [A], norm: A, norms: &[A]) -> bool {
        pulp::Arch::new().dispatch(FromProducts { to: products, norms, norm, products: self })
    }

    /// The rows that products are taken of.
    pub fn x<'a>(&'a self, batch: &'a Batch<A>) -> &'a [A] {
        self.moved.as_deref().unwrap_or(&batch.x)
    }

    /// Some of the rows that products are taken of.
    pub fn rows<'a>(&'a self, batch: &'a Batch<A>, rows: &Range<usize>) -> View<'a, A> {
        View::new(&self.x(batch)[rows.start * batch.dim..], rows.len(), batch.dim, batch.dim)
    }
}

/// The rows and the columns of products, moved together. The columns may be the rows.
pub struct Both<A> {
    pub rows: Products<A>,
    columns: Option<Products<A>>,
}

impl<A: Scalar> Both<A> {
    pub fn new(rows: &Batch<A>, columns: &Batch<A>) -> Self {
        let columns = (!std::ptr::eq(rows, columns)).then_some(columns);
        let batches: Vec<&Batch<A>> = std::iter::once(rows).chain(columns).collect();
        let by = A::of_scalar(&SHIFT)(&batches);
        let build = |batch| A::of_scalar(&BUILD)(batch, by.as_deref());
        Self { rows: build(rows), columns: columns.map(build) }
    }

    pub fn columns(&self) -> &Products<A> {
        self.columns.as_ref().unwrap_or(&self.rows)
    }

    /// Whether squares overflow, so that products tell nothing and a distance may be infinite.
    pub fn is_huge(&self) -> bool {
        self.rows.huge || self.columns().huge
    }

    /// Turns the products of row i with a run of columns into what their distances are [compared](Batch::direct) by; if
    /// products tell nothing, what `to` holds does not matter. Calls `near(k)` for each number k of the run that was computed
    /// by difference. `out`: a part of the run that nobody looks at.
    pub fn compare(
        &self,
        [rows, columns]: [&Batch<A>; 2],
        i: usize,
        run: &Range<usize>,
        out: &Range<usize>,
        to: &mut [A],
        mut near: impl FnMut(usize),
    ) {
        let (norm, norms) = (self.rows.norms[i], &self.columns().norms[run.clone()]);
        let by_difference = self.is_huge();
        if by_difference || self.rows.to_distances(to, norm, norms) {
            for k in (0..out.start).chain(out.end..to.len()) {
                if by_difference || to[k] < self.rows.near * (norm + norms[k]) {
                    to[k] = direct(rows.metric, rows.row(i), columns.row(run.start + k));
                    near(k);
                }
            }
        }
    }
}

/// The work of [`Products::to_distances`].
struct FromProducts<'a, A> {
    to: &'a mut [A],
    norms: &'a [A],
    norm: A,
    products: &'a Products<A>,
}

impl<A: Scalar> WithSimd for FromProducts<'_, A> {
    type Output = bool;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let Self { to, norms, norm, products: Products { factor, near, .. } } = self;
        let splat = |x| V::<S, A>::splat(simd, x);
        let load = |register| V::<S, A> { simd, register };
        let (minus_factor, norm_i, limit) = (splat(-*factor), splat(norm), splat(*near));
        let (to, to_rest) = A::registers_mut::<S>(to);
        let (norms, norms_rest) = A::registers::<S>(norms);
        // Near ones are counted, instead of keeping the least: a minimum forgets what came before a NaN.
        let mut near_ones = splat(A::ZERO);
        for (to, norm_j) in to.iter_mut().zip(norms) {
            let both = norm_i + load(*norm_j);
            let d = minus_factor.mul_add(load(*to), both);
            near_ones = near_ones + d.if_below(limit * both);
            *to = d.register;
        }
        let mut found = near_ones.sum() > A::ZERO;
        for (to, &norm_j) in to_rest.iter_mut().zip(norms_rest) {
            *to = norm + norm_j - *factor * *to;
            found |= *to < *near * (norm + norm_j);
        }
        found
    }
}

/// The work of [`roots`].
struct Roots<'a, A>(&'a mut [A]);

impl<A: Scalar> WithSimd for Roots<'_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (whole, rest) = A::registers_mut::<S>(self.0);
        whole.iter_mut().for_each(
            #[inline(always)]
            |x| *x = A::sqrt_of(simd, *x),
        );
        rest.iter_mut().for_each(|x| *x = x.sqrt());
    }
}

/// Takes the square root of each number.
pub fn roots<A: Scalar>(x: &mut [A]) {
    pulp::Arch::new().dispatch(Roots(x));
}

/// The row that is nearest to the mean of all, if moving by it pays: the squared norm of the mean is then more than the
/// mean square distance to it. Rows that are not finite do not count.
fn shift<A: Scalar>(batches: &[&Batch<A>]) -> Option<Vec<A>> {
    if batches[0].metric == Distance::Cosine {
        return None;
    }
    let dim = batches[0].dim;
    let (mut count, mut mean, mut total) = (0usize, vec![0.0; dim], 0.0);
    for sums in batches.iter().flat_map(|batch| &batch.sums) {
        count += sums.count;
        total += sums.squares;
        mean.iter_mut().zip(&sums.columns).for_each(|(sum, x)| *sum += x.to_f64());
    }
    let each = 1.0 / count as f64;
    mean.iter_mut().for_each(|m| *m *= each);
    let offset: f64 = mean.iter().map(|m| m * m).sum();
    // The mean square distance to the mean is the mean square less the square of the mean.
    if count == 0 || offset.is_nan() || 2.0 * offset <= total * each {
        return None;
    }
    let tasks: Vec<&[A]> = batches.iter().flat_map(|b| b.x.chunks(TASK_ROWS * dim)).collect();
    let mean: Vec<A> = mean.into_iter().map(A::from_f64).collect();
    let mut nearest = vec![(A::INFINITY, 0); tasks.len()];
    blocks::for_each(tasks.iter().zip(&mut nearest).collect(), |_, (x, nearest)| {
        for (i, x) in x.chunks_exact(dim).enumerate() {
            let d = direct(Distance::SquaredEuclidean, x, &mean);
            if d < nearest.0 {
                *nearest = (d, i);
            }
        }
    });
    let mut best = (A::INFINITY, None);
    for (task, (d, i)) in tasks.iter().zip(nearest) {
        if d < best.0 {
            best = (d, Some(&task[i * dim..][..dim]));
        }
    }
    best.1.map(<[A]>::to_vec)
}

struct Finish;
impl ScalarFn for Finish {
    type Of<A: Scalar> = fn(Part<'_, A>, usize);
}
static FINISH: ByScalar<Finish> = ByScalar { f32: finish, f64: finish };

/// Divides a row, whose squared norm is `square`, by its norm; returns what it was divided by.
fn divide_by_norm<A: Scalar>(x: &mut [A], square: A) -> Norm<A> {
    let norm = square.sqrt();
    let flat = norm < A::from_f64(MIN_NORM);
    let divisor = if flat { A::from_f64(MIN_NORM) } else { norm };
    // A norm that overflowed must not turn the row into zeros.
    let divisor = if norm.is_finite() { divisor } else { A::NAN };
    x.iter_mut().for_each(|x| *x = *x / divisor);
    (divisor, flat)
}

/// Divides a row by its norm, as a [`Batch`] does; returns its squared norm before.
pub fn normalize_row<A: Scalar>(x: &mut [A]) -> A {
    let square = squares(x);
    divide_by_norm(x, square);
    square
}

/// Normalises the rows of a block, if asked to, takes their squares and sums, and looks for numbers that are not finite.
fn finish<A: Scalar>(mut part: Part<'_, A>, dim: usize) {
    for (i, x) in part.x.chunks_exact_mut(dim).enumerate() {
        let mut square = squares(x);
        if let Some(norms) = &mut part.norms {
            norms[i] = divide_by_norm(x, square);
            square = squares(x);
        }
        part.squares[i] = square;
        if square.is_finite() {
            part.sums.count += 1;
            part.sums.squares += square.to_f64();
            if !part.sums.columns.is_empty() {
                add_scaled(&mut part.sums.columns, A::ONE, x);
            }
        } else {
            // Squares overflow before numbers do.
            *part.bad |= x.iter().any(|x| !x.is_finite());
        }
    }
}

struct Shift;
impl ScalarFn for Shift {
    type Of<A: Scalar> = fn(&[&Batch<A>]) -> Option<Vec<A>>;
}
static SHIFT: ByScalar<Shift> = ByScalar { f32: shift, f64: shift };

struct Build;
impl ScalarFn for Build {
    type Of<A: Scalar> = fn(&Batch<A>, Option<&[A]>) -> Products<A>;
}
static BUILD: ByScalar<Build> = ByScalar { f32: Products::build, f64: Products::build };

/// Loops over one row or two, each compiled for the processor at hand.
enum Loop<'a, A> {
    Squares(&'a [A]),
    SquaredDifference(&'a [A], &'a [A]),
    Dot(&'a [A], &'a [A]),
}

impl<A: Scalar> WithSimd for Loop<'_, A> {
    type Output = A;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> A {
        match self {
            Loop::Squares(x) => {
                let [sum] = Rows::new(simd, [x]).sums(
                    #[inline(always)]
                    |[x], [sum]| [x.mul_add(x, sum)],
                );
                sum
            }
            Loop::SquaredDifference(x, y) => squared_difference(simd, x, y),
            Loop::Dot(x, y) => product_sum(simd, x, y),
        }
    }
}

#[inline(always)]
fn squared_difference<S: Simd, A: Scalar>(simd: S, x: &[A], y: &[A]) -> A {
    let [sum] = Rows::new(simd, [x, y]).sums(
        #[inline(always)]
        |[x, y], [sum]| {
            let e = x - y;
            [e.mul_add(e, sum)]
        },
    );
    sum
}

#[inline(always)]
fn product_sum<S: Simd, A: Scalar>(simd: S, x: &[A], y: &[A]) -> A {
    let [sum] = Rows::new(simd, [x, y]).sums(
        #[inline(always)]
        |[x, y], [sum]| [x.mul_add(y, sum)],
    );
    sum
}

/// `‖x‖²`.
pub fn squares<A: Scalar>(x: &[A]) -> A {
    pulp::Arch::new().dispatch(Loop::Squares(x))
}

/// `x·y`.
pub fn dot<A: Scalar>(x: &[A], y: &[A]) -> A {
    pulp::Arch::new().dispatch(Loop::Dot(x, y))
}

/// See [`Batch::direct`].
pub fn direct<A: Scalar>(metric: Distance, x: &[A], y: &[A]) -> A {
    match metric {
        Distance::Cosine => A::ONE - dot(x, y),
        _ => pulp::Arch::new().dispatch(Loop::SquaredDifference(x, y)),
    }
}

/// `to += weight x`, or with `y` `to += weight (x - y)`.
struct AddScaled<'a, A> {
    to: &'a mut [A],
    weight: A,
    x: &'a [A],
    y: Option<&'a [A]>,
}

impl<A: Scalar> WithSimd for AddScaled<'_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { to, weight, x, y } = self;
        super::rows::add_scaled(simd, to, weight, x, y);
    }
}

pub fn add_scaled<A: Scalar>(to: &mut [A], weight: A, x: &[A]) {
    pulp::Arch::new().dispatch(AddScaled { to, weight, x, y: None });
}

pub fn add_scaled_difference<A: Scalar>(to: &mut [A], weight: A, x: &[A], y: &[A]) {
    pulp::Arch::new().dispatch(AddScaled { to, weight, x, y: Some(y) });
}
