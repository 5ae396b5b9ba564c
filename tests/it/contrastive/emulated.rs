//! `contrastive` in launches that only the emulator can vary so much, against the f64 oracle.

use half::{bf16, f16};
use tercet::contrastive::oracle;
use tercet::internal::{self, DeviceProperties, Launcher, Memory, Pass, Plan};
use tercet::{ContrastiveLoss, Element, Matrix, Reduction};
use tercet_emulator::{Emulator, Options};

use super::property::{same as drawn, upload};
use crate::paired::bounds;
use crate::paired::launches::{self, Expected, Launched, Random, nothing_to_report, run_many};
use crate::paired::steps::steps_move_what_their_dtype_needs;
use crate::support::Numbers;

impl Launched<2> for ContrastiveLoss {
    fn draw(random: &mut Random) -> Self {
        Self {
            margin: random.pick(&[0.0, 0.5, 1.0, 8.0]),
            distance: random.distance(),
            normalize: random.chance(3),
            reduction: random.reduction(),
        }
    }
    fn plan<T: Element>(&self, device: &DeviceProperties, shape: [usize; 2], pass: &Pass<2>) -> Plan {
        internal::contrastive_plan::<T>(self, device, shape, pass).expect("valid options")
    }
    fn grads_with_loss<T: Element>(&self, shape: [usize; 2]) -> bool {
        internal::contrastive_grads_with_loss::<T>(self, shape).expect("valid options")
    }
    fn expect<T: Element>(&self, x: [Matrix<'_, f64>; 2], seed: u64, upstream: &[f64]) -> Expected<2> {
        let rows = x[0].rows();
        let same = drawn(seed, rows);
        let oracle = oracle::run(self, x, &same, upstream).expect("valid options");
        let bounds = (0..rows).map(|b| {
            let weight = launches::weight(self.reduction, rows, upstream, b);
            bounds::contrastive::<T>(self, x.map(|m| m.row(b)), same[b], weight, oracle.distances[b])
        });
        Expected { bounds: bounds.collect(), losses: oracle.losses, loss: oracle.loss, grads: oracle.grads }
    }
}

#[test]
fn f32_meets_the_oracle() {
    run_many::<f32, ContrastiveLoss, 2>(false, 250, 8000);
}
#[test]
fn f64_meets_the_oracle() {
    run_many::<f64, ContrastiveLoss, 2>(false, 250, 8000);
}
#[test]
fn f16_meets_the_oracle() {
    run_many::<f16, ContrastiveLoss, 2>(false, 250, 8000);
}
#[test]
fn bf16_meets_the_oracle() {
    run_many::<bf16, ContrastiveLoss, 2>(false, 250, 8000);
}
#[test]
fn steps_move_each_matrix_as_often_as_their_dtype_needs() {
    steps_move_what_their_dtype_needs::<ContrastiveLoss, 2>();
}
#[test]
fn the_detector_has_nothing_to_report() {
    nothing_to_report::<ContrastiveLoss, 2>(250);
}

/// The losses, the reduced loss and both gradients under one schedule.
fn all_of(
    loss: &ContrastiveLoss,
    x: &[Vec<f32>; 2],
    dim: usize,
    same: &[f64],
    kind: u64,
    options: Options,
) -> Vec<f32> {
    let (rows, emulator) = (x[0].len() / dim, Emulator::new(options));
    let [x1, x2] = x.each_ref().map(|x| emulator.upload(x));
    let (_buffer, same) = upload(&emulator, same, kind);
    let memory = |numbers: usize| emulator.allocate(numbers * size_of::<f32>()).expect("memory");
    let (losses, value, to_x1, to_x2) = (memory(rows), memory(1), memory(rows * dim), memory(rows * dim));
    let pass = Pass {
        inputs: [x1.address(), x2.address()],
        strides: [dim; 2],
        losses: losses.address(),
        loss: value.address(),
        grads: [to_x1.address(), to_x2.address()],
        ..Pass::default()
    };
    // SAFETY: buffers of the emulator, of the sizes that `pass` says, and one number per row.
    unsafe { internal::contrastive::<f32, _>(loss, &emulator, [rows, dim], &pass, same) }
        .unwrap_or_else(|e| panic!("{e}"));
    [losses, value, to_x1, to_x2].iter().flat_map(|buffer| buffer.read::<f32>()).collect()
}

fn some_rows(rows: usize, dim: usize) -> [Vec<f32>; 2] {
    let mut numbers = Numbers(9);
    [(); 2].map(|()| (0..rows * dim).map(|_| numbers.unit() as f32).collect())
}

#[test]
fn the_same_bits_under_every_schedule_and_for_every_type_of_same() {
    let (rows, dim) = (100, 36);
    let x = some_rows(rows, dim);
    let same: Vec<f64> = drawn(1, rows).into_iter().map(|same| f64::from(u8::from(same))).collect();
    let loss = ContrastiveLoss { margin: 3.0, ..Default::default() };
    let run = |kind, seed, os_threads| all_of(&loss, &x, dim, &same, kind, Options { detect: false, seed, os_threads });
    let first = run(0, 0, 1);
    assert!(first.iter().all(|x| x.is_finite()));
    for seed in 0..8 {
        assert_eq!(run(seed, seed, 1 + seed as usize % 2), first, "schedule {seed}");
    }
}

#[test]
fn what_is_neither_0_nor_1_shows_in_its_row_and_in_the_loss() {
    let (rows, dim) = (9, 8);
    let x = some_rows(rows, dim);
    let loss = ContrastiveLoss { margin: 3.0, ..Default::default() };
    for kind in 0..8 {
        let mut same = vec![0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        if kind >= 4 {
            same[5] = -0.0;
        }
        let right = all_of(&loss, &x, dim, &same, kind, Options::default());
        assert!(right.iter().all(|x| x.is_finite()));
        for wrong in [2.0, -1.0, 127.0, 0.5].into_iter().filter(|x| kind >= 4 || *x != 0.5) {
            same[4] = wrong;
            let found = all_of(&loss, &x, dim, &same, kind, Options::default());
            for (i, (found, right)) in found.into_iter().zip(&right).enumerate() {
                // The row's loss, the reduced loss and the row of either gradient are NaN.
                let row = i.checked_sub(rows + 1).map(|i| i % (rows * dim) / dim);
                let nan = i == 4 || i == rows || row == Some(4);
                assert!(if nan { found.is_nan() } else { found == *right }, "kind {kind}, {wrong}, {i}: {found}");
            }
        }
    }
}

/// A positive pair is pulled by the difference itself, even if its square underflows.
#[test]
fn tiny_differences_still_pull() {
    let x = [vec![3e-30f32, -1e-30, 0.0, 2e-30], vec![1e-30, 0.0, 0.0, 2e-30]];
    let loss = ContrastiveLoss { reduction: Reduction::Sum, ..Default::default() };
    let found = all_of(&loss, &x, 4, &[1.0], 0, Options::default());
    let pull: Vec<f32> = x[0].iter().zip(&x[1]).map(|(x, y)| x - y).collect();
    assert_eq!(found[2..6], pull);
    assert_eq!(found[6..], pull.iter().map(|x| -x).collect::<Vec<_>>());
}
