//! Losses on plain slices: no libtorch, no CUDA, no tensors. Points in the plane are moved by gradient descent until the
//! three classes lie apart.
//!
//! `cargo run --release --no-default-features --example slices`

use tercet::{BatchAllTripletLoss, Distance, Matrix};

const DIM: usize = 2;
const STEPS: usize = 60;

fn main() -> Result<(), tercet::Error> {
    // Nine points, row after row, and the class of each. A Matrix is a view: it says where the rows are.
    let labels = [0, 1, 2, 0, 1, 2, 0, 1, 2];
    let mut points: Vec<f32> = (0..labels.len() * DIM).map(|i| (i as f32 * 2.4).sin()).collect();

    // relu(d(a, p) - d(a, n) + 1), averaged over the triplets whose loss is above 0.
    let loss_fn = BatchAllTripletLoss { margin: 1.0, distance: Distance::Euclidean, ..Default::default() };
    let mut grad = vec![0.0; points.len()];

    for step in 0..=STEPS {
        let rows = Matrix::new(&points, DIM)?;
        // The loss comes back, and its gradient with respect to each number of each row is written to `grad`.
        let loss = loss_fn.on(rows, &labels).loss_and_grad(&mut grad)?;
        if step % 20 == 0 {
            let (_, stats) = loss_fn.on(rows, &labels).loss_with_stats()?;
            println!(
                "step {step:2}  loss {loss:.3}  {:3} of {} triplets active  within a class {:.2}, between classes {:.2}",
                stats.active, stats.valid, stats.mean_positive_distance, stats.mean_negative_distance
            );
        }
        points.iter_mut().zip(&grad).for_each(|(x, slope)| *x -= 0.3 * slope);
    }
    Ok(())
}
