//! What every paired loss computed on a backend is recorded: the cases, and how far each number may move.

use tercet::{Element, PairedDistance, Reduction};

use super::property::{Case, Content, Data, OfRows, Output, Paired, mean, storage, weight};
use crate::support::backends::Number;
use crate::support::records::{Figure, Listed, Recorded, elements, of_gradient, wide};

/// The share of the property test's bounds that two runs may differ by, as two orders of the same sums may.
const SHARE: f64 = 1.0 / 8.0;

/// Cases to record, and their names: every distance, each with its own choice of the other options and of the shape.
fn recorded<T: Element, L: Paired<K>, const K: usize>() -> Vec<(String, Case<L>, Data<T, K>)> {
    const SHAPES: [[usize; 2]; 6] = [[5, 1], [9, 32], [17, 33], [3, 128], [8, 257], [33, 64]];
    let distances = [
        PairedDistance::SquaredEuclidean,
        PairedDistance::Euclidean,
        PairedDistance::Cosine,
        PairedDistance::Lp { p: 2.0, eps: 1e-6 },
        PairedDistance::Lp { p: 1.0, eps: 1e-6 },
        PairedDistance::Lp { p: 3.0, eps: 0.0 },
        PairedDistance::Lp { p: f64::INFINITY, eps: 1e-6 },
    ];
    let reductions = [Reduction::Mean, Reduction::Sum, Reduction::None];
    let mut cases = Vec::new();
    for (i, distance) in distances.into_iter().enumerate() {
        for j in 0..2 {
            // Slopes of Lp jump at each element: few numbers, or no seed is away from all jumps.
            let few = matches!(distance, PairedDistance::Lp { p, .. } if p != 2.0);
            let [rows, dim] = if few { [3 - j, 17 + 16 * j] } else { SHAPES[(i + j * 2) % SHAPES.len()] };
            let loss = L::recorded(j, distance, reductions[(i + j) % 3]);
            let content = Content::Uniform { scale: 1.0 };
            let case = Case { loss, rows, dim, gap: i % 2 * 8, offset: j * 8, content, seed: 0 };
            let case = seeded::<T, L, K>(case, ((i * 2 + j) as u64) << 20);
            let data = Data::new(&case);
            cases.push((format!("{}, {}, [{rows}, {dim}]", T::NAME, loss.options()), case, data));
        }
    }
    cases
}

/// The case with the first seed from `from` on whose rows are all away from jumps.
fn seeded<T: Element, L: Paired<K>, const K: usize>(case: Case<L>, from: u64) -> Case<L> {
    let smooth = |case: &Case<L>| {
        let data = Data::<T, K>::new(case);
        L::has_bound(case, &data) && L::oracle(case, &data, &data.upstream).bounds.iter().all(|b| b.decided)
    };
    (0..1 << 20).map(|seed| Case { seed: from + seed, ..case.clone() }).find(smooth).expect("some seed")
}

/// What is recorded of a case: the losses' sum and the reduced loss; of each gradient the norm, the sum with
/// alternating signs, and three elements.
fn figures<T: Element, L: Paired<K>, const K: usize>(
    case: &Case<L>,
    data: &Data<T, K>,
    output: &Output<T, K>,
) -> Vec<Figure> {
    let bounds = L::oracle(case, data, &data.upstream).bounds;
    let all: f64 = bounds.iter().map(|b| SHARE * b.loss).sum();
    let figure = |name: &str, value, bound| Figure { name: name.into(), value, bound };
    let sum = output.losses.iter().map(|x| x.to_f64()).sum();
    let mut figures = vec![figure("losses", sum, all)];
    let rounding = f64::from(f32::EPSILON);
    figures.extend(output.loss.map(|x| figure("loss", x.to_f64(), mean(case) * all + rounding * x.to_f64())));

    let (rounding, smallest) = storage::<T>();
    for (k, grads) in output.scaled_grads.iter().enumerate() {
        let grads = wide(grads);
        let bound = |at: usize| {
            let row = at / case.dim;
            SHARE * weight(case, &data.upstream, row) * bounds[row].slope + rounding * grads[at].abs() + smallest
        };
        let all: Vec<f64> = (0..grads.len()).map(bound).collect();
        let norm = all.iter().map(|x| x * x).sum::<f64>().sqrt();
        let [first, middle, last] = elements(grads.len()).map(bound);
        let bounds = [norm, all.iter().sum(), first, middle, last];
        let named = of_gradient(k, &grads).into_iter().zip(bounds);
        figures.extend(named.map(|((name, value), bound)| Figure { name, value, bound }));
    }
    figures
}

impl<L: Paired<K>, const K: usize> Listed for OfRows<L, K> {
    fn listed<T: Number>(_: bool) -> Vec<(String, Case<L>, Data<T, K>)> {
        recorded()
    }
    fn bits<T: Number>(output: &Output<T, K>) -> u64 {
        output.bits()
    }
}

impl<L: Paired<K>, const K: usize> Recorded for OfRows<L, K> {
    fn figures<T: Number>(case: &Case<L>, data: &Data<T, K>, output: &Output<T, K>) -> Vec<Figure> {
        figures(case, data, output)
    }
    fn gradients<T: Number>(output: &mut Output<T, K>) -> &mut [Vec<T>] {
        &mut output.scaled_grads
    }
}

/// Fails if a case's hash stays as it was when one bit of anything that a backend returned is another.
pub fn every_bit_counts<L: Paired<K>, const K: usize>() {
    let all = recorded::<f32, L, K>();
    let (_, case, data) =
        all.iter().find(|(_, case, _)| case.loss.reduction() != Reduction::None).expect("a reduced one");
    let mut output = L::on_cpu(case, data);
    let bits = output.bits();
    let places = 2 + 2 * K;
    for place in 0..places {
        let mut flip = || {
            let x: &mut f32 = match place {
                0 => output.losses.last_mut().expect("a row"),
                1 => output.loss.as_mut().expect("reduced"),
                _ => {
                    let all = output.grads.as_mut().expect("reduced").iter_mut().chain(&mut output.scaled_grads);
                    all.into_iter().nth(place - 2).expect("2 K").last_mut().expect("a row")
                }
            };
            *x = f32::from_bits(x.to_bits() ^ 1);
            output.bits()
        };
        assert_ne!(flip(), bits, "place {place} of {places}");
        assert_eq!(flip(), bits, "place {place} of {places}, back");
    }
}
