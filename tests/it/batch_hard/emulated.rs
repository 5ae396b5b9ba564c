//! `batch_hard` on the emulator: schedules, lower precision, large classes, and rows that everybody chooses.

use tercet::batch_hard::oracle;
use tercet::{BatchHardTripletLoss, Distance, Precision, Reduction};
use tercet_emulator::{Emulator, Options};

use crate::mined::batch::{Batch, Content, Data, Labelling, OwnRows, Set};
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

/// On a lattice every number is exact: selections and, for squared distances, gradients have the oracle's bits, in whatever
/// order a gradient is added up.
pub fn as_the_oracle(emulator: &Emulator, distance: Distance, batch: &Batch) {
    let loss = BatchHardTripletLoss { margin: 3.0, distance, reduction: Reduction::Sum, ..Default::default() };
    let data = Data::<f32>::new(batch, Reduction::Sum);
    let embeddings = tercet::Matrix::new(&data.exact, batch.dim).unwrap();
    let set = data.exact_set(batch.dim);
    let truth = oracle::run_against(&loss, embeddings, &data.labels, set.as_ref(), &[1.0], None).unwrap();
    let mined = mine::<f32, _, _>(emulator, &loss, &OnDevice::new(emulator, batch, &data), batch.rows, &[&[1.0]]);
    let [positive, negative] = &mined.chosen;
    assert!(positive == &truth.positive, "the positives of {distance:?}, {batch:?}");
    assert!(negative == &truth.negative, "the negatives of {distance:?}, {batch:?}");
    if distance == Distance::SquaredEuclidean {
        for (grad, expected) in mined.grads[0].iter().zip([&truth.grad, &truth.reference_grad]) {
            assert!(grad.iter().map(|g| f64::from(*g)).eq(expected.iter().copied()), "the gradients of {batch:?}");
        }
    }
}

pub fn lattice(rows: usize, dim: usize, labelling: Labelling, reference: Option<Set>) -> Batch {
    let content = Content::Lattice { offset: 0.0 };
    Batch { rows, dim, gap: 1, offset: 1, content, labelling, seed: (rows * dim) as u64, reference }
}

#[test]
fn large_classes_have_their_farthest_positives() {
    // With more multiprocessors a block takes fewer anchors at a time.
    for (case, multiprocessors) in [2u32, 4, 40].into_iter().enumerate() {
        for labelling in [Labelling::Two, Labelling::One, Labelling::Large, Labelling::Random { each: 70 }] {
            for (rows, dim) in [(200, 1), (133, 17), (132, 260)] {
                let mut emulator = Emulator::new(Options { seed: case as u64, ..Options::default() });
                emulator.properties_mut().multiprocessors = multiprocessors;
                as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(rows, dim, labelling, None));
            }
            let mut emulator = Emulator::new(Options { detect: true, seed: 2 + case as u64, ..Options::default() });
            emulator.properties_mut().multiprocessors = multiprocessors;
            as_the_oracle(&emulator, Distance::Euclidean, &lattice(131, 4, labelling, None));
            let set = Some(Set { rows: 140, own: OwnRows::Rows });
            as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(37, 4, labelling, set));
        }
    }
}

#[test]
fn many_rows_have_the_oracles_bits() {
    let each = 8;
    for (rows, dim) in [(1025, 4), (2049, 4)] {
        let emulator = Emulator::new(Options { seed: rows as u64 % 3, ..Options::default() });
        as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(rows, dim, Labelling::Random { each }, None));
    }
    // One side is prepared by one launch, the other in steps.
    for (rows, others) in [(50, 2100), (1100, 60)] {
        let set = Some(Set { rows: others, own: OwnRows::Offset(3) });
        let emulator = Emulator::new(Options::default());
        as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(rows, 2, Labelling::Random { each }, set));
    }
}

/// Every anchor chooses row 0 as its negative, and all of a class the same positive. Terms are integers, so their sum has the
/// same bits in any order; and shared among warps or not, it has them under every schedule.
pub fn a_row_that_everybody_chooses(emulator: &Emulator, rows: usize) {
    // Classes lie at different corners: nearer to row 0, at the origin, than to each other.
    let (dim, mut numbers) = (9, Numbers(7));
    let mut labels = vec![-1i64];
    let mut x = vec![0f32; dim];
    for _ in 1..rows {
        let corner = numbers.below(8);
        labels.push(corner as i64);
        x.extend((0..dim).map(|c| if c == corner { 4.0 } else { 0.0 }));
    }
    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let loss = BatchHardTripletLoss { margin: 20.0, reduction: Reduction::Sum, ..Default::default() };
    let matrix = tercet::Matrix::new(&exact, dim).unwrap();
    let truth = oracle::run(&loss, matrix, &labels, &[1.0], None).unwrap();
    assert!(truth.negative[1..].iter().all(|&negative| negative == 0) && truth.grad[..8].iter().all(|&g| g > 0.0));
    let mined = mine::<f32, _, _>(emulator, &loss, &OnDevice::itself(emulator, &x, dim, &labels), rows, &[&[1.0]]);
    assert!(mined.chosen == [truth.positive, truth.negative]);
    let grad = &mined.grads[0][0];
    assert!(grad.iter().map(|g| f64::from(*g)).eq(truth.grad.iter().copied()), "{rows} rows");
}

#[test]
fn rows_that_everybody_chooses_are_shared() {
    for seed in 0..4 {
        a_row_that_everybody_chooses(&Emulator::new(Options { detect: seed < 2, seed, ..Options::default() }), 300);
    }
    a_row_that_everybody_chooses(&Emulator::new(Options::default()), 2100);
}
