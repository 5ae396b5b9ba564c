//! `batch_hard` on the emulator: schedules, lower precision, large classes, and rows that everybody chooses.

use tercet::batch_hard::oracle;
use tercet::{BatchHardTripletLoss, Distance, Precision, Reduction};
use tercet_emulator::{Emulator, Options};

use crate::mined::batch::{Batch, Content, Data, Labelling, OwnRows, Set};
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

/// On a lattice every number is exact: selections and, for squared distances, gradients have the oracle's bits, in whatever
/// order a gradient is added up.
fn as_the_oracle(emulator: &Emulator, distance: Distance, batch: &Batch) {
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

fn lattice(rows: usize, dim: usize, labelling: Labelling, reference: Option<Set>) -> Batch {
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
    for (rows, dim) in [(1025, 3), (2048, 2), (2049, 2), (4097, 1)] {
        let emulator = Emulator::new(Options { seed: rows as u64 % 3, ..Options::default() });
        as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(rows, dim, Labelling::Random { each }, None));
    }
    let set = Some(Set { rows: 2100, own: OwnRows::Offset(3) });
    let emulator = Emulator::new(Options::default());
    as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(50, 2, Labelling::Random { each }, set));
}

/// Every anchor chooses row 0 as its negative, and all of a class the same positive. Terms are integers, so their sum has the
/// same bits in any order; and shared among warps or not, it has them under every schedule.
fn a_row_that_everybody_chooses(emulator: &Emulator, rows: usize) {
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
