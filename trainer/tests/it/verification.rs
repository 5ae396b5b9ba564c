//! `tercet verify`, `embed` and `eval`, and the report, as a user runs them: one short run, then everything on it.

use crate::program::{stderr, tercet};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What the program prints; fails unless it succeeds.
#[track_caller]
pub fn stdout(arguments: &[&str]) -> String {
    let output = tercet(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
pub fn json(arguments: &[&str]) -> Value {
    let text = stdout(&[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[track_caller]
pub fn refused(arguments: &[&str], words: &[&str]) {
    let output = tercet(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// A run and a data set, made once for all tests of this file.
pub struct World {
    _dir: tempfile::TempDir,
    root: PathBuf,
    pub run: String,
    pub genuine: String,
    forged: String,
}

impl World {
    fn path(&self, name: &str) -> String {
        self.root.join(name).to_str().unwrap().to_owned()
    }

    pub fn image(&self, signer: usize, index: usize) -> String {
        format!("{}/generated-{signer:04}/{index:04}.png", self.genuine)
    }
}

pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let at = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let (run, data) = (at("run"), at("data"));
        let small = ["--encoder", "resnet18", "--image-size", "32", "--device", "cpu", "--embedding-dim", "16"];
        let short = ["--steps", "3", "--signers", "12", "--val-images", "24", "--out", &run];
        stdout(&[&["train"], &small[..], &short[..]].concat());
        stdout(&["generate", "--out", &data, "--identities", "4", "--drawings", "4", "--forgeries", "2"]);
        World { _dir: dir, run, genuine: format!("{data}/genuine"), forged: format!("{data}/forged"), root }
    })
}

#[test]
fn a_run_leaves_its_model_and_a_report_that_needs_nothing_else() {
    let run = Path::new(&world().run);
    let read = |name: &str| std::fs::read_to_string(run.join(name)).unwrap();
    let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
    for key in ["eer_skilled_before", "eer_skilled_after", "map_at_r_after", "threshold"] {
        assert!(summary[key].is_number(), "{key} in {summary}");
    }
    let model: Value = serde_json::from_str(&read("model.json")).unwrap();
    assert_eq!(model["calibration"]["threshold"], summary["threshold"]);
    assert_eq!((&model["encoder"], &model["embedding_dim"]), (&"resnet18".into(), &16.into()));
    for picture in ["loss", "eer", "roc", "distances-before", "distances", "map", "mistakes", "samples"] {
        image::open(run.join(picture).with_extension("png")).unwrap();
    }
    let report = read("report.html");
    for text in ["Triplet loss", "Equal error rate over time", "by PCA", "skilled forgeries", "tercet verify A.png"] {
        assert!(report.contains(text), "{text}");
    }
    // Nothing is loaded from elsewhere: every picture is inside, and there is no script, link or style sheet.
    assert!(report.matches("<img").count() >= 32);
    assert_eq!(report.matches("<img").count(), report.matches("src=\"data:image/png;base64,").count());
    for outside in ["http", "<script", "<link", "url(", "@import"] {
        assert!(!report.contains(outside), "{outside}");
    }
    let parts: Vec<_> = std::fs::read_dir(run).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(parts.iter().all(|name| !name.to_string_lossy().contains("partial")), "{parts:?}");
}

#[test]
fn two_images_are_the_same_identity_or_not() {
    let w = world();
    let (a, b) = (w.image(0, 0), w.image(1, 0));
    let text = stdout(&["verify", &a, &a, "--model", &w.run]);
    assert!(text.contains("distance   0.0000 (squared Euclidean)") && text.contains("decision   same"), "{text}");
    assert!(text.contains("on 3 validation identities"), "{text}");

    let apart = json(&["verify", &a, &b, "--model", &w.run]);
    let distance = apart["distance"].as_f64().unwrap();
    assert!(distance > 0.0);
    assert_eq!(apart["same"], distance <= apart["threshold"].as_f64().unwrap());
    assert_eq!(json(&["verify", &b, &a, "--model", &w.run])["distance"], apart["distance"]);
    // Either decision exits with 0.
    let text = stdout(&["verify", &a, &b, "--model", &w.run, "--threshold", "0"]);
    assert!(text.contains("threshold  0.0000 (given)") && text.contains("decision   different"), "{text}");
}

#[test]
fn a_file_of_pairs_is_scored_by_folds() {
    let w = world();
    let file = w.path("pairs.txt");
    let mut text = String::from("2\t2\n");
    for fold in 0..2 {
        let (a, b) = (2 * fold, 2 * fold + 1);
        text += &format!("generated-000{a}\t1\t2\ngenerated-000{b}\t3\t4\n");
        text += &format!("generated-000{a}\t1\tgenerated-000{b}\t1\ngenerated-000{a}\t3\tgenerated-000{b}\t2\n");
    }
    std::fs::write(&file, &text).unwrap();
    let arguments = ["verify", "--pairs", &file, "--data", &w.genuine, "--model", &w.run];
    let outcome = json(&arguments);
    assert_eq!((&outcome["pairs"], &outcome["folds"], &outcome["images"]), (&8.into(), &2.into(), &14.into()));
    for key in ["accuracy", "accuracy_error", "auc", "eer", "tar_at_far_1e2", "tar_at_far_1e3", "accuracy_at_threshold"]
    {
        let value = outcome[key].as_f64().unwrap_or_else(|| panic!("{key} in {outcome}"));
        assert!((0.0..=1.0).contains(&value), "{key}: {value}");
    }
    let printed = stdout(&arguments);
    for words in ["8 pairs of 14 images in 2 folds", " ± ", "TAR at FAR 1e-3"] {
        assert!(printed.contains(words), "{words:?} is not in: {printed}");
    }

    std::fs::write(&file, text.replace("generated-0003\t1\n", "generated-0009\t1\n")).unwrap();
    refused(&arguments, &["--pairs", "line 8", "generated-0009"]);
    refused(&["verify", "--pairs", &file, "--model", &w.run], &["--data"]);
    refused(&["verify", "--pairs", &file, "--data", &w.path("no"), "--model", &w.run], &["--data", "not a folder"]);
    refused(&["verify", &w.image(0, 0), &w.image(0, 1), "--pairs", &file, "--model", &w.run], &["--pairs"]);
}

#[test]
fn what_cannot_be_verified_is_named() {
    let w = world();
    let (a, torn) = (w.image(0, 0), w.path("torn.png"));
    std::fs::write(&torn, &std::fs::read(&a).unwrap()[..200]).unwrap();
    refused(&["verify", &a, &w.path("absent.png"), "--model", &w.run], &["absent.png"]);
    refused(&["verify", &a, &torn, "--model", &w.run], &["torn.png"]);
    refused(&["verify", &a, "--model", &w.run], &["IMAGE"]);
    refused(&["verify", &a, &a], &["--model"]);
    refused(&["verify", &a, &a, "--model", &w.path("absent")], &["--model", "absent", "not a folder"]);
    refused(&["verify", &a, &a, "--model", &w.genuine], &["--model", "model.json"]);
    refused(&["verify", &a, &a, "--model", &w.run, "--threshold", "-1"], &["--threshold", "0 or above"]);
    refused(&["verify", &a, &a, "--model", &w.run, "--device", "tpu"], &["tpu", "cuda:N"]);

    // Settings and weights that do not belong together.
    let other = w.root.join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(Path::new(&w.run).join("encoder.safetensors"), other.join("encoder.safetensors")).unwrap();
    let settings = std::fs::read_to_string(Path::new(&w.run).join("model.json")).unwrap();
    std::fs::write(other.join("model.json"), settings.replace("resnet18", "resnet34")).unwrap();
    refused(&["verify", &a, &a, "--model", other.to_str().unwrap()], &["layer1.2.conv1.weight: missing"]);
}

#[test]
fn embeddings_are_written_with_labels_and_names() {
    let w = world();
    let out = w.path("embedded.safetensors");
    let arguments = ["embed", &w.genuine, "--model", &w.run, "--out", &out];
    let text = stdout(&arguments);
    assert!(
        text.contains("16 embeddings of 16 numbers, 4 identities") && text.ends_with(&format!("{out}\n")),
        "{text}"
    );

    let bytes = std::fs::read(&out).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let list = |key: &str| serde_json::from_str::<Vec<String>>(&metadata[key]).unwrap();
    let (names, identities) = (list("names"), list("identities"));
    assert_eq!((names.len(), &names[5]), (16, &"generated-0001/0001.png".to_owned()));
    assert_eq!(identities, ["generated-0000", "generated-0001", "generated-0002", "generated-0003"]);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (embeddings, labels) = (file.tensor("embeddings").unwrap(), file.tensor("labels").unwrap());
    assert_eq!((embeddings.shape(), labels.shape()), (&[16, 16][..], &[16][..]));
    let labels: Vec<i64> = labels.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(labels, (0..16).map(|i| i / 4).collect::<Vec<i64>>());
    let rows: Vec<f32> = embeddings.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let row = |i: usize| &rows[16 * i..][..16];
    // Embeddings have length 1, and are as far apart as `verify` says.
    assert!((row(3).iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    let distance: f32 = row(0).iter().zip(row(5)).map(|(a, b)| (a - b) * (a - b)).sum();
    let verified = json(&["verify", &w.image(0, 0), &w.image(1, 1), "--model", &w.run]);
    assert!((f64::from(distance) - verified["distance"].as_f64().unwrap()).abs() < 1e-4, "{distance} {verified}");

    refused(&arguments, &["--out", "already there"]);
    assert_eq!(std::fs::read(&out).unwrap(), bytes, "nothing is overwritten");
    let nowhere = w.path("no/where.safetensors");
    refused(&["embed", &w.genuine, "--model", &w.run, "--out", &nowhere], &["--out", "not a folder"]);
    let fresh = w.path("fresh.safetensors");
    refused(&["embed", &w.path("absent"), "--model", &w.run, "--out", &fresh], &["absent", "not a folder"]);
    assert!(!Path::new(&fresh).exists());
}

#[test]
fn a_folder_of_identities_is_measured() {
    let w = world();
    let out = w.path("evaluation");
    let arguments = ["eval", &w.genuine, "--model", &w.run, "--forgeries", &w.forged, "--ways", "2,3"];
    let outcome = json(&[&arguments[..], &["--recall-at", "1,5", "--trials", "20", "--out", &out]].concat());
    assert_eq!((&outcome["images"], &outcome["identities"]), (&16.into(), &4.into()));
    assert_eq!((&outcome["genuine_pairs"], &outcome["impostor_pairs"]), (&24.into(), &96.into()));
    assert_eq!((&outcome["skilled"]["forgeries"], &outcome["skilled"]["pairs"]), (&8.into(), &32.into()));
    assert_eq!(outcome["ranking"]["recall"][1][0], 5);
    assert_eq!(outcome["one_shot"][1]["ways"], 3);
    for value in [&outcome["eer"], &outcome["skilled"]["eer"], &outcome["ranking"]["map_at_r"], &outcome["auc"]] {
        assert!((0.0..=1.0).contains(&value.as_f64().unwrap()), "{outcome}");
    }
    let written: Value = serde_json::from_str(&std::fs::read_to_string(format!("{out}/eval.json")).unwrap()).unwrap();
    assert_eq!(written, outcome);
    assert!(std::fs::read_to_string(format!("{out}/report.html")).unwrap().contains("Nearest skilled forgeries"));

    let printed = stdout(&arguments);
    for words in
        ["16 images of 4 identities", "recall@8", "MAP@R", "skilled forgeries, 8", "one-shot, 3-way", "TAR at FAR"]
    {
        assert!(printed.contains(words), "{words:?} is not in: {printed}");
    }
    refused(&[&arguments[..], &["--out", &out]].concat(), &["--out", "not empty"]);
    assert_eq!(json(&["eval", &w.genuine, "--model", &w.run, "--only", "generated-0001,generated-0003"])["images"], 8);
}

#[test]
fn what_cannot_be_measured_is_named_and_makes_no_folder() {
    let w = world();
    let out = w.path("never");
    let eval = |folder: &str, more: &[&str], words: &[&str]| {
        refused(&[&["eval", folder, "--model", &w.run, "--out", &out], more].concat(), words);
        assert!(!Path::new(&out).exists());
    };
    eval(&w.path("absent"), &[], &["absent", "not a folder"]);
    eval(&w.genuine, &["--only", "generated-0007"], &["--only generated-0007", "generated-0000"]);
    eval(&w.genuine, &["--only", "generated-0001"], &["1 identities", "two identities"]);
    eval(&w.genuine, &["--forgeries", &w.path("data")], &["--forgeries", "generated-0000"]);
    eval(&w.genuine, &["--recall-at", "0"], &["--recall-at", "from 1"]);
    eval(&w.genuine, &["--ways", "many"], &["--ways", "whole number"]);

    let data = w.root.join("with-a-torn-one");
    for (signer, index) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let folder = data.join(signer.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(w.image(signer, index), folder.join(format!("{index}.png"))).unwrap();
    }
    std::fs::write(data.join("1/2.png"), b"torn").unwrap();
    let data = data.to_str().unwrap();
    eval(data, &["--on-bad-image", "stop"], &["2.png"]);
    let skipped = tercet(&["eval", data, "--model", &w.run, "--json"]);
    assert!(skipped.status.success() && stderr(&skipped).contains("2.png"), "{}", stderr(&skipped));
    let outcome: Value = serde_json::from_slice(&skipped.stdout).unwrap();
    assert_eq!(outcome["images"], 4);
}
