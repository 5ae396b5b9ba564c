//! Half of the tiles of a batch with itself (kernels/triangle.cuh) on the emulator, from the first row on: devices take them of
//! many rows alone.

use tercet::{BatchHardTripletLoss, Distance, Precision, Reduction};
use tercet_emulator::{Emulator, Options};

use super::emulated::{a_row_that_everybody_chooses, as_the_oracle, lattice};
use crate::mined::batch::{Batch, Content, Data, Labelling};
use crate::mined::launches::{OnDevice, mine};
use crate::support::backends::{Backend, Number, Operation};
use crate::support::property::agrees_with_the_oracle;

/// An emulator that takes half of the tiles of any batch.
pub fn halving(options: Options) -> Emulator {
    let mut emulator = Emulator::new(options);
    emulator.take_half_from(1);
    // As many parts as a pair of blocks has tiles, some, or one.
    emulator.properties_mut().multiprocessors = [2, 1, 7, 3][options.seed as usize % 4];
    emulator
}

struct Halving<const DETECT: bool>;

impl<const DETECT: bool> Backend for Halving<DETECT> {
    const NAME: &'static str = "half of the tiles on the emulator";
    const IS_DEVICE: bool = true;
    /// Rows of four blocks.
    const LARGEST: usize = 400;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T> {
        O::on_device(&halving(Options { detect: DETECT, seed: O::seed(case) % 20, os_threads: 1 }), case, data)
    }
}

#[test]
fn half_of_the_tiles_agree_with_the_oracle() {
    agrees_with_the_oracle::<BatchHardTripletLoss, _>(&Halving::<false>, 8);
    agrees_with_the_oracle::<BatchHardTripletLoss, _>(&Halving::<true>, 1);
}

/// Every distance is that of many other pairs.
#[test]
fn ties_have_the_oracles_bits() {
    let labellings = [Labelling::Two, Labelling::Singletons, Labelling::Random { each: 8 }, Labelling::One];
    for (case, (rows, labelling)) in [129, 300, 400, 256].into_iter().zip(labellings).enumerate() {
        for dim in [1, 4] {
            let emulator = halving(Options { seed: (case + dim) as u64, ..Options::default() });
            as_the_oracle(&emulator, Distance::SquaredEuclidean, &lattice(rows, dim, labelling, None));
        }
    }
    for seed in [2, 3] {
        let emulator = halving(Options { detect: true, seed, ..Options::default() });
        as_the_oracle(&emulator, Distance::Euclidean, &lattice(260, 2, Labelling::Large, None));
    }
}

#[test]
fn a_row_is_everybodys_nearest() {
    for seed in [1, 2] {
        a_row_that_everybody_chooses(&halving(Options { seed, ..Options::default() }), 300, 8);
    }
}

fn taken(emulator: &Emulator, batch: &Batch, loss: &BatchHardTripletLoss) -> [Vec<u32>; 2] {
    let data = Data::<f32>::new(batch, Reduction::Mean);
    mine::<f32, _, _>(emulator, loss, &OnDevice::new(emulator, batch, &data), batch.rows, &[&[1.0]]).chosen
}

const CONTENTS: [Content; 6] = [
    Content::Uniform { scale: 1.0 },
    Content::Offset,
    Content::Collapsed,
    Content::Clusters,
    Content::Degenerate,
    Content::Far,
];

/// At full precision which tiles are taken makes no difference, whichever strip a device takes.
#[test]
fn all_tiles_choose_the_same() {
    let loss = BatchHardTripletLoss::default();
    for (case, content) in CONTENTS.into_iter().enumerate() {
        for (rows, dim) in [(150, 16), [(270, 5), (140, 140)][case % 2]] {
            let labelling = Labelling::Random { each: 4 };
            let batch = Batch { rows, dim, gap: 0, offset: 0, content, labelling, seed: case as u64, reference: None };
            let options = Options { seed: (case + dim) as u64 % 5, ..Options::default() };
            let all = taken(&Emulator::new(options), &batch, &loss);
            assert!(taken(&halving(options), &batch, &loss) == all, "{batch:?}, {options:?}");
        }
    }
}

/// Blocks give what they find to columns in any order.
#[test]
fn every_schedule_chooses_the_same() {
    let contents =
        [(Content::Uniform { scale: 1.0 }, Precision::Medium), (Content::Lattice { offset: 0.0 }, Precision::Highest)];
    for (content, precision) in contents {
        let loss = BatchHardTripletLoss { precision, ..Default::default() };
        let labelling = Labelling::Random { each: 2 };
        let batch = Batch { rows: 280, dim: 2, gap: 0, offset: 0, content, labelling, seed: 1, reference: None };
        // Seeds of one device.
        let run = |seed: u64| {
            let mut emulator = halving(Options { seed: 5 * seed, os_threads: 1 + seed as usize % 2, detect: false });
            emulator.properties_mut().multiprocessors = 4;
            taken(&emulator, &batch, &loss)
        };
        let first = run(0);
        for seed in 1..8 {
            assert!(run(seed) == first, "{content:?}, {precision:?}: other choices with seed {seed}");
        }
    }
}
