//! The gradient: `Σ_j w_aj ∇d_aj` with `w = d` for pairs of one class and `w = -max(m - d, 0)` for others, times the anchor's
//! upstream; in a batch by itself both orders of a pair pull alike.

use std::ops::Range;

use super::found::Found;
use crate::Scalar;
use crate::batch_contrastive::options::{Negatives, Problem};
use crate::cpu::batch::{Batch, direct};
use crate::cpu::comparison::{Comparison, around_class};
use crate::cpu::distance_matrix::{DistanceMatrix, TASK_ROWS};
use crate::cpu::{blocks, pulls};

/// One side's rows, and those they are pulled by.
struct Pulled<'a, A> {
    comparison: &'a Comparison<A>,
    /// 0: the anchors; 1: the reference set.
    which: usize,
    rows: &'a Batch<A>,
    columns: &'a Batch<A>,
    /// For each row of the reference set, the range of the anchors of its class; empty for `which` 0.
    anchors_of: Vec<Range<usize>>,
    margin: A,
    /// The upstream gradient of each anchor, in class order; `None`: 1 for all.
    upstream: Option<Vec<A>>,
}

pub fn run<A: Scalar>(problem: &Problem, found: &Found<A>, upstream: Option<&[A]>, which: usize) -> Vec<A> {
    let comparison = &found.comparison;
    let (anchors, others) = (&comparison.anchors, comparison.others());
    let (rows, columns) = if which == 0 { (anchors, others) } else { (others, anchors) };
    let in_class_order =
        |upstream: &[A]| comparison.classes.order.iter().map(|&given| upstream[given as usize]).collect();
    let pulled = Pulled {
        comparison,
        which,
        rows,
        columns,
        anchors_of: if which == 0 { Vec::new() } else { comparison.anchors_of_others() },
        margin: A::from_f64(problem.options.margin),
        upstream: upstream.map(in_class_order),
    };
    let mut to = vec![A::ZERO; rows.rows * rows.dim];
    match problem.options.extra {
        Negatives::All => pulled.by_all(&mut to),
        Negatives::Hardest => pulled.by_hardest(found, &mut to),
    }
    to
}

impl<A: Scalar> Pulled<'_, A> {
    /// The columns of row r's class.
    fn class(&self, r: usize) -> Range<usize> {
        if self.which == 0 { self.comparison.class(r) } else { self.anchors_of[r].clone() }
    }

    /// What the loss of a pair is multiplied by; in a batch by itself the sum of both of its orders.
    fn upstream(&self, r: usize, c: usize) -> A {
        match &self.upstream {
            None if self.comparison.is_itself() => A::ONE + A::ONE,
            None => A::ONE,
            Some(upstream) if self.comparison.is_itself() => upstream[r] + upstream[c],
            Some(upstream) => upstream[if self.which == 0 { r } else { c }],
        }
    }

    /// The derivative of the loss of a pair of different classes.
    fn derivative(&self, d: A) -> A {
        if d < self.margin {
            d - self.margin
        } else if d.is_finite() {
            A::ZERO
        } else {
            A::NAN
        }
    }

    fn add_positives(&self, r: usize, to: &mut [A]) {
        let is_own = |p: usize| match self.which {
            0 => self.comparison.own(r) == Some(p),
            _ => self.comparison.own(p) == Some(r),
        };
        for p in self.class(r).filter(|&p| !is_own(p)) {
            let compared = direct(self.rows.metric, self.rows.row(r), self.columns.row(p));
            // The derivative d times the slope: for Euclidean distances d / d.
            let weight = match self.rows.is_root() {
                _ if !compared.is_finite() => A::NAN,
                true => A::ONE,
                false => compared * self.rows.slope_factor(),
            };
            pulls::add(to, self.rows, r, self.columns, p, weight * self.upstream(r, p));
        }
    }

    fn by_all(&self, to: &mut [A]) {
        let alike = if self.upstream.is_some() { A::ONE } else { self.upstream(0, 0) };
        let weigh = |_: &mut (), r: usize, columns: Range<usize>, d: &mut [A], weights: &mut [A]| {
            let (before, after) = around_class(&self.class(r), &columns);
            let mut any = false;
            for run in [0..before, after..columns.len()] {
                let (d, weights) = (&d[run.clone()], &mut weights[run.clone()]);
                let mut lost = false;
                for (&d, weight) in d.iter().zip(&mut *weights) {
                    let active = d < self.margin;
                    *weight = if active { (d - self.margin) * alike } else { A::ZERO };
                    any |= active;
                    lost |= !d.is_finite();
                }
                if lost {
                    any = true;
                    d.iter().zip(&mut *weights).for_each(|(&d, weight)| *weight = self.derivative(d) * alike);
                }
                if self.upstream.is_some() {
                    let weights = weights.iter_mut().zip(columns.start + run.start..);
                    weights.for_each(|(weight, c)| *weight = *weight * self.upstream(r, c));
                }
            }
            any
        };
        let states = vec![(); self.rows.rows.div_ceil(TASK_ROWS)];
        DistanceMatrix::new(self.rows, self.columns).gradient(to, states, weigh, |_, r, to| self.add_positives(r, to));
    }

    fn by_hardest(&self, found: &Found<A>, to: &mut [A]) {
        let lists = Lists::new(self.comparison, self.which, found);
        let dim = self.rows.dim;
        blocks::for_each(to.chunks_mut(TASK_ROWS * dim).collect(), |task, to: &mut [A]| {
            for (k, to) in to.chunks_exact_mut(dim).enumerate() {
                let r = task * TASK_ROWS + k;
                for &(c, compared) in &lists.pairs[lists.starts[r]..lists.starts[r + 1]] {
                    let d = self.rows.distance(compared);
                    let derivative = self.derivative(d);
                    if !(derivative == A::ZERO) {
                        let weight = derivative * self.rows.slope(d) * self.upstream(r, c as usize);
                        pulls::add(to, self.rows, r, self.columns, c as usize, weight);
                    }
                }
                self.add_positives(r, to);
                self.rows.through_normalization(r, to);
            }
        });
    }
}

/// The hardest pairs by row: `pairs[starts[r]..starts[r + 1]]` are row r's columns, and what distances are compared by.
struct Lists<A> {
    starts: Vec<usize>,
    pairs: Vec<(u32, A)>,
}

impl<A: Scalar> Lists<A> {
    fn new(comparison: &Comparison<A>, which: usize, found: &Found<A>) -> Self {
        let rows = if which == 0 { comparison.anchors.rows } else { comparison.others().rows };
        let each = |f: &mut dyn FnMut(usize, usize, A)| {
            for pair in &found.hardest {
                let (i, j) = pair.places(comparison);
                let (r, c) = if which == 0 { (i, j) } else { (j, i) };
                f(r, c, pair.compared);
                if comparison.is_itself() {
                    f(c, r, pair.compared);
                }
            }
        };
        let mut starts = vec![0; rows + 1];
        each(&mut |r, _, _| starts[r + 1] += 1);
        for r in 0..rows {
            starts[r + 1] += starts[r];
        }
        let mut pairs = vec![(0, A::ZERO); starts[rows]];
        let mut filled = starts.clone();
        each(&mut |r, c, compared| {
            pairs[filled[r]] = (c as u32, compared);
            filled[r] += 1;
        });
        Self { starts, pairs }
    }
}
