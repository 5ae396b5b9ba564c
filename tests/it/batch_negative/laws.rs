//! What holds of `batch_negative` to the last bit, or by its definition.

use tercet::{BatchNegativeTripletLoss, Matrix, Negative, Own, Pairs, Reference};

use crate::triplets::laws;

macro_rules! laws {
    ($($law:ident),*) => {$(
        #[test]
        fn $law() {
            laws::$law::<BatchNegativeTripletLoss>();
        }
    )*};
}
laws!(
    the_same_bits_for_any_number_of_threads_and_a_hundred_times,
    shards_add_up,
    nan_and_infinity_are_seen,
    without_a_triplet_everything_is_zero,
    gradients_of_16_bit_embeddings_survive_a_mean_over_many,
    wrong_arguments_are_named
);

#[test]
fn the_order_of_the_batch_does_not_matter() {
    // `Pairs::Once` takes other pairs if the rows are in another order.
    let ordered: Vec<_> = laws::options::<BatchNegativeTripletLoss>()
        .into_iter()
        .filter(|loss| loss.pairs == Pairs::Ordered)
        .map(|loss| BatchNegativeTripletLoss { margin: 2.0, ..loss })
        .collect();
    laws::the_order_of_the_batch_does_not_matter(&ordered);
}

#[test]
fn each_pair_once_has_its_first_row_as_anchor() {
    let (x, labels) = laws::uniform(60, 5, 4);
    for negative in [Negative::Hardest, Negative::Random, Negative::SemiHard] {
        let of = |pairs| {
            let loss = BatchNegativeTripletLoss { negative, pairs, margin: 3.0, ..Default::default() };
            let t = loss.on(Matrix::new(&x, 5).unwrap(), &labels).select().unwrap();
            (0..t.anchor.len()).map(|k| [t.anchor[k], t.positive[k], t.negative[k]]).collect::<Vec<_>>()
        };
        let (all, once) = (of(Pairs::Ordered), of(Pairs::Once));
        let expected: Vec<_> = all.into_iter().filter(|[a, p, _]| a < p).collect();
        assert!(!once.is_empty());
        assert_eq!(once, expected);
    }
    let set = Reference { embeddings: Matrix::new(&x, 5).unwrap(), labels: &labels[..], own: Own::None };
    let loss = BatchNegativeTripletLoss { pairs: Pairs::Once, ..Default::default() };
    let error = loss.on(Matrix::new(&x, 5).unwrap(), &labels).against(&set).loss().unwrap_err().to_string();
    assert!(error.starts_with("pairs"), "{error}");
}

/// Each candidate of a pair is drawn equally often over many seeds.
#[test]
fn draws_are_uniform() {
    // One pair of coincident rows, and 10 candidates at different distances.
    let x: Vec<f32> = [0.0, 0.0].into_iter().chain((1..=10).map(|k| k as f32 / 16.0)).collect();
    let labels: Vec<i64> = [0, 0].into_iter().chain(1..=10).collect();
    let mut counts = [0usize; 12];
    let draws = 4000;
    for seed in 0..draws {
        let loss = BatchNegativeTripletLoss { negative: Negative::Random, seed, margin: 1.0, ..Default::default() };
        let found = loss.on(Matrix::new(&x, 1).unwrap(), &labels).select().unwrap();
        // The two rows have equal bits, so both draw the same negative.
        assert_eq!(found.negative[0], found.negative[1]);
        counts[found.negative[0] as usize] += 1;
    }
    let expected = draws as f64 / 10.0;
    let chi: f64 = counts[2..].iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
    // 9 degrees of freedom: chi² exceeds 33 about once in 10,000.
    assert!(counts[..2] == [0, 0] && chi < 33.0, "{counts:?}: {chi}");
}
