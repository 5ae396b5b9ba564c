//! What only a device can show: graphs, a thousand runs, sizes beyond 32 bits, and memory that runs out.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, result, sys};
use half::f16;
use tercet::cuda::CudaMatrix;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Error, Matrix, Negatives, PairwiseDistance, Reduction,
    TripletMarginLoss,
};

use crate::mined::refusing;
use crate::support::Numbers;
use crate::support::cuda::{Cuda, alone};

/// The device memory that the ops read and write.
struct Arena {
    dim: usize,
    x: [CudaSlice<f32>; 3],
    labels: CudaSlice<i64>,
    same: CudaSlice<bool>,
    upstream: CudaSlice<f32>,
    loss: CudaSlice<f32>,
    distances: CudaSlice<f32>,
    grads: [CudaSlice<f32>; 3],
}

fn poison<T: DeviceRepr>(stream: &Arc<CudaStream>, to: &mut CudaSlice<T>) {
    let bytes = to.num_bytes();
    let (address, _guard) = to.device_ptr_mut(stream);
    // SAFETY: exactly the bytes of a live slice that is borrowed mutably.
    unsafe { result::memset_d8_async(address, 0xff, bytes, stream.cu_stream()) }.unwrap();
}

impl Arena {
    fn new(stream: &Arc<CudaStream>, rows: usize, dim: usize) -> Self {
        let labels: Vec<i64> = (0..rows).map(|i| (i / 4) as i64).collect();
        let same: Vec<bool> = (0..rows).map(|i| i % 2 == 0).collect();
        let matrix = || stream.alloc_zeros(rows * dim).unwrap();
        let mut arena = Self {
            dim,
            x: [(); 3].map(|()| matrix()),
            labels: stream.clone_htod(&labels).unwrap(),
            same: stream.clone_htod(&same).unwrap(),
            upstream: stream.clone_htod(&vec![1f32; rows * rows]).unwrap(),
            loss: stream.alloc_zeros(1).unwrap(),
            distances: stream.alloc_zeros(rows * rows).unwrap(),
            grads: [(); 3].map(|()| matrix()),
        };
        arena.refill(stream, 1);
        arena
    }

    fn refill(&mut self, stream: &Arc<CudaStream>, seed: u64) {
        let mut numbers = Numbers(seed);
        for x in &mut self.x {
            let values: Vec<f32> = (0..x.len()).map(|_| numbers.unit() as f32).collect();
            stream.memcpy_htod(&values, x).unwrap();
        }
        // Wait for the copies.
        stream.synchronize().unwrap();
    }

    fn outputs(&mut self) -> impl Iterator<Item = &mut CudaSlice<f32>> {
        [&mut self.loss, &mut self.distances].into_iter().chain(&mut self.grads)
    }

    fn poison(&mut self, stream: &Arc<CudaStream>) {
        self.outputs().for_each(|to| poison(stream, to));
    }

    /// The bits of all outputs; those that an op does not write stay poisoned.
    fn read(&mut self, stream: &Arc<CudaStream>) -> Vec<Vec<u32>> {
        self.outputs().map(|x| stream.clone_dtoh(x).unwrap().into_iter().map(f32::to_bits).collect()).collect()
    }

    /// Runs the op into poisoned outputs.
    fn run(&mut self, op: &Op, stream: &Arc<CudaStream>) -> Vec<Vec<u32>> {
        self.poison(stream);
        (op.run)(stream, self).unwrap_or_else(|e| panic!("{}: {e}", op.name));
        self.read(stream)
    }
}

struct Op {
    name: &'static str,
    run: fn(&Arc<CudaStream>, &mut Arena) -> Result<(), Error>,
}

/// Forward and backward of every op on cudarc slices.
fn ops() -> Vec<Op> {
    macro_rules! mined {
        ($name:literal, $loss:expr) => {
            Op {
                name: $name,
                run: |stream, m| {
                    let x = CudaMatrix::new(&m.x[0], m.dim)?;
                    $loss.on(x, &m.labels).loss_and_grad(stream, &mut m.loss, &mut m.grads[0])
                },
            }
        };
    }
    vec![
        Op {
            name: "triplet_margin",
            run: |stream, m| {
                let [a, p, n] = m.x.each_ref().map(|x| CudaMatrix::new(x, m.dim).unwrap());
                let grads = m.grads.each_mut().map(Some);
                let loss = TripletMarginLoss { margin: 1.0, ..TripletMarginLoss::default() };
                loss.loss_and_grad_cuda(stream, [a, p, n], &mut m.loss, grads)
            },
        },
        Op {
            name: "contrastive",
            run: |stream, m| {
                let rows = [0, 1].map(|i| CudaMatrix::new(&m.x[i], m.dim).unwrap());
                let [a, b, _] = m.grads.each_mut().map(Some);
                let loss = ContrastiveLoss { margin: 9.0, ..ContrastiveLoss::default() };
                loss.loss_and_grad_cuda(stream, rows, &m.same, &mut m.loss, [a, b])
            },
        },
        Op {
            name: "pairwise_distance",
            run: |stream, m| {
                let rows = || [0, 1].map(|i| CudaMatrix::new(&m.x[i], m.dim).unwrap());
                let ([x, y], [again, and_again]) = (rows(), rows());
                let [a, b, _] = m.grads.each_mut().map(Some);
                let distance = PairwiseDistance::default();
                distance.distances_cuda(stream, x, y, &mut m.distances)?;
                distance.grad_cuda(stream, again, and_again, &m.upstream, [a, b])
            },
        },
        mined!("batch_all", BatchAllTripletLoss { margin: 1.0, ..Default::default() }),
        mined!("batch_hard", BatchHardTripletLoss { margin: 5.0, ..Default::default() }),
        mined!("batch_semi_hard", BatchSemiHardTripletLoss { margin: 5.0, ..Default::default() }),
        mined!("batch_negative", BatchNegativeTripletLoss { margin: 5.0, ..Default::default() }),
        mined!("batch_contrastive", BatchContrastiveLoss { margin: 9.0, ..Default::default() }),
        mined!(
            "batch_contrastive of the hardest",
            BatchContrastiveLoss { margin: 9.0, negatives: Negatives::Hardest, ..Default::default() }
        ),
    ]
}

/// A non-default stream, in a context that records no events: they cannot be captured in a graph.
fn stream_for_graphs() -> Arc<CudaStream> {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: a test uses the context on this one stream, so no events are needed to order streams.
    unsafe { context.disable_event_tracking() };
    context.new_stream().unwrap()
}

#[test]
fn cuda_gives_the_same_bits_in_a_thousand_runs() {
    let Some(alone) = alone("cuda_gives_the_same_bits_in_a_thousand_runs") else { return };
    let cuda = Cuda::alone(&alone);
    let stream = cuda.stream();
    let mut arena = Arena::new(stream, 300, 65);
    for op in ops() {
        let first = arena.run(&op, stream);
        assert!(f32::from_bits(first[0][0]) > 0.0 || op.name == "pairwise_distance", "{}", op.name);
        for run in 1..1000 {
            assert!(arena.run(&op, stream) == first, "{}: other bits in run {run}", op.name);
        }
        println!("{}: 1000 runs", op.name);
    }
}

/// A step neither waits for the device nor reads host memory nor needs events: it can be captured in a graph.
#[test]
fn cuda_graphs_replay_forward_and_backward() {
    let Some(_alone) = alone("cuda_graphs_replay_forward_and_backward") else { return };
    let stream = &stream_for_graphs();
    let mut arena = Arena::new(stream, 200, 33);
    for op in ops() {
        // Loads the kernels before the capture.
        arena.run(&op, stream);
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
        let captured = (op.run)(stream, &mut arena);
        let none = sys::CUgraphInstantiate_flags(0);
        let graph = stream.end_capture(none);
        captured.unwrap_or_else(|e| panic!("{}: {e}", op.name));
        let graph = graph.unwrap_or_else(|e| panic!("{}: {e}", op.name)).expect("a graph");
        for seed in 2..6 {
            arena.refill(stream, seed);
            let expected = arena.run(&op, stream);
            for replay in 0..2 {
                arena.poison(stream);
                graph.launch().unwrap();
                assert!(arena.read(stream) == expected, "{}: replay {replay} of batch {seed}", op.name);
            }
        }
    }
}

#[test]
fn cuda_survives_a_refused_allocation() {
    let Some(alone) = alone("cuda_survives_a_refused_allocation") else { return };
    let cuda = Cuda::alone(&alone);
    let mut refused = 0;
    refused += refusing::at_each_allocation(&cuda, &BatchAllTripletLoss::default());
    refused += refusing::at_each_allocation(&cuda, &BatchHardTripletLoss::default());
    refused += refusing::at_each_allocation(&cuda, &BatchSemiHardTripletLoss::default());
    refused += refusing::at_each_allocation(&cuda, &BatchNegativeTripletLoss::default());
    refused += refusing::at_each_allocation(&cuda, &BatchContrastiveLoss::default());
    println!("{refused} refused allocations");
}

/// Makes the driver's pool return the freed memory it keeps, which would otherwise serve the next allocations.
fn forget_freed_memory(stream: &Arc<CudaStream>) {
    let mut pool = std::ptr::null_mut();
    // SAFETY: an out-pointer to a live variable; the pool is the device's own.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device()).result().unwrap();
        sys::cuMemPoolTrimTo(pool, 0).result().unwrap();
    }
}

/// The device itself is out of memory, at whichever allocation that happens.
#[test]
fn cuda_survives_a_full_memory() {
    const ROWS: usize = 1 << 16;
    const DIM: usize = 64;
    let Some(_alone) = alone("cuda_survives_a_full_memory") else { return };
    let stream = &stream_for_graphs();
    let labels: Vec<i64> = (0..ROWS).map(|i| (i / 4) as i64).collect();
    let labels = stream.clone_htod(&labels).unwrap();
    let x = stream.clone_htod(&vec![1f32; ROWS * DIM]).unwrap();
    let (mut loss, mut grad) = (stream.alloc_zeros::<f32>(1).unwrap(), stream.alloc_zeros::<f32>(ROWS * DIM).unwrap());
    let mut arena = Arena::new(stream, 200, 33);
    let expected: Vec<_> = ops().iter().map(|op| arena.run(op, stream)).collect();
    let mut refusals = 0;
    for spare in [0usize, 4 << 20, 16 << 20, 40 << 20] {
        let free = || stream.context().mem_get_info().unwrap().0;
        stream.synchronize().unwrap();
        forget_freed_memory(stream);
        let mut taken = Vec::new();
        let mut part = free().saturating_sub(spare);
        // Allocates ever smaller parts, until only `spare` bytes are left.
        while part >= 1 << 16 {
            // SAFETY: plain memory, freed below.
            match unsafe { result::malloc_sync(part) } {
                Ok(address) => {
                    taken.push(address);
                    part = part.min(free().saturating_sub(spare));
                }
                Err(_) => part /= 2,
            }
        }
        let mut tried = |result: Result<(), Error>| {
            if let Err(error) = result {
                refusals += 1;
                assert!(error.to_string().contains("memory"), "{error}");
            }
        };
        let rows = || CudaMatrix::new(&x, DIM).unwrap();
        macro_rules! attempt {
            ($loss:expr) => {
                tried($loss.on(rows(), &labels).loss_and_grad(stream, &mut loss, &mut grad))
            };
        }
        attempt!(BatchAllTripletLoss::default());
        attempt!(BatchHardTripletLoss::default());
        attempt!(BatchSemiHardTripletLoss::default());
        attempt!(BatchNegativeTripletLoss::default());
        attempt!(BatchContrastiveLoss::default());
        stream.synchronize().unwrap();
        // SAFETY: each address is from `malloc_sync` above and was given to nobody else.
        taken.into_iter().for_each(|address| unsafe { result::free_sync(address) }.unwrap());
        for (op, expected) in ops().iter().zip(&expected) {
            assert!(arena.run(op, stream) == *expected, "{} after {spare} bytes were left", op.name);
        }
    }
    assert!(refusals > 0, "the memory was never full");
    println!("{refusals} refusals");
}

/// Fills `to` with copies of its first `len` numbers.
fn repeat<T: DeviceRepr>(stream: &Arc<CudaStream>, to: &mut CudaSlice<T>, len: usize) {
    let total = to.len();
    let (address, _guard) = to.device_ptr_mut(stream);
    let mut done = len;
    while done < total {
        let part = done.min(total - done);
        let [from, to] = [0, done].map(|at| address + (at * size_of::<T>()) as u64);
        // SAFETY: both ranges are within the slice and do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, part * size_of::<T>(), stream.cu_stream()) }.unwrap();
        done += part;
    }
}

/// `B * D` beyond 2^31: every copy of a block of rows, from the first to the last, has the block's gradients.
#[test]
fn cuda_takes_paired_batches_beyond_32_bits() {
    const BLOCK: usize = 1 << 16;
    const DIM: usize = 129;
    const ROWS: usize = 1 << 24;
    let Some(alone) = alone("cuda_takes_paired_batches_beyond_32_bits") else { return };
    let cuda = Cuda::alone(&alone);
    const { assert!(ROWS * DIM > 1 << 31) };
    let stream = cuda.stream();
    let mut numbers = Numbers(3);
    let block = [(); 3].map(|()| (0..BLOCK * DIM).map(|_| f16::from_f64(numbers.unit())).collect::<Vec<_>>());
    let loss_fn = TripletMarginLoss { margin: 1.0, reduction: Reduction::Sum, ..TripletMarginLoss::default() };

    let small = block.each_ref().map(|x| stream.clone_htod(x).unwrap());
    let mut small_loss = stream.alloc_zeros::<f32>(1).unwrap();
    let mut small_grads = [(); 3].map(|()| stream.alloc_zeros::<f16>(BLOCK * DIM).unwrap());
    let rows = small.each_ref().map(|x| CudaMatrix::new(x, DIM).unwrap());
    loss_fn.loss_and_grad_cuda(stream, rows, &mut small_loss, small_grads.each_mut().map(Some)).unwrap();

    let large = block.each_ref().map(|x| {
        // SAFETY: filled before it is read.
        let mut large = unsafe { stream.alloc::<f16>(ROWS * DIM) }.unwrap();
        stream.memcpy_htod(x, &mut large.slice_mut(..BLOCK * DIM)).unwrap();
        repeat(stream, &mut large, BLOCK * DIM);
        large
    });
    let mut loss = stream.alloc_zeros::<f32>(1).unwrap();
    let mut grads = [(); 3].map(|()| {
        // SAFETY: poisoned before it is read.
        let mut grad = unsafe { stream.alloc::<f16>(ROWS * DIM) }.unwrap();
        poison(stream, &mut grad);
        grad
    });
    let rows = large.each_ref().map(|x| CudaMatrix::new(x, DIM).unwrap());
    loss_fn.loss_and_grad_cuda(stream, rows, &mut loss, grads.each_mut().map(Some)).unwrap();

    let [of_block, of_all] = [small_loss, loss].map(|x| f64::from(stream.clone_dtoh(&x).unwrap()[0]));
    let expected = of_block * (ROWS / BLOCK) as f64;
    assert!((of_all - expected).abs() <= 1e-6 * expected, "{of_all} instead of {expected}");
    for (grad, of_block) in grads.iter().zip(&small_grads) {
        let of_block = stream.clone_dtoh(of_block).unwrap();
        for at in [0, 1, ROWS / BLOCK / 2, ROWS / BLOCK - 1] {
            let part = stream.clone_dtoh(&grad.slice(at * BLOCK * DIM..(at + 1) * BLOCK * DIM)).unwrap();
            assert!(part == of_block, "block {at}");
        }
    }
}

/// `N * N` beyond 2^32, against the CPU: integers make every distance exact, so both choose the same rows.
#[test]
fn cuda_mines_batches_beyond_32_bits() {
    const ROWS: usize = 70_001;
    const DIM: usize = 8;
    let Some(alone) = alone("cuda_mines_batches_beyond_32_bits") else { return };
    let cuda = Cuda::alone(&alone);
    const { assert!(ROWS * ROWS > 1 << 32) };
    let stream = cuda.stream();
    let mut numbers = Numbers(4);
    let x: Vec<f32> = (0..ROWS * DIM).map(|_| numbers.below(9) as f32 - 4.0).collect();
    let labels: Vec<i64> = (0..ROWS).map(|i| (i % (ROWS / 4)) as i64).collect();
    let (on_device, their_labels) = (stream.clone_htod(&x).unwrap(), stream.clone_htod(&labels).unwrap());
    macro_rules! check {
        ($loss:expr) => {{
            let loss_fn = $loss;
            let mut grad = vec![f32::NAN; x.len()];
            let expected = loss_fn.on(Matrix::new(&x, DIM).unwrap(), &labels).loss_and_grad(&mut grad).unwrap();
            let expected = f64::from(expected);
            let mut loss = stream.clone_htod(&[f32::NAN]).unwrap();
            let mut got = stream.alloc_zeros::<f32>(x.len()).unwrap();
            poison(stream, &mut got);
            let rows = CudaMatrix::new(&on_device, DIM).unwrap();
            loss_fn.on(rows, &their_labels).loss_and_grad(stream, &mut loss, &mut got).unwrap();
            let loss = f64::from(stream.clone_dtoh(&loss).unwrap()[0]);
            assert!((loss - expected).abs() <= 1e-5 * expected, "{loss_fn:?}: {loss} instead of {expected}");
            let got = stream.clone_dtoh(&got).unwrap();
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let size = norm(&mut grad.iter().map(|&x| f64::from(x)));
            let off = norm(&mut grad.iter().zip(&got).map(|(&a, &b)| f64::from(a) - f64::from(b)));
            println!("{loss_fn:?}: loss {loss}, on the CPU {expected}; gradients {:.1e} apart", off / size);
            assert!(off <= 1e-5 * size, "{loss_fn:?}: {off} of {size}");
        }};
    }
    check!(BatchHardTripletLoss::default());
    check!(BatchAllTripletLoss::default());
    check!(BatchSemiHardTripletLoss::default());
    check!(BatchNegativeTripletLoss::default());
    check!(BatchContrastiveLoss { margin: 8.0, ..Default::default() });
}

/// `N * M` beyond 2^31 numbers: the last rows equal those computed alone.
#[test]
fn cuda_computes_distances_beyond_32_bits() {
    const ROWS: usize = 50_000;
    const DIM: usize = 4;
    const LAST: usize = 7;
    let Some(alone) = alone("cuda_computes_distances_beyond_32_bits") else { return };
    let cuda = Cuda::alone(&alone);
    const { assert!(ROWS * ROWS > 1 << 31) };
    let stream = cuda.stream();
    let mut numbers = Numbers(5);
    let x: Vec<f32> = (0..ROWS * DIM).map(|_| numbers.unit() as f32).collect();
    let y = stream.clone_htod(&x).unwrap();
    // SAFETY: poisoned before it is read.
    let mut to = unsafe { stream.alloc::<f32>(ROWS * ROWS) }.unwrap();
    poison(stream, &mut to);
    let rows = || CudaMatrix::new(&y, DIM).unwrap();
    PairwiseDistance::default().distances_cuda(stream, rows(), rows(), &mut to).unwrap();
    let end = stream.clone_dtoh(&to.slice((ROWS - LAST) * ROWS..)).unwrap();
    for (k, got) in end.into_iter().enumerate() {
        let (i, j) = (ROWS - LAST + k / ROWS, k % ROWS);
        let part = |row: usize| x[row * DIM..(row + 1) * DIM].iter().map(|&x| f64::from(x));
        let expected = part(i).zip(part(j)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        assert!((f64::from(got) - expected).abs() <= 1e-5 * (1.0 + expected), "{i}, {j}: {got} instead of {expected}");
    }
}
