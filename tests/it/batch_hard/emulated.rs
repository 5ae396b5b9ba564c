//! `batch_hard` on the emulator: schedules, lower precision, and what is not finite or too large.

use tercet::batch_hard::oracle;
use tercet::{BatchHardTripletLoss, Precision};
use tercet_emulator::{Emulator, Options};

use crate::mined::launches::{OnDevice, mine};
use crate::support::Numbers;

/// With fewer bits a negative may be taken that is not the nearest, by no more than those bits explain; its distance is
/// exact all the same.
#[test]
fn lower_precision_is_as_good_as_its_bits() {
    let (rows, dim) = (130usize, 70usize);
    let mut numbers = Numbers(3);
    let x: Vec<f32> = (0..rows * dim).map(|_| 3.0 + numbers.unit() as f32).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % 33).collect();
    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let squared =
        |i: usize, j: usize| -> f64 { (0..dim).map(|c| (exact[i * dim + c] - exact[j * dim + c]).powi(2)).sum() };
    // At least the squared distance of any row to the one that all rows are moved by.
    let radius = (0..rows).flat_map(|i| (0..rows).map(move |j| (i, j))).map(|(i, j)| squared(i, j)).fold(0.0, f64::max);
    for (precision, unit) in
        [(Precision::Highest, 0.5f64.powi(24)), (Precision::High, 0.5f64.powi(11)), (Precision::Medium, 0.5f64.powi(9))]
    {
        let loss_fn = BatchHardTripletLoss { margin: 10.0, precision, ..Default::default() };
        let emulator = Emulator::new(Options::default());
        let batch = OnDevice::itself(&emulator, &x, dim, &labels);
        let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, rows, &[&[1.0]]);
        let [positive, negative] = mined.chosen;
        let mut missed = 0;
        for (a, &n) in negative.iter().enumerate() {
            let nearest = (0..rows).filter(|&j| labels[j] != labels[a]).map(|j| squared(a, j)).fold(f64::MAX, f64::min);
            let over = squared(a, n as usize) - nearest;
            // For each of two pairs, both norms and the product are off by a unit per factor.
            assert!(over <= 16.0 * unit * radius, "{precision:?}, anchor {a}: {over} farther than the nearest");
            missed += usize::from(over > 1e-4);
        }
        println!("batch_hard on the emulator, {precision:?}: {missed} of {rows} negatives are not the nearest");
        assert!(precision != Precision::Highest || missed == 0);
        let matrix = tercet::Matrix::new(&exact, dim).expect("whole rows");
        let own = oracle::run(&loss_fn, matrix, &labels, &[1.0], Some((&positive, &negative))).expect("valid options");
        let got = f64::from(mined.loss);
        assert!((got - own.loss).abs() <= 1e-5 * own.loss, "{precision:?}: {got} for {}", own.loss);
    }
}
