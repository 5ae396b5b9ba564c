//! Metrics against what scikit-learn and pytorch-metric-learning computed: `tests/data/metrics.json`, made by
//! `metrics.py` beside it.

use crate::evaluation::folds::cross_validated;
use crate::evaluation::metrics::verify;
use crate::evaluation::ranking::rank;
use crate::model::distance::{Distance, squared_distance};
use crate::model::vectors::Vectors;
use serde::Deserialize;

/// The bound on differences: both sides compute from the same counts, in f64.
const BOUND: f64 = 1e-6;

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    scale: f32,
    points: Vec<Vec<f32>>,
    labels: Vec<usize>,
    far: Vec<f64>,
    tar: Vec<f64>,
    thresholds: Vec<f64>,
    auc: f64,
    eer: f64,
    tar_at_far: Vec<(f64, f64)>,
    recall: Vec<(usize, f64)>,
    folds: Folds,
    precision_at_1: f64,
    r_precision: f64,
    mean_average_precision_at_r: f64,
}

#[derive(Deserialize)]
struct Folds {
    count: usize,
    mean: f64,
    error: f64,
}

fn cases() -> Vec<Case> {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let file = std::path::Path::new(&root).join("tests/data/metrics.json");
    let text = std::fs::read_to_string(file).expect("the records are there");
    let cases = serde_json::from_str::<File>(&text).expect("the records are read").cases;
    assert_eq!(cases.len(), 4);
    cases
}

#[track_caller]
fn close(what: &str, case: &Case, got: f64, expected: f64) {
    assert!((got - expected).abs() <= BOUND, "{} of {}: {got}, recorded {expected}", what, case.name);
}

fn vectors(case: &Case) -> Vectors {
    Vectors::new(points(case).concat(), case.points[0].len(), Distance::SquaredEuclidean)
}

fn points(case: &Case) -> Vec<Vec<f32>> {
    case.points.iter().map(|row| row.iter().map(|v| v / case.scale).collect()).collect()
}

#[test]
fn roc_curves_are_scikit_learns() {
    for case in &cases() {
        let scores = verify(&case.labels, &vectors(case));
        let roc = &scores.random.roc;
        assert_eq!(roc.len(), case.far.len(), "points of {}", case.name);
        for (i, point) in roc.iter().enumerate() {
            close("far", case, point.far, case.far[i]);
            close("tar", case, point.tar, case.tar[i]);
            if i > 0 {
                close("threshold", case, point.threshold.into(), case.thresholds[i - 1]);
            }
        }
        close("auc", case, scores.auc, case.auc);
        close("eer", case, scores.eer, case.eer);
        for &(far, tar) in &case.tar_at_far {
            close("tar at far", case, scores.random.tar_at_far(far), tar);
        }
    }
}

#[test]
fn retrieval_is_pytorch_metric_learnings() {
    for case in &cases() {
        let ks: Vec<usize> = case.recall.iter().map(|r| r.0).collect();
        let ranking = rank(&case.labels, &vectors(case), &ks);
        close("precision at 1", case, ranking.recall[0].1, case.precision_at_1);
        close("r-precision", case, ranking.r_precision, case.r_precision);
        close("map@r", case, ranking.map_at_r, case.mean_average_precision_at_r);
        for (got, expected) in ranking.recall.iter().zip(&case.recall) {
            assert_eq!(got.0, expected.0);
            close("recall", case, got.1, expected.1);
        }
    }
}

#[test]
fn accuracy_over_folds_is_the_scripts() {
    for case in &cases() {
        let points = points(case);
        let mut folds = vec![Vec::new(); case.folds.count];
        let pairs = (0..points.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        for (number, (i, j)) in pairs.enumerate() {
            let distance = squared_distance(&points[i], &points[j]);
            folds[number % case.folds.count].push((distance, case.labels[i] == case.labels[j]));
        }
        let (mean, error) = cross_validated(&folds).unwrap();
        close("mean accuracy", case, mean, case.folds.mean);
        close("standard error", case, error, case.folds.error);
    }
}
