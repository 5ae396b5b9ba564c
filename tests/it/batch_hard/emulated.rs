//! `batch_hard` on the emulator: schedules, lower precision, and what is not finite or too large.

use tercet::batch_hard::oracle;
use tercet::{BatchHardTripletLoss, Distance, Precision};
use tercet_emulator::{Emulator, Options};

use crate::mined::bounds::Bounds;
use crate::mined::launches::{OnDevice, mine};
use crate::support::Numbers;
use crate::support::property::Worst;

/// With fewer bits a negative may be taken that is not the nearest, by no more than those bits explain; its distance is
/// exact all the same.
#[test]
fn lower_precision_is_as_good_as_its_bits() {
    let (rows, dim) = (130usize, 70usize);
    let mut numbers = Numbers(3);
    // Two rows each are nearly equal and of one class, so that every anchor has two negatives nearly as near.
    let apart: Vec<f64> = (0..rows / 2 * dim).map(|_| 3.0 + numbers.unit()).collect();
    let twice = apart.chunks(dim).flat_map(|row| [(row, 0.0), (row, 2e-4)]);
    let x: Vec<f32> = twice
        .flat_map(|(row, off)| row.iter().map(move |x| (x, off)))
        .map(|(x, off)| (x + off * numbers.unit()) as f32)
        .collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i / 2 * 7 % 33).collect();
    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    for precision in [Precision::Highest, Precision::High, Precision::Medium] {
        let loss_fn = BatchHardTripletLoss { margin: 10.0, precision, ..Default::default() };
        let emulator = Emulator::new(Options::default());
        let batch = OnDevice::itself(&emulator, &x, dim, &labels);
        let mined = mine::<f32, _, _>(&emulator, &loss_fn, &batch, rows, &[&[1.0]]);
        let [positive, negative] = mined.chosen;
        let bounds = Bounds::new::<f32>(&exact, rows, dim, Distance::SquaredEuclidean, false).at::<f32>(precision);
        let (mut missed, mut worst) = (0, Worst::default());
        for (a, &n) in negative.iter().enumerate() {
            let negatives = (0..rows).filter(|&j| labels[j] != labels[a]);
            let nearest = negatives.min_by(|&i, &j| bounds.d(a, i).total_cmp(&bounds.d(a, j))).expect("a negative");
            let [(d, error), (least, of_least)] =
                [n as usize, nearest].map(|j| (bounds.d(a, j), bounds.of_product(a, j)));
            let what = || format!("{precision:?}: the negative of anchor {a}");
            worst.check(what, d, least, error + of_least).unwrap_or_else(|e| panic!("{e}"));
            missed += usize::from(d > least + 1e-4);
        }
        println!(
            "batch_hard on the emulator, {precision:?}: {missed} of {rows} negatives are not the nearest, farther by at most {:.3} \
             of the bound",
            worst.ratio()
        );
        assert!(precision != Precision::Highest || missed == 0, "{missed} with {precision:?}");
        let matrix = tercet::Matrix::new(&exact, dim).expect("whole rows");
        let own = oracle::run(&loss_fn, matrix, &labels, &[1.0], Some((&positive, &negative))).expect("valid options");
        let got = f64::from(mined.loss);
        assert!((got - own.loss).abs() <= 1e-5 * own.loss, "{precision:?}: {got} for {}", own.loss);
    }
}
