//! The first call of a process may be inside the capture of a graph: the kernels are loaded there, without an error.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, sys};
use tercet::cuda::CudaMatrix;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Error, TripletMarginLoss,
};

use crate::support::cuda::alone;
use crate::support::process;

const ROWS: usize = 24;
const DIM: usize = 20;

/// Computes the loss and gradient of one batch of rows and labels.
type Run = fn(
    &Arc<CudaStream>,
    &CudaSlice<f32>,
    &CudaSlice<i64>,
    &mut CudaSlice<f32>,
    &mut CudaSlice<f32>,
) -> Result<(), Error>;

macro_rules! mined {
    ($loss:ident) => {
        (stringify!($loss), |stream, x, labels, loss, grad| {
            let loss_fn = $loss { margin: 5.0, ..Default::default() };
            loss_fn.on(CudaMatrix::new(x, DIM)?, labels).loss_and_grad(stream, loss, grad)
        })
    };
}

const LOSSES: [(&str, Run); 6] = [
    ("TripletMarginLoss", |stream, x, _, loss, grad| {
        let rows = || CudaMatrix::new(x, DIM);
        let loss_fn = TripletMarginLoss { margin: 5.0, ..Default::default() };
        loss_fn.loss_and_grad_cuda(stream, [rows()?, rows()?, rows()?], loss, [Some(grad), None, None])
    }),
    mined!(BatchAllTripletLoss),
    mined!(BatchHardTripletLoss),
    mined!(BatchSemiHardTripletLoss),
    mined!(BatchNegativeTripletLoss),
    mined!(BatchContrastiveLoss),
];

#[test]
fn cuda_captures_the_first_call() {
    let test = "cuda_captures_the_first_call";
    let Some(_alone) = alone(test) else { return };
    // An earlier test of this process may have loaded the kernels.
    if process::again(module_path!(), test, &[]).is_some() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the test uses the context on one stream. Events cannot be captured in a graph.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let numbers: Vec<f32> = (0..ROWS * DIM).map(|i| (i as f32 * 0.37).sin()).collect();
    let labels: Vec<i64> = (0..ROWS as i64).map(|i| i / 4).collect();
    let (x, labels) = (stream.clone_htod(&numbers).unwrap(), stream.clone_htod(&labels).unwrap());
    let outputs = || (stream.alloc_zeros::<f32>(1).unwrap(), stream.alloc_zeros::<f32>(ROWS * DIM).unwrap());
    for (name, run) in LOSSES {
        let (mut loss, mut grad) = outputs();
        stream.synchronize().unwrap();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
        let captured = run(&stream, &x, &labels, &mut loss, &mut grad);
        let none = sys::CUgraphInstantiate_flags(0);
        let graph = stream.end_capture(none);
        captured.unwrap_or_else(|e| panic!("{name}: {e}"));
        let graph = graph.unwrap_or_else(|e| panic!("{name}: {e}")).expect("a graph");
        graph.launch().unwrap();
        let replayed = (stream.clone_dtoh(&loss).unwrap(), stream.clone_dtoh(&grad).unwrap());
        let (mut loss, mut grad) = outputs();
        run(&stream, &x, &labels, &mut loss, &mut grad).unwrap();
        assert_eq!(replayed, (stream.clone_dtoh(&loss).unwrap(), stream.clone_dtoh(&grad).unwrap()), "{name}");
    }
}
