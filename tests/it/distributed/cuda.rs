//! Process groups with CUDA tensors, as far as one device can show them: NCCL takes a device for each process, and gloo lets two
//! processes share one.

use cudarc::driver::{result::event, sys};
use tch::nn::{self, VarStore};
use tch::{Cuda, Device, Kind, Tensor};
use tercet::BatchHardTripletLoss;
use tercet::internal::on_pool_stream;
use tercet::torch::distributed::{BatchNorm, Options, ProcessGroup, average, check_nccl, connected};

use super::losses::of_dtype;
use super::setting::{assert_same_everywhere, error, unavailable, worst_of};
use crate::support::cuda::alone;
use crate::support::processes::as_processes;
use crate::support::skipped::skipped;

#[test]
fn cuda_one_process_by_nccl() {
    const TEST: &str = "cuda_one_process_by_nccl";
    let Some(_alone) = alone(TEST) else { return };
    if let Err(error) = check_nccl() {
        return skipped(&format!("{error}: {TEST}"));
    }
    on_device(TEST, 1, "0", |group| {
        of_dtype(Kind::Float, group, false);
        weights(group);
        nothing_waits(group);
    });
}

#[test]
fn cuda_two_processes_share_a_device_by_gloo() {
    const TEST: &str = "cuda_two_processes_share_a_device_by_gloo";
    let Some(_alone) = alone(TEST) else { return };
    on_device(TEST, 2, "1", |group| {
        of_dtype(Kind::Float, group, false);
        weights(group);
    });
}

/// Runs the test as so many processes on the first device; `gloo`: the value of `TERCET_GLOO`.
fn on_device(test: &str, size: usize, gloo: &str, inside: impl FnOnce(&ProcessGroup)) {
    if unavailable(test) {
        return;
    }
    match as_processes(module_path!(), test, size, &[("TERCET_GLOO", gloo)]) {
        Some(printed) => worst_of(&printed),
        None => {
            let options = Options::from_env().unwrap();
            assert_eq!((options.size, options.device), (size, Device::Cuda(0)));
            let group = connected(&options).unwrap();
            inside(&group);
            group.barrier().unwrap();
        }
    }
}

/// A layer with batch norm on the device: alike at the start, its statistics those of the whole batch, its gradients averaged by
/// [`average`] and by `Averaging` those of one process.
fn weights(group: &ProcessGroup) {
    const ROWS: i64 = 6;
    let (rank, w) = (group.rank() as i64, group.size() as i64);
    let device = group.device();
    let (plain, vs) = (VarStore::new(device), VarStore::new(device));
    let layers = |vs: &VarStore| nn::linear(vs.root() / "a", 10, 8, Default::default());
    tch::manual_seed(100 + rank); // other weights in each process
    let (whole_layer, layer) = (layers(&plain), layers(&vs));
    let own_norm = BatchNorm::new(vs.root() / "norm", 8, Default::default(), group);
    group.broadcast_all(&vs).unwrap();
    tch::no_grad(|| {
        whole_layer.ws.shallow_clone().copy_(&layer.ws);
        whole_layer.bs.as_ref().unwrap().shallow_clone().copy_(layer.bs.as_ref().unwrap());
    });
    tch::manual_seed(3);
    let inputs = Tensor::randn([ROWS * w, 10], (Kind::Float, device));
    let labels = Tensor::arange(ROWS * w, (Kind::Int64, device)).remainder(3);
    let own = |of: &Tensor| of.narrow(0, ROWS * rank, ROWS);
    let loss_fn = BatchHardTripletLoss { margin: 1.0, ..Default::default() };

    let [one, zero] = [1.0, 0.0].map(|value| Tensor::full([8], value, (Kind::Float, device)));
    let normed = inputs.apply(&whole_layer).batch_norm(Some(&one), Some(&zero), None, None, true, 0.1, 1e-5, false);
    let whole = loss_fn.f_forward(&normed, &labels).unwrap();
    let expected = Tensor::f_run_backward(&[&whole], &[&whole_layer.ws], false, false).unwrap();

    let variables = vs.trainable_variables();
    let averaging = group.averaging(&variables.iter().collect::<Vec<_>>()).unwrap();
    let loss = || {
        let shards = group.shards(ROWS as usize).unwrap();
        let x = own_norm.f_forward_t(&own(&inputs).apply(&layer), true).unwrap();
        loss_fn.on(&x, &own(&labels)).over(&shards).f_forward().unwrap()
    };
    let mut averaged = Tensor::f_run_backward(&[&loss()], &[&layer.ws], false, false).unwrap();
    average(&mut averaged, group).unwrap();
    averaging.prepare().unwrap();
    loss().f_backward().unwrap();
    for (got, by) in [(&averaged[0], "average"), (&layer.ws.grad(), "Averaging")] {
        let far = error(got, &expected[0]);
        assert!(far <= 1e-4, "the gradient of a weight by {by}: off by {far:e}");
        assert_same_everywhere(&[got], group, by);
    }
}

/// Forward and backward over a group are begun while the device is still busy with earlier work.
fn nothing_waits(group: &ProcessGroup) {
    let device = group.device();
    let big = Tensor::randn([8192, 8192], (Kind::Float, device)) / 90.0;
    let x = Tensor::randn([256, 64], (Kind::Float, device));
    let labels = Tensor::arange(256, (Kind::Int64, device)).floor_divide_scalar(4);
    let loss_fn = BatchHardTripletLoss { margin: 5.0, ..Default::default() };
    let shards = group.shards(256).unwrap();
    let work = || (0..40).fold(big.copy(), |product, _| big.matmul(&product));
    let step = || {
        let x = x.detach().set_requires_grad(true);
        loss_fn.on(&x, &labels).over(&shards).f_forward().unwrap().f_backward().unwrap();
        x.grad()
    };
    let waited = on_pool_stream(0, |stream| {
        let stream: sys::CUstream = stream.cast();
        // The allocator's pool of this stream, cuBLAS and NCCL are made at the first call: that waits.
        drop((work(), step()));
        Cuda::synchronize(0);
        let _long = work();
        let before = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
        // SAFETY: a live event and stream of the device's primary context, which PyTorch has made current.
        unsafe { event::record(before, stream) }.unwrap();
        let _grad = step();
        // SAFETY: the live event recorded above.
        let waited = unsafe { event::query(before) }.is_ok();
        Cuda::synchronize(0);
        // SAFETY: a live event that nothing uses any more.
        unsafe { event::destroy(before) }.unwrap();
        waited
    });
    assert!(!waited.unwrap(), "a step over a process group waited for the device");
}
