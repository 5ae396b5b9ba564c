//! A memory over processes against the memory of one process with the whole batches.

use tch::{Device, Kind, Tensor};
use tercet::torch::CrossBatchMemory;
use tercet::torch::distributed::{ProcessGroup, average};
use tercet::{BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, Call, MinedLoss, Negatives};

use super::setting::{D, assert_same_everywhere, bits, error, over};

#[test]
fn a_memory_over_three_is_that_of_one() {
    over(module_path!(), "a_memory_over_three_is_that_of_one", 3, |group| {
        eight_steps(&BatchAllTripletLoss { margin: 1.0, ..Default::default() }, group, false);
        eight_steps(&BatchHardTripletLoss { margin: 1.0, ..Default::default() }, group, true);
        eight_steps(&BatchContrastiveLoss { margin: 4.0, ..Default::default() }, group, false);
        let negatives = Negatives::Hardest;
        eight_steps(&BatchContrastiveLoss { margin: 4.0, negatives, ..Default::default() }, group, false);
        the_rows_in_it_must_be_as_many(group);
    });
}

/// Past the warm-up, and more than once around; one process has no row in some of the steps.
fn eight_steps<L: MinedLoss>(loss_fn: &L, group: &ProcessGroup, repeated: bool) {
    let (w, rank) = (group.size() as i64, group.rank());
    let new = || CrossBatchMemory::new(70, D as usize, Kind::Double, Device::Cpu).warm_up(50);
    let (mut one, mut ours) = (new(), new());
    let weights = (Tensor::arange(D, (Kind::Double, Device::Cpu)) / 16.0 + 0.75).set_requires_grad(true);
    for step in 0..8 {
        tch::manual_seed(100 + step);
        let counts: Vec<i64> = (0..w).map(|r| 5 * ((r + step) % 3) + 2 * (r % 2)).collect();
        let n: i64 = counts.iter().sum();
        let inputs = Tensor::randn([n, D], (Kind::Double, Device::Cpu));
        let labels = (Tensor::arange(n, (Kind::Int64, Device::Cpu)) * 5 + step).remainder(6);
        let own = |of: &Tensor| of.narrow(0, counts[..rank].iter().sum(), counts[rank]);
        let gradient = |loss: &Tensor| Tensor::f_run_backward(&[loss], &[&weights], false, false).unwrap();

        let whole = one.f_forward_with_stats(Call::new(loss_fn, &(&inputs * &weights), &labels)).unwrap();
        let expected = gradient(&whole.loss);
        let shards = group.shards(counts[rank] as usize).unwrap();
        let shards = if repeated { shards.repeated() } else { shards };
        let (x, y) = (own(&inputs) * &weights, own(&labels));
        let found = ours.f_forward_with_stats(Call::new(loss_fn, &x, &y).over(&shards)).unwrap();
        let mut averaged = gradient(&found.loss);
        average(&mut averaged, group).unwrap();

        let what = format!("{loss_fn:?}, step {step}");
        for (got, expected) in [(&found.loss, &whole.loss), (&averaged[0], &expected[0])] {
            let error = error(got, expected);
            assert!(error <= 1e-12, "{what}: {error:e}");
        }
        assert_eq!(found.stats.valid, whole.stats.valid, "{what}");
        let held = |memory: &CrossBatchMemory| {
            let reference = memory.reference();
            (bits(&[reference.embeddings, reference.labels]), memory.position(), memory.len(), memory.is_warm())
        };
        assert_eq!(held(&ours), held(&one), "{what}");
        assert_same_everywhere(&[&found.loss, &averaged[0], ours.reference().embeddings], group, &what);
    }
    assert!(one.is_full() && one.position() != 0, "the memory has wrapped around");
}

/// A process whose memory was restored from another state is found out.
fn the_rows_in_it_must_be_as_many(group: &ProcessGroup) {
    let mut memory = CrossBatchMemory::new(70, D as usize, Kind::Double, Device::Cpu);
    let rows = Tensor::ones([2, D], (Kind::Double, Device::Cpu));
    let labels = Tensor::zeros([2], (Kind::Int64, Device::Cpu));
    if group.rank() == 1 {
        memory.enqueue(&rows, &labels);
    }
    let shards = group.shards(2).unwrap();
    let loss_fn = BatchAllTripletLoss::default();
    let error = memory.f_forward(loss_fn.on(&rows, &labels).over(&shards)).unwrap_err().to_string();
    assert!(error.ends_with("processes 0 and 1 differ in the rows in the memory: 0 and 2"), "{error}");
}
