//! The program as a user runs it: exit codes, messages, and a whole short run.

use crate::program::{ended, program, stderr, tercet};
use std::path::Path;
use std::process::{Command, Output};

/// Runs `train` on a small encoder with `arguments` added.
fn train(out: &Path, arguments: &[&str]) -> Output {
    let out = out.to_str().unwrap();
    let mut all = vec!["train", "--encoder", "resnet18", "--image-size", "32", "--device", "cpu"];
    all.extend(["--steps", "2", "--classes-per-batch", "3", "--samples-per-class", "2"]);
    all.extend(["--val-images", "24", "--out", out]);
    all.extend(arguments);
    tercet(&all)
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    ended(output, 2, words);
}

/// Writes folders of `identities`, each with `images` little pictures.
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
            "seconds_waited",
            "skipped_images",
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
        assert_eq!(
            (lines.len(), lines[0]),
            (3, "epoch,step,loss,seconds,images_per_second,active,learning_rate,waited")
        );
        let column = |line: &&str| line.split(',').nth(2).unwrap().to_owned();
        losses.push(lines[1..].iter().map(column).collect::<Vec<_>>());
    }
    assert_eq!(losses[0], losses[1], "the same seed, the same losses");

    // The weights load again, also by way of torch.save and under a head of another size.
    let own = dir.path().join("first/encoder.safetensors");
    let weights = converted(&own).unwrap_or_else(|| {
        eprintln!("not converted: there is no .venv/bin/python");
        dir.path().join("copy.safetensors")
    });
    if !weights.exists() {
        std::fs::copy(&own, &weights).unwrap();
    }
    let arguments = ["--weights", weights.to_str().unwrap(), "--embedding-dim", "16"];
    let data = ["--data", data.to_str().unwrap()];
    let output = train(&dir.path().join("again"), &[&arguments[..], &data[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));

    // A run resumes with the weights that it began with, or not at all.
    std::fs::write(&weights, std::fs::read(&own).unwrap().repeat(2)).unwrap();
    let again = dir.path().join("again");
    let resumed = tercet(&["train", "--resume", again.to_str().unwrap(), "--steps", "3"]);
    refused(&resumed, &["--resume", "--weights is another file"]);

    // Weights that map every image to one embedding, at a learning rate that leaves them so: said once, and in the
    // report.
    let mut equal = std::fs::read(&own).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&equal).unwrap();
    let (from, to) = metadata.tensors()["fc.weight"].data_offsets;
    equal[8 + header + from..8 + header + to].fill(0);
    std::fs::write(&weights, equal).unwrap();
    let out = dir.path().join("collapsed");
    let options = ["--learning-rate", "1e-30", "--steps", "51", "--image-size", "16", "--seed", "1"];
    let fixed = ["train", "--encoder", "resnet18", "--device", "cpu", "--classes-per-batch", "2", "--val-images", "12"];
    let paths = ["--samples-per-class", "2", "--weights", weights.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let output = tercet(&[&fixed[..], &options, &paths, &data].concat());
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("the embeddings have collapsed").count(), 1, "{text}");
    assert!(text.contains("warning: at step 50 the loss has stayed at 0.2000"), "{text}");
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert!(read("summary.json").contains("\"collapsed_at\": 50"));
    assert!(read("report.html").contains("at step 50 the loss has stayed"));
}

#[test]
fn bad_images_are_skipped_by_name_or_stop_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    folders(&data, 4, 3);
    std::fs::write(data.join("group0/writer0/torn.jpg"), b"not a picture").unwrap();
    let data = data.to_str().unwrap();
    let output = train(&dir.path().join("skip"), &["--data", data]);
    let text = stderr(&output);
    assert!(output.status.success() && text.contains("torn.jpg") && text.contains("the encoder waited"), "{text}");
    let summary = std::fs::read_to_string(dir.path().join("skip/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["skipped_images"], 1);
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

    folders(&dir.path().join("single"), 8, 1);
    refused(&train(&out, &["--data", &at("single")]), &["one image only"]);

    folders(&dir.path().join("good"), 4, 2);
    let good = at("good");
    refused(&train(&out, &["--data", &good, "--weights", &at("w.safetensors")]), &["w.safetensors"]);

    // All pictures are unreadable.
    for identity in 0..4 {
        std::fs::create_dir_all(dir.path().join(format!("torn/{identity}"))).unwrap();
        std::fs::write(dir.path().join(format!("torn/{identity}/a.jpg")), b"GIF89a").unwrap();
    }
    refused(&train(&out, &["--data", &at("torn")]), &["skipped", "a.jpg", "training", "no identity"]);

    refused(&tercet(&["train", "--device", "tpu"]), &["tpu", "cuda:N"]);
    refused(&tercet(&["train", "--device", "cuda:99"]), &["cuda:99", "GPUs"]);
    refused(&train(&out, &["--margin", "-1"]), &["--margin"]);
    refused(&train(&dir.path().join("good"), &[]), &["--out", "not empty"]);
    let file = at("good/group0/writer0/0.png");
    refused(&train(Path::new(&file), &[]), &["--out", "0.png"]);
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

    // With forgeries there are two folders, with the same names in both, so that each forgery tells whom it forges.
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
    for (loss, options, distance) in [
        ("triplet", &["--distance", "lp:1", "--swap"][..], "L1"),
        ("batch-all", &["--mean-over", "valid", "--reduction", "sum"], "squared Euclidean"),
        ("batch-hard", &[], "Euclidean"),
        ("batch-semi-hard", &["--memory", "8"], "squared Euclidean"), // full in the second step
        ("batch-negative", &["--negative", "hardest", "--pairs", "once", "--distance", "cosine"], "cosine"),
        ("batch-contrastive", &["--negative", "all"], "Euclidean"),
        ("contrastive", &[], "Euclidean"),
    ] {
        let out = dir.path().join(loss);
        let few = ["--signers", "12", "--checkpoint-every", "0"];
        let output = train(&out, &[&few[..], &["--loss", loss], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        assert_eq!((&summary["loss"], &summary["steps"]), (&loss.into(), &2.into()));
        assert!(summary["collapsed_at"].is_null());
        // The model and the report name the distance that was trained with.
        let model: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("model.json")).unwrap()).unwrap();
        assert_eq!(model["distance"], distance);
        let report = std::fs::read_to_string(out.join("report.html")).unwrap();
        assert!(report.contains(&format!("{loss}, {distance} distance")), "{loss}");
        for (key, value) in options.chunks_exact(2).map(|option| (option[0], option[1])) {
            let stored = &summary["loss_options"][key.trim_start_matches('-').replace('-', "_")];
            assert!(stored == value || stored.is_null(), "{key} {value}: {stored}");
        }
    }
    let output = train(&dir.path().join("none"), &["--loss", "nothing"]);
    refused(&output, &["--loss", "triplet", "batch-all", "batch-hard"]);
}

#[test]
fn numbers_at_their_ends_are_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    folders(&data, 6, 4);
    const MOST: &str = "18446744073709551615"; // the largest u64
    let fixed = ["train", "--encoder", "resnet18", "--device", "cpu", "--image-size", "16", "--steps", "1"];
    let most = [
        "--epochs",
        "--warmup-steps",
        "--evaluate-every",
        "--patience",
        "--checkpoint-every",
        "--image-cache",
        "--seed",
    ];
    let mut all = fixed.to_vec();
    most.iter().for_each(|option| all.extend([*option, MOST]));
    all.extend(["--time-limit", "1e19", "--classes-per-batch", "1000000", "--samples-per-class", "1000000"]);
    all.extend(["--margin", "1e9", "--learning-rate", "1e-300", "--augment", "10", "--val-split", "0.999999999999"]);
    all.extend(["--val-images", "20000", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let output = tercet(&all);
    assert!(output.status.success(), "{}", stderr(&output));
    // The run resumes from the first step's checkpoint, with a time limit near the largest f64.
    let output = tercet(&["train", "--resume", out.to_str().unwrap(), "--steps", "2", "--time-limit", "1.7e308"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_written_is_said_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let absent = absent.to_str().unwrap();
    // A file system that nobody can write to; the images are missing too, but that is checked later.
    if cfg!(target_os = "linux") {
        let never = "/proc/tercet/run";
        refused(
            &tercet(&["train", "--data", absent, "--out", never]),
            &["--out /proc/tercet/run", "cannot write to /proc"],
        );
        refused(&tercet(&["eval", absent, "--model", absent, "--out", never]), &["--out", "cannot write to /proc"]);
        refused(
            &tercet(&["embed", absent, "--model", absent, "--out", "/proc/x"]),
            &["--out", "cannot write to /proc"],
        );
        refused(&tercet(&["compare", absent, "--out", "/proc/x.png"]), &["--out", "cannot write to /proc"]);
        refused(&tercet(&["generate", "--out", never]), &["--out"]);
        let there = Command::new(program()).args(["train", "--data", absent]).current_dir("/proc").output().unwrap();
        refused(&there, &["--out", "cannot write"]);
    }
    let used = dir.path().join("used");
    std::fs::create_dir(&used).unwrap();
    std::fs::write(used.join("mine"), b"mine").unwrap();
    let used = used.to_str().unwrap();
    refused(&tercet(&["train", "--data", absent, "--out", used]), &["--out", "not empty"]);
    refused(&tercet(&["eval", absent, "--model", absent, "--out", used]), &["--out", "not empty"]);
    refused(&tercet(&["generate", "--out", used]), &["--out", "not empty"]);
    let file = dir.path().join("used/mine");
    refused(
        &tercet(&["embed", absent, "--model", absent, "--out", file.to_str().unwrap()]),
        &["--out", "already there"],
    );
    assert_eq!(std::fs::read(file).unwrap(), b"mine");
}

/// The Python that set-up made, if there is one.
fn python() -> Option<std::path::PathBuf> {
    let venv = std::env::var_os("TERCET_VENV").filter(|venv| !venv.is_empty());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = venv.map_or(root.join(".venv"), Into::into).join("bin/python");
    python.exists().then_some(python)
}

/// Saves the weights by torch.save, under a classifier's head and with the counts that torchvision keeps, and converts
/// them back by `convert_weights.py`, which names what is wrong and overwrites nothing.
const CONVERT: &str = r#"
import json, runpy, sys, torch

script, own, pth, converted = sys.argv[1:]
data = open(own, "rb").read()
start = 8 + int.from_bytes(data[:8], "little")
tensors = {}
for name, entry in json.loads(data[8:start]).items():
    if name != "__metadata__":
        a, b = entry["data_offsets"]
        values = torch.frombuffer(bytearray(data[start + a : start + b]), dtype=torch.float32)
        tensors[name] = values.reshape(entry["shape"])
tensors["bn1.num_batches_tracked"] = torch.tensor(7)
tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
torch.save(tensors, pth)

def convert(*arguments):
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code

assert convert(pth, converted) is None
for wrong in [(pth, converted), (converted, pth + ".safetensors"), (pth, "odd.pth"), (pth + "x", "x.safetensors"), ()]:
    assert convert(*wrong) == 2, wrong
"#;

/// A file of torch.save made of `own`, converted back; `None` if there is no Python.
fn converted(own: &Path) -> Option<std::path::PathBuf> {
    let [pth, converted] = ["pth", "converted.safetensors"].map(|extension| own.with_extension(extension));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("convert_weights.py");
    let output = Command::new(python()?).args(["-c", CONVERT]).args([&script, own, &pth, &converted]).output().unwrap();
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    for words in
        ["already there", "not a checkpoint of torch.save", "must end in .safetensors", "no such file", "usage"]
    {
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
    let [before, after] = [own, &converted].map(|file| std::fs::read(file).unwrap());
    let [before, after] = [&before, &after].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    for name in ["conv1.weight", "layer4.1.bn2.running_var"] {
        assert_eq!(before.tensor(name).unwrap(), after.tensor(name).unwrap(), "{name}");
    }
    assert_eq!(after.tensor("fc.weight").unwrap().shape(), [1000, 512]);
    Some(converted)
}
