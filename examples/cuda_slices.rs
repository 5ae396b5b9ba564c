//! Losses on a CUDA device without libtorch: embeddings, labels, the loss and its gradient are `cudarc` slices, and the
//! kernels run in the order of your stream.
//!
//! `cargo run --release --no-default-features --features cuda --example cuda_slices`

use cudarc::driver::CudaContext;
use tercet::cuda::{CudaMatrix, check_device};
use tercet::{BatchHardTripletLoss, Matrix};

const ROWS: usize = 256;
const DIM: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked first: cudarc panics where there is no driver.
    if let Err(why) = check_device(0) {
        println!("no CUDA device to run on: {why}");
        return Ok(());
    }
    let stream = CudaContext::new(0)?.default_stream();

    // 32 classes of 8 rows each.
    let rows: Vec<f32> = (0..ROWS * DIM).map(|i| (i as f32 * 0.7).sin()).collect();
    let labels: Vec<i64> = (0..ROWS as i64).map(|row| row % 32).collect();
    let embeddings = stream.clone_htod(&rows)?;
    let labels_there = stream.clone_htod(&labels)?;
    let mut loss = stream.alloc_zeros::<f32>(1)?;
    let mut grad = stream.alloc_zeros::<f32>(ROWS * DIM)?;

    // A CudaMatrix is a view of rows. The call puts its kernels on the stream and returns: it does not wait for them.
    let loss_fn = BatchHardTripletLoss::default();
    let matrix = CudaMatrix::new(&embeddings, DIM)?;
    loss_fn.on(matrix, &labels_there).loss_and_grad(&stream, &mut loss, &mut grad)?;

    // Copying to the host waits. The same call on slices in memory gives the same loss, within rounding.
    let there = stream.clone_dtoh(&loss)?[0];
    let mut grad_here = vec![0.0; ROWS * DIM];
    let here = loss_fn.on(Matrix::new(&rows, DIM)?, &labels).loss_and_grad(&mut grad_here)?;
    let apart = stream.clone_dtoh(&grad)?.iter().zip(&grad_here).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    println!("loss on the device {there:.6}, on the CPU {here:.6}; gradients at most {apart:.1e} apart");
    Ok(())
}
