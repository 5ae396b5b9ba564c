//! Numerical regression of `triplet_margin`: what a backend computed once, on inputs that a seed makes, is what it computes
//! now. The bounds are an eighth of the property test's, as wide as two orders of the same sums may differ.

use std::path::Path;

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use tercet::{Distance, Element, Reduction, TripletMarginLoss};

use super::BackendElement;
use super::property::{Backend, Bounds, Case, Content, Data, Output, distance_scale, has_bound, slope_scale, storage};
use super::support;

/// The part of the property test's bounds that two runs may differ by.
const SHARE: f64 = 1.0 / 8.0;

/// One number, and how far it may move.
struct Figure {
    name: String,
    value: f64,
    bound: f64,
}

/// Every distance, each with its own choice of the other options and of the shape.
fn cases<T: Element>() -> Vec<(String, Case)> {
    const SHAPES: [[usize; 2]; 6] = [[5, 1], [9, 32], [17, 33], [3, 128], [8, 257], [33, 64]];
    let distances = [
        Distance::SquaredEuclidean,
        Distance::Euclidean,
        Distance::Cosine,
        Distance::Lp { p: 2.0, eps: 1e-6 },
        Distance::Lp { p: 1.0, eps: 1e-6 },
        Distance::Lp { p: 3.0, eps: 0.0 },
        Distance::Lp { p: f64::INFINITY, eps: 1e-6 },
    ];
    let reductions = [Reduction::Mean, Reduction::Sum, Reduction::None];
    let mut cases = Vec::new();
    for (i, distance) in distances.into_iter().enumerate() {
        for (j, (normalize, swap)) in [(false, false), (true, true)].into_iter().enumerate() {
            // Slopes of Lp jump at each element: few numbers, or no seed is away from all jumps.
            let few = matches!(distance, Distance::Lp { p, .. } if p != 2.0);
            let [rows, dim] = if few { [3 - j, 17 + 16 * j] } else { SHAPES[(i + j * 2) % SHAPES.len()] };
            let (reduction, margin) = (reductions[(i + j) % 3], [0.2, 1.0][j]);
            let loss = TripletMarginLoss { margin, distance, normalize, swap, reduction };
            let content = Content::Uniform { scale: 1.0 };
            let case = Case { loss, rows, dim, gap: i % 2 * 8, offset: j * 8, content, seed: 0 };
            // The first seed whose rows are all away from jumps.
            let seeded = |seed| Case { seed: seed + (((i * 2 + j) as u64) << 20), ..case.clone() };
            let case = (0..1 << 20).map(seeded).find(smooth::<T>).expect("some seed");
            let options = format!("{distance:?}, normalize {normalize}, swap {swap}, {reduction:?}, margin {margin}");
            cases.push((format!("{}, {options}, [{rows}, {dim}]", T::NAME), case));
        }
    }
    cases
}

fn smooth<T: Element>(case: &Case) -> bool {
    let data = Data::<T>::new(case);
    let (oracle, bounds) = (data.oracle(case, &data.upstream), Bounds::new::<T>(case));
    let decided = |row: usize| {
        let bound = bounds.loss(distance_scale(case, &data, row) + case.loss.margin);
        oracle.arguments[row].abs() > bound && oracle.swap_gaps[row].abs() > bound
    };
    has_bound(case, &data) && (0..case.rows).all(decided)
}

/// Of one case: the losses' sum and the reduced loss; of each gradient the norm, the sum with alternating signs, and
/// three elements.
fn figures<T: Element>(case: &Case, data: &Data<T>, output: &Output<T>) -> Vec<Figure> {
    let bounds = Bounds::new::<T>(case);
    let mean = if case.loss.reduction == Reduction::Mean { 1.0 / case.rows as f64 } else { 1.0 };
    let rows = 0..case.rows;
    let of_row = |row| SHARE * bounds.loss(distance_scale(case, data, row) + case.loss.margin);
    let all: f64 = rows.clone().map(of_row).sum();
    let figure = |name: &str, value, bound| Figure { name: name.into(), value, bound };
    let sum = output.losses.iter().map(|x| x.to_f64()).sum();
    let mut figures = vec![figure("losses", sum, all)];
    figures.extend(output.loss.map(|x| figure("loss", x.to_f64(), mean * all + f64::from(f32::EPSILON) * x.to_f64())));

    let (rounding, smallest) = storage::<T>();
    let slopes: Vec<f64> = rows.map(|row| slope_scale(case, data, row)).collect();
    for (k, grads) in output.scaled_grads.iter().enumerate() {
        let grads: Vec<f64> = grads.iter().map(|x| x.to_f64()).collect();
        let bound = |at: usize| {
            let row = at / case.dim;
            let weight = mean * data.upstream[if data.upstream.len() == 1 { 0 } else { row }].abs();
            SHARE * weight * bounds.sum * slopes[row] + rounding * grads[at].abs() + smallest
        };
        let norm = |of: &dyn Fn(usize) -> f64| (0..grads.len()).map(|at| of(at).powi(2)).sum::<f64>().sqrt();
        let sign = |at: usize| if (at * 0x9e37) >> 7 & 1 == 0 { 1.0 } else { -1.0 };
        let signed = (0..grads.len()).map(|at| sign(at) * grads[at]).sum();
        figures.push(figure(&format!("grads[{k}] norm"), norm(&|at| grads[at]), norm(&bound)));
        figures.push(figure(&format!("grads[{k}] signed"), signed, (0..grads.len()).map(bound).sum()));
        for at in [0, grads.len() / 2, grads.len() - 1] {
            figures.push(figure(&format!("grads[{k}][{at}]"), grads[at], bound(at)));
        }
    }
    figures
}

/// All figures of a backend, case by case.
fn all_figures<B: Backend>(backend: &B) -> Vec<(String, Vec<Figure>)> {
    fn of<B: Backend, T: Element + BackendElement>(backend: &B, all: &mut Vec<(String, Vec<Figure>)>)
    where
        T::Scalar: BackendElement,
    {
        for (id, case) in cases::<T>() {
            let data = Data::<T>::new(&case);
            all.push((id, figures(&case, &data, &backend.run(&case, &data))));
        }
    }
    let mut all = Vec::new();
    of::<B, f32>(backend, &mut all);
    of::<B, f64>(backend, &mut all);
    of::<B, f16>(backend, &mut all);
    of::<B, bf16>(backend, &mut all);
    all
}

/// What has moved beyond its bound since `file` was written, and how many figures were compared.
/// `TERCET_REWRITE_RECORDS=1` writes it instead.
pub fn changes<B: Backend>(backend: &B, file: &Path) -> (Vec<String>, usize) {
    let all = all_figures(backend);
    if support::rewrite_records() {
        let record: Map<String, Value> = all
            .iter()
            .map(|(id, figures)| (id.clone(), figures.iter().map(|f| (f.name.clone(), json!(f.value))).collect()))
            .collect();
        std::fs::write(file, format!("{:#}\n", Value::from(record))).unwrap();
        println!("triplet_margin on {}: {} cases written to {}", B::NAME, all.len(), file.display());
    }
    let text = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let record: Map<String, Value> = serde_json::from_slice(&text).unwrap();
    let mut changes = Vec::new();
    if record.len() != all.len() {
        changes.push(format!("{} has {} cases, not {}", file.display(), record.len(), all.len()));
    }
    let mut count = 0;
    for (id, figures) in &all {
        for Figure { name, value, bound } in figures {
            count += 1;
            let Some(recorded) = record.get(id).and_then(|case| case[name].as_f64()) else {
                changes.push(format!("{id}: {name} is not in {}", file.display()));
                continue;
            };
            let moved = (value - recorded).abs();
            let still = moved <= *bound; // NaN is not
            if !still {
                changes.push(format!("{id}: {name} was {recorded:e}, is {value:e}: moved {moved:e}, bound {bound:e}"));
            }
        }
    }
    (changes, count)
}

/// Fails where anything has moved.
pub fn unchanged<B: Backend>(backend: &B, file: &Path) {
    let (changes, count) = changes(backend, file);
    let most = &changes[..changes.len().min(20)];
    assert!(changes.is_empty(), "triplet_margin on {}, {} changes:\n{}", B::NAME, changes.len(), most.join("\n"));
    println!("triplet_margin on {}: {count} figures as recorded", B::NAME);
}
