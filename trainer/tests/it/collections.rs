//! Collections as people have them: forgeries among genuine signatures, links, the same picture twice, files that are
//! no pictures, their own lists of pairs.

use crate::program::{ended, stderr, tercet};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

/// Patterns for file names that name the writer, as CEDAR's do.
const CEDAR: [&str; 4] = ["--identity", r"original_(\d+)_\d+", "--forged", r"forgeries_(\d+)_\d+"];

/// Writes a little picture, a different one for each number.
fn put(file: &Path, number: u32) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let ink = |x: u32, y: u32| (x * (3 + number % 5) + y * (7 + number % 3) + number * 13) % 17 < 4;
    image::GrayImage::from_fn(24, 24, |x, y| image::Luma([if ink(x, y) { number as u8 } else { 255 }]))
        .save(file)
        .unwrap();
}

/// Writes `each` genuine and as many forged signatures of each of `writers`.
fn cedar(root: &Path, writers: u32, each: u32) -> String {
    for (writer, image) in (1..=writers).flat_map(|writer| (1..=each).map(move |image| (writer, image))) {
        put(&root.join(format!("full_org/original_{writer}_{image}.png")), 20 * writer + image);
        put(&root.join(format!("full_forg/forgeries_{writer}_{image}.png")), 20 * writer + image + 10);
    }
    root.to_str().unwrap().to_owned()
}

fn train(out: &Path, arguments: &[&str]) -> Output {
    let small =
        ["--encoder", "resnet18", "--image-size", "32", "--device", "cpu", "--embedding-dim", "16", "--steps", "2"];
    let few =
        ["--classes-per-batch", "3", "--samples-per-class", "2", "--val-images", "16", "--out", out.to_str().unwrap()];
    tercet(&[&["train"], &small[..], &few, arguments].concat())
}

/// A short run, made once for all tests of this file.
fn world() -> &'static (tempfile::TempDir, PathBuf) {
    static WORLD: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        ended(&train(&run, &["--signers", "8"]), 0, &[]);
        (dir, run)
    })
}

fn run() -> &'static str {
    world().1.to_str().unwrap()
}

#[test]
fn forgeries_are_negatives_in_training_and_survive_a_resumption() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (dir.path().join("cedar"), dir.path().join("run"));
    let data = cedar(&root, 5, 2);
    // Without patterns each folder would be one identity: the message names the options to give.
    let hint = "--identity 'original_(\\d+)_\\d+' --forged 'forgeries_(\\d+)_\\d+'";
    ended(&train(&out, &["--data", &data]), 2, &["looks like CEDAR", hint, "2 identities"]);
    let options = [&["--data", &data], &CEDAR[..], &["--train-forgeries", "--loss", "batch-hard"]].concat();
    let output = train(&out, &options);
    ended(&output, 0, &["6 forgeries of training identities are negatives", "trained on 6 images of 3 identities"]);
    let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert!(summary["eer_skilled_after"].is_number(), "{summary}");

    let resume =
        |more: &[&str]| tercet(&[&["train", "--resume", out.to_str().unwrap(), "--steps", "3"], more].concat());
    ended(&resume(&["--identity", "x(y)"]), 2, &["--identity x(y)", "would change its numbers"]);
    ended(&resume(&[]), 0, &["resumed at step 2", "6 forgeries of training identities"]);
    // Any forgery that has changed makes it another run.
    for writer in 1..=5 {
        let forgery = root.join(format!("full_forg/forgeries_{writer}_1.png"));
        let before = std::fs::read(&forgery).unwrap();
        put(&forgery, 250);
        ended(&resume(&[]), 2, &["--resume", "images of", "are others"]);
        std::fs::write(&forgery, before).unwrap();
    }

    ended(&train(&dir.path().join("no"), &[&options[..2], &["--train-forgeries"]].concat()), 2, &["--forged"]);
    ended(&train(&dir.path().join("no"), &["--identity", "(x)"]), 2, &["--identity and --forged are for --data"]);
    let nowhere = ["--data", &data, "--identity", r"_(\d+)_", "--forged", "nothing", "--train-forgeries"];
    ended(&train(&dir.path().join("no"), &nowhere), 2, &["--forged matches no image", "--train-forgeries"]);
    assert!(!dir.path().join("no").exists());
}

#[test]
fn forgeries_are_scored_and_embedded_apart() {
    let dir = tempfile::tempdir().unwrap();
    let data = cedar(&dir.path().join("cedar"), 4, 2);
    std::fs::write(dir.path().join("cedar/Readme.txt"), b"signatures").unwrap();
    put(&dir.path().join("cedar/full_org/blank.png"), 255);
    let output = tercet(&[&["eval", &data, "--model", run(), "--json"], &CEDAR[..]].concat());
    ended(
        &output,
        0,
        &["1 file of another kind", "1 .txt", "1 images that --identity or --forged does not match", "blank.png"],
    );
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&outcome["images"], &outcome["identities"], &outcome["genuine_pairs"]),
        (&8.into(), &4.into(), &4.into())
    );
    assert_eq!((&outcome["skilled"]["forgeries"], &outcome["skilled"]["pairs"]), (&8.into(), &16.into()));

    let file = dir.path().join("embedded.safetensors");
    let out = ["--out", file.to_str().unwrap()];
    let output = tercet(&[&["embed", &data, "--model", run()], &CEDAR[..], &out].concat());
    ended(&output, 0, &[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("4 identities, 8 forgeries"));
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("forged").unwrap().data(), [0, 0, 1, 1].repeat(4));
    let labels: Vec<u8> = tensors.tensor("labels").unwrap().data().chunks(8).map(|label| label[0]).collect();
    assert_eq!(labels, (0..16).map(|i| i / 4).collect::<Vec<u8>>());
}

#[test]
fn the_same_picture_on_both_sides_is_said_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (person, image) in (0..4).flat_map(|person| [(person, 0), (person, 1)]) {
        put(&dir.path().join(format!("data/{person}/{image}.png")), 10 * person + image + 1);
        put(&dir.path().join(format!("val/{person}/{image}.png")), 10 * person + image + 101);
    }
    // The same pixels in another file: a warning names both.
    std::fs::copy(dir.path().join("data/1/0.png"), dir.path().join("val/2/copy.png")).unwrap();
    let out = dir.path().join("run");
    let sides = ["--data", &at("data"), "--val-data", &at("val")];
    ended(&train(&out, &sides), 0, &["warning: 1 image is equal", "copy.png (2, validation)", "0.png (1, training)"]);
    let output = tercet(&["eval", &at("val"), "--model", run()]);
    ended(&output, 0, &[]);
    assert!(!stderr(&output).contains("warning"));
    std::fs::copy(dir.path().join("data/1/0.png"), dir.path().join("val/3/again.png")).unwrap();
    ended(
        &tercet(&["eval", &at("val"), "--model", run()]),
        0,
        &["warning: 1 image is equal", "copy.png (2)", "again.png (3)"],
    );
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.path().join("data/3"), dir.path().join("val/linked")).unwrap();
        let refused = train(&dir.path().join("no"), &sides);
        ended(&refused, 2, &["--val-data", "share 2 images, through links", "linked/0.png", "data/3/0.png"]);
        assert!(!dir.path().join("no").exists());
    }
}

#[test]
fn a_file_that_declares_too_much_is_left_out_by_name_in_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (person, image) in (0..4).flat_map(|person| [(person, 0), (person, 1)]) {
        put(&dir.path().join(format!("data/{person}/{image}.png")), 10 * person + image + 1);
    }
    let (data, bomb) = (at("data"), at("data/0/bomb.pgm"));
    std::fs::write(&bomb, b"P5\n1000000 1000000\n255\n").unwrap();
    let words = ["bomb.pgm", "it declares 1000000 x 1000000 pixels", "the limit is"];
    ended(&train(&dir.path().join("run"), &["--data", &data, "--image-cache", "0"]), 0, &words);
    ended(&train(&dir.path().join("no"), &["--data", &data, "--on-bad-image", "stop"]), 2, &words);
    ended(&tercet(&["eval", &data, "--model", run()]), 0, &words);
    ended(&tercet(&["eval", &data, "--model", run(), "--on-bad-image", "stop"]), 2, &words);
    let out = at("out.safetensors");
    ended(&tercet(&["embed", &data, "--model", run(), "--out", &out, "--on-bad-image", "stop"]), 2, &words);
    assert!(!Path::new(&out).exists());
    ended(&tercet(&["embed", &data, "--model", run(), "--out", &out]), 0, &words);
    ended(&tercet(&["verify", &at("data/0/0.png"), &bomb, "--model", run()]), 2, &words);
    ended(&tercet(&["pairs", &data, "--out", &at("pairs.txt")]), 0, &words);
    // The pairs made of this folder do not name the file; pairs that name it are refused.
    let pairs = ["--data", &data, "--model", run()];
    ended(&tercet(&[&["verify", "--pairs", &at("pairs.txt")], &pairs[..]].concat()), 0, &[]);
    std::fs::write(at("named.txt"), "1\n0\t0.png\tbomb.pgm\n0\t1\t1\t1\n").unwrap();
    ended(&tercet(&[&["verify", "--pairs", &at("named.txt")], &pairs[..]].concat()), 2, &words);
}

#[test]
fn pairs_of_ones_own_are_written_once_and_scored() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (person, image) in (0..6).flat_map(|person| (1..=3).map(move |image| (person, image))) {
        put(&dir.path().join(format!("data/P{person}/P{person}_{image:04}_0.png")), 10 * person + image);
    }
    let arguments = ["pairs", &at("data"), "--out", &at("pairs.txt"), "--folds", "3", "--pairs", "4"];
    let output = tercet(&arguments);
    ended(&output, 0, &[]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("3 folds of 4 genuine and 4 impostor pairs, 6 identities")
    );
    let text = std::fs::read_to_string(at("pairs.txt")).unwrap();
    assert!(text.starts_with("3\t4\n") && text.lines().nth(1).unwrap().split('\t').count() == 3, "{text}");
    ended(&tercet(&arguments), 2, &["--out", "already there"]);
    assert_eq!(std::fs::read_to_string(at("pairs.txt")).unwrap(), text);
    let verify = ["verify", "--pairs", &at("pairs.txt"), "--data", &at("data"), "--model", run(), "--json"];
    let output = tercet(&verify);
    ended(&output, 0, &[]);
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["pairs"], &outcome["folds"]), (&24.into(), &3.into()));

    // Pairs in two files, with more pairs of one kind than of the other.
    std::fs::write(at("match.csv"), "name,imagenum1,imagenum2\r\nP0,1,2\r\nP1,1,3\r\nP2,1,2\r\n").unwrap();
    std::fs::write(at("mismatch.csv"), "name,imagenum1,name,imagenum2\nP0,1,P1,2\n").unwrap();
    let both = [
        "verify",
        "--pairs",
        &at("match.csv"),
        "--pairs",
        &at("mismatch.csv"),
        "--data",
        &at("data"),
        "--model",
        run(),
    ];
    let output = tercet(&[&both[..], &["--json", "--threshold", "1e30"]].concat());
    ended(&output, 0, &[]);
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    // All pairs are accepted: right for three of four.
    assert_eq!((&outcome["pairs"], &outcome["accuracy_at_threshold"]), (&4.into(), &0.75.into()));
    ended(&tercet(&[&both[..3], &both[5..]].concat()), 2, &["only genuine pairs", "second --pairs"]);
}
