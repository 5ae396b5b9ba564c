//! The gradient: `Σ_j w_aj ∇d_aj` with `w = d` for pairs of one class and `w = -max(m - d, 0)` for others, or what [`Terms`]
//! says of other options, times the anchor's upstream; in a batch by itself both orders of a pair pull alike.

use std::ops::Range;

use super::Sums;
use super::found::{Found, Kinds};
use super::terms::Terms;
use super::tiles::Pairs;
use crate::Scalar;
use crate::batch_contrastive::options::{Negatives, Problem};
use crate::cpu::batch::{Batch, Classes, direct};
use crate::cpu::comparison::Comparison;
use crate::cpu::rounds::{Rounds, TASK_ROWS};
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
    terms: Terms<A>,
    /// What a pair of one class weighs more than one of different classes.
    share: A,
    /// The upstream gradient of each anchor, in class order; `None`: 1 for all.
    upstream: Option<&'a [A]>,
}

/// Makes the sums of all pairs from those of pairs of different classes.
pub type AddRest<'a> = &'a dyn Fn(&mut [Sums]) -> Kinds;

/// The gradients that are `wanted`, in the given order.
pub fn run<A: Scalar>(problem: &Problem, found: &Found<A>, upstream: Option<&[A]>, wanted: [bool; 2]) -> [Vec<A>; 2] {
    let comparison = &found.comparison;
    match problem.options.extra.negatives {
        // Each anchor has an upstream gradient of its own, so there is no mean.
        Negatives::All => by_all(problem, comparison, upstream, wanted, None),
        Negatives::Hardest => {
            let upstream = in_class_order(comparison, upstream);
            [0, 1].map(|which| match wanted[which] {
                true => Pulled::new(problem, comparison, &found.kinds, upstream.as_deref(), which).by_hardest(found),
                false => Vec::new(),
            })
        }
    }
}

/// The gradients of all pairs that are `wanted`, in the given order. The losses and distances of all pairs go to `sums`, in
/// class order, of which the second adds those of pairs of one class.
pub fn by_all<A: Scalar>(
    problem: &Problem,
    comparison: &Comparison<A>,
    upstream: Option<&[A]>,
    wanted: [bool; 2],
    sums: Option<(&mut [Sums], AddRest<'_>)>,
) -> [Vec<A>; 2] {
    let upstream = in_class_order(comparison, upstream);
    let both = comparison.products();
    let rounds = Rounds::new(&comparison.anchors, comparison.others(), &both, wanted);
    let pairs = Pairs { comparison, terms: Terms::of(problem), upstream: upstream.as_deref(), is_huge: both.is_huge() };
    let blocks = rounds.sweep(&pairs);
    let mut kinds = Kinds::default();
    if let Some((sums, add_rest)) = sums {
        sums.iter_mut().zip(blocks[0].iter().flat_map(|block| &block.of_loss)).for_each(|(to, from)| *to = *from);
        kinds = add_rest(sums);
    }
    [0, 1].map(|which| {
        if !wanted[which] {
            return Vec::new();
        }
        let pulled = Pulled::new(problem, comparison, &kinds, upstream.as_deref(), which);
        let mut to = vec![A::ZERO; pulled.rows.x.len()];
        let place = |given: usize| pulled.classes().position[given] as usize;
        rounds.gradient(which, &blocks[which], &mut to, place, |r, to| pulled.add_positives(r, to));
        to
    })
}

/// The upstream gradients of anchors, in the order of classes.
fn in_class_order<A: Scalar>(comparison: &Comparison<A>, upstream: Option<&[A]>) -> Option<Vec<A>> {
    upstream.map(|upstream| comparison.classes.order.iter().map(|&given| upstream[given as usize]).collect())
}

impl<'a, A: Scalar> Pulled<'a, A> {
    fn new(
        problem: &Problem,
        comparison: &'a Comparison<A>,
        kinds: &Kinds,
        upstream: Option<&'a [A]>,
        which: usize,
    ) -> Self {
        let (anchors, others) = (&comparison.anchors, comparison.others());
        let (rows, columns) = if which == 0 { (anchors, others) } else { (others, anchors) };
        let anchors_of = if which == 0 { Vec::new() } else { comparison.anchors_of_others() };
        let (terms, share) = (Terms::of(problem), A::from_f64(kinds.share(problem)));
        Self { comparison, which, rows, columns, anchors_of, terms, share, upstream }
    }

    /// The classes of the rows.
    fn classes(&self) -> &Classes {
        if self.which == 0 { &self.comparison.classes } else { self.comparison.other_classes() }
    }

    /// The columns of row r's class.
    fn class(&self, r: usize) -> Range<usize> {
        if self.which == 0 { self.comparison.class(r) } else { self.anchors_of[r].clone() }
    }

    /// What the loss of a pair is multiplied by; in a batch by itself the sum of both of its orders.
    fn upstream(&self, r: usize, c: usize) -> A {
        match self.upstream {
            None if self.comparison.is_itself() => A::ONE + A::ONE,
            None => A::ONE,
            Some(upstream) if self.comparison.is_itself() => upstream[r] + upstream[c],
            Some(upstream) => upstream[if self.which == 0 { r } else { c }],
        }
    }

    fn add_positives(&self, r: usize, to: &mut [A]) {
        let is_own = |p: usize| match self.which {
            0 => self.comparison.own(r) == Some(p),
            _ => self.comparison.own(p) == Some(r),
        };
        for p in self.class(r).filter(|&p| !is_own(p)) {
            let compared = direct(self.rows.metric, self.rows.row(r), self.columns.row(p));
            let weight = self.terms.pull(self.rows, compared) * self.share;
            pulls::add(to, self.rows, r, self.columns, p, weight * self.upstream(r, p));
        }
    }

    fn by_hardest(&self, found: &Found<A>) -> Vec<A> {
        let lists = Lists::new(self.comparison, self.which, found);
        let dim = self.rows.dim;
        let mut to = vec![A::ZERO; self.rows.x.len()];
        blocks::for_each(to.chunks_mut(TASK_ROWS * dim).collect(), |task, to: &mut [A]| {
            for (k, to) in to.chunks_exact_mut(dim).enumerate() {
                let r = self.classes().position[task * TASK_ROWS + k] as usize;
                for &(c, compared) in &lists.pairs[lists.starts[r]..lists.starts[r + 1]] {
                    let d = self.rows.distance(compared);
                    let derivative = self.terms.derivative(d);
                    if !(derivative == A::ZERO) {
                        let weight = derivative * self.rows.slope(d) * self.upstream(r, c as usize);
                        pulls::add(to, self.rows, r, self.columns, c as usize, weight);
                    }
                }
                self.add_positives(r, to);
                self.rows.through_normalization(r, to);
            }
        });
        to
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
