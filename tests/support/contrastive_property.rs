//! `contrastive` as the tests of paired losses see it.

use proptest::prelude::*;
use tercet::contrastive::oracle;
use tercet::{ContrastiveLoss, Element, PairedDistance, Reduction};

use super::paired::{self, Bounds, Data, Oracle, Paired, RowBounds, distance_scale, is_smooth, slope_scale};
use super::support::Numbers;

pub type Case = paired::Case<ContrastiveLoss>;

/// Which pairs are positive, about half of them: it follows from the seed.
pub fn same(seed: u64, rows: usize) -> Vec<bool> {
    let mut numbers = Numbers(!seed);
    (0..rows).map(|_| numbers.below(2) == 0).collect()
}

impl Paired<2> for ContrastiveLoss {
    const NAME: &'static str = "contrastive";

    fn cases() -> BoxedStrategy<Case> {
        let margins = proptest::sample::select(vec![0.0, 0.5, 1.0, 3.0, 1e4]);
        let (distances, contents, reductions) = (paired::distances(), paired::contents(), paired::reductions());
        let options = (distances, contents, reductions, margins, any::<bool>());
        let cases = (options, paired::shapes()).prop_map(
            |((distance, content, reduction, margin, normalize), (rows, dim, gap, offset, seed))| Case {
                loss: ContrastiveLoss { margin, distance, normalize, reduction },
                rows,
                dim,
                gap,
                offset,
                content,
                seed,
            },
        );
        cases.boxed()
    }

    fn recorded(which: usize, distance: PairedDistance, reduction: Reduction) -> Self {
        // Above most distances between such rows, and near those of normalised rows.
        Self { margin: [8.0, 1.5][which], distance, normalize: which == 1, reduction }
    }

    fn plain(margin: f64, distance: PairedDistance, reduction: Reduction) -> Self {
        Self { margin, distance, normalize: false, reduction }
    }
    fn takes_scale<T: Element>(scale: f64) -> bool {
        if T::Scalar::NAME == "f64" { (1e-100..1e100).contains(&scale) } else { (1e-12..1e12).contains(&scale) }
    }
    fn loss_size(reach: f64) -> f64 {
        reach * reach / 2.0
    }

    fn options(&self) -> String {
        let Self { margin, distance, normalize, reduction } = self;
        format!("{distance:?}, normalize {normalize}, {reduction:?}, margin {margin}")
    }

    fn distance(&self) -> PairedDistance {
        self.distance
    }
    fn normalize(&self) -> bool {
        self.normalize
    }
    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn oracle<T: Element>(case: &Case, data: &Data<T, 2>, upstream: &[f64]) -> Oracle<2> {
        let same = same(case.seed, case.rows);
        let found = oracle::run(&case.loss, data.exact_inputs(case.dim), &same, upstream).unwrap();
        let bounds = (0..case.rows).map(|row| row_bounds(case, data, same[row], found.distances[row], row)).collect();
        let oracle::Oracle { losses, loss, grads, .. } = found;
        Oracle { losses, loss, grads, bounds }
    }

    fn has_bound<T: Element>(case: &Case, data: &Data<T, 2>) -> bool {
        let root = matches!(case.loss.distance, PairedDistance::Euclidean | PairedDistance::Lp { p: 2.0, .. });
        same(case.seed, case.rows).into_iter().enumerate().all(|(row, same)| {
            let ([x, y], _) = paired::unit_rows(case, data, row);
            // The square of a Euclidean distance has no jump.
            same && root || is_smooth(&case.loss, &x, &y)
        })
    }
}

fn row_bounds<T: Element>(case: &Case, data: &Data<T, 2>, same: bool, d: f64, row: usize) -> RowBounds {
    let bounds = Bounds::new::<T, _, 2>(case);
    let Case { loss, .. } = case;
    let ([x, y], norms) = paired::unit_rows(case, data, row);
    let scale = distance_scale(loss.distance, &x, &y);
    // The loss is force² / 2; its derivative by d is the force, up to the sign.
    let (force, error) = match same {
        true => (d, bounds.distance(scale)),
        false => ((loss.margin - d).max(0.0), bounds.distance(scale + loss.margin)),
    };
    let slope = slope_scale(loss, &x, &y);
    RowBounds {
        loss: error * (force + error / 2.0) + bounds.sum * force * force / 2.0,
        slope: paired::through_norms(loss, slope * (error + bounds.sum * (force + error)), norms),
        // The gradients are continuous where a pair is just far enough apart.
        decided: true,
    }
}
