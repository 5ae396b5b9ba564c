//! The score of a set of folds of pairs.

use crate::evaluation::metrics::{accuracy, most_accurate};
use crate::evaluation::ranking::mean_and_error;
use crate::evaluation::tally::Tally;

/// LFW's score: each fold's accuracy at the threshold that is most accurate on the other folds, as mean and standard
/// error. `None` for one fold.
pub fn cross_validated(folds: &[Vec<(f32, bool)>]) -> Option<(f64, f64)> {
    if folds.len() < 2 {
        return None;
    }
    let of_fold = |own: usize| {
        let others = folds.iter().enumerate().filter(|(fold, _)| *fold != own).flat_map(|(_, pairs)| pairs);
        accuracy(&folds[own], most_accurate(&Tally::of_pairs(others.copied())))
    };
    Some(mean_and_error(&(0..folds.len()).map(of_fold).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_comes_from_the_other_folds() {
        // Fold 0 alone would choose 1.5 and be right; the other fold says 3.5, at which 1 of 2 is right.
        let folds = vec![vec![(1.0, true), (2.0, false)], vec![(3.0, true), (4.0, false)]];
        // The first fold's 1.5 rejects both pairs of the second: 1 of 2.
        assert_eq!(cross_validated(&folds), Some((0.5, 0.0)));
        let folds = vec![folds[0].clone(), folds[0].clone(), vec![(1.0, true), (1.2, false)]];
        let (mean, error) = cross_validated(&folds).unwrap();
        assert!((mean - 2.5 / 3.0).abs() < 1e-12 && (error - 1.0 / 6.0).abs() < 1e-12, "{mean} {error}");
        assert_eq!(cross_validated(&folds[..1]), None);
    }
}
