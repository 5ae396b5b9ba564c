//! `batch_hard` on the emulator: schedules, lower precision, large classes, and rows that everybody chooses.

use tercet::batch_hard::oracle;
use tercet::internal::Strip;
use tercet::{BatchHardTripletLoss, Distance, Precision, Reduction};
use tercet_emulator::{Emulator, Options, Traffic, Work};

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
        let labellings = [Labelling::Two, Labelling::One, Labelling::Large, Labelling::Random { each: 70 }];
        for (turn, labelling) in labellings.into_iter().enumerate() {
            // Each labelling has each shape once.
            let (rows, dim) = [(200, 1), (133, 17), (132, 260)][(case + turn) % 3];
            let mut emulator = Emulator::new(Options { seed: case as u64, ..Options::default() });
            emulator.properties_mut().multiprocessors = multiprocessors;
            as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(rows, dim, labelling, None));
            let mut emulator =
                Emulator::new(Options { detect: turn == case, seed: 2 + case as u64, ..Options::default() });
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

/// Every anchor chooses row 0 as its negative, and all of a class its first row as their positive. Terms are integers, so their
/// sum has the same bits in any order; and shared among warps and blocks or not, it has them under every schedule.
pub fn a_row_that_everybody_chooses(emulator: &Emulator, rows: usize, classes: usize) {
    // Classes lie at different corners: nearer to row 0, at the origin, than to each other. Their first rows lie beyond.
    let (dim, mut numbers) = (9, Numbers(7));
    let mut labels = vec![-1i64];
    let mut x = vec![0f32; dim];
    for _ in 1..rows {
        let corner = numbers.below(classes);
        let far = if labels.contains(&(corner as i64)) { 4.0 } else { 5.0 };
        labels.push(corner as i64);
        x.extend((0..dim).map(|c| if c == corner { far } else { 0.0 }));
    }
    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let loss = BatchHardTripletLoss { margin: 30.0, reduction: Reduction::Sum, ..Default::default() };
    let matrix = tercet::Matrix::new(&exact, dim).unwrap();
    let truth = oracle::run(&loss, matrix, &labels, &[1.0], None).unwrap();
    assert!(
        truth.negative[1..].iter().all(|&negative| negative == 0) && truth.grad[..classes].iter().all(|&g| g > 0.0)
    );
    let mined = mine::<f32, _, _>(emulator, &loss, &OnDevice::itself(emulator, &x, dim, &labels), rows, &[&[1.0]]);
    assert!(mined.chosen == [truth.positive, truth.negative]);
    let grad = &mined.grads[0][0];
    assert!(grad.iter().map(|g| f64::from(*g)).eq(truth.grad.iter().copied()), "{rows} rows");
}

#[test]
fn rows_that_everybody_chooses_are_shared() {
    for seed in 0..4 {
        a_row_that_everybody_chooses(&Emulator::new(Options { detect: seed < 2, seed, ..Options::default() }), 300, 8);
    }
    a_row_that_everybody_chooses(&Emulator::new(Options::default()), 2100, 8);
}

/// With one class there are two hubs, whose lists follow each other within one piece.
#[test]
fn hubs_are_shared_among_blocks() {
    let emulator = Emulator::new(Options { seed: 2, ..Options::default() });
    a_row_that_everybody_chooses(&emulator, 4200, 1);
    let kernels = emulator.take_work().into_iter().filter_map(|work| work.kernel);
    assert!(kernels.filter(|kernel| kernel == "batch_hard_hubs_f32").count() == 1);
}

/// The products with rows of the anchors' own classes are masked where a warp votes that a tile has some. What is done there is
/// left out of the instructions that are counted for a product, so such tiles must be few: of the rows in class order, those
/// around the anchors' own.
#[test]
fn few_tiles_are_masked() {
    let (rows, of_class) = (640, 8);
    for seed in [1, 2] {
        let emulator = Emulator::new(Options { seed, ..Options::default() });
        let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % (rows / of_class) as i64).collect();
        let mut numbers = Numbers(1);
        let x: Vec<f32> = (0..rows * 2).map(|_| numbers.unit() as f32).collect();
        let batch = OnDevice::itself(&emulator, &x, 2, &labels);
        mine::<f32, _, _>(&emulator, &BatchHardTripletLoss::default(), &batch, 0, &[]);
        let work = emulator.take_work();
        let of_products =
            |work: &&Work| work.kernel.as_ref().is_some_and(|name| name.starts_with("batch_hard_negatives"));
        let work = work.iter().find(of_products).expect("products are launched");
        let strip = Strip::named(work.kernel.as_ref().unwrap().split_once("highest_").unwrap().1, 2).unwrap();
        let (warps, row_blocks) = (u64::from(strip.threads / 32), u64::from(Strip::row_blocks(rows)));
        let Traffic { votes_against, votes_for, .. } = work.traffic;
        let tiles = rows.div_ceil(strip.columns as usize) as u64;
        assert_eq!(votes_against + votes_for, row_blocks * tiles * warps, "one vote of a warp for each tile");
        // The anchors' classes begin in a tile before their own, and end in one behind.
        let (own, all) = (votes_for.div_ceil(row_blocks * warps), 32768 / u64::from(strip.columns));
        println!("{} tiles of {tiles} are masked; of 32768 rows {:.2} %", own, 100.0 * own as f64 / all as f64);
        assert!(
            votes_for > 0 && own <= 128 / u64::from(strip.columns) + 2 && 100 * own < all,
            "{own} tiles of {tiles}"
        );
    }
}
