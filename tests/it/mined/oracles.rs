//! The oracles of the mined losses: against finite differences, against numbers computed by hand, and the laws that
//! hold for any batch and any reference. What other libraries compute is in mined/peers.rs.

use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Distance, Error, Matrix, MeanOver, Negative, Negatives, Own, Pairs, Reduction, Reference,
    Stats,
};
use tercet::{batch_all, batch_contrastive, batch_hard, batch_negative, batch_semi_hard};

use super::batch::stats;
use crate::support::Numbers;

#[derive(Clone, Copy, Debug)]
enum Loss {
    All(BatchAllTripletLoss),
    Hard(BatchHardTripletLoss),
    SemiHard(BatchSemiHardTripletLoss),
    Negative(BatchNegativeTripletLoss),
    Contrastive(BatchContrastiveLoss),
}

#[derive(Clone, Debug)]
struct Batch {
    dim: usize,
    x: Vec<f64>,
    labels: Vec<i64>,
}

/// A reference set that owns its rows.
#[derive(Clone, Debug)]
struct Set {
    rows: Batch,
    own: Own<Vec<i64>>,
}

struct Outcome {
    loss: f64,
    /// Empty for batch_all, which has no loss per row.
    losses: Vec<f64>,
    grads: [Vec<f64>; 2],
    stats: Stats,
    /// The chosen negatives; empty for batch_all and batch_contrastive.
    negative: Vec<u32>,
}

impl Batch {
    fn new(dim: usize, x: &[f64], labels: &[i64]) -> Self {
        Self { dim, x: x.to_vec(), labels: labels.to_vec() }
    }

    fn random(numbers: &mut Numbers, rows: usize, dim: usize, classes: usize) -> Self {
        let x = (0..rows * dim).map(|_| numbers.unit()).collect();
        Self { dim, x, labels: (0..rows).map(|_| numbers.below(classes) as i64).collect() }
    }

    fn matrix(&self) -> Matrix<'_, f64> {
        Matrix::new(&self.x, self.dim).unwrap()
    }

    fn rows(&self) -> usize {
        self.labels.len()
    }

    /// A batch of the rows `at`, in that order.
    fn some(&self, at: &[usize]) -> Self {
        let x = at.iter().flat_map(|&i| self.matrix().row(i)).copied().collect();
        Self { dim: self.dim, x, labels: at.iter().map(|&i| self.labels[i]).collect() }
    }
}

impl Loss {
    /// Runs the oracle against the set, or the batch against itself. `frozen` fixes the negatives of batch_negative,
    /// whose draws depend on the rows' bits.
    fn run(
        &self,
        batch: &Batch,
        set: Option<&Set>,
        upstream: &[f64],
        frozen: Option<&[u32]>,
    ) -> Result<Outcome, Error> {
        let (x, y) = (batch.matrix(), &batch.labels[..]);
        let set = set.map(|set| Reference {
            embeddings: set.rows.matrix(),
            labels: &set.rows.labels[..],
            own: match &set.own {
                Own::None => Own::None,
                Own::Offset(offset) => Own::Offset(*offset),
                Own::Rows(rows) => Own::Rows(&rows[..]),
            },
        });
        let set = set.as_ref();
        Ok(match self {
            Loss::All(loss) => {
                let found = batch_all::oracle::run_against(loss, x, y, set, upstream[0])?;
                let grads = [found.grad, found.reference_grad];
                Outcome { loss: found.loss, losses: Vec::new(), grads, stats: found.stats, negative: Vec::new() }
            }
            Loss::Hard(loss) => {
                let found = batch_hard::oracle::run_against(loss, x, y, set, upstream, None)?;
                let grads = [found.grad, found.reference_grad];
                Outcome { loss: found.loss, losses: found.losses, grads, stats: found.stats, negative: found.negative }
            }
            Loss::SemiHard(loss) => {
                let found = batch_semi_hard::oracle::run_against(loss, x, y, set, upstream, None)?;
                let grads = [found.grad, found.reference_grad];
                Outcome { loss: found.loss, losses: found.losses, grads, stats: found.stats, negative: found.negative }
            }
            Loss::Negative(loss) => {
                let found = batch_negative::oracle::run_against::<f64>(loss, x, y, set, 3, upstream, frozen)?;
                let grads = [found.grad, found.reference_grad];
                Outcome { loss: found.loss, losses: found.losses, grads, stats: found.stats, negative: found.negative }
            }
            Loss::Contrastive(loss) => {
                let found = batch_contrastive::oracle::run_against(loss, x, y, set, upstream, None)?;
                let grads = [found.grad, found.reference_grad];
                Outcome { loss: found.loss, losses: found.losses, grads, stats: found.stats, negative: Vec::new() }
            }
        })
    }

    fn with(self, reduction: Reduction) -> Self {
        match self {
            Loss::All(loss) => Loss::All(BatchAllTripletLoss { reduction, ..loss }),
            Loss::Hard(loss) => Loss::Hard(BatchHardTripletLoss { reduction, ..loss }),
            Loss::SemiHard(loss) => Loss::SemiHard(BatchSemiHardTripletLoss { reduction, ..loss }),
            Loss::Negative(loss) => Loss::Negative(BatchNegativeTripletLoss { reduction, ..loss }),
            Loss::Contrastive(loss) => Loss::Contrastive(BatchContrastiveLoss { reduction, ..loss }),
        }
    }

    fn takes(&self, set: &Set) -> bool {
        !matches!(self, Loss::Negative(loss) if loss.pairs == Pairs::Once && set.own == Own::None)
    }
}

/// Each loss with each of its own options, for each distance.
fn losses() -> Vec<Loss> {
    let mut all = Vec::new();
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        for normalize in [false, true] {
            let margin = 0.7;
            for mean_over in [MeanOver::Active, MeanOver::Valid] {
                let loss = BatchAllTripletLoss { margin, distance, normalize, mean_over, ..Default::default() };
                all.push(Loss::All(loss));
            }
            for soft_margin in [false, true] {
                let loss = BatchHardTripletLoss { margin, distance, normalize, soft_margin, ..Default::default() };
                all.push(Loss::Hard(loss));
            }
            let loss = BatchSemiHardTripletLoss { margin, distance, normalize, ..Default::default() };
            all.push(Loss::SemiHard(loss));
            for negative in [Negative::Hardest, Negative::Random, Negative::SemiHard] {
                for pairs in [Pairs::Ordered, Pairs::Once] {
                    let options = BatchNegativeTripletLoss { negative, pairs, seed: 5, ..Default::default() };
                    all.push(Loss::Negative(BatchNegativeTripletLoss { margin, distance, normalize, ..options }));
                }
            }
            for negatives in [Negatives::All, Negatives::Hardest] {
                let loss = BatchContrastiveLoss { margin, distance, normalize, negatives, ..Default::default() };
                all.push(Loss::Contrastive(loss));
            }
        }
    }
    all
}

/// A batch of nine rows in three classes, and the sets to compare it with: itself (`None`), one without its rows, and
/// two that contain some or all of them.
fn batch_and_sets() -> (Batch, Vec<Option<Set>>) {
    let mut numbers = Numbers(17);
    let batch = Batch::random(&mut numbers, 9, 3, 3);
    let other = Batch::random(&mut numbers, 11, 3, 4);
    let mut around = other.some(&[0, 1]);
    around.x.extend(&batch.x);
    around.labels.extend(&batch.labels);
    // Anchors 1 and 4 are in the set, as its last row and as its first; the others are not.
    let mut scattered = other.clone();
    scattered.x[..3].copy_from_slice(batch.matrix().row(4));
    scattered.x[30..].copy_from_slice(batch.matrix().row(1));
    (scattered.labels[0], scattered.labels[10]) = (batch.labels[4], batch.labels[1]);
    let rows = vec![-1, 10, 11, i64::MAX, 0, -1, -7, 90, i64::MIN];
    let sets = vec![
        None,
        Some(Set { rows: other, own: Own::None }),
        Some(Set { rows: around, own: Own::Offset(2) }),
        Some(Set { rows: scattered, own: Own::Rows(rows) }),
    ];
    (batch, sets)
}

fn close(actual: &[f64], expected: &[f64], bound: f64, what: impl Fn() -> String) {
    assert_eq!(actual.len(), expected.len(), "{}", what());
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!(
            (actual - expected).abs() <= bound * (1.0 + expected.abs()),
            "{} [{i}]: {actual} for {expected}",
            what()
        );
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (batch, sets) = batch_and_sets();
    let upstream: Vec<f64> = (0..batch.rows()).map(|a| 1.0 - 0.3 * a as f64).collect();
    let (mut checked, mut moving) = (0, 0);
    for loss in losses() {
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            let none = reduction == Reduction::None;
            if none && matches!(loss, Loss::All(_)) {
                continue;
            }
            let loss = loss.with(reduction);
            let upstream = if none { &upstream[..] } else { &upstream[3..4] };
            for set in sets.iter().filter(|set| set.as_ref().is_none_or(|set| loss.takes(set))) {
                let given = loss.run(&batch, set.as_ref(), upstream, None).unwrap();
                let value = |batch: &Batch, set: Option<&Set>| {
                    let found = loss.run(batch, set, upstream, Some(&given.negative)).unwrap();
                    match none {
                        true => found.losses.iter().zip(upstream).map(|(loss, upstream)| loss * upstream).sum(),
                        false => upstream[0] * found.loss,
                    }
                };
                let h = 1e-6;
                let slope = |at: &dyn Fn(f64) -> f64| (at(h) - at(-h)) / (2.0 * h);
                for i in 0..batch.x.len() {
                    let slope = slope(&|step| {
                        let mut batch = batch.clone();
                        batch.x[i] += step;
                        value(&batch, set.as_ref())
                    });
                    close(&[given.grads[0][i]], &[slope], 2e-6, || format!("{loss:?} {set:?} x[{i}]"));
                    moving += usize::from(slope != 0.0);
                }
                assert_eq!(given.grads[1].len(), set.as_ref().map_or(0, |set| set.rows.x.len()));
                for i in 0..given.grads[1].len() {
                    let slope = slope(&|step| {
                        let mut set = set.clone().unwrap();
                        set.rows.x[i] += step;
                        value(&batch, Some(&set))
                    });
                    close(&[given.grads[1][i]], &[slope], 2e-6, || format!("{loss:?} {set:?} reference[{i}]"));
                    moving += usize::from(slope != 0.0);
                }
                checked += 1;
            }
        }
    }
    println!("{checked} gradients, {moving} slopes that are not 0");
    assert!(checked > 500 && moving > 10_000);
}

#[test]
fn the_batch_as_its_own_reference_is_the_batch() {
    let (batch, _) = batch_and_sets();
    let set = Set { rows: batch.clone(), own: Own::Offset(0) };
    let by_rows = Set { own: Own::Rows((0..batch.rows() as i64).collect()), ..set.clone() };
    for loss in losses() {
        let itself = loss.run(&batch, None, &[0.5], None).unwrap();
        for set in [&set, &by_rows] {
            let found = loss.run(&batch, Some(set), &[0.5], None).unwrap();
            assert_eq!(
                (found.loss, &found.losses, found.stats),
                (itself.loss, &itself.losses, itself.stats),
                "{loss:?}"
            );
            let both: Vec<f64> = found.grads[0].iter().zip(&found.grads[1]).map(|(g, h)| g + h).collect();
            close(&both, &itself.grads[0], 1e-14, || format!("{loss:?}"));
        }
    }
}

#[test]
fn shards_of_the_anchors_add_up() {
    let (batch, _) = batch_and_sets();
    for loss in losses() {
        // The hardest pairs of the whole batch are not those of its shards.
        if matches!(loss, Loss::Contrastive(loss) if loss.negatives == Negatives::Hardest) {
            continue;
        }
        let loss = loss.with(Reduction::Sum);
        let whole = loss.run(&batch, None, &[0.5], None).unwrap();
        let mut sum = 0.0;
        let mut grad = vec![0.0; batch.x.len()];
        let mut valid = 0;
        for shard in [0..4, 4..5, 5..9] {
            let anchors = batch.some(&shard.clone().collect::<Vec<_>>());
            let set = Set { rows: batch.clone(), own: Own::Offset(shard.start as i64) };
            let found = loss.run(&anchors, Some(&set), &[0.5], None).unwrap();
            sum += found.loss;
            valid += found.stats.valid;
            let own = grad[3 * shard.start..3 * shard.end].iter_mut().zip(&found.grads[0]);
            own.for_each(|(sum, g)| *sum += g);
            grad.iter_mut().zip(&found.grads[1]).for_each(|(sum, g)| *sum += g);
        }
        assert_eq!(valid, whole.stats.valid, "{loss:?}");
        close(&[sum], &[whole.loss], 1e-13, || format!("{loss:?}"));
        close(&grad, &whole.grads[0], 1e-13, || format!("{loss:?}"));
    }
}

#[test]
fn the_order_of_the_batch_does_not_matter() {
    let mut numbers = Numbers(23);
    let batch = Batch::random(&mut numbers, 20, 4, 4);
    let from: Vec<usize> = (0..20).map(|i| i * 7 % 20).collect();
    let moved = batch.some(&from);
    for loss in losses() {
        // With `Pairs::Once`, the order of two rows decides which is the anchor.
        if matches!(loss, Loss::Negative(loss) if loss.pairs == Pairs::Once) {
            continue;
        }
        let (given, moved) =
            (loss.run(&batch, None, &[1.0], None).unwrap(), loss.run(&moved, None, &[1.0], None).unwrap());
        close(&[moved.loss], &[given.loss], 1e-13, || format!("{loss:?}"));
        assert_eq!(moved.stats.valid, given.stats.valid);
        let expected: Vec<f64> = from.iter().flat_map(|&i| &given.grads[0][4 * i..4 * i + 4]).copied().collect();
        close(&moved.grads[0], &expected, 1e-13, || format!("{loss:?}"));
    }
}

/// Rows on a line with d = (x - y)²: the anchor at 0, its positives at 1 and 2, negatives at 0.5, -1, 1.5, -2 and 3.
fn line() -> (Batch, Set) {
    let anchor = Batch::new(1, &[0.0], &[7]);
    let rows = Batch::new(1, &[1.0, 0.5, 2.0, -1.0, 1.5, -2.0, 3.0], &[7, 0, 7, 1, 2, 1, 0]);
    (anchor, Set { rows, own: Own::None })
}

#[test]
fn batch_hard_against_a_reference_by_hand() {
    let (anchor, set) = line();
    let loss = BatchHardTripletLoss { margin: 0.5, ..Default::default() };
    let found = Loss::Hard(loss).run(&anchor, Some(&set), &[1.0], None).unwrap();
    // The farthest positive is at 2, the nearest negative at 0.5.
    assert_eq!(found.loss, 4.0 - 0.25 + 0.5);
    assert_eq!(found.grads, [vec![-4.0 + 1.0], vec![0.0, -1.0, 4.0, 0.0, 0.0, 0.0, 0.0]]);
    let expected = stats([1, 1], [4.0, 0.25], false);
    assert_eq!(found.stats, expected);
    // If the row at 2 is the anchor's own, the positive is the one at 1.
    let set = Set { own: Own::Offset(2), ..set };
    assert_eq!(Loss::Hard(loss).run(&anchor, Some(&set), &[1.0], None).unwrap().loss, 1.0 - 0.25 + 0.5);
}

#[test]
fn batch_all_against_a_reference_by_hand() {
    let (anchor, set) = line();
    let loss = BatchAllTripletLoss { margin: 0.5, ..Default::default() };
    let found = Loss::All(loss).run(&anchor, Some(&set), &[1.0], None).unwrap();
    // Distances of the negatives: 0.25, 1, 2.25, 4, 9. Terms of the positive at distance 1: 1.25, 0.5; at distance 4:
    // 4.25, 3.5, 2.25, 0.5.
    assert_eq!((found.stats.valid, found.stats.active), (10, 6));
    close(&[found.loss], &[(1.25 + 0.5 + 4.25 + 3.5 + 2.25 + 0.5) / 6.0], 1e-15, || "loss".into());
    assert_eq!(found.stats.mean_positive_distance, 2.5);
    assert_eq!(found.stats.mean_negative_distance, 16.5 / 5.0);
}

#[test]
fn batch_semi_hard_by_hand() {
    let (anchor, set) = line();
    let loss = BatchSemiHardTripletLoss { margin: 2.0, ..Default::default() };
    let found = Loss::SemiHard(loss).run(&anchor, Some(&set), &[1.0], None).unwrap();
    // The nearest negative strictly beyond 1 is at 2.25, not the other at 1; strictly beyond 4 it is at 9.
    assert_eq!(found.negative, [4, 6]);
    assert_eq!(found.loss, (1.0 - 2.25 + 2.0) / 2.0);
    assert_eq!(found.grads, [vec![-1.0 + 1.5], vec![1.0, 0.0, 0.0, 0.0, -1.5, 0.0, 0.0]]);
    let expected = stats([2, 1], [2.5, 5.625], false);
    assert_eq!(found.stats, expected);

    // No negative is farther than the positive: the farthest is taken, the first of equals.
    let rows = Batch::new(1, &[9.0, 1.0, -4.0, 4.0, -4.0], &[7, 0, 1, 2, 0]);
    let found = Loss::SemiHard(loss).run(&anchor, Some(&Set { rows, own: Own::None }), &[1.0], None).unwrap();
    assert_eq!((found.negative, found.loss), (vec![2], 81.0 - 16.0 + 2.0));
    // Of equally near negatives the first is taken.
    let rows = Batch::new(1, &[9.0, -3.0, 3.0, 1.0, -2.0, 2.0], &[0, 1, 2, 7, 1, 0]);
    let found = Loss::SemiHard(loss).run(&anchor, Some(&Set { rows, own: Own::None }), &[1.0], None).unwrap();
    assert_eq!((found.negative, found.loss), (vec![4], 0.0));

    // A triplet exactly on the hinge has no loss and no gradient, but is valid.
    let rows = Batch::new(1, &[1.0, 3.0], &[7, 0]);
    let loss = Loss::SemiHard(BatchSemiHardTripletLoss { margin: 8.0, ..Default::default() });
    let found = loss.run(&anchor, Some(&Set { rows, own: Own::None }), &[1.0], None).unwrap();
    assert_eq!((found.loss, found.stats.valid, found.stats.active), (0.0, 1, 0));
    assert_eq!(found.grads, [vec![0.0], vec![0.0; 2]]);
}

#[test]
fn batch_negative_by_hand() {
    let (anchor, set) = line();
    let run = |negative: Negative, margin: f64, step: i64| {
        let loss = BatchNegativeTripletLoss { margin, negative, ..Default::default() };
        let set = Reference { embeddings: set.rows.matrix(), labels: &set.rows.labels[..], own: Own::None };
        let (x, y) = (anchor.matrix(), &anchor.labels[..]);
        batch_negative::oracle::run_against::<f64>(&loss, x, y, Some(&set), step, &[1.0], None).unwrap()
    };
    let hardest = run(Negative::Hardest, 2.0, 0);
    assert_eq!((hardest.negative, hardest.loss), (vec![1, 1], (2.75 + 5.75) / 2.0));
    assert_eq!((hardest.grad, hardest.reference_grad), (vec![-2.0], vec![1.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0]));
    // Candidates at random are nearer than d_ap + margin, which is 1 + 2 and 4 + 2; semi-hard ones are also strictly
    // beyond d_ap.
    assert_eq!(run(Negative::Random, 2.0, 0).candidates, [vec![1, 3, 4], vec![1, 3, 4, 5]]);
    let semi_hard = run(Negative::SemiHard, 2.0, 0);
    assert_eq!(semi_hard.candidates, [vec![4], vec![]]);
    assert_eq!(semi_hard.negative, [4, u32::MAX]);
    // The pair without a candidate is not valid.
    assert_eq!((semi_hard.loss, semi_hard.stats.valid), (1.0 - 2.25 + 2.0, 1));
    assert_eq!(semi_hard.stats.mean_positive_distance, 1.0);
    assert_eq!(semi_hard.stats.mean_negative_distance, 2.25);
    // A negative at which the loss is exactly 0 is not a candidate.
    assert!(run(Negative::SemiHard, 1.25, 0).candidates[0].is_empty());
    assert_eq!(run(Negative::Hardest, 0.0, 0).negative, [1, 1]);

    // Each step draws anew, each candidate about equally often.
    let mut counts = [[0usize; 7]; 2];
    for step in 0..4000 {
        let found = run(Negative::Random, 2.0, step);
        for (counts, (negative, candidates)) in counts.iter_mut().zip(found.negative.iter().zip(&found.candidates)) {
            assert!(candidates.contains(negative));
            counts[*negative as usize] += 1;
        }
    }
    for (counts, candidates) in counts.iter().zip([3.0, 4.0]) {
        for count in counts.iter().filter(|count| **count > 0) {
            // Five standard deviations.
            let (mean, share) = (4000.0 / candidates, 1.0 / candidates);
            let deviation = f64::sqrt(mean * (1.0 - share));
            assert!((*count as f64 - mean).abs() <= 5.0 * deviation, "{counts:?}");
        }
    }
}

#[test]
fn batch_negative_takes_each_pair_once_by_the_rows_places() {
    // Classes of three and of two on a line; every negative is nearer than the margin.
    let batch = Batch::new(1, &[0.0, 1.0, 0.5, 2.0, 3.0], &[0, 1, 0, 0, 1]);
    let options = BatchNegativeTripletLoss { margin: 100.0, negative: Negative::Random, ..Default::default() };
    let (x, y) = (batch.matrix(), &batch.labels[..]);
    let pairs = |loss: &BatchNegativeTripletLoss, set: Option<&Reference<Matrix<'_, f64>, &[i64]>>| {
        batch_negative::oracle::run_against::<f64>(loss, x, y, set, 0, &[1.0], None).map(|found| found.pairs)
    };
    let once = BatchNegativeTripletLoss { pairs: Pairs::Once, ..options };
    let ordered = [[0, 2], [0, 3], [1, 4], [2, 0], [2, 3], [3, 0], [3, 2], [4, 1]];
    assert_eq!(pairs(&options, None).unwrap(), ordered);
    assert_eq!(pairs(&once, None).unwrap(), [[0, 2], [0, 3], [1, 4], [2, 3]]);

    // In the reference, anchor 0 is the last row and anchor 2 the second; the other anchors are not in it.
    let rows = [4, -1, 1, 5, -9];
    let mut set = Reference { embeddings: x, labels: y, own: Own::Rows(&rows[..]) };
    assert_eq!(pairs(&once, Some(&set)).unwrap(), [[2, 2], [2, 3]]);
    set.own = Own::None;
    let error = pairs(&once, Some(&set)).unwrap_err();
    assert!(error.to_string().starts_with("pairs: "), "{error}");
    assert_eq!(pairs(&options, Some(&set)).unwrap().len(), 3 * 3 + 2 * 2);
}

#[test]
fn batch_contrastive_by_hand() {
    // Distances 2 and 4 within the classes, 3, 7, 1, 5 between them.
    let batch = Batch::new(1, &[0.0, 2.0, 3.0, 7.0], &[7, 7, -1, -1]);
    let all = Loss::Contrastive(BatchContrastiveLoss { margin: 4.0, ..Default::default() });
    let found = all.run(&batch, None, &[1.0], None).unwrap();
    assert_eq!(found.loss, (2.0 + 8.0 + 0.5 + 4.5) / 6.0);
    let expected = stats([12, 8], [3.0, 4.0], false);
    assert_eq!(found.stats, expected);
    // Pulled by d, pushed by margin - d: row 0 is pulled by 2 to the right and pushed by 1 to the left.
    close(&found.grads[0], &[-1.0 / 6.0, 5.0 / 6.0, -8.0 / 6.0, 4.0 / 6.0], 1e-15, || "gradient".into());
    let sum = all.with(Reduction::Sum).run(&batch, None, &[1.0], None).unwrap();
    assert_eq!((sum.loss, sum.losses), (30.0, vec![2.0 + 0.5, 2.0 + 4.5, 8.0 + 0.5 + 4.5, 8.0]));

    let loss = BatchContrastiveLoss { margin: 4.0, negatives: Negatives::Hardest, ..Default::default() };
    let run = |batch: &Batch, set: Option<&Reference<Matrix<'_, f64>, &[i64]>>| {
        batch_contrastive::oracle::run_against(&loss, batch.matrix(), &batch.labels, set, &[1.0], None).unwrap()
    };
    // Two positive pairs, so the two nearest negative pairs, in both orders.
    let hardest = run(&batch, None);
    assert_eq!(hardest.negatives, [[0, 2], [1, 2], [2, 0], [2, 1]]);
    assert_eq!(hardest.loss, (2.0 + 8.0 + 0.5 + 4.5) / 4.0);
    assert_eq!((hardest.stats.valid, hardest.stats.mean_negative_distance), (8, 2.0));

    // Equally near pairs go by anchor, then by row. One positive pair, and four negative pairs at a distance of 1.
    let tied = Batch::new(1, &[1.0, 0.0, 0.0, -1.0], &[3, 0, 0, 4]);
    assert_eq!(run(&tied, None).negatives, [[0, 1], [1, 0]]);
    // Against a reference each order is a pair of its own: two positive pairs.
    let set = Reference { embeddings: tied.matrix(), labels: &tied.labels[..], own: Own::Offset(0) };
    assert_eq!(run(&tied, Some(&set)).negatives, [[0, 1], [0, 2]]);
    // Fewer negative pairs than positive ones: all are selected. No positive pair: none is.
    let one = Batch::new(1, &[0.0, 1.0, 2.0, 9.0], &[0, 0, 0, 1]);
    assert_eq!(run(&one, None).stats.valid, 6 + 6);
    let apart = run(&Batch::new(1, &[0.0, 1.0, 2.0], &[0, 1, 2]), None);
    assert_eq!((apart.loss, apart.stats, apart.grad), (0.0, Stats::default(), vec![0.0; 3]));

    // Coincident rows have no direction, and so no gradient, but a loss.
    let same = Batch::new(2, &[1.0, 2.0, 1.0, 2.0], &[0, 1]);
    let found = all.run(&same, None, &[1.0], None).unwrap();
    assert_eq!((found.loss, &found.grads[0]), (8.0, &vec![0.0; 4]));
}

#[test]
fn nan_and_infinity_are_seen() {
    let (batch, sets) = batch_and_sets();
    // The labels of the batch, a single class (no negatives), and labels that all differ (no positives).
    let labellings = [batch.labels.clone(), vec![5; 9], (100..109).collect()];
    for loss in losses() {
        for set in sets.iter().filter(|set| set.as_ref().is_none_or(|set| loss.takes(set))) {
            for labels in &labellings {
                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    let mut given = Batch { labels: labels.clone(), ..batch.clone() };
                    given.x[3 * 4 + 1] = bad;
                    let found = loss.run(&given, set.as_ref(), &[1.0], None).unwrap();
                    assert!(found.loss.is_nan(), "{loss:?}");
                    assert!(found.grads[0][12..15].iter().all(|g| g.is_nan()), "{loss:?}");
                    assert!(found.losses.is_empty() || found.losses[4].is_nan(), "{loss:?}");
                    assert!(found.stats.mean_positive_distance.is_nan() || matches!(loss, Loss::Hard(_)));

                    let Some(mut set) = set.clone() else { continue };
                    let given = Batch { labels: labels.clone(), ..batch.clone() };
                    set.rows.x[3 * 7] = bad;
                    let found = loss.run(&given, Some(&set), &[1.0], None).unwrap();
                    assert!(found.loss.is_nan(), "{loss:?}");
                    assert!(found.grads[1][21..24].iter().all(|g| g.is_nan()), "{loss:?}");
                }
            }
        }
    }
}

#[test]
fn a_selected_distance_that_overflows_gives_nan() {
    let sums = |loss: Loss, x: &[f64]| loss.run(&Batch::new(1, x, &[0, 0, 1, 1]), None, &[1.0], None).unwrap().loss;
    for loss in losses() {
        let cosine = |distance| distance == Distance::Cosine;
        let skip = match loss {
            Loss::All(loss) => cosine(loss.distance) || loss.normalize,
            Loss::Hard(loss) => cosine(loss.distance) || loss.normalize,
            Loss::SemiHard(loss) => cosine(loss.distance) || loss.normalize,
            Loss::Negative(loss) => cosine(loss.distance) || loss.normalize,
            Loss::Contrastive(loss) => cosine(loss.distance) || loss.normalize,
        };
        if !skip {
            // The distance of a positive overflows f64.
            assert!(sums(loss, &[-1.7e308, 1.7e308, 0.0, 1.0]).is_nan(), "{loss:?}");
        }
    }
}

#[test]
fn without_a_pair_everything_is_zero() {
    let (batch, sets) = batch_and_sets();
    for loss in losses() {
        for set in sets.iter().filter(|set| set.as_ref().is_none_or(|set| loss.takes(set))) {
            // Labels that nothing shares have no positives; a single class, below, has no negatives.
            let given = Batch { labels: (100..109).collect(), ..batch.clone() };
            let found = loss.run(&given, set.as_ref(), &[1.0], None).unwrap();
            let contrasts = matches!(loss, Loss::Contrastive(loss) if loss.negatives == Negatives::All);
            assert!(contrasts || (found.loss == 0.0 && found.stats == Stats::default()), "{loss:?}");
            assert!(contrasts || found.grads.iter().flatten().all(|g| *g == 0.0), "{loss:?}");
            let (mut given, mut set) = (given, set.clone());
            given.labels.fill(5);
            if let Some(set) = &mut set {
                set.rows.labels.fill(5);
            }
            let found = loss.run(&given, set.as_ref(), &[1.0], None).unwrap();
            let attracts = matches!(loss, Loss::Contrastive(_));
            assert!(attracts || (found.loss == 0.0 && found.stats == Stats::default()), "{loss:?}");
            assert!(attracts || found.grads.iter().flatten().all(|g| *g == 0.0), "{loss:?}");
        }
    }
}

#[test]
fn a_reference_of_another_shape_is_refused() {
    let (batch, _) = batch_and_sets();
    let rows = Batch::new(2, &[0.0; 8], &[0; 4]);
    let short = Batch::new(3, &[0.0; 12], &[0; 3]);
    let good = Batch::new(3, &[0.0; 12], &[0; 4]);
    for loss in losses() {
        for (rows, own, argument) in [
            (&rows, Own::Offset(0), "reference.embeddings"),
            (&short, Own::Offset(0), "reference.labels"),
            (&good, Own::Rows(vec![0; 4]), "reference.own"),
        ] {
            let error = loss.run(&batch, Some(&Set { rows: rows.clone(), own }), &[1.0], None).err().expect("accepted");
            assert!(error.to_string().starts_with(argument), "{error}");
        }
    }
}
