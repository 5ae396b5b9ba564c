//! The oracles of the mined losses and their CPU versions in f64 and f32 against what pytorch-metric-learning and
//! sentence-transformers compute (tests/data/record_mined.py).

use serde_json::Value;
use tercet::{BatchAllTripletLoss, BatchHardTripletLoss, Distance, Matrix, MeanOver};

use crate::support;

struct Set {
    dim: usize,
    labels: Vec<i64>,
    rows: Vec<f64>,
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1f64, |m, x| m.max(x.abs()));
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!((actual - expected).abs() <= tolerance * size, "{what}, [{i}]: {actual} for {expected}");
    }
}

/// The loss and gradient of a case: by the oracle, in f64, in f32.
fn ours(case: &Value, set: &Set) -> [(&'static str, f64, Vec<f64>); 3] {
    let distance = match case["distance"].as_str().expect("a name") {
        "squared" => Distance::SquaredEuclidean,
        "euclidean" => Distance::Euclidean,
        "cosine" => Distance::Cosine,
        other => panic!("{other}"),
    };
    let (margin, normalize) = (case["margin"].as_f64().expect("a number"), case["normalize"] == true);
    let exact = Matrix::new(&set.rows, set.dim).expect("whole rows");
    let narrow: Vec<f32> = set.rows.iter().map(|x| *x as f32).collect();
    let single = Matrix::new(&narrow, set.dim).expect("whole rows");
    let (mut grad, mut grad32) = (vec![f64::NAN; set.rows.len()], vec![f32::NAN; set.rows.len()]);
    let (oracle, value, value32) = match case["loss"].as_str().expect("a name") {
        "batch_all" => {
            let mean_over = if case["mean_over"] == "active" { MeanOver::Active } else { MeanOver::Valid };
            let loss = BatchAllTripletLoss { margin, distance, normalize, mean_over, ..Default::default() };
            let oracle = tercet::batch_all::oracle::run(&loss, exact, &set.labels, 1.0).expect("valid");
            let value = loss.on(exact, &set.labels).loss_and_grad(&mut grad).expect("valid");
            ((oracle.loss, oracle.grad), value, loss.on(single, &set.labels).loss_and_grad(&mut grad32).expect("valid"))
        }
        name => {
            let soft_margin = name == "batch_hard_soft";
            let loss = BatchHardTripletLoss { margin, distance, normalize, soft_margin, ..Default::default() };
            let oracle = tercet::batch_hard::oracle::run(&loss, exact, &set.labels, &[1.0], None).expect("valid");
            let value = loss.on(exact, &set.labels).loss_and_grad(&mut grad).expect("valid");
            ((oracle.loss, oracle.grad), value, loss.on(single, &set.labels).loss_and_grad(&mut grad32).expect("valid"))
        }
    };
    let grad32 = grad32.iter().map(|g| f64::from(*g)).collect();
    [("oracle", oracle.0, oracle.1), ("cpu f64", value, grad), ("cpu f32", f64::from(value32), grad32)]
}

#[test]
fn the_other_libraries_give_the_same_numbers() {
    let file = support::data("mined_peers.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("the records")).expect("JSON");
    let cases = file["cases"].as_array().expect("a list");
    for case in cases {
        let set = &file["sets"][case["set"].as_str().expect("a name")];
        let set = Set {
            dim: set["d"].as_u64().expect("a count") as usize,
            labels: set["labels"].as_array().expect("a list").iter().map(|l| l.as_i64().expect("a label")).collect(),
            rows: numbers(&set["rows"]),
        };
        let expected = case["value"].as_f64().expect("a number");
        for (name, value, grad) in ours(case, &set) {
            let mut what = case.clone();
            what.as_object_mut().expect("an object").remove("grad");
            let what = format!("{name}: {what}");
            let tolerance = if name == "cpu f32" { 2e-6 } else { 1e-9 };
            close(&[value], &[expected], tolerance, &what);
            close(&grad, &numbers(&case["grad"]), 10.0 * tolerance, &what);
        }
    }
    assert!(cases.len() > 100);
    println!("{} cases of {}", cases.len(), file["versions"]);
}
