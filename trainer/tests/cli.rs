//! The program as a user runs it: exit codes, messages, and a whole short run.

use std::path::Path;
use std::process::{Command, Output};

fn tercet(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tercet")).args(arguments).output().expect("tercet starts")
}

/// Runs `train` on a small encoder with `arguments` added.
fn train(out: &Path, arguments: &[&str]) -> Output {
    let out = out.to_str().unwrap();
    let mut all = vec!["train", "--encoder", "resnet18", "--image-size", "32", "--device", "cpu"];
    all.extend(["--steps", "2", "--classes-per-batch", "3", "--samples-per-class", "2"]);
    all.extend(["--val-images", "24", "--out", out]);
    all.extend(arguments);
    tercet(&all)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// `identities` folders of `images` little pictures.
fn folders(root: &Path, identities: usize, images: usize) {
    for identity in 0..identities {
        let own = root.join(format!("group{}/writer{identity}", identity % 2));
        std::fs::create_dir_all(&own).unwrap();
        for index in 0..images {
            let ink = |x: u32, y: u32| (x as usize * (identity + 1) + y as usize + index).is_multiple_of(7);
            let picture = image::GrayImage::from_fn(20, 20, |x, y| image::Luma([if ink(x, y) { 0 } else { 255 }]));
            picture.save(own.join(format!("{index}.png"))).unwrap();
        }
    }
}

#[test]
fn a_short_run_leaves_everything_and_repeats_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    folders(&data, 6, 4);
    let mut losses = Vec::new();
    for name in ["first", "second"] {
        let out = dir.path().join(name);
        let output = train(&out, &["--data", data.to_str().unwrap(), "--hold-out", "group1"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(stdout.lines().last().unwrap().ends_with(out.to_str().unwrap()), "{stdout}");

        let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        for key in [
            "eer_before",
            "eer_after",
            "auc_before",
            "auc_after",
            "recall_at_1_before",
            "recall_at_1_after",
            "steps",
            "seconds",
            "images_per_second",
            "seed",
        ] {
            assert!(summary[key].is_number(), "{key} in {summary}");
        }
        assert_eq!(summary["device"], "cpu");
        assert_eq!(summary["steps"], 2);
        assert_eq!(summary["validation_identities"], 3);
        for picture in ["loss.png", "roc.png", "samples.png"] {
            image::open(out.join(picture)).unwrap();
        }
        let csv = std::fs::read_to_string(out.join("metrics.csv")).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "epoch,step,loss,seconds,images_per_second,active,learning_rate"));
        let column = |line: &&str| line.split(',').nth(2).unwrap().to_owned();
        losses.push(lines[1..].iter().map(column).collect::<Vec<_>>());
    }
    assert_eq!(losses[0], losses[1], "the same seed, the same losses");

    // The weights load again, even under a head of another size.
    let weights = dir.path().join("first/encoder.safetensors");
    let arguments = ["--weights", weights.to_str().unwrap(), "--embedding-dim", "16"];
    let data = ["--data", data.to_str().unwrap()];
    let output = train(&dir.path().join("again"), &[&arguments[..], &data[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn bad_images_are_skipped_by_name_or_stop_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    folders(&data, 4, 3);
    std::fs::write(data.join("group0/writer0/torn.jpg"), b"not a picture").unwrap();
    let data = data.to_str().unwrap();
    let output = train(&dir.path().join("skip"), &["--data", data]);
    assert!(output.status.success() && stderr(&output).contains("torn.jpg"), "{}", stderr(&output));
    let stop = train(&dir.path().join("stop"), &["--data", data, "--on-bad-image", "stop"]);
    refused(&stop, &["torn.jpg", "--on-bad-image skip"]);
    assert!(!dir.path().join("stop").exists(), "a run that cannot start makes no folder");
}

#[test]
fn wrong_input_is_named_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let out = dir.path().join("out");
    refused(&train(&out, &["--data", &at("absent")]), &["absent", "not a folder"]);

    std::fs::create_dir(dir.path().join("empty")).unwrap();
    refused(&train(&out, &["--data", &at("empty")]), &["no images", "empty"]);

    folders(&dir.path().join("one"), 1, 3);
    refused(&train(&out, &["--data", &at("one")]), &["needs at least 4", "--val-data"]);

    folders(&dir.path().join("single"), 8, 1);
    refused(&train(&out, &["--data", &at("single")]), &["one image only"]);

    folders(&dir.path().join("good"), 4, 2);
    let good = at("good");
    refused(&train(&out, &["--data", &good, "--hold-out", "group9"]), &["group9", "group0, group1"]);
    refused(&train(&out, &["--data", &good, "--val-data", &at("good/group0")]), &["share images"]);
    refused(&train(&out, &["--data", &good, "--weights", &at("w.safetensors")]), &["w.safetensors"]);
    refused(&tercet(&["train", "--device", "tpu"]), &["tpu", "cuda:N"]);
    refused(&train(&out, &["--val-split", "1.5"]), &["between 0 and 1"]);
    refused(&train(&out, &["--margin", "-1"]), &["--margin"]);
    refused(&train(&dir.path().join("good"), &[]), &["--out", "not empty"]);
    refused(&tercet(&["learn"]), &["learn"]);
    assert!(!out.exists());
}

#[test]
fn generated_signatures_are_a_data_set_in_folders() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("signatures");
    let arguments = ["--identities", "3", "--drawings", "2", "--out", out.to_str().unwrap()];
    let output = tercet(&[&["generate"], &arguments[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);
    assert!(out.join("generated-0002/0001.png").is_file());

    // With forgeries: two folders of the same names, so that each can be told whom it forges.
    let out = dir.path().join("forged");
    let arguments = ["--identities", "2", "--drawings", "3", "--forgeries", "1", "--out", out.to_str().unwrap()];
    let output = tercet(&[&["generate"], &arguments[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(out.join("genuine/generated-0001/0002.png").is_file());
    let names = |folder: &str| {
        let entries = std::fs::read_dir(out.join(folder)).unwrap().map(|e| e.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names("genuine"), names("forged"));
    assert_eq!(names("forged/generated-0000").len(), 1);
    refused(&tercet(&[&["generate"], &arguments[..]].concat()), &["--out", "not empty"]);
}

#[test]
fn every_loss_trains() {
    let dir = tempfile::tempdir().unwrap();
    for loss in ["triplet", "batch-all", "batch-hard"] {
        let out = dir.path().join(loss);
        let output = train(&out, &["--loss", loss]);
        assert!(output.status.success(), "{}", stderr(&output));
        let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        assert_eq!((&summary["loss"], &summary["steps"]), (&loss.into(), &2.into()));
    }
    let output = train(&dir.path().join("none"), &["--loss", "nothing"]);
    refused(&output, &["--loss", "triplet", "batch-all", "batch-hard"]);
}
