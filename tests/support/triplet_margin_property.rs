//! `triplet_margin` as the tests of paired losses see it.

use proptest::prelude::*;
use tercet::triplet_margin::oracle;
use tercet::{Element, PairedDistance, Reduction, TripletMarginLoss};

use super::paired::{self, Bounds, Data, Oracle, Paired, RowBounds, distance_scale, is_smooth, slope_scale};

pub type Case = paired::Case<TripletMarginLoss>;

impl Paired<3> for TripletMarginLoss {
    const NAME: &'static str = "triplet_margin";

    fn cases() -> BoxedStrategy<Case> {
        let margins = proptest::sample::select(vec![0.0, 0.2, 1.0, 1e4]);
        let (distances, contents, reductions) = (paired::distances(), paired::contents(), paired::reductions());
        let options = (distances, contents, reductions, margins, any::<bool>(), any::<bool>());
        let cases = (options, paired::shapes()).prop_map(
            |((distance, content, reduction, margin, normalize, swap), (rows, dim, gap, offset, seed))| Case {
                loss: TripletMarginLoss { margin, distance, normalize, swap, reduction },
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
        let (margin, [normalize, swap]) = ([0.2, 1.0][which], [which == 1; 2]);
        Self { margin, distance, normalize, swap, reduction }
    }

    fn plain(margin: f64, distance: PairedDistance, reduction: Reduction) -> Self {
        Self { margin, distance, normalize: false, swap: false, reduction }
    }
    fn takes_scale<T: Element>(_: f64) -> bool {
        true
    }
    fn loss_size(reach: f64) -> f64 {
        reach
    }

    fn options(&self) -> String {
        let Self { margin, distance, normalize, swap, reduction } = self;
        format!("{distance:?}, normalize {normalize}, swap {swap}, {reduction:?}, margin {margin}")
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

    fn oracle<T: Element>(case: &Case, data: &Data<T, 3>, upstream: &[f64]) -> Oracle<3> {
        let found = oracle::run(&case.loss, data.exact_inputs(case.dim), upstream).unwrap();
        let bounds = (0..case.rows).map(|row| row_bounds(case, data, &found, row)).collect();
        let oracle::Oracle { losses, loss, grads, .. } = found;
        Oracle { losses, loss, grads, bounds }
    }

    fn has_bound<T: Element>(case: &Case, data: &Data<T, 3>) -> bool {
        let Case { loss, .. } = case;
        (0..case.rows).all(|row| {
            let ([a, p, n], _) = paired::unit_rows(case, data, row);
            is_smooth(loss, &a, &p) && is_smooth(loss, &a, &n) && (!loss.swap || is_smooth(loss, &p, &n))
        })
    }
}

fn row_bounds<T: Element>(case: &Case, data: &Data<T, 3>, oracle: &oracle::Oracle, row: usize) -> RowBounds {
    let bounds = Bounds::new::<T, _, 3>(case);
    let Case { loss, .. } = case;
    let ([a, p, n], norms) = paired::unit_rows(case, data, row);
    let d = |x: &[f64], y: &[f64]| distance_scale(loss.distance, x, y);
    // The oracle does not keep the distances: upper bounds stand in for them.
    let loss_bound = bounds.distance(d(&a, &p) + d(&a, &n) + d(&p, &n) + loss.margin);
    let slopes =
        slope_scale(loss, &a, &p) + slope_scale(loss, &a, &n) + if loss.swap { slope_scale(loss, &p, &n) } else { 0.0 };
    RowBounds {
        loss: loss_bound,
        slope: bounds.sum * paired::through_norms(loss, slopes, norms),
        // Near 0, rounding decides whether a row is active; near equal distances, which pair is the negative.
        decided: oracle.arguments[row].abs() > loss_bound && oracle.swap_gaps[row].abs() > loss_bound,
    }
}
