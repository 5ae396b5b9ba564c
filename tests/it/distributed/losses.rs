//! A loss over processes against that of one process with the whole batch.

use tch::{Device, Kind, Tensor};
use tercet::torch::WithStats;
use tercet::torch::distributed::{Options, ProcessGroup, Shards, Work, average, connected};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchSemiHardTripletLoss, Call, MinedLoss,
    Negatives, Own, Reduction, Reference,
};

use super::setting::{D, Layout, Loss, Worst, assert_same_everywhere, bits, error, layouts, losses, over};

/// How far a loss over processes may be from that of one: sums in another order.
fn bound(kind: Kind) -> f64 {
    match kind {
        Kind::Double => 1e-12,
        Kind::Float => 32.0 * f64::from(f32::EPSILON),
        Kind::Half => 2.0 / 2048.0,
        Kind::BFloat16 => 2.0 / 256.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn over_one() {
    over(module_path!(), "over_one", 1, every_loss);
}

/// What a group of one leaves out: one process through c10d, as on one GPU by NCCL.
#[test]
fn over_one_through_c10d() {
    const TEST: &str = "over_one_through_c10d";
    over(module_path!(), TEST, 1, |_| {
        of_dtype(Kind::Double, &connected(&Options::from_env().unwrap()).unwrap(), false);
    });
}

#[test]
fn over_two() {
    over(module_path!(), "over_two", 2, every_loss);
}

#[test]
fn over_three() {
    over(module_path!(), "over_three", 3, every_loss);
}

#[test]
fn over_four() {
    over(module_path!(), "over_four", 4, every_loss);
}

#[test]
fn over_eight() {
    over(module_path!(), "over_eight", 8, every_loss);
}

fn every_loss(group: &ProcessGroup) {
    for kind in [Kind::Double, Kind::Float] {
        of_dtype(kind, group, group.size() == 1);
    }
    let layouts = layouts(group.size());
    sixteen_bits(group, &layouts);
    each_anchors_own_loss(group, &layouts);
    against_a_reference(group);
}

/// Every loss of every layout. `alone`: this process talks to nobody, and its bits must be those of a call without a group.
pub fn of_dtype(kind: Kind, group: &ProcessGroup, alone: bool) {
    let mut found = Found { alone, ..Found::default() };
    for layout in layouts(group.size()) {
        for shards in ways(&layout, group) {
            for loss in losses() {
                compare(&loss, &layout, kind, &shards, &mut found);
            }
        }
    }
    found.average_and_compare(kind, group);
    let [values, gradients, distances] = found.worst.map(|worst| worst.of_all(group));
    let w = group.size();
    println!("worst of {w}, {kind:?}: loss {values:.1e} gradient {gradients:.1e} mean distances {distances:.1e}");
}

/// The shards of a layout, with the work shared and repeated. Of many processes, each of whose calls takes its time, one layout
/// is enough to see that the repeated way works.
fn ways(layout: &Layout, group: &ProcessGroup) -> Vec<Shards> {
    let shards = group.shards(layout.counts[group.rank()] as usize).unwrap();
    assert_eq!(shards.counts(), layout.counts);
    let repeated = (group.size() <= 4 || layout.name == "unequal shards").then(|| shards.repeated());
    std::iter::once(shards).chain(repeated).collect()
}

/// What is compared with one process.
#[derive(Default)]
struct Found {
    /// Whether the shared work, too, must have the bits of one process.
    alone: bool,
    /// The worst errors of losses, gradients and mean distances.
    worst: [Worst; 3],
    what: Vec<String>,
    values: Vec<Tensor>,
    /// The gradients of the weights here, which are averaged together at last, and those of one process.
    gradients: [Vec<Tensor>; 2],
}

impl Found {
    fn average_and_compare(&mut self, kind: Kind, group: &ProcessGroup) {
        let [averaged, expected] = &mut self.gradients;
        average(averaged, group).unwrap();
        for ((what, averaged), expected) in self.what.iter().zip(&*averaged).zip(expected) {
            self.worst[1].add(error(averaged, expected), bound(kind), &format!("the averaged gradient of {what}"));
        }
        // One by one only if they differ at all: an exchange for each takes its time.
        let all: Vec<&Tensor> = self.values.iter().chain(&*averaged).collect();
        let hash = bits(&all);
        if group.exchange(&[hash]).unwrap().iter().any(|theirs| theirs[0] != hash) {
            for ((what, value), averaged) in self.what.iter().zip(&self.values).zip(&*averaged) {
                assert_same_everywhere(&[value, averaged], group, what);
            }
        }
    }
}

fn compare(loss: &Loss, layout: &Layout, kind: Kind, shards: &Shards, found: &mut Found) {
    let (group, rank) = (shards.group(), shards.group().rank());
    let (w, what) = (group.size() as f64, format!("{}, {}, {kind:?}, {:?}", loss.name, layout.name, shards.work()));
    // A loss scale, and 0, must pass through as in one process.
    let upstream = match layout.name {
        "equal shards" => 65536.0,
        "unequal shards" => 0.0,
        _ => 1.0,
    };
    let device = group.device();
    let (inputs, all_labels) = (layout.rows.to_kind(kind).to_device(device), layout.labels.to_device(device));
    // A row has the same bits whichever rows are beside it, which a product of matrices does not promise: draws depend on them.
    let weights = (Tensor::arange(D, (kind, device)) / 16.0 + 0.75).set_requires_grad(true);
    let whole_x = &inputs * &weights;
    let whole = (loss.run)(&whole_x, &all_labels, None).unwrap();
    let [whole_grad, expected] = backward(&whole, [&whole_x, &weights], upstream, false);
    let (x, labels) = (layout.own(&inputs, rank) * &weights, layout.own(&all_labels, rank));
    let ours = (loss.run)(&x, &labels, Some(shards)).unwrap();
    let thorough = layout.name == "unequal shards" && kind == Kind::Double;
    let [grad, of_weights] = backward(&ours, [&x, &weights], upstream, thorough);
    let grad = grad / w;

    let counts = |found: &WithStats| [&found.stats.valid, &found.stats.active].map(|count| count.int64_value(&[]));
    assert_eq!(counts(&ours), counts(&whole), "{what}");
    assert_eq!(ours.stats.too_many_pairs, whole.stats.too_many_pairs, "{what}");
    let distances = |found: &WithStats| {
        Tensor::stack(&[&found.stats.mean_positive_distance, &found.stats.mean_negative_distance], 0)
    };
    let own_grad = layout.own(&whole_grad, rank);
    let [values, gradients, of_distances] = &mut found.worst;
    values.add(error(&ours.loss, &whole.loss), bound(kind), &format!("the loss of {what}"));
    let of_rows = error_of_part(&grad, &own_grad, &whole_grad);
    gradients.add(of_rows, bound(kind), &format!("the gradient of {what}"));
    let far = error(&distances(&ours), &distances(&whole));
    of_distances.add(far, bound(kind), &format!("the mean distances of {what}"));
    if found.alone || shards.work() == Work::Repeated && group.size().is_power_of_two() {
        assert_eq!(bits(&[&ours.loss]), bits(&[&whole.loss]), "{what}");
        assert_eq!(bits(&[&grad]), bits(&[&own_grad]), "{what}");
    }
    if thorough {
        // Without a graph the value is the same, and nothing is to be sent backward.
        let value = tch::no_grad(|| (loss.run)(&x, &labels, Some(shards))).unwrap().loss;
        assert!(!value.requires_grad());
        assert_eq!(bits(&[&value]), bits(&[&ours.loss]), "{what}");
    }
    found.what.push(what);
    found.values.push(ours.loss.detach());
    found.gradients[0].push(of_weights);
    found.gradients[1].push(expected);
}

/// The gradients of the rows, and of the weights that they were made with. `twice`: through a graph that is run twice, with
/// the same gradients.
fn backward(found: &WithStats, of: [&Tensor; 2], upstream: f64, twice: bool) -> [Tensor; 2] {
    let scaled = &found.loss * upstream;
    let run = |keep| Tensor::f_run_backward(&[&scaled], &of, keep, false).unwrap();
    let once = twice.then(|| run(true));
    let gradients = run(false);
    if let Some(once) = once {
        assert_eq!(bits(&once.iter().collect::<Vec<_>>()), bits(&gradients.iter().collect::<Vec<_>>()));
    }
    gradients.try_into().unwrap()
}

/// The largest difference, relative to the largest number of the whole that this is a part of.
fn error_of_part(got: &Tensor, expected: &Tensor, whole: &Tensor) -> f64 {
    if got.numel() == 0 {
        return 0.0;
    }
    let [got, expected, whole] = [got, expected, whole].map(|tensor| tensor.detach().to_kind(Kind::Double));
    let scale = whole.abs().max().double_value(&[]);
    (got - expected).abs().max().double_value(&[]) / if scale == 0.0 { 1.0 } else { scale }
}

/// 16-bit rows, against the same numbers in f64: no further away than one process is, and a rounding.
fn sixteen_bits(group: &ProcessGroup, layouts: &[Layout]) {
    let rank = group.rank();
    for kind in [Kind::Half, Kind::BFloat16] {
        let mut worst = Worst::default();
        for layout in layouts {
            for loss in losses().iter().filter(|loss| ["batch_all", "batch_contrastive"].contains(&loss.name)) {
                let what = format!("{}, {}, {kind:?}", loss.name, layout.name);
                let rows = layout.rows.to_kind(kind);
                let grad = |x: &Tensor, labels: &Tensor, shards: Option<&Shards>| {
                    let x = x.copy().set_requires_grad(true);
                    let found = (loss.run)(&x, labels, shards).unwrap();
                    found.loss.f_backward().unwrap();
                    (found.loss, x.grad())
                };
                let (value, exact) = grad(&rows.to_kind(Kind::Double), &layout.labels, None);
                let (one, of_one) = grad(&rows, &layout.labels, None);
                let (x, labels) = (layout.own(&rows, rank), layout.own(&layout.labels, rank));
                for shards in ways(layout, group) {
                    let (ours, got) = grad(&x, &labels, Some(&shards));
                    assert_eq!((got.kind(), ours.kind()), (kind, Kind::Float));
                    worst.add(error(&ours, &value), 1e-5, &what);
                    let got = got.to_kind(Kind::Double) / group.size() as f64;
                    worst.add(error_of_part(&got, &layout.own(&exact, rank), &exact), bound(kind), &what);
                    if group.size().is_power_of_two() && shards.work() != Work::Shared {
                        assert_eq!(bits(&[&ours]), bits(&[&one]), "{what}");
                        let of_one = layout.own(&of_one, rank).to_kind(Kind::Double);
                        assert_eq!(bits(&[&got]), bits(&[&of_one]), "{what}");
                    }
                }
            }
        }
        println!("worst of {}, {kind:?}: {:.1e}", group.size(), worst.of_all(group));
    }
}

/// `Reduction::None`: each process has the losses of its anchors, and weighs them as it likes.
fn each_anchors_own_loss(group: &ProcessGroup, layouts: &[Layout]) {
    let reduction = Reduction::None;
    let hard = BatchHardTripletLoss { margin: 1.0, reduction, ..Default::default() };
    let semi_hard = BatchSemiHardTripletLoss { margin: 1.0, reduction, ..Default::default() };
    let hardest = BatchContrastiveLoss { margin: 4.0, reduction, negatives: Negatives::Hardest, ..Default::default() };
    for layout in layouts {
        weighed(&hard, layout, group);
        weighed(&semi_hard, layout, group);
        weighed(&hardest, layout, group);
    }
}

fn weighed<L: MinedLoss>(loss_fn: &L, layout: &Layout, group: &ProcessGroup) {
    let (rank, what) = (group.rank(), format!("{loss_fn:?}, {}", layout.name));
    let weights = Tensor::arange(layout.rows.size()[0], (Kind::Double, Device::Cpu)) + 1.0;
    let whole_x = layout.rows.copy().set_requires_grad(true);
    let whole = Call::new(loss_fn, &whole_x, &layout.labels).f_forward().unwrap();
    (&whole * &weights).sum(Kind::Double).f_backward().unwrap();
    for shards in ways(layout, group) {
        let x = layout.own(&layout.rows, rank).copy().set_requires_grad(true);
        let labels = layout.own(&layout.labels, rank);
        let ours = Call::new(loss_fn, &x, &labels).over(&shards).f_forward().unwrap();
        (&ours * layout.own(&weights, rank)).sum(Kind::Double).f_backward().unwrap();
        let mut worst = Worst::default();
        worst.add(error(&ours, &layout.own(&whole, rank)), 1e-12, &what);
        let of_whole = whole_x.grad();
        worst.add(error_of_part(&x.grad(), &layout.own(&of_whole, rank), &of_whole), 1e-12, &what);
    }
}

/// A reference set that all processes have, some of whose rows are the anchors themselves, and that has a gradient.
fn against_a_reference(group: &ProcessGroup) {
    let (rank, w) = (group.rank(), group.size() as i64);
    tch::manual_seed(9);
    let counts: Vec<i64> = (0..w).map(|r| 3 + 2 * (r % 3)).collect();
    let n: i64 = counts.iter().sum();
    let rows = Tensor::randn([n, D], (Kind::Double, Device::Cpu));
    let labels = Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(4);
    let layout = Layout { name: "against a reference", counts, labels, rows };
    let bank = Tensor::cat(&[Tensor::randn([5, D], (Kind::Double, Device::Cpu)), layout.rows.copy()], 0);
    let bank_labels = Tensor::cat(&[Tensor::arange(5, (Kind::Int64, Device::Cpu)), layout.labels.copy()], 0);
    let places = Tensor::arange(n, (Kind::Int64, Device::Cpu)) + 5;
    let first: i64 = layout.counts[..rank].iter().sum();
    let own_places = layout.own(&places, rank);
    for (own, own_here) in
        [(Own::None, Own::None), (Own::Offset(5), Own::Offset(5 + first)), (Own::Rows(&places), Own::Rows(&own_places))]
    {
        let loss_fn = BatchAllTripletLoss { margin: 2.0, ..Default::default() };
        against(&loss_fn, &layout, [&bank, &bank_labels], own, own_here, group);
        let loss_fn = BatchContrastiveLoss { margin: 3.0, ..Default::default() };
        against(&loss_fn, &layout, [&bank, &bank_labels], own, own_here, group);
        let loss_fn = BatchContrastiveLoss { negatives: Negatives::Hardest, ..loss_fn };
        against(&loss_fn, &layout, [&bank, &bank_labels], own, own_here, group);
    }
}

fn against<L: MinedLoss>(
    loss_fn: &L,
    layout: &Layout,
    [bank, labels]: [&Tensor; 2],
    own: Own<&Tensor>,
    own_here: Own<&Tensor>,
    group: &ProcessGroup,
) {
    let (rank, w, what) = (group.rank(), group.size() as f64, format!("{loss_fn:?}, {own:?}"));
    let run = |x: &Tensor, y: &Tensor, own, shards: Option<&Shards>| {
        let (x, bank) = (x.copy().set_requires_grad(true), bank.copy().set_requires_grad(true));
        let reference = Reference { embeddings: &bank, labels, own };
        let call = Call::new(loss_fn, &x, y).against(&reference);
        let found = shards.map_or(call, |shards| call.over(shards)).f_forward_with_stats().unwrap();
        found.loss.f_backward().unwrap();
        (found, x.grad(), bank.grad())
    };
    let (whole, of_rows, of_bank) = run(&layout.rows, &layout.labels, own, None);
    let shards = group.shards(layout.counts[rank] as usize).unwrap();
    for shards in [shards.repeated(), shards] {
        let (x, y) = (layout.own(&layout.rows, rank), layout.own(&layout.labels, rank));
        let (ours, grad, bank_grad) = run(&x, &y, own_here, Some(&shards));
        let mut averaged = [bank_grad];
        average(&mut averaged, group).unwrap();
        let mut worst = Worst::default();
        worst.add(error(&ours.loss, &whole.loss), 1e-12, &what);
        worst.add(error(&averaged[0], &of_bank), 1e-12, &what);
        worst.add(error_of_part(&(grad / w), &layout.own(&of_rows, rank), &of_rows), 1e-12, &what);
        assert_eq!(ours.stats.valid, whole.stats.valid, "{what}");
        worst.add(error(&ours.stats.mean_positive_distance, &whole.stats.mean_positive_distance), 1e-12, &what);
        worst.add(error(&ours.stats.mean_negative_distance, &whole.stats.mean_negative_distance), 1e-12, &what);
    }
}
