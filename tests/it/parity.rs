//! What other libraries compute (tests/data/record_parity.py) against ours: semi-hard, chosen negatives, contrastive
//! over a batch, reference sets, and the rest of torch.nn. docs/parity.md names these tests.
//!
//! Each loss has one function that answers a case by every entry point: the oracle, and with `on_slices!` the CPU
//! versions in f64 and f32 beside it.

use serde_json::Value;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Distance, Matrix, MeanOver, Negative, Negatives, Own, PairedDistance,
    Pairs, Reduction, Reference, TripletMarginLoss,
};
use tercet::{batch_all, batch_contrastive, batch_hard, batch_negative, batch_semi_hard, contrastive, triplet_margin};

use crate::support;
use crate::support::skipped::skipped;

/// What one entry point answers: its name, the loss, the gradients, and how exact they are.
struct Answer {
    door: &'static str,
    value: Vec<f64>,
    grads: Vec<Vec<f64>>,
    tolerance: f64,
}

impl Answer {
    /// The answer of an oracle.
    fn oracle(value: f64, grads: [Vec<f64>; 2]) -> Self {
        let grads = grads.into_iter().filter(|grad| !grad.is_empty()).collect();
        Self { door: "oracle", value: vec![value], grads, tolerance: 1e-9 }
    }
}

/// Adds the answers of a mined loss's calls on slices, in f64 and in f32.
macro_rules! on_slices {
    ($answers:ident, $loss:ident, $set:ident) => {
        on_slices!($answers, $loss, $set, f64, "cpu f64", 1e-9);
        on_slices!($answers, $loss, $set, f32, "cpu f32", 2e-6);
    };
    ($answers:ident, $loss:ident, $set:ident, $t:ident, $door:literal, $tolerance:literal) => {
        let narrow = |x: &[f64]| x.iter().map(|x| *x as $t).collect::<Vec<$t>>();
        let (rows, labels) = (narrow(&$set.rows), &$set.labels[..]);
        let embeddings = Matrix::new(&rows, $set.dim).expect("whole rows");
        let mut grads = vec![vec![$t::NAN; rows.len()]];
        let value = if let Some(Others { rows: others, labels: other_labels, .. }) = &$set.reference {
            let others = narrow(others);
            grads.push(vec![$t::NAN; others.len()]);
            let embeddings_of_others = Matrix::new(&others, $set.dim).expect("whole rows");
            let reference = Reference { embeddings: embeddings_of_others, labels: &other_labels[..], own: $set.own() };
            let [grad, reference_grad] = &mut grads[..] else { unreachable!("two gradients") };
            let both = [Some(&mut grad[..]), Some(&mut reference_grad[..])];
            $loss.on(embeddings, labels).against(&reference).loss_and_grads(both)
        } else {
            $loss.on(embeddings, labels).loss_and_grad(&mut grads[0])
        };
        let wide = |x: &Vec<$t>| x.iter().map(|x| f64::from(*x)).collect();
        let value = vec![f64::from(value.expect("valid"))];
        $answers.push(Answer { door: $door, value, grads: grads.iter().map(wide).collect(), tolerance: $tolerance });
    };
}

/// A batch, and the reference set that it may have.
struct Set {
    dim: usize,
    rows: Vec<f64>,
    labels: Vec<i64>,
    reference: Option<Others>,
}

struct Others {
    rows: Vec<f64>,
    labels: Vec<i64>,
    own: Option<Vec<i64>>,
}

impl Set {
    fn new(value: &Value) -> Self {
        let reference = value.get("reference").map(|reference| {
            let own = &reference["own"];
            let own = (!own.is_null()).then(|| integers(own));
            Others { rows: numbers(&reference["rows"]), labels: integers(&reference["labels"]), own }
        });
        let dim = value["d"].as_u64().expect("a count") as usize;
        Self { dim, rows: numbers(&value["rows"]), labels: integers(&value["labels"]), reference }
    }

    fn embeddings(&self) -> Matrix<'_, f64> {
        Matrix::new(&self.rows, self.dim).expect("whole rows")
    }

    fn reference(&self) -> Option<Reference<Matrix<'_, f64>, &[i64]>> {
        self.reference.as_ref().map(|Others { rows, labels, .. }| Reference {
            embeddings: Matrix::new(rows, self.dim).expect("whole rows"),
            labels: &labels[..],
            own: self.own(),
        })
    }

    fn own(&self) -> Own<&[i64]> {
        let own = self.reference.as_ref().and_then(|others| others.own.as_ref());
        own.map_or(Own::None, |own| Own::Rows(&own[..]))
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().expect("a list").iter().map(|x| x.as_i64().expect("an integer")).collect()
}

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("no {key} in {case}"))
}

fn margin(case: &Value) -> f64 {
    case["margin"].as_f64().expect("a number")
}

fn distance(case: &Value) -> Distance {
    match text(case, "distance") {
        "squared" => Distance::SquaredEuclidean,
        "euclidean" => Distance::Euclidean,
        "cosine" => Distance::Cosine,
        other => panic!("{other}"),
    }
}

fn paired_distance(case: &Value) -> PairedDistance {
    match text(case, "distance") {
        "manhattan" => PairedDistance::Lp { p: 1.0, eps: 0.0 },
        "pairwise_1" => PairedDistance::Lp { p: 1.0, eps: 1e-6 },
        "pairwise_2" => PairedDistance::Lp { p: 2.0, eps: 1e-6 },
        _ => distance(case).into(),
    }
}

/// The case's reduction, `Mean` if it names none.
fn reduction(case: &Value) -> Reduction {
    match case["reduction"].as_str().unwrap_or("mean") {
        "none" => Reduction::None,
        "mean" => Reduction::Mean,
        "sum" => Reduction::Sum,
        other => panic!("{other}"),
    }
}

fn batch_all(case: &Value, set: &Set) -> Vec<Answer> {
    let mean_over = if text(case, "mean_over") == "active" { MeanOver::Active } else { MeanOver::Valid };
    let (margin, distance, reduction) = (margin(case), distance(case), reduction(case));
    let loss = BatchAllTripletLoss { margin, distance, mean_over, reduction, ..Default::default() };
    let reference = set.reference();
    let found =
        batch_all::oracle::run_against(&loss, set.embeddings(), &set.labels, reference.as_ref(), 1.0).expect("valid");
    let mut answers = vec![Answer::oracle(found.loss, [found.grad, found.reference_grad])];
    on_slices!(answers, loss, set);
    answers
}

fn batch_hard(case: &Value, set: &Set) -> Vec<Answer> {
    let loss = BatchHardTripletLoss { margin: margin(case), distance: distance(case), ..Default::default() };
    let reference = set.reference();
    let found = batch_hard::oracle::run_against(&loss, set.embeddings(), &set.labels, reference.as_ref(), &[1.0], None)
        .expect("valid");
    let mut answers = vec![Answer::oracle(found.loss, [found.grad, found.reference_grad])];
    on_slices!(answers, loss, set);
    answers
}

fn batch_semi_hard(case: &Value, set: &Set) -> Vec<Answer> {
    let loss = BatchSemiHardTripletLoss { margin: margin(case), distance: distance(case), ..Default::default() };
    let found = batch_semi_hard::oracle::run(&loss, set.embeddings(), &set.labels, &[1.0], None).expect("valid");
    let mut answers = vec![Answer::oracle(found.loss, [found.grad, found.reference_grad])];
    on_slices!(answers, loss, set);
    answers
}

/// Asserts the candidates of each pair. The loss is that of the negatives which the library drew.
fn batch_negative(case: &Value, set: &Set) -> Vec<Answer> {
    let negative = match text(case, "negative") {
        "hardest" => Negative::Hardest,
        "random" => Negative::Random,
        "semi_hard" => Negative::SemiHard,
        other => panic!("{other}"),
    };
    let (margin, distance) = (margin(case), distance(case));
    let loss = BatchNegativeTripletLoss { margin, distance, negative, pairs: Pairs::Once, ..Default::default() };
    let chosen: Vec<u32> =
        case["chosen"].as_array().expect("a list").iter().map(|n| n.as_u64().map_or(u32::MAX, |n| n as u32)).collect();
    let lists = |value: &Value| -> Vec<Vec<u32>> {
        let lists = value.as_array().expect("a list").iter().map(integers);
        lists.map(|list| list.iter().map(|n| *n as u32).collect()).collect()
    };
    let run = |selection| {
        batch_negative::oracle::run::<f64>(&loss, set.embeddings(), &set.labels, 0, &[1.0], selection).expect("valid")
    };
    let drawn = run(None);
    assert_eq!(drawn.pairs.iter().map(|pair| pair.to_vec()).collect::<Vec<_>>(), lists(&case["pairs"]), "{case}");
    assert_eq!(drawn.candidates, lists(&case["candidates"]), "{case}");
    for ((drawn, chosen), candidates) in drawn.negative.iter().zip(&chosen).zip(&drawn.candidates) {
        match negative {
            Negative::Hardest => assert_eq!(drawn, chosen, "{case}"),
            _ => assert!(candidates.contains(drawn) || candidates.is_empty() && *drawn == u32::MAX, "{case}"),
        }
    }
    // The CPU version draws what the oracle draws, so its negatives are among the library's candidates too.
    let own = loss.on(set.embeddings(), &set.labels).select().expect("valid");
    let triplets: Vec<[u32; 3]> =
        (0..own.anchor.len()).map(|i| [own.anchor[i], own.positive[i], own.negative[i]]).collect();
    let expected = drawn.pairs.iter().zip(&drawn.negative).filter(|(_, n)| **n != u32::MAX);
    assert_eq!(triplets, expected.map(|(&[a, p], &n)| [a, p, n]).collect::<Vec<_>>(), "{case}");
    let found = run(Some(&chosen));
    let mut answers = vec![Answer::oracle(found.loss, [found.grad, found.reference_grad])];
    if negative == Negative::Hardest {
        on_slices!(answers, loss, set);
    }
    answers
}

fn batch_contrastive(case: &Value, set: &Set) -> Vec<Answer> {
    let negatives = if text(case, "negatives") == "all" { Negatives::All } else { Negatives::Hardest };
    let (margin, distance, reduction) = (margin(case), distance(case), reduction(case));
    let default = BatchContrastiveLoss::default();
    let loss = BatchContrastiveLoss {
        margin,
        distance,
        negatives,
        reduction,
        power: case["power"].as_u64().map_or(default.power, |power| power as u32),
        pos_margin: case["pos_margin"].as_f64().unwrap_or(default.pos_margin),
        mean_over: if case["mean_over"] == "active" { MeanOver::Active } else { MeanOver::Valid },
        means_apart: case["means_apart"] == true,
        ..default
    };
    let (reference, labels) = (set.reference(), &set.labels[..]);
    let found =
        batch_contrastive::oracle::run_against(&loss, set.embeddings(), labels, reference.as_ref(), &[1.0], None)
            .expect("valid");
    let mut answers = vec![Answer::oracle(found.loss, [found.grad, found.reference_grad])];
    on_slices!(answers, loss, set);
    answers
}

/// Gradients are those of the sum of the values.
fn triplet_margin(case: &Value, rows: [Matrix<'_, f64>; 3]) -> Vec<Answer> {
    let (margin, distance, reduction) = (margin(case), paired_distance(case), reduction(case));
    let loss = TripletMarginLoss { margin, distance, reduction, swap: case["swap"] == true, ..Default::default() };
    let found = triplet_margin::oracle::run(&loss, rows, &[1.0]).expect("valid");
    let none = reduction == Reduction::None;
    let value = if none { found.losses } else { vec![found.loss] };
    let mut answers = vec![Answer { door: "oracle", value, grads: found.grads.to_vec(), tolerance: 1e-9 }];

    let (count, size) = (rows[0].rows(), rows[0].rows() * rows[0].dim());
    let mut losses = vec![f64::NAN; count];
    match none {
        true => loss.losses(rows, &mut losses).expect("valid"),
        false => losses = vec![loss.loss(rows).expect("valid")],
    }
    let mut grads = [0; 3].map(|_| vec![f64::NAN; size]);
    let upstream = vec![1.0; if none { count } else { 1 }];
    loss.grad(rows, &upstream, grads.each_mut().map(|grad| Some(&mut grad[..]))).expect("valid");
    answers.push(Answer { door: "cpu f64", value: losses, grads: grads.to_vec(), tolerance: 1e-9 });
    answers
}

fn contrastive(case: &Value, rows: [Matrix<'_, f64>; 2], same: &[bool]) -> Vec<Answer> {
    let (margin, distance, reduction) = (margin(case), paired_distance(case), reduction(case));
    let loss = ContrastiveLoss { margin, distance, reduction, ..Default::default() };
    let found = contrastive::oracle::run(&loss, rows, same, &[1.0]).expect("valid");
    let oracle = Answer { door: "oracle", value: vec![found.loss], grads: found.grads.to_vec(), tolerance: 1e-9 };
    let mut grads = [0; 2].map(|_| vec![f64::NAN; rows[0].rows() * rows[0].dim()]);
    let value = loss.loss_and_grad(rows, same, grads.each_mut().map(|grad| &mut grad[..])).expect("valid");
    let cpu = Answer { door: "cpu f64", value: vec![value], grads: grads.to_vec(), tolerance: 1e-9 };
    vec![oracle, cpu]
}

fn close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1f64, |m, x| m.max(x.abs()));
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert!((actual - expected).abs() <= tolerance * size, "{what}, [{i}]: {actual} for {expected}");
    }
}

/// Asserts that the answers, times the case's factor, are `value` and `grads`. A gradient that the library does not
/// have is not compared.
fn compare(case: &Value, answers: Vec<Answer>, value: &[f64], grads: &[Vec<f64>]) {
    let factor = case["factor"].as_f64().expect("a number");
    let scaled = |x: &[f64]| x.iter().map(|x| factor * x).collect::<Vec<_>>();
    assert!(!answers.is_empty());
    for Answer { door, value: actual, grads: actual_grads, tolerance } in answers {
        let what = format!("{door}: case {}, {} of {}", case["id"], text(case, "of"), text(case, "library"));
        close(&scaled(&actual), value, tolerance, &what);
        assert!(actual_grads.len() >= grads.len(), "{what}");
        for (actual, expected) in actual_grads.iter().zip(grads) {
            close(&scaled(actual), expected, 10.0 * tolerance, &what);
        }
    }
}

fn records() -> Value {
    let file = support::data("parity.json");
    serde_json::from_str(&std::fs::read_to_string(file).expect("the records")).expect("JSON")
}

/// Compares all cases of one loss, and asserts how many there are of each library.
fn all(loss: &str, answers: impl Fn(&Value, &Set) -> Vec<Answer>, counts: &[(&str, usize)]) {
    let file = records();
    let cases = file["cases"].as_array().expect("a list").iter().filter(|case| case["loss"] == loss);
    let mut found = std::collections::BTreeMap::<&str, usize>::new();
    for case in cases {
        let set = Set::new(&file["sets"][text(case, "set")]);
        let grads: Vec<Vec<f64>> =
            ["grad", "reference_grad"].iter().filter_map(|key| case.get(*key)).map(numbers).collect();
        compare(case, answers(case, &set), &[case["value"].as_f64().expect("a number")], &grads);
        *found.entry(text(case, "library")).or_default() += 1;
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), counts);
}

#[test]
fn batch_semi_hard_is_theirs() {
    let counts = [("formula of TensorFlow-Addons", 18), ("sentence-transformers", 12)];
    all("batch_semi_hard", batch_semi_hard, &counts);
}

#[test]
fn batch_negative_is_theirs() {
    all("batch_negative", batch_negative, &[("formula of siamese-triplet", 18)]);
}

#[test]
fn batch_contrastive_is_theirs() {
    let counts = [("formula of siamese-triplet", 12), ("pytorch-metric-learning", 66)];
    all("batch_contrastive", batch_contrastive, &counts);
}

#[test]
fn batch_all_is_theirs() {
    all("batch_all", batch_all, &[("pytorch-metric-learning", 32)]);
}

#[test]
fn batch_hard_is_theirs() {
    all("batch_hard", batch_hard, &[("pytorch-metric-learning", 14)]);
}

/// Runs `check` on each case of one loss over the paired rows `set`, and asserts how many cases there are.
fn paired<const K: usize>(set: &str, loss: &str, count: usize, check: impl Fn(&Value, [Matrix<'_, f64>; K], &[bool])) {
    let file = records();
    let x: Vec<Vec<f64>> = file[set]["x"].as_array().expect("a list").iter().map(numbers).collect();
    let dim = file[set]["d"].as_u64().expect("a count") as usize;
    let rows = std::array::from_fn(|i| Matrix::new(&x[i], dim).expect("whole rows"));
    let same: Vec<bool> = file[set]["same"].as_array().into_iter().flatten().map(|same| same == true).collect();
    let cases = file["cases"].as_array().expect("a list").iter().filter(|case| case["loss"] == loss);
    let cases: Vec<&Value> = cases.collect();
    cases.iter().for_each(|case| check(case, rows, &same));
    assert_eq!(cases.len(), count, "{loss}");
}

fn lists(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().expect("a list").iter().map(numbers).collect()
}

#[test]
fn triplet_margin_is_theirs() {
    paired("triplets", "triplet_margin", 36 + 6, |case, rows, _| {
        compare(case, triplet_margin(case, rows), &numbers(&case["value"]), &lists(&case["grad"]));
    });
}

#[test]
fn contrastive_is_theirs() {
    paired("pairs", "contrastive", 12, |case, rows, same| {
        compare(case, contrastive(case, rows, same), &numbers(&case["value"]), &lists(&case["grad"]));
    });
}

/// Torch's loss is linear, `d` and `relu(cos - margin)`; ours is half its square: compare `√(2 loss)`, with `1 -
/// margin`.
#[test]
fn cosine_embedding_is_the_root_of_twice_ours() {
    paired("pairs", "cosine_embedding", 2, |case, rows, same| {
        let loss = ContrastiveLoss {
            margin: 1.0 - margin(case),
            distance: paired_distance(case),
            reduction: Reduction::None,
            ..Default::default()
        };
        let mut ours = vec![f64::NAN; same.len()];
        loss.losses(rows, same, &mut ours).expect("valid");
        let oracle = contrastive::oracle::run(&loss, rows, same, &[1.0]).expect("valid").losses;
        for losses in [ours, oracle] {
            let roots: Vec<f64> = losses.iter().map(|loss| (2.0 * loss).sqrt()).collect();
            close(&roots, &numbers(&case["value"]), 1e-9, &format!("case {}", case["id"]));
        }
    });
}

/// Every test that docs/parity.md names exists.
#[test]
fn the_page_names_tests_that_exist() {
    let root = support::checkout();
    let (Ok(page), true) = (std::fs::read_to_string(root.join("docs/parity.md")), root.join("src").is_dir()) else {
        skipped("no sources here: the_page_names_tests_that_exist");
        return;
    };
    let mut named = 0;
    for word in page.split('`').skip(1).step_by(2) {
        let Some((module, test)) = word.rsplit_once("::") else { continue };
        let file = root.join(format!("tests/it/{}.rs", module.replace("::", "/")));
        if !file.is_file() {
            continue; // a type of the crate
        }
        let source = std::fs::read_to_string(file).expect("a test");
        assert!(source.contains(&format!("#[test]\nfn {test}()")), "{word}");
        named += 1;
    }
    assert!(named > 10, "{named}");
}
