//! What holds of `batch_semi_hard` to the last bit, or by its definition.

use tercet::{BatchSemiHardTripletLoss, Matrix};

use crate::triplets::laws;

macro_rules! laws {
    ($($law:ident),*) => {$(
        #[test]
        fn $law() {
            laws::$law::<BatchSemiHardTripletLoss>();
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
    laws::the_order_of_the_batch_does_not_matter(&laws::options::<BatchSemiHardTripletLoss>());
}

#[test]
fn the_nearest_beyond_the_positive_else_the_farthest() {
    // On a line: the anchor at 0, positives at 1 and 5, negatives at 4, 2, 3 and 2.
    let x = [0f32, 1.0, 5.0, 4.0, 2.0, 3.0, 2.0];
    let labels = [0, 0, 0, 1, 2, 3, 4];
    let found = BatchSemiHardTripletLoss::default().on(Matrix::new(&x, 1).unwrap(), &labels).select().unwrap();
    assert_eq!((&found.anchor[..2], &found.positive[..2]), (&[0, 0][..], &[1, 2][..]));
    // Two negatives are at 2: the first is taken. None is beyond 5: the farthest is taken, at 4.
    assert_eq!(found.negative[..2], [4, 3]);
    assert_eq!(found.negative_distances[..2], [4.0, 16.0]);
    // All rows coincide: no negative is beyond the positive, and the first counts as the farthest.
    let found = BatchSemiHardTripletLoss::default()
        .on(Matrix::new(&[0.7f32; 40], 4).unwrap(), &[1, 0, 1, 0, 2, 2, 1, 0, 3, 3])
        .select();
    assert!(
        found
            .unwrap()
            .negative
            .iter()
            .zip([1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0])
            .all(|(n, first)| *n == first)
    );
}
