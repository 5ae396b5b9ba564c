//! `CrossBatchMemory`: what is in the ring, which rows are an anchor's own, and the losses and gradients against it.

use crate::support::Numbers;
use tch::{Cuda, Device, Kind, Tensor};
use tercet::torch::CrossBatchMemory;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Call, Distance, Error, MeanOver, MinedLoss, Negative, Negatives, Own, Reduction,
    Reference,
};

use crate::support;

const DIM: i64 = 3;

fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain((Cuda::device_count() > 0).then_some(Device::Cuda(0))).collect()
}

/// Different rows in [-1, 1), with labels 0, 1, 2.
fn batch(numbers: &mut Numbers, rows: usize) -> (Tensor, Tensor) {
    let x: Vec<f32> = (0..rows * DIM as usize).map(|_| numbers.unit() as f32).collect();
    let labels: Vec<i64> = (0..rows).map(|_| numbers.below(3) as i64).collect();
    (Tensor::from_slice(&x).reshape([rows as i64, DIM]), Tensor::from_slice(&labels))
}

fn gradient(loss: &Tensor, x: &Tensor) -> Tensor {
    Tensor::run_backward(&[loss], &[x], true, false).remove(0)
}

/// A copy of `x` as a leaf that requires a gradient.
fn leaf(x: &Tensor) -> Tensor {
    x.detach().copy().set_requires_grad(true)
}

fn close(actual: &Tensor, expected: &Tensor, what: &str) {
    let error = (actual - expected).abs().max().double_value(&[]);
    assert!(error <= 1e-5 * (1.0 + expected.abs().max().double_value(&[])), "{what}: {error}");
}

#[test]
fn the_ring_goes_round() {
    let mut numbers = Numbers(1);
    for device in devices() {
        for capacity in [1usize, 2, 5, 8] {
            let mut memory = CrossBatchMemory::new(capacity, DIM as usize, Kind::Float, device);
            assert!(memory.is_empty() && !memory.is_full());
            // The row expected at each place, and how many rows have been written in all.
            let mut model: Vec<Option<(Tensor, i64)>> = (0..capacity).map(|_| None).collect();
            let mut written = 0;
            for _ in 0..12 {
                let rows = 1 + numbers.below(7);
                let (x, labels) = batch(&mut numbers, rows);
                for i in 0..rows {
                    model[written % capacity] = Some((x.get(i as i64), labels.int64_value(&[i as i64])));
                    written += 1;
                }
                memory.enqueue(&leaf(&x.to_device(device)), &labels.to_kind(Kind::Int).to_device(device));
                let len = written.min(capacity);
                assert_eq!((memory.len(), memory.is_full()), (len, len == capacity));
                assert_eq!((memory.capacity(), memory.position()), (capacity, written % capacity));
                let Reference { embeddings, labels, own } = memory.reference();
                assert!(matches!(own, Own::None) && !embeddings.requires_grad());
                assert_eq!((embeddings.size(), labels.size()), (vec![len as i64, DIM], vec![len as i64]));
                let (embeddings, labels) = (embeddings.to_device(Device::Cpu), labels.to_device(Device::Cpu));
                for (place, row) in model.iter().take(len).enumerate() {
                    let (x, label) = row.as_ref().expect("filled");
                    assert_eq!((&embeddings.get(place as i64), labels.int64_value(&[place as i64])), (x, *label));
                }
                let places = Vec::<i64>::try_from(memory.newest(rows)).unwrap();
                let place = |age: usize| if age < len { ((written - 1 - age) % capacity) as i64 } else { -1 };
                assert_eq!(places, (0..rows).rev().map(place).collect::<Vec<_>>());
            }
            memory.clear();
            assert_eq!(
                (memory.len(), memory.position(), memory.newest(2)),
                (0, 0, Tensor::full([2], -1, (Kind::Int64, device)))
            );
        }
    }
}

type Both = Box<dyn Fn(&mut CrossBatchMemory, &Tensor, &Tensor) -> [Tensor; 2]>;

/// Every mined loss, with a margin at which most triplets are active.
fn losses(reduction: Reduction) -> Vec<Both> {
    /// The loss through the memory, and the loss against the same rows given as a reference.
    fn both<L: MinedLoss + 'static>(loss: L) -> Both {
        Box::new(move |memory, x, labels| {
            let first = memory.position();
            let ours = memory.forward(Call::new(&loss, x, labels));
            let capacity = memory.capacity();
            let own: Vec<i64> = (0..x.size()[0] as usize).map(|i| ((first + i) % capacity) as i64).collect();
            let Reference { embeddings, labels: others, .. } = memory.reference();
            let (embeddings, others, own) =
                (embeddings.copy(), others.copy(), Tensor::from_slice(&own).to_device(x.device()));
            let reference = Reference { embeddings: &embeddings, labels: &others, own: Own::Rows(&own) };
            [ours, Call::new(&loss, x, labels).against(&reference).f_forward_with_stats().unwrap().loss]
        })
    }
    let margin = 2.0;
    let mut losses = vec![
        both(BatchHardTripletLoss { margin, reduction, ..Default::default() }),
        both(BatchSemiHardTripletLoss { margin, reduction, ..Default::default() }),
        both(BatchContrastiveLoss { margin, negatives: Negatives::Hardest, reduction, ..Default::default() }),
        both(BatchNegativeTripletLoss { margin, negative: Negative::Random, reduction, ..Default::default() }),
    ];
    if reduction != Reduction::None {
        losses.push(both(BatchAllTripletLoss { margin, reduction, ..Default::default() }));
    }
    losses
}

#[test]
fn the_loss_is_that_against_the_memory_with_the_batch_in_it() {
    for device in devices() {
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            for (which, both) in losses(reduction).iter().enumerate() {
                let mut numbers = Numbers(2);
                let mut memory = CrossBatchMemory::new(14, DIM as usize, Kind::Float, device);
                for step in 0..4 {
                    let (x, labels) = batch(&mut numbers, 6);
                    let (x, labels) = (leaf(&x.to_device(device)), labels.to_device(device));
                    let [ours, expected] = both(&mut memory, &x, &labels);
                    assert_eq!(ours, expected, "{which}, {reduction:?}, step {step}");
                    assert!(ours.sum(Kind::Double).double_value(&[]) > 0.0);
                    let [ours, expected] = [ours, expected].map(|loss| gradient(&loss.sum(Kind::Float), &x));
                    assert_eq!(ours, expected, "{which}, {reduction:?}, step {step}");
                    assert!(ours.abs().max().double_value(&[]) > 0.0);
                }
            }
        }
    }
}

#[test]
fn an_anchor_is_not_its_own_positive() {
    // Each class has one row: only an older copy of it could be a positive.
    let loss = BatchHardTripletLoss { margin: 100.0, ..Default::default() };
    let (x, _) = batch(&mut Numbers(3), 4);
    let labels = Tensor::from_slice(&[0i64, 1, 2, 3]);
    let mut memory = CrossBatchMemory::new(6, DIM as usize, Kind::Float, Device::Cpu);
    let valid =
        |memory: &mut CrossBatchMemory| memory.forward_with_stats(loss.on(&x, &labels)).stats.valid.int64_value(&[]);
    assert_eq!(valid(&mut memory), 0);
    // The last two rows of the first batch are still in the memory.
    assert_eq!(valid(&mut memory), 2);
    // Anchors that do not fit into the memory have no row of their own in it.
    let mut memory = CrossBatchMemory::new(3, DIM as usize, Kind::Float, Device::Cpu);
    let labels = Tensor::from_slice(&[3i64, 1, 2, 3]);
    let stats = memory.forward_with_stats(loss.on(&x, &labels)).stats;
    assert_eq!(stats.valid.int64_value(&[]), 1, "the first anchor, whose positive is the last row");
    let distance = (x.get(0) - x.get(3)).square().sum(Kind::Double).double_value(&[]);
    assert!((stats.mean_positive_distance.double_value(&[]) - distance).abs() < 1e-6);
}

#[test]
fn a_memory_of_the_batch_is_half_of_the_batch() {
    fn half<L: MinedLoss>(loss: &L) {
        let (x, _) = batch(&mut Numbers(4), 12);
        let (x, labels) = (leaf(&x), Tensor::arange(12, (Kind::Int64, Device::Cpu)).remainder(4));
        let mut memory = CrossBatchMemory::new(12, DIM as usize, Kind::Float, Device::Cpu);
        let ours = memory.forward(Call::new(loss, &x, &labels));
        let own = Call::new(loss, &x, &labels).f_forward_with_stats().unwrap().loss;
        close(&ours, &own, "loss");
        close(&(gradient(&ours, &x) * 2.0), &gradient(&own, &x), "gradient");
        // The detached batch given as its own reference yields the same.
        let detached = x.detach();
        let reference = Reference { embeddings: &detached, labels: &labels, own: Own::Offset(0) };
        let against = Call::new(loss, &x, &labels).against(&reference).f_forward_with_stats().unwrap().loss;
        assert_eq!((&ours, gradient(&ours, &x)), (&against, gradient(&against, &x)));
    }
    // The pair (a, b) weighs as much as (b, a): always in losses over pairs, and in losses over triplets if all classes
    // have one size and all triplets are active.
    half(&BatchAllTripletLoss { margin: 100.0, mean_over: MeanOver::Valid, ..Default::default() });
    half(&BatchContrastiveLoss { margin: 2.0, distance: Distance::SquaredEuclidean, ..Default::default() });
    half(&BatchContrastiveLoss { margin: 2.0, ..Default::default() });
}

#[test]
fn shards_of_the_batch_add_up() {
    let loss = BatchAllTripletLoss { margin: 1.0, reduction: Reduction::Sum, ..Default::default() };
    let mut numbers = Numbers(5);
    let mut memory = CrossBatchMemory::new(11, DIM as usize, Kind::Float, Device::Cpu);
    let (x, labels) = batch(&mut numbers, 7);
    memory.enqueue(&x, &labels);
    let (x, labels) = batch(&mut numbers, 8);
    let x = leaf(&x);
    let whole = memory.forward(loss.on(&x, &labels));
    let own = memory.newest(8);
    let shards: Vec<Tensor> = [(0, 3), (3, 4), (7, 1)]
        .into_iter()
        .map(|(first, rows)| {
            let part = |of: &Tensor| of.narrow(0, first, rows);
            let own = part(&own);
            let reference = Reference { own: Own::Rows(&own), ..memory.reference() };
            loss.on(&part(&x), &part(&labels)).against(&reference).forward()
        })
        .collect();
    let sum = Tensor::stack(&shards, 0).sum(Kind::Float);
    close(&sum, &whole, "loss");
    close(&gradient(&sum, &x), &gradient(&whole, &x), "gradient");
}

#[test]
fn a_warm_up_takes_the_batch_itself() {
    let loss = BatchHardTripletLoss { margin: 2.0, ..Default::default() };
    let mut numbers = Numbers(6);
    let mut memory = CrossBatchMemory::new(16, DIM as usize, Kind::Float, Device::Cpu).warm_up(12);
    let mut step = |memory: &mut CrossBatchMemory| {
        let (x, labels) = batch(&mut numbers, 6);
        let x = leaf(&x);
        let (ours, own) = (memory.forward(loss.on(&x, &labels)), loss.forward(&x, &labels));
        ours == own && gradient(&ours, &x) == gradient(&own, &x)
    };
    assert!(!memory.is_warm() && step(&mut memory) && !memory.is_warm());
    assert!(!step(&mut memory) && memory.is_warm(), "12 rows are enough");
    memory.clear();
    assert!(!memory.is_warm() && step(&mut memory));
    // A warm-up longer than the memory ends when the memory is full.
    let mut memory = CrossBatchMemory::new(6, DIM as usize, Kind::Float, Device::Cpu).warm_up(usize::MAX);
    memory
        .enqueue(&Tensor::zeros([6, DIM], (Kind::Float, Device::Cpu)), &Tensor::zeros([6], (Kind::Int64, Device::Cpu)));
    assert!(memory.is_warm());
}

#[test]
fn a_memory_restored_goes_on_to_the_same_bits() {
    let loss = BatchAllTripletLoss { margin: 1.0, ..Default::default() };
    for batches in [1, 2, 5] {
        let mut numbers = Numbers(7);
        let new = || CrossBatchMemory::new(11, DIM as usize, Kind::Float, Device::Cpu);
        let (mut memory, mut other) = (new(), new());
        for _ in 0..batches {
            let (x, labels) = batch(&mut numbers, 4);
            memory.enqueue(&x, &labels);
        }
        let Reference { embeddings, labels, .. } = memory.reference();
        other.f_restore(embeddings, labels, memory.position()).unwrap();
        for _ in 0..4 {
            let (x, labels) = batch(&mut numbers, 4);
            let x = leaf(&x);
            let [a, b] = [&mut memory, &mut other].map(|memory| memory.forward(loss.on(&x, &labels)));
            assert_eq!((&a, gradient(&a, &x)), (&b, gradient(&b, &x)));
        }
    }
}

/// Against tests/data/parity.json: the queue is as recorded, except for zeros in the rows that the batch overwrites.
#[test]
fn the_numbers_are_those_of_pytorch_metric_learning() {
    let text = std::fs::read_to_string(support::data("parity.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |value: &serde_json::Value| -> Tensor {
        let values: Vec<f64> = value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        Tensor::from_slice(&values)
    };
    let set = &record["sets"]["memory"];
    let (x, labels) = (numbers(&set["rows"]).reshape([-1, 3]), numbers(&set["labels"]).to_kind(Kind::Int64));
    let queue = &set["reference"];
    let (rows, of) = (numbers(&queue["rows"]).reshape([-1, 3]), numbers(&queue["labels"]).to_kind(Kind::Int64));
    let own = numbers(&queue["own"]).to_kind(Kind::Int64);
    let mut there = 0;
    for case in record["cases"].as_array().unwrap() {
        if case["set"] != "memory" {
            continue;
        }
        let distance = match case["distance"].as_str().unwrap() {
            "squared" => Distance::SquaredEuclidean,
            "euclidean" => Distance::Euclidean,
            other => panic!("{other}"),
        };
        let margin = case["margin"].as_f64().unwrap();
        let mut memory = CrossBatchMemory::new(rows.size()[0] as usize, 3, Kind::Double, Device::Cpu);
        let before = rows.index_fill(0, &own, 0.0);
        memory.f_restore(&before, &of, own.int64_value(&[0]) as usize).unwrap();
        let x = leaf(&x);
        let value = match case["loss"].as_str().unwrap() {
            "batch_all" => {
                let loss = BatchAllTripletLoss { margin, distance, ..Default::default() };
                memory.forward(loss.on(&x, &labels))
            }
            "batch_contrastive" => {
                let loss = BatchContrastiveLoss { margin, distance, reduction: Reduction::Sum, ..Default::default() };
                memory.forward(loss.on(&x, &labels))
            }
            other => panic!("{other}"),
        };
        assert_eq!(memory.newest(x.size()[0] as usize), own);
        assert!((value.double_value(&[]) - case["value"].as_f64().unwrap()).abs() <= 1e-9);
        let error = (gradient(&value, &x).flatten(0, 1) - numbers(&case["grad"])).abs().max().double_value(&[]);
        assert!(error <= 1e-9, "{error}");
        there += 1;
    }
    assert_eq!(there, 4);
}

#[test]
fn a_memory_may_go_on_before_its_loss_goes_backward() {
    let loss = BatchHardTripletLoss { margin: 2.0, ..Default::default() };
    let mut memory = CrossBatchMemory::new(6, DIM as usize, Kind::Float, Device::Cpu);
    let (x, labels) = batch(&mut Numbers(8), 6);
    let x = leaf(&x);
    let lost = memory.forward(loss.on(&x, &labels));
    let expected = Tensor::run_backward(&[&lost], &[&x], true, false);
    memory.enqueue(&(&x * 3.0), &labels);
    assert_eq!(Tensor::run_backward(&[lost], &[&x], false, false)[0], expected[0]);
}

#[test]
fn wrong_arguments_are_named() {
    let text = |result: Result<(), Error>| result.unwrap_err().to_string();
    let new = |capacity, dim, kind, device| text(CrossBatchMemory::f_new(capacity, dim, kind, device).map(drop));
    let (cpu, f32) = (Device::Cpu, Kind::Float);
    assert_eq!(new(0, 3, f32, cpu), "capacity: expected at least 1 and below 4294967295, got 0");
    assert_eq!(new(1 << 40, 3, f32, cpu), "capacity: expected at least 1 and below 4294967295, got 1099511627776");
    assert_eq!(new(4, 0, f32, cpu), "dim: expected at least 1 and below 9223372036854775807, got 0");
    assert_eq!(new(4, 3, Kind::Int64, cpu), "kind: expected f32, f64, f16 or bf16, got Int64");
    let on_cuda = "kind: expected f32, f16 or bf16 on a CUDA device, got Double";
    assert_eq!(new(4, 3, Kind::Double, Device::Cuda(0)), on_cuda);
    assert_eq!(new(4, 3, f32, Device::Mps), "device: expected the CPU or a CUDA device, got Mps");

    let mut memory = CrossBatchMemory::new(4, DIM as usize, f32, cpu);
    let (x, labels) = batch(&mut Numbers(9), 4);
    memory.enqueue(&x, &labels);
    let wrong = [
        (x.to_kind(Kind::Half), labels.copy(), "embeddings: expected the dtype of the memory, Float, got Half"),
        (x.to_kind(Kind::Int64), labels.copy(), "embeddings: expected dtype f32, f64, f16 or bf16, got Int64"),
        (x.flatten(0, 1), labels.copy(), "embeddings: expected shape [B, D], got [12]"),
        (x.narrow(1, 0, 2), labels.copy(), "embeddings: expected rows of 3 numbers, as the memory's, got [4, 2]"),
        (x.narrow(0, 0, 0), labels.narrow(0, 0, 0), "embeddings: expected at least one row, got [0, 3]"),
        (x.copy(), labels.narrow(0, 0, 3), "labels: expected shape [4], got [3]"),
        (x.copy(), labels.to_kind(f32), "labels: expected dtype i64 or i32, got Float"),
    ];
    let loss = BatchHardTripletLoss::default();
    for (x, labels, expected) in &wrong {
        assert_eq!(text(memory.f_enqueue(x, labels)), *expected);
        assert_eq!(text(memory.f_forward(loss.on(x, labels)).map(drop)), *expected);
        assert_eq!(text(memory.f_restore(x, labels, 0)), *expected);
    }
    for (rows, position, expected) in [
        (5, 0, "embeddings: expected at most 4 rows, got 5"),
        (4, 4, "position: expected below 4, got 4"),
        (2, 1, "position: expected 2, the rows, got 1"),
    ] {
        let (x, labels) = batch(&mut Numbers(9), rows);
        assert_eq!(text(memory.f_restore(&x, &labels, position)), expected);
    }
    assert_eq!((memory.len(), memory.position()), (4, 0), "as it was");
    assert_eq!(memory.reference().embeddings, &x);

    // A memory is the reference set itself; a call that has one is refused before anything is enqueued.
    let reference = memory.reference();
    let reference =
        Reference { embeddings: &reference.embeddings.copy(), labels: &reference.labels.copy(), own: Own::None };
    let refused = text(memory.f_forward(loss.on(&x, &labels).against(&reference)).map(drop));
    assert_eq!(refused, "reference: expected none: the memory is the reference set, got one");
    assert_eq!((memory.len(), memory.position()), (4, 0), "as it was");

    // Errors of the loss itself, and of an empty memory.
    let negative = BatchHardTripletLoss { margin: -1.0, ..loss };
    let refused = text(memory.f_forward(negative.on(&x, &labels)).map(drop));
    assert_eq!(refused, "margin: expected a finite number, 0 or more, got -1");
    memory.clear();
    let empty = text(loss.on(&x, &labels).against(&memory.reference()).f_forward().map(drop));
    assert_eq!(empty, "reference.embeddings: expected at least one row and one column, got [0, 3]");
    let panic = std::panic::catch_unwind(|| CrossBatchMemory::new(0, 3, f32, cpu)).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().starts_with("CrossBatchMemory: capacity: expected"));
}
