//! The CPU version. Stored rows are read once for a group of queries, panel by panel; a panel's products with the queries
//! stay in registers, where each is compared with what its query's k-th neighbour leaves open. What is left, a few rows a
//! query, is computed by difference. For a few queries products do not pay: each row is compared with each query directly.
//!
//! The neighbours of a query are the k least of (distance, index), in whatever order the rows are looked at: neither the
//! number of threads nor the shape of the panels changes a bit.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};
use std::sync::{Mutex, PoisonError};

use pulp::{Simd, WithSimd};

use super::stored::{Query, Source, Sums};
use super::{Stored, TopKProblem, wrong_types};
use crate::constants::MIN_NORM;
use crate::cpu::batch::{Batch, direct, normalize_row, squares};
use crate::cpu::simd::V;
use crate::cpu::threads;
use crate::element::{ByScalar, ScalarFn};
use crate::{Distance, Element, Error, Matrix, Own, Scalar};

/// Up to this many queries, rows are compared with each of them directly.
const FEW: usize = 8;
/// Rows that are compared together where they are compared directly.
const AT_ONCE: usize = 32;
/// Registers of stored rows in a panel.
const PANEL: usize = 2;
/// Bytes of a group of queries: they stay in the second-level cache while the rows pass.
const GROUP_BYTES: usize = 512 << 10;
/// Queries in a group, and neighbours that all of them keep.
const GROUP_QUERIES: usize = 1024;
const GROUP_NEIGHBOURS: usize = 1 << 21;
/// Stored rows of one item of work, at most.
const ITEM_ROWS: usize = 2048;
/// Rows that the mean is estimated from.
const SAMPLE: usize = 256;

/// The search of [`Search::search`](super::Search::search), of checked shapes.
pub(crate) fn search<T: Element>(
    problem: &TopKProblem,
    queries: &Matrix<'_, T>,
    stored: &Stored<'_>,
    exact: Option<Matrix<'_, f32>>,
    own: Own<&[i64]>,
    distances: &mut [T::Scalar],
    indices: &mut [i64],
) -> Result<(), Error> {
    let source = T::Scalar::of_scalar(&SOURCE);
    let exact = exact.map(Stored::F32);
    let of_exact =
        exact.as_ref().map(|exact| source(exact).ok_or_else(|| Error::argument("exact", "none for f64", "f32")));
    let stored = source(stored).ok_or_else(|| wrong_types(T::NAME, stored.dtype()))?;
    let order: Vec<u32> = (0..).take(queries.rows()).collect();
    let queries = Batch::new(queries, &order, problem.distance, problem.normalize);
    let root_of_dim = T::Scalar::from_f64((problem.dim as f64).sqrt());
    let task = Task { problem, queries, stored, exact: of_exact.transpose()?, own, root_of_dim };
    T::Scalar::of_scalar(&RUN)(task, distances, indices);
    Ok(())
}

struct SourceOf;
impl ScalarFn for SourceOf {
    type Of<A: Scalar> = for<'a> fn(&'a Stored<'_>) -> Option<&'a dyn Source<A>>;
}
static SOURCE: ByScalar<SourceOf> = ByScalar {
    f32: |stored| match stored {
        Stored::F32(rows) => Some(rows),
        Stored::F16(rows) => Some(rows),
        Stored::Bf16(rows) => Some(rows),
        Stored::Int8(rows) => Some(rows),
        Stored::F64(_) => None,
    },
    f64: |stored| match stored {
        Stored::F64(rows) => Some(rows),
        _ => None,
    },
};

struct Run;
impl ScalarFn for Run {
    type Of<A: Scalar> = fn(Task<'_, A>, &mut [A], &mut [i64]);
}
static RUN: ByScalar<Run> = ByScalar { f32: run, f64: run };

/// A search, and its queries made ready.
struct Task<'a, A> {
    problem: &'a TopKProblem,
    queries: Batch<A>,
    stored: &'a dyn Source<A>,
    exact: Option<&'a dyn Source<A>>,
    own: Own<&'a [i64]>,
    /// `√D`: numbers that are each off by e are together off by that times e.
    root_of_dim: A,
}

/// A row and how far it is; the lesser is the nearer, and of equally far ones the one with the lower index. The distance is
/// a number.
#[derive(Clone, Copy, PartialEq)]
struct Neighbour<A> {
    distance: A,
    row: u32,
}
impl<A: Scalar> Eq for Neighbour<A> {}
impl<A: Scalar> Ord for Neighbour<A> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.partial_cmp(&other.distance).unwrap_or(Ordering::Equal).then(self.row.cmp(&other.row))
    }
}
impl<A: Scalar> PartialOrd for Neighbour<A> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The nearest rows of a query, the farthest of them first.
type Nearest<A> = BinaryHeap<Neighbour<A>>;

fn offer<A: Scalar>(nearest: &mut Nearest<A>, k: usize, neighbour: Neighbour<A>) {
    if nearest.len() < k {
        nearest.push(neighbour);
    } else if let Some(mut farthest) = nearest.peek_mut()
        && neighbour < *farthest
    {
        *farthest = neighbour;
    }
}

fn run<A: Scalar>(task: Task<'_, A>, distances: &mut [A], indices: &mut [i64]) {
    let TopKProblem { queries, rows, k, .. } = *task.problem;
    let few = (queries <= FEW).then(|| Few::new(&task));
    let products = few.is_none().then(|| Products::new(&task));
    let per_group = products.as_ref().map_or(queries, |products| products.group);
    // Enough items for many threads.
    let per_item = (rows / (8 * threads::count())).next_multiple_of(128).clamp(128, ITEM_ROWS);
    let (groups, items) = (queries.div_ceil(per_group), rows.div_ceil(per_item));
    let group = |g: usize| g * per_group..queries.min((g + 1) * per_group);
    let found: Vec<_> = (0..groups).map(|g| Mutex::new(vec![Nearest::new(); group(g).len()])).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut at: Option<(usize, Worker<'_, A>)> = None;
        let give = |(g, worker): (usize, Worker<'_, A>)| {
            let mut found = found[g].lock().unwrap_or_else(PoisonError::into_inner);
            for (found, nearest) in found.iter_mut().zip(worker.nearest) {
                match found.is_empty() {
                    true => *found = nearest,
                    false => nearest.into_iter().for_each(|neighbour| offer(found, k, neighbour)),
                }
            }
        };
        loop {
            let index = next.fetch_add(1, Atomic::Relaxed);
            if index >= groups * items {
                break;
            }
            let (g, item) = (index / items, index % items);
            let mut worker = match at.take() {
                Some((of, worker)) if of == g => worker,
                before => {
                    before.map(give);
                    Worker::new(&task, group(g))
                }
            };
            let rows = item * per_item..rows.min((item + 1) * per_item);
            match (&few, &products) {
                (Some(few), _) => few.compare(&mut worker, rows),
                (_, Some(products)) => pulp::Arch::new().dispatch(Sweep { products, worker: &mut worker, rows }),
                (None, None) => unreachable!("one of both"),
            }
            at = Some((g, worker));
        }
        at.map(give);
    };
    threads::run(threads::count().min(groups * items).max(1), work);

    let found = found.into_iter().flat_map(|group| group.into_inner().unwrap_or_else(PoisonError::into_inner));
    let outputs = distances.chunks_exact_mut(k).zip(indices.chunks_exact_mut(k));
    for (i, (nearest, (distances, indices))) in found.zip(outputs).enumerate() {
        let found = nearest.into_sorted_vec();
        let (of_found, rest) = distances.split_at_mut(found.len());
        of_found.iter_mut().zip(&found).for_each(|(to, neighbour)| *to = neighbour.distance);
        rest.fill(if task.is_good(i) { A::INFINITY } else { A::NAN });
        let (of_found, rest) = indices.split_at_mut(found.len());
        of_found.iter_mut().zip(&found).for_each(|(to, neighbour)| *to = neighbour.row.into());
        rest.fill(-1);
    }
}

impl<A: Scalar> Task<'_, A> {
    /// Whether a query has no NaN and no infinity.
    fn is_good(&self, i: usize) -> bool {
        !self.queries.poisoned || self.queries.is_finite(i)
    }

    /// How far a distance by products or by another order of additions may be off, relative to the sum of both squared norms:
    /// see `Products` in cpu/batch.rs, and 16 ε more for what a limit is computed with.
    fn error(&self) -> A {
        A::from_f64((self.problem.dim as f64 + 48.0) * A::EPSILON.to_f64())
    }

    /// How far exact rows are from the rows from `first` on at most; after both were divided by their norms, if rows are.
    /// `norm(k)`: of row k of them, before that; it may be anything where [`needs_norm`](Self::needs_norm) is false.
    fn apart(&self, first: usize, norm: impl Fn(usize) -> A, to: &mut [A]) {
        if self.exact.is_none() {
            return to.fill(A::ZERO);
        }
        self.stored.absolute(first, to);
        let (relative, slack, two) = (self.stored.relative(), A::from_f64(1.002), A::ONE + A::ONE);
        if relative > A::ZERO {
            let each = to.iter_mut().enumerate();
            each.for_each(|(k, to)| *to = (*to * self.root_of_dim + relative * norm(k)) * slack);
        } else {
            to.iter_mut().for_each(|to| *to = *to * self.root_of_dim * slack);
        }
        if !self.problem.normalize {
            return;
        }
        // Of x and y at e from each other x / ‖x‖ and y / ‖y‖ are at 2 e / (‖x‖ + ‖y‖) at most. Short rows are not divided by
        // their norms.
        for (k, to) in to.iter_mut().enumerate() {
            let (apart, norm) = (*to, norm(k));
            let both = norm + norm - apart;
            let told = both > A::from_f64(4.0 * MIN_NORM) && apart < norm;
            *to = if told { smaller(two * apart / both * slack, two) } else { two };
        }
    }

    /// Whether [`apart`](Self::apart) depends on the row's norm.
    fn needs_norm(&self) -> bool {
        self.exact.is_some() && (self.problem.normalize || self.stored.relative() > A::ZERO)
    }
}

/// What one thread has found for a group of queries.
struct Worker<'a, A> {
    task: &'a Task<'a, A>,
    queries: Range<usize>,
    nearest: Vec<Nearest<A>>,
    /// For each query what products are compared with; of [`Products`].
    limits: Vec<[A; 2]>,
    /// A row that is looked at.
    row: Vec<A>,
    /// Rows that are widened.
    wide: Vec<A>,
    /// Rows as products see them, transposed.
    panel: Vec<A>,
}

impl<'a, A: Scalar> Worker<'a, A> {
    fn new(task: &'a Task<'a, A>, queries: Range<usize>) -> Self {
        let nearest = vec![Nearest::new(); queries.len()];
        let row = vec![A::ZERO; task.problem.dim];
        Self { task, queries, nearest, limits: Vec::new(), row, wide: Vec::new(), panel: Vec::new() }
    }

    /// Offers row j to query `at` of the group. `stored`: the row, widened, divided by its norm if `normalized`.
    fn consider(&mut self, at: usize, j: usize, stored: &[A], normalized: bool) {
        let (task, i) = (self.task, self.queries.start + at);
        let problem = task.problem;
        if task.own.row(i, problem.rows) == Some(j) || !task.is_good(i) {
            return;
        }
        let exact = task.exact.and_then(|exact| exact.in_place(j));
        let mut row = exact.unwrap_or(stored);
        if problem.normalize && (exact.is_some() || !normalized) {
            self.row.copy_from_slice(row);
            normalize_row(&mut self.row);
            row = &self.row;
        }
        let compared = direct(problem.distance, task.queries.row(i), row);
        if !compared.is_finite() && !row.iter().all(|x| x.is_finite()) {
            return;
        }
        let neighbour = Neighbour { distance: task.queries.distance(compared), row: j as u32 };
        offer(&mut self.nearest[at], problem.k, neighbour);
    }

    /// What a row's distance in terms of [`Batch::direct`] must not be above, to be a neighbour of query `at` of the group.
    fn limit(&self, at: usize) -> A {
        let nearest = &self.nearest[at];
        match nearest.peek() {
            Some(farthest) if nearest.len() == self.task.problem.k => match self.task.queries.is_root() {
                // Different squares may have the same root.
                true => {
                    let above = farthest.distance * A::from_f64(1.0 + 4.0 * A::EPSILON.to_f64());
                    above * above + A::TINY
                }
                false => farthest.distance,
            },
            _ => A::INFINITY,
        }
    }
}

/// What it takes to compare rows with a few queries directly.
struct Few<'a, A> {
    task: &'a Task<'a, A>,
    queries: Vec<OneOfFew<'a, A>>,
}

/// One of a few queries.
struct OneOfFew<'a, A> {
    query: Query<'a, A>,
    norm: A,
    /// How far it is from what its products are taken with.
    lost: A,
}

/// What is known of the rows that are compared at a time.
struct Compared<A> {
    /// See [`Sums`].
    main: [A; AT_ONCE],
    squares: [A; AT_ONCE],
    /// See [`Task::apart`].
    apart: [A; AT_ONCE],
}

impl<'a, A: Scalar> Few<'a, A> {
    fn new(task: &'a Task<'a, A>) -> Self {
        let queries = (0..task.problem.queries).map(|i| {
            let query = task.stored.query(task.queries.row(i));
            let lost = A::from_f64(query.lost().into());
            OneOfFew { norm: squares(query.x).sqrt(), query, lost }
        });
        Self { queries: queries.collect(), task }
    }

    /// Offers the worker's queries those of a range of rows that may be among their neighbours.
    fn compare(&self, worker: &mut Worker<'_, A>, rows: Range<usize>) {
        let task = self.task;
        let (problem, stored) = (task.problem, task.stored);
        let (dim, by_products) = (problem.dim, problem.normalize || stored.by_products());
        let mut row = vec![A::ZERO; dim];
        let mut compared = Compared { main: [A::ZERO; AT_ONCE], squares: [A::ONE; AT_ONCE], apart: [A::ZERO; AT_ONCE] };
        for first in rows.clone().step_by(AT_ONCE) {
            let count = AT_ONCE.min(rows.end - first);
            for (at, one) in self.queries.iter().enumerate().filter(|(i, _)| task.is_good(*i)) {
                let Compared { main, squares, apart } = &mut compared;
                let squares_of = &mut squares[..if by_products { count } else { 0 }];
                let sums = Sums { main: &mut main[..count], products: by_products, squares: squares_of };
                stored.sums(first, &one.query, sums);
                if task.exact.is_some() && by_products {
                    task.apart(first, |k| squares[k].sqrt(), &mut apart[..count]);
                }
                let ruled_out = self.ruled_out(one, worker.limit(at), &compared);
                for k in (0..count).filter(|k| !ruled_out[*k]) {
                    let j = first + k;
                    match stored.in_place(j) {
                        Some(row) => worker.consider(at, j, row, false),
                        None => {
                            stored.widen(j, &mut row);
                            worker.consider(at, j, &row, false);
                        }
                    }
                }
            }
        }
    }

    /// Which rows are farther from a query than `limit`; not for NaN.
    fn ruled_out(&self, one: &OneOfFew<'_, A>, limit: A, compared: &Compared<A>) -> [bool; AT_ONCE] {
        let task = self.task;
        let Compared { main, squares, apart } = compared;
        let (root, error, two) = (limit.sqrt(), task.error(), A::ONE + A::ONE);
        let own = one.norm * one.norm;
        if !task.problem.normalize && !task.stored.by_products() {
            // A row at distance d is no longer than the query and d.
            let reach = match task.exact {
                Some(_) => {
                    let (mut apart, relative) = ([A::ZERO], task.stored.relative() * A::from_f64(1.002));
                    task.apart(0, |_| one.norm, &mut apart);
                    let reach = (root + apart[0]) / (A::ONE - relative);
                    reach * reach
                }
                None => limit,
            };
            let above = reach * (A::ONE + error + error) + A::TINY;
            return main.map(|d| d > above);
        }
        let mut out = [false; AT_ONCE];
        let far = |d: A, apart: A| d > (root + apart) * (root + apart) * (A::ONE + error);
        if !task.problem.normalize {
            for k in 0..AT_ONCE {
                let product = main[k] + one.lost * squares[k].sqrt();
                let both = own + squares[k];
                out[k] = far(both - two * product - error * both - A::TINY, apart[k]);
            }
            return out;
        }
        // 1 - u·v for ‖v‖ = 1, at least. Rows that are short are not divided by their norms, and their squares lose digits
        // before.
        let cosine = |k: usize| A::ONE - (main[k] / squares[k].sqrt() + one.lost) - (error + error);
        let told = |k: usize| squares[k] > A::from_f64(16.0 * MIN_NORM * MIN_NORM);
        if task.problem.distance == Distance::Cosine {
            (0..AT_ONCE).for_each(|k| out[k] = told(k) && cosine(k) - apart[k] > limit);
        } else {
            // ‖u - v‖² = ‖u‖² - 1 + 2 (1 - u·v).
            (0..AT_ONCE).for_each(|k| out[k] = told(k) && far(own - A::ONE + two * cosine(k), apart[k]));
        }
        out
    }
}

/// Queries as products see them, and what the products are compared with.
struct Products<A> {
    /// Queries in a group.
    group: usize,
    /// Queries in tiles, moved: number c of query r of a tile of `tile` queries is number `c * tile + r` of the tile.
    packed: Vec<A>,
    /// `‖x‖²` of each query after the move; 1/2 for the cosine.
    norms: Vec<A>,
    /// What rows are moved by, so that products lose little: about their mean. Empty: they stay.
    by: Vec<A>,
    /// See [`Task::error`].
    error: A,
    /// Squared norms above this are left to differences.
    huge: A,
    /// 2, or 1 for the cosine.
    factor: A,
}

/// How many queries of the registers at hand form a tile.
struct TileOf<A>(std::marker::PhantomData<A>);
impl<A: Scalar> WithSimd for TileOf<A> {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        if has_many_registers::<S, A>() { 12 } else { 6 }
    }
}

/// Whether there are 32 registers, of 64 bytes; else there are 16, or more that are not needed.
#[inline(always)]
const fn has_many_registers<S: Simd, A: Scalar>() -> bool {
    size_of::<A::Register<S>>() == 64
}

impl<A: Scalar> Products<A> {
    fn new(task: &Task<'_, A>) -> Self {
        let Task { problem, queries, .. } = task;
        let (dim, cosine) = (problem.dim, problem.distance == Distance::Cosine);
        let tile = pulp::Arch::new().dispatch(TileOf::<A>(std::marker::PhantomData));
        let by = if cosine { Vec::new() } else { mean_of_some(task) };
        let huge = A::MAX / A::from_f64(64.0);
        let half = A::ONE / (A::ONE + A::ONE);
        let mut norms = vec![half; queries.rows];
        let mut packed = vec![A::ZERO; queries.rows.next_multiple_of(tile) * dim];
        let mut row = vec![A::ZERO; dim];
        for (i, norm) in norms.iter_mut().enumerate() {
            row.copy_from_slice(queries.row(i));
            move_by(&mut row, &by);
            let square = squares(&row);
            if !cosine {
                *norm = square;
            }
            // Products with others tell nothing: they are left 0.
            let tells = square <= huge;
            if tells {
                let to = &mut packed[i / tile * tile * dim + i % tile..];
                to.iter_mut().step_by(tile).zip(&row).for_each(|(to, x)| *to = *x);
            }
        }
        let of_bytes = GROUP_BYTES / (dim * size_of::<A>());
        let group = of_bytes.min(GROUP_QUERIES).min(GROUP_NEIGHBOURS / problem.k.min(problem.rows).max(1));
        let group = (group / tile * tile).max(tile);
        // Few rows and many queries: as many groups as keep many threads busy.
        let group = match problem.rows < ITEM_ROWS {
            true => group.min((queries.rows / (8 * threads::count())).next_multiple_of(tile).max(tile)),
            false => group,
        };
        let factor = if cosine { A::ONE } else { A::ONE + A::ONE };
        Self { group, packed, norms, by, error: task.error(), huge, factor }
    }

    /// What the terms of rows, less `factor` products and the second number times the rows' rounding, must not be above.
    fn limit(&self, worker: &Worker<'_, A>, at: usize) -> [A; 2] {
        let i = worker.queries.start + at;
        let (norm, limit) = (self.norms[i], worker.limit(at));
        if !worker.task.is_good(i) {
            [-A::MAX, A::ZERO]
        } else if worker.task.problem.distance == Distance::Cosine {
            [smaller(limit, A::MAX), A::ONE]
        } else {
            let open = norm <= self.huge && limit <= self.huge;
            let (above, slack) = (limit * (A::ONE + self.error), A::ONE - self.error);
            match open {
                true if worker.task.exact.is_some() => {
                    [above - norm * slack, (above.sqrt() + above.sqrt()) * (A::ONE + self.error)]
                }
                true => [above - norm * slack, A::ZERO],
                false => [A::MAX, A::ZERO],
            }
        }
    }
}

fn smaller<A: Scalar>(x: A, y: A) -> A {
    if x < y { x } else { y }
}

fn move_by<A: Scalar>(row: &mut [A], by: &[A]) {
    row.iter_mut().zip(by).for_each(|(x, by)| *x = *x - *by);
}

/// The mean of some of the stored rows, those that are finite; empty if none is.
fn mean_of_some<A: Scalar>(task: &Task<'_, A>) -> Vec<A> {
    let TopKProblem { rows, dim, normalize, .. } = *task.problem;
    let (mut sums, mut count, mut row) = (vec![0.0; dim], 0, vec![A::ZERO; dim]);
    for s in 0..SAMPLE.min(rows) {
        task.stored.widen(s * rows / SAMPLE.min(rows), &mut row);
        if normalize {
            normalize_row(&mut row);
        }
        if squares(&row).is_finite() {
            count += 1;
            sums.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x.to_f64());
        }
    }
    match count {
        0 => Vec::new(),
        _ => sums.into_iter().map(|sum| A::from_f64(sum / f64::from(count))).collect(),
    }
}

/// Compares the products of a range of rows with a group of queries.
struct Sweep<'a, 'b, A> {
    products: &'a Products<A>,
    worker: &'a mut Worker<'b, A>,
    rows: Range<usize>,
}

impl<A: Scalar> WithSimd for Sweep<'_, '_, A> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if has_many_registers::<S, A>() { self.run::<S, 12>(simd) } else { self.run::<S, 6>(simd) }
    }
}

impl<A: Scalar> Sweep<'_, '_, A> {
    /// `TILE`: the queries of a tile.
    #[inline(always)]
    fn run<S: Simd, const TILE: usize>(self, simd: S) {
        let Self { products, worker, rows } = self;
        let (task, problem) = (worker.task, worker.task.problem);
        let (dim, across) = (problem.dim, PANEL * V::<S, A>::LANES);
        let mut wide = std::mem::take(&mut worker.wide);
        let mut panel = std::mem::take(&mut worker.panel);
        let mut limits = std::mem::take(&mut worker.limits);
        let mut moved = vec![A::ZERO; dim];
        wide.resize(across * dim, A::ZERO);
        panel.resize(across * dim, A::ZERO);
        if limits.is_empty() {
            limits.extend((0..worker.queries.len()).map(|at| products.limit(worker, at)));
            // Places behind the last query, whose products are 0: no row has a term as low.
            limits.resize(limits.len().next_multiple_of(TILE), [-A::INFINITY, A::ZERO]);
        }
        let tiles = &products.packed[worker.queries.start * dim..][..limits.len() * dim];
        let (mut terms, mut roundings) = (vec![A::INFINITY; across], vec![A::ZERO; across]);
        for first in rows.clone().step_by(across) {
            let some = first..rows.end.min(first + across);
            products.pack(task, some.clone(), [&mut wide, &mut moved, &mut panel], [&mut terms, &mut roundings]);
            for (t, tile) in tiles.chunks_exact(TILE * dim).enumerate() {
                let sums = micro::<S, A, TILE>(simd, &panel, tile);
                let limits = &mut limits[t * TILE..][..TILE];
                let roundings = task.exact.is_some().then_some(&roundings[..]);
                let above = Above { simd, factor: products.factor, terms: &terms, roundings };
                let mut least = V::<S, A>::splat(simd, A::INFINITY);
                for (sums, limit) in sums.iter().zip(limits.iter()) {
                    for (part, sum) in sums.iter().enumerate() {
                        least = least.min(above.of(part, *sum, *limit));
                    }
                }
                let none = least.smallest() > A::ZERO;
                if none {
                    continue;
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (part, sum) in sums.iter().enumerate() {
                        let by_product = above.of(part, *sum, limits[r]);
                        for (lane, above) in by_product.lanes().iter().enumerate() {
                            let (l, at) = (part * V::<S, A>::LANES + lane, t * TILE + r);
                            let beyond = l >= some.len() || at >= worker.nearest.len();
                            if *above <= A::ZERO && !beyond {
                                let before = worker.limit(at);
                                worker.consider(at, first + l, &wide[l * dim..][..dim], true);
                                if worker.limit(at) != before {
                                    limits[r] = products.limit(worker, at);
                                }
                            }
                        }
                    }
                }
            }
        }
        (worker.wide, worker.panel, worker.limits) = (wide, panel, limits);
    }
}

/// By how much products of a panel's rows are above the limit of a query.
struct Above<'a, S, A> {
    simd: S,
    factor: A,
    terms: &'a [A],
    roundings: Option<&'a [A]>,
}

impl<S: Simd, A: Scalar> Above<'_, S, A> {
    #[inline(always)]
    fn of(&self, part: usize, sum: V<S, A>, [limit, apart]: [A; 2]) -> V<S, A> {
        let load = |x: &[A]| V::<S, A> { simd: self.simd, register: A::registers::<S>(x).0[part] };
        let splat = |x: A| V::<S, A>::splat(self.simd, x);
        let bound = splat(-self.factor).mul_add(sum, load(self.terms));
        let bound = match self.roundings {
            Some(roundings) => splat(-apart).mul_add(load(roundings), bound),
            None => bound,
        };
        bound - splat(limit)
    }
}

/// The products of a panel's rows with the queries of a tile.
#[inline(always)]
fn micro<S: Simd, A: Scalar, const TILE: usize>(simd: S, panel: &[A], tile: &[A]) -> [[V<S, A>; PANEL]; TILE] {
    let mut sums = [[V::<S, A>::splat(simd, A::ZERO); PANEL]; TILE];
    let (panel, _) = A::registers::<S>(panel);
    for (rows, queries) in panel.chunks_exact(PANEL).zip(tile.chunks_exact(TILE)) {
        for r in 0..TILE {
            let query = V::<S, A>::splat(simd, queries[r]);
            for p in 0..PANEL {
                sums[r][p] = V { simd, register: rows[p] }.mul_add(query, sums[r][p]);
            }
        }
    }
    sums
}

impl<A: Scalar> Products<A> {
    /// Makes a panel of some rows. `wide`: gets the rows themselves. `terms`, `roundings`: get for each row what
    /// [`Above`] takes.
    #[inline(always)]
    fn pack(
        &self,
        task: &Task<'_, A>,
        some: Range<usize>,
        [wide, moved, panel]: [&mut [A]; 3],
        [terms, roundings]: [&mut [A]; 2],
    ) {
        let TopKProblem { dim, normalize, distance, .. } = *task.problem;
        let across = terms.len();
        task.stored.widen(some.start, &mut wide[..some.len() * dim]);
        terms[some.len()..].fill(A::INFINITY);
        for (row, norm) in wide.chunks_exact_mut(dim).zip(&mut *terms).take(some.len()) {
            // Terms hold the norms meanwhile.
            *norm = match normalize {
                true => normalize_row(row).sqrt(),
                false if task.needs_norm() => squares(row).sqrt(),
                false => A::ZERO,
            };
        }
        task.apart(some.start, |l| terms[l], &mut roundings[..some.len()]);
        for l in 0..some.len() {
            let row = &wide[l * dim..][..dim];
            moved.copy_from_slice(row);
            move_by(moved, &self.by);
            let (square, apart) = (squares(moved), roundings[l]);
            let told = square <= self.huge && apart * apart <= self.huge;
            if told {
                terms[l] = match distance {
                    Distance::Cosine => A::ONE - (self.error + self.error),
                    _ => square * (A::ONE - self.error) - apart * apart - A::TINY,
                };
            } else {
                // Products tell nothing. A row that is not finite is no neighbour, unless an exact one decides.
                moved.fill(A::ZERO);
                let out = task.exact.is_none() && !row.iter().all(|x| x.is_finite());
                terms[l] = if out { A::INFINITY } else { -A::MAX };
                roundings[l] = A::ZERO;
            }
            for (to, x) in panel[l..].iter_mut().step_by(across).zip(&*moved) {
                *to = *x;
            }
        }
    }
}
