//! Losses on tensors, as only a device can show: they run on PyTorch's current stream, and nothing waits for it.

use cudarc::driver::{result::event, sys};
use tch::{Cuda, Device, Kind, Tensor};
use tercet::internal::on_pool_stream;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Own, PairwiseDistance, Reference, TripletMarginLoss,
};

use crate::support::cuda::alone;

const DEVICE: Device = Device::Cuda(0);

/// A scalar loss of three matrices and labels.
struct Loss {
    name: &'static str,
    of: fn(&[Tensor; 3], &Tensor) -> Tensor,
}

fn losses() -> Vec<Loss> {
    macro_rules! mined {
        ($name:literal, $loss:expr) => {
            Loss { name: $name, of: |[x, _, _], labels| $loss.forward(x, labels) }
        };
    }
    vec![
        Loss {
            name: "triplet_margin",
            of: |[a, p, n], _| TripletMarginLoss { margin: 1.0, ..Default::default() }.forward(a, p, n),
        },
        Loss {
            name: "contrastive",
            of: |[a, b, _], labels| {
                let same = labels.remainder(2).eq(0);
                ContrastiveLoss { margin: 9.0, ..Default::default() }.forward(a, b, &same)
            },
        },
        Loss {
            name: "triplet_margin of bf16",
            of: |x, _| {
                let [a, p, n] = x.each_ref().map(|x| x.to_kind(Kind::BFloat16));
                TripletMarginLoss { margin: 1.0, ..Default::default() }.forward(&a, &p, &n)
            },
        },
        Loss {
            name: "contrastive of bf16",
            of: |x, labels| {
                let [a, b, _] = x.each_ref().map(|x| x.to_kind(Kind::BFloat16));
                ContrastiveLoss { margin: 9.0, ..Default::default() }.forward(&a, &b, &labels.remainder(2).eq(0))
            },
        },
        Loss {
            name: "pairwise_distance",
            of: |[x, y, _], _| PairwiseDistance::default().forward(x, y).mean(Kind::Float),
        },
        mined!("batch_all", BatchAllTripletLoss { margin: 1.0, ..Default::default() }),
        mined!("batch_hard", BatchHardTripletLoss { margin: 5.0, ..Default::default() }),
        mined!("batch_semi_hard", BatchSemiHardTripletLoss { margin: 5.0, ..Default::default() }),
        mined!("batch_negative", BatchNegativeTripletLoss { margin: 5.0, ..Default::default() }),
        mined!("batch_contrastive", BatchContrastiveLoss { margin: 9.0, ..Default::default() }),
        Loss {
            name: "batch_hard against a set",
            of: |[x, y, _], labels| {
                let reference = Reference { embeddings: y, labels, own: Own::None };
                BatchHardTripletLoss { margin: 5.0, ..Default::default() }.on(x, labels).against(&reference).forward()
            },
        },
    ]
}

/// The loss, then the gradients of those matrices that it reads.
fn step(loss: &Loss, x: &[Tensor; 3], labels: &Tensor) -> Vec<Tensor> {
    let x = x.each_ref().map(|x| x.detach().set_requires_grad(true));
    let value = (loss.of)(&x, labels);
    value.backward();
    std::iter::once(value.detach()).chain(x.iter().map(Tensor::grad).filter(Tensor::defined)).collect()
}

fn inputs(seed: i64) -> ([Tensor; 3], Tensor) {
    tch::manual_seed(seed);
    let x = [(); 3].map(|()| Tensor::rand([300, 65], (Kind::Float, DEVICE)) * 2.0 - 1.0);
    (x, Tensor::arange(300, (Kind::Int64, DEVICE)).floor_divide_scalar(4))
}

fn bits(tensors: &[Tensor]) -> Vec<Vec<u32>> {
    let bits = |t: &Tensor| Vec::<f32>::try_from(t.to_device(Device::Cpu).flatten(0, -1)).unwrap();
    tensors.iter().map(|t| bits(t).into_iter().map(f32::to_bits).collect()).collect()
}

/// Work of some hundred milliseconds.
fn work(big: &Tensor) {
    let mut to = big.matmul(big);
    for _ in 0..40 {
        to = big.matmul(&to);
    }
}

/// Steps run on a non-default stream, behind long work that produces their inputs. The calls return before that work
/// has ended, and the results equal those on the default stream, so nothing ran ahead of it.
#[test]
fn cuda_steps_follow_the_current_stream_and_wait_for_nothing() {
    let Some(_alone) = alone("cuda_steps_follow_the_current_stream_and_wait_for_nothing") else { return };
    let (x, labels) = inputs(1);
    let big = Tensor::randn([8192, 8192], (Kind::Float, DEVICE)) / 90.0;
    for loss in losses() {
        let expected = bits(&step(&loss, &x, &labels));
        assert!(expected.len() > 1, "{}: a loss and a gradient", loss.name);
        let got = on_pool_stream(0, |stream| {
            let stream: sys::CUstream = stream.cast();
            assert!(!stream.is_null(), "a stream of the pool is not the default one");
            // Fills the allocator's pool for this stream and loads cuBLAS: both wait for the device.
            work(&big);
            drop(step(&loss, &x, &labels));
            Cuda::synchronize(0);

            let late = x.each_ref().map(|x| x.full_like(f64::NAN));
            let late_labels = labels.full_like(-1);
            work(&big);
            let mut late = late;
            for (late, x) in late.iter_mut().zip(&x) {
                late.copy_(x);
            }
            let mut late_labels = late_labels;
            late_labels.copy_(&labels);
            let before = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
            // SAFETY: a live event and stream of the device's primary context, which PyTorch has made current.
            unsafe { event::record(before, stream) }.unwrap();
            let got = step(&loss, &late, &late_labels);
            // SAFETY: the live event recorded above.
            let waited = unsafe { event::query(before) }.is_ok();
            assert!(!waited, "{}: something waited for the device", loss.name);
            Cuda::synchronize(0);
            // SAFETY: a live event that nothing uses any more.
            unsafe { event::destroy(before) }.unwrap();
            bits(&got)
        });
        assert!(got.unwrap() == expected, "{}: other bits on another stream", loss.name);
    }
}

/// PyTorch's out-of-memory error is returned, and a later call works as before.
#[test]
fn cuda_tensors_survive_a_full_memory() {
    let Some(_alone) = alone("cuda_tensors_survive_a_full_memory") else { return };
    let rows = 1 << 21;
    let fits = |rows: i64| {
        let x = Tensor::zeros([rows, 4], (Kind::Half, DEVICE)).set_requires_grad(true);
        (x, Tensor::arange(rows, (Kind::Int64, DEVICE)))
    };
    let (x, labels) = fits(256);
    let loss_fn = BatchHardTripletLoss::default();
    let expected = loss_fn.forward(&x, &labels).double_value(&[]);
    let (large, its_labels) = fits(rows);
    // Takes all memory that is left, in ever smaller parts.
    let (mut taken, mut part) = (Vec::new(), 64i64 << 30);
    while part >= 1 << 20 {
        match Tensor::f_empty([part], (Kind::Uint8, DEVICE)) {
            Ok(tensor) => taken.push(tensor),
            Err(_) => part /= 2,
        }
    }
    let error = loss_fn.f_forward(&large, &its_labels).unwrap_err().to_string();
    assert!(error.contains("out of memory"), "{error}");
    drop(taken);
    assert_eq!(loss_fn.forward(&x, &labels).double_value(&[]), expected);
}
