//! Room for the pairs of losses that list them on a device: with enough of it they give what the oracle does, and with less by one
//! pair a NaN that the statistics tell from any other.

use proptest::prelude::*;
use tercet::{BatchAllTripletLoss, BatchNegativeTripletLoss, BatchSemiHardTripletLoss, Element, Matrix};
use tercet_emulator::{Emulator, Options};

use super::batch::Data;
use super::launches::{OnDevice, mine};
use super::{Case, Mined};
use crate::support::backends::Backend;
use crate::support::cases;
use crate::support::emulated::Ordered;
use crate::support::property::{Limits, Worst};

/// A loss that lists its pairs.
trait Lists: Mined {
    fn with_room(self, pairs_at_once: Option<usize>) -> Self;
}

macro_rules! lists {
    ($($loss:ident),*) => {$(
        impl Lists for $loss {
            fn with_room(self, pairs_at_once: Option<usize>) -> Self {
                Self { pairs_at_once, ..self }
            }
        }
    )*};
}
lists!(BatchAllTripletLoss, BatchSemiHardTripletLoss, BatchNegativeTripletLoss);

/// Random batches, with as much room as they need and with less by one pair.
fn room_decides<L: Lists>() {
    let what = format!("{}: room for pairs", <L as Mined>::STEM);
    let drawn = <L as Mined>::cases(Limits { rows: 40, any_precision: false });
    cases::check(&what, <L as Mined>::SEQUENCE, 20, &drawn, &|case| {
        let data = Data::<f32>::new(&case.batch, case.loss.reduction());
        let pairs = data.pairs_of_a_class();
        let run = |room: usize| {
            let case = Case { loss: case.loss.with_room(Some(room)), batch: case.batch.clone() };
            Ordered(case.batch.seed % 3).run::<L, f32>(&case, &data)
        };
        let enough = run(pairs.max(1));
        prop_assert!(!enough.stats.too_many_pairs, "room for all {pairs} pairs");
        <L as Mined>::compare(&case, &data, &enough, &mut Worst::default())?;
        if pairs > 1 {
            let over = run(pairs - 1);
            prop_assert!(over.stats.too_many_pairs, "room for one less than {pairs} pairs");
            let (losses, grads): (Vec<f64>, _) = match over.reduced {
                Some((loss, grads)) => (vec![loss.to_f64()], grads),
                None => (over.losses.iter().map(|loss| loss.to_f64()).collect(), over.scaled_grads),
            };
            prop_assert!(losses.iter().all(|loss| loss.is_nan()) && grads.iter().flatten().all(|g| g.is_nan()));
        }
        Ok(())
    });
}

#[test]
fn room_decides_whether_batch_all_is_a_number() {
    room_decides::<BatchAllTripletLoss>();
}
#[test]
fn room_decides_whether_batch_semi_hard_is_a_number() {
    room_decides::<BatchSemiHardTripletLoss>();
}
#[test]
fn room_decides_whether_batch_negative_is_a_number() {
    room_decides::<BatchNegativeTripletLoss>();
}

/// What there is room for by default, and never for more pairs than there could be.
#[test]
fn the_default_is_as_documented() {
    use tercet::internal::capacity;
    let (pairs, of_row) = (1 << 22, 128);
    for (rows, others, expected) in
        [(1000, 1000, 1_000_000), (2900, 2900, pairs), (1 << 17, 1 << 17, of_row << 17), (10, 1 << 22, pairs)]
    {
        assert_eq!(capacity(rows, others, None), expected);
        assert_eq!(capacity(rows, others, Some(7)), 7);
        assert_eq!(capacity(rows, others, Some(usize::MAX)), rows * others);
    }
}

/// NaN in the rows, and distances that overflow, are another thing.
#[test]
fn a_nan_of_the_rows_is_told_from_too_many_pairs() {
    for bad in [f32::NAN, 1e30] {
        let x = [0.0, 1.0, bad, 3.0];
        fn check<L: Lists>(loss: &L, x: &[f32]) {
            let emulator = Emulator::new(Options::default());
            let batch = OnDevice::itself(&emulator, x, 1, &[0, 0, 1, 1]);
            let mined = mine::<f32, _, _>(&emulator, loss, &batch, 0, &[&[1.0]]);
            assert!(mined.loss.is_nan() && !mined.stats.too_many_pairs, "{loss:?}");
        }
        check(&BatchAllTripletLoss::default(), &x);
        check(&BatchSemiHardTripletLoss::default(), &x);
        check(&BatchNegativeTripletLoss::default(), &x);
    }
}

/// The CPU looks at no limit, and no room at all is an error on every backend.
#[test]
fn room_is_checked_and_on_the_cpu_not_needed() {
    let (rows, labels) = ([0f32, 1.0, 3.0, 5.0], [7, 7, -1, -1]);
    let loss = |pairs_at_once| {
        let loss = BatchAllTripletLoss { margin: 4.0, pairs_at_once, ..Default::default() };
        loss.on(Matrix::new(&rows, 1).unwrap(), &labels).loss_with_stats()
    };
    let (value, stats) = loss(Some(1)).unwrap();
    assert_eq!((value, stats.too_many_pairs), (loss(None).unwrap().0, false));
    for wrong in [0, 1 << 32] {
        let text = loss(Some(wrong)).unwrap_err().to_string();
        assert_eq!(text, format!("pairs_at_once: expected 1 to 4294967295, got {wrong}"));
        let semi_hard = BatchSemiHardTripletLoss { pairs_at_once: Some(wrong), ..Default::default() };
        assert!(semi_hard.on(Matrix::new(&rows, 1).unwrap(), &labels).loss().is_err());
        let negative = BatchNegativeTripletLoss { pairs_at_once: Some(wrong), ..Default::default() };
        assert!(negative.on(Matrix::new(&rows, 1).unwrap(), &labels).loss().is_err());
    }
}
