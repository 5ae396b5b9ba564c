//! Laws that hold for every loss that chooses one negative for each pair.

use half::f16;
use tercet::batch_semi_hard::Triplets;
use tercet::{BatchNegativeTripletLoss, BatchSemiHardTripletLoss, Distance, Element, Error, Matrix, Own, Reduction};
use tercet::{Reference, Stats};

use crate::support::Numbers;

type Set<'a, T> = Reference<Matrix<'a, T>, &'a [i64]>;

/// A loss that chooses one negative for each pair, as the laws see it.
pub trait Choosing: Copy + Sync + std::fmt::Debug {
    fn options() -> Vec<Self>;
    fn with(self, distance: Distance, reduction: Reduction, margin: f64) -> Self;
    fn both<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64], grad: &mut [T]) -> Result<T::Scalar, Error>;
    fn scaled<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64], up: &[T::Scalar], g: &mut [T]) -> Result<(), Error>;
    fn stats<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64]) -> Result<(T::Scalar, Stats), Error>;
    fn each<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64], losses: &mut [T::Scalar]) -> Result<(), Error>;
    fn chosen<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64]) -> Result<Triplets<T::Scalar>, Error>;
    fn against<T: Element>(
        &self,
        x: Matrix<'_, T>,
        labels: &[i64],
        set: &Set<'_, T>,
        grads: [Option<&mut [T]>; 2],
    ) -> Result<T::Scalar, Error>;
}

macro_rules! choosing {
    ($loss:ident, $options:expr) => {
        impl Choosing for $loss {
            fn options() -> Vec<Self> {
                $options
            }
            fn with(self, distance: Distance, reduction: Reduction, margin: f64) -> Self {
                Self { distance, reduction, margin, ..self }
            }
            fn both<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64], grad: &mut [T]) -> Result<T::Scalar, Error> {
                self.on(x, labels).loss_and_grad(grad)
            }
            fn scaled<T: Element>(
                &self,
                x: Matrix<'_, T>,
                labels: &[i64],
                up: &[T::Scalar],
                grad: &mut [T],
            ) -> Result<(), Error> {
                self.on(x, labels).grad(up, grad)
            }
            fn stats<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64]) -> Result<(T::Scalar, Stats), Error> {
                self.on(x, labels).loss_with_stats()
            }
            fn each<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64], to: &mut [T::Scalar]) -> Result<(), Error> {
                self.on(x, labels).losses(to)
            }
            fn chosen<T: Element>(&self, x: Matrix<'_, T>, labels: &[i64]) -> Result<Triplets<T::Scalar>, Error> {
                self.on(x, labels).select()
            }
            fn against<T: Element>(
                &self,
                x: Matrix<'_, T>,
                labels: &[i64],
                set: &Set<'_, T>,
                grads: [Option<&mut [T]>; 2],
            ) -> Result<T::Scalar, Error> {
                self.on(x, labels).against(set).loss_and_grads(grads)
            }
        }
    };
}
choosing!(BatchSemiHardTripletLoss, vec![Self::default()]);
choosing!(BatchNegativeTripletLoss, {
    use tercet::{Negative, Pairs};
    let mut all = Vec::new();
    for negative in [Negative::Hardest, Negative::Random, Negative::SemiHard] {
        for pairs in [Pairs::Ordered, Pairs::Once] {
            all.push(Self { negative, pairs, seed: 7, ..Self::default() });
        }
    }
    all
});

/// Every variant of the loss with every distance.
pub fn options<L: Choosing>() -> Vec<L> {
    let distances = [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine];
    let all = L::options().into_iter();
    all.flat_map(|loss| distances.map(|distance| loss.with(distance, Reduction::Mean, 1.0))).collect()
}

/// A batch of uniform f32 numbers with `each` rows per class.
pub fn uniform(rows: usize, dim: usize, each: usize) -> (Vec<f32>, Vec<i64>) {
    let mut numbers = Numbers(1);
    let x = (0..rows * dim).map(|_| numbers.unit() as f32).collect();
    (x, (0..rows).map(|i| ((i * 7) % rows / each) as i64).collect())
}

fn both<L: Choosing, T: Element>(loss: &L, x: &[T], dim: usize, labels: &[i64]) -> (T::Scalar, Vec<T>) {
    let mut grad = vec![T::from_f64(f64::NAN); x.len()];
    let value = loss.both(Matrix::new(x, dim).unwrap(), labels, &mut grad).unwrap();
    (value, grad)
}

pub fn the_same_bits_for_any_number_of_threads_and_a_hundred_times<L: Choosing>() {
    let (x, labels) = uniform(500, 33, 5);
    for loss in options::<L>() {
        let run = || both(&loss, &x, 33, &labels);
        let first = run();
        assert!(first.0 > 0.0, "{loss:?}");
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(run), first, "{threads} threads, {loss:?}");
        }
    }
    let (x, labels) = uniform(130, 20, 5);
    for loss in options::<L>() {
        let first = both(&loss, &x, 20, &labels);
        for _ in 0..100 {
            assert_eq!(both(&loss, &x, 20, &labels), first, "{loss:?}");
        }
    }
}

/// The triplets are the same if the rows are in another order and the classes have other names.
pub fn the_order_of_the_batch_does_not_matter<L: Choosing>(losses: &[L]) {
    let (rows, dim) = (300, 20);
    let (x, labels) = uniform(rows, dim, 4);
    // A permutation: 7 and 300 are coprime.
    let from = |i: usize| i * 7 % rows;
    let moved: Vec<f32> = (0..rows).flat_map(|i| x[from(i) * dim..][..dim].to_vec()).collect();
    let moved_labels: Vec<i64> = (0..rows).map(|i| i64::MAX - labels[from(i)] * 1_000_000_007).collect();
    for loss in losses {
        let given = loss.chosen(Matrix::new(&x, dim).unwrap(), &labels).unwrap();
        let other = loss.chosen(Matrix::new(&moved, dim).unwrap(), &moved_labels).unwrap();
        let triplets = |t: &Triplets<f32>, name: &dyn Fn(usize) -> usize| {
            let row = |rows: &[u32], k: usize| name(rows[k] as usize);
            let one = |k: usize| [row(&t.anchor, k), row(&t.positive, k), row(&t.negative, k)];
            let mut all: Vec<_> = (0..t.anchor.len()).map(one).collect();
            all.sort_unstable();
            all
        };
        let given = triplets(&given, &|i| i);
        assert!(given.len() > 100, "{loss:?}: {} triplets", given.len());
        assert_eq!(given, triplets(&other, &from), "{loss:?}");
    }
}

/// Losses and gradients of shards of the anchors, each against the whole batch, add up to those of the whole batch.
pub fn shards_add_up<L: Choosing>() {
    let (rows, dim) = (120, 12);
    let mut numbers = Numbers(5);
    // Integers: sums are exact in any order.
    let x: Vec<f64> = (0..rows * dim).map(|_| numbers.below(9) as f64 - 4.0).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i * 7 % 30).collect();
    for loss in L::options() {
        let loss = loss.with(Distance::SquaredEuclidean, Reduction::Sum, 40.0);
        let (whole, grad) = both(&loss, &x, dim, &labels);
        assert!(whole > 0.0, "{loss:?}");
        let (mut sum, mut summed) = (0.0, vec![0.0; x.len()]);
        for (start, end) in [(0, 50), (50, 51), (51, 120)] {
            let embeddings = Matrix::new(&x, dim).unwrap();
            let set = Reference { embeddings, labels: &labels[..], own: Own::Offset(start as i64) };
            let shard = Matrix::new(&x[start * dim..end * dim], dim).unwrap();
            let (mut own, mut others) = (vec![f64::NAN; (end - start) * dim], vec![f64::NAN; x.len()]);
            let grads = [Some(&mut own[..]), Some(&mut others[..])];
            sum += loss.against(shard, &labels[start..end], &set, grads).unwrap();
            summed[start * dim..end * dim].iter_mut().zip(&own).for_each(|(sum, g)| *sum += g);
            summed.iter_mut().zip(&others).for_each(|(sum, g)| *sum += g);
        }
        assert!(sum == whole && summed == grad, "{loss:?}: {sum} for {whole}");
    }
}

pub fn nan_and_infinity_are_seen<L: Choosing>() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for labels in [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]] {
            for loss in options::<L>() {
                let mut x: Vec<f32> = (0..15).map(|i| (i as f32).sin()).collect();
                x[7] = bad;
                let (value, grad) = both(&loss, &x, 3, &labels);
                assert!(value.is_nan() && grad[6..9].iter().all(|g| g.is_nan()), "{loss:?} {labels:?}");
                let mut losses = [0.0; 5];
                loss.each(Matrix::new(&x, 3).unwrap(), &labels, &mut losses).unwrap();
                assert!(losses[2].is_nan());
            }
        }
    }
    // The distance of the positives overflows f32.
    for loss in options::<L>().into_iter().map(|loss| loss.with(Distance::SquaredEuclidean, Reduction::Mean, 1.0)) {
        let (value, grad) = both(&loss, &[-1e20f32, 1e20, 0.0, 0.0], 1, &[0, 0, 1, 1]);
        assert!(!value.is_finite() && grad.iter().any(|g| g.is_nan()), "{loss:?}: {value} {grad:?}");
    }
}

pub fn without_a_triplet_everything_is_zero<L: Choosing>() {
    let (x, _) = uniform(100, 10, 1);
    for loss in options::<L>() {
        for labels in [vec![3; 100], (0..100).collect::<Vec<i64>>()] {
            let (value, grad) = both(&loss, &x, 10, &labels);
            assert!(value.to_bits() == 0 && grad.iter().all(|g| *g == 0.0));
            assert_eq!(loss.stats(Matrix::new(&x, 10).unwrap(), &labels).unwrap().1, Stats::default());
        }
        assert_eq!(both(&loss, &x[..10], 10, &[1]), (0.0, vec![0.0; 10]));
    }
}

pub fn gradients_of_16_bit_embeddings_survive_a_mean_over_many<L: Choosing>() {
    // A gradient of 1e-2 over the pairs is far below f16's smallest normal number; an upstream of 2^16 brings it back.
    let mut numbers = Numbers(5);
    let (rows, dim) = (2048, 2);
    let x: Vec<f16> = (0..rows * dim).map(|_| f16::from_f64(1e-2 * numbers.unit())).collect();
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let labels: Vec<i64> = (0..rows as i64).map(|i| i / 4).collect();
    for loss in L::options() {
        let loss = loss.with(Distance::SquaredEuclidean, Reduction::Mean, 0.2);
        let (mut grad, mut expected) = (vec![f16::NAN; rows * dim], vec![f32::NAN; rows * dim]);
        loss.scaled(Matrix::new(&x, dim).unwrap(), &labels, &[65536.0], &mut grad).unwrap();
        loss.scaled(Matrix::new(&wide, dim).unwrap(), &labels, &[65536.0], &mut expected).unwrap();
        assert!(expected.iter().any(|g| g.abs() > 1e-3));
        for (actual, expected) in grad.iter().zip(expected) {
            assert!((actual.to_f32() - expected).abs() <= 1e-3 * expected.abs() + 1e-6, "{actual} for {expected}");
        }
    }
}

pub fn wrong_arguments_are_named<L: Choosing>() {
    let x = [1f32, 2.0, 3.0, 4.0];
    let matrix = Matrix::new(&x, 2).unwrap();
    let named = |result: Result<f32, Error>, argument: &str| {
        let error = result.expect_err("accepted").to_string();
        assert!(error.starts_with(argument), "{error}");
    };
    for loss in L::options() {
        let of = |distance, margin| loss.with(distance, Reduction::Mean, margin);
        for margin in [-0.5, f64::NAN, f64::INFINITY] {
            named(of(Distance::Cosine, margin).both(matrix, &[0, 1], &mut [0.0; 4]), "margin");
        }
        let loss = of(Distance::Cosine, 1.0);
        named(loss.both(matrix, &[0], &mut [0.0; 4]), "labels");
        named(loss.both(Matrix::<f32>::new(&[], 2).unwrap(), &[], &mut []), "embeddings");
        named(loss.both(matrix, &[0, 1], &mut [0.0; 3]), "grad");
        named(loss.scaled(matrix, &[0, 1], &[1.0; 2], &mut [0.0; 4]).map(|()| 0.0), "upstream");
        named(loss.each(matrix, &[0, 1], &mut [0.0; 3]).map(|()| 0.0), "losses");
        let none = loss.with(Distance::Cosine, Reduction::None, 1.0);
        named(none.both(matrix, &[0, 1], &mut [0.0; 4]), "reduction");
        let set = |embeddings, labels, own| Reference { embeddings, labels, own };
        let one = Matrix::new(&x[..1], 1).unwrap();
        for (set, argument) in [
            (set(one, &[0i64][..], Own::Offset(0)), "reference.embeddings"),
            (set(matrix, &[0i64][..], Own::Offset(0)), "reference.labels"),
            (set(matrix, &[0i64, 1][..], Own::Rows(&[0i64][..])), "reference.own"),
        ] {
            named(loss.against(matrix, &[0, 1], &set, [None, None]), argument);
        }
        let set = set(matrix, &[0i64, 1][..], Own::Offset(0));
        named(loss.against(matrix, &[0, 1], &set, [None, Some(&mut [0.0; 3])]), "reference_grad");
    }
}
