//! Runs that are killed, interrupted, resumed, or that meet a full disk.

use crate::program::{ended, program, stderr};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Steps per epoch of [`train`] on the images of [`folders`].
const EPOCH: usize = 4;

/// `tercet train` on a small encoder, with `arguments` added.
fn train(data: &Path, arguments: &[&str]) -> Command {
    train_at("32", data, arguments)
}

/// `tercet train` on a small encoder and images of this size, with `arguments` added.
fn train_at(size: &str, data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["train", "--encoder", "resnet18", "--image-size", size, "--device", "cpu", "--val-images", "24"]);
    command.args(["--classes-per-batch", "3", "--samples-per-class", "2", "--hold-out", "group1", "--data"]);
    command.arg(data).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    heeding_signals(command)
}

/// `tercet train --resume`, with `arguments` added.
fn resume(run: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("train").arg("--resume").arg(run).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    heeding_signals(command)
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

/// Asserts that resuming ends with exit code 2 and these words.
#[track_caller]
fn refuse(run: &Path, arguments: &[&str], words: &[&str]) {
    ended(&resume(run, arguments).output().unwrap(), 2, words);
}

/// Writes 24 images of 6 identities to train on, and as many to evaluate; returns their folder.
fn folders(root: &Path) -> std::path::PathBuf {
    let data = root.join("data");
    for identity in 0..12 {
        let own = data.join(format!("group{}/writer{identity:02}", identity % 2));
        std::fs::create_dir_all(&own).unwrap();
        for index in 0..4 {
            let ink = |x: u32, y: u32| (x as usize * (identity + 1) + y as usize + index).is_multiple_of(7);
            let picture = image::GrayImage::from_fn(20, 20, |x, y| image::Luma([if ink(x, y) { 0 } else { 255 }]));
            picture.save(own.join(format!("{index}.png"))).unwrap();
        }
    }
    data
}

fn summary(run: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(run.join("summary.json")).unwrap()).unwrap()
}

/// The lines of `metrics.csv` without the columns that are times.
fn metrics(run: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(run.join("metrics.csv")).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).skip(1);
    let columns = |line: &str| line.trim_end().split(',').map(str::to_owned).collect::<Vec<_>>();
    whole.map(columns).map(|c| [0, 1, 2, 5, 6].map(|i| c[i].clone()).to_vec()).collect()
}

/// The step that a run folder's checkpoint was saved after.
fn saved(run: &Path) -> usize {
    let bytes = std::fs::read(run.join("checkpoint.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let document: Value = serde_json::from_str(header["__metadata__"]["tercet"].as_str().unwrap()).unwrap();
    document["state"]["step"].as_u64().unwrap() as usize
}

/// Waits for a condition; fails if the run ends before.
#[track_caller]
fn wait(child: &mut Child, what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before {what}");
        assert!(start.elapsed() < Duration::from_secs(60), "no {what} in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `INT` as Ctrl-C, `TERM` as `kill` and job schedulers, `HUP` as a connection that is lost.
fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// Lets signals end the program unless it handles them, even if the tests themselves run under `nohup`, or in a script's
/// background, where a shell has Ctrl-C ignored.
fn heeding_signals(mut command: Command) -> Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: `signal` may be called between fork and exec; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    command
}

/// Waits until the run says `words`. Returns the rest of its lines, so that the pipe stays open.
#[track_caller]
fn wait_for(child: &mut Child, words: &str) -> std::io::Lines<BufReader<ChildStderr>> {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines.by_ref() {
        said.push(line.unwrap());
        if said.last().unwrap().contains(words) {
            return lines;
        }
    }
    panic!("the run ended without {words:?}: {said:?}");
}

#[track_caller]
fn same_results(one: &Path, other: &Path) {
    assert_eq!(metrics(one), metrics(other));
    let weights = |run: &Path| std::fs::read(run.join("encoder.safetensors")).unwrap();
    assert!(weights(one) == weights(other), "the weights differ");
    let (a, b) = (summary(one), summary(other));
    for (key, value) in a.as_object().unwrap() {
        if !["seconds", "images_per_second", "seconds_waited"].contains(&key.as_str()) {
            assert_eq!(value, &b[key], "{key}");
        }
    }
}

#[test]
fn a_killed_and_an_interrupted_run_go_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let data = folders(dir.path());
    let at = |name: &str| dir.path().join(name);
    // Everything that a checkpoint must carry: moments, the place in the schedule, evaluations, the best weights, a
    // memory that fills in the third step and wraps around, and the step that seeds the draws.
    let options = ["--epochs", "3", "--schedule", "cosine", "--warmup-steps", "3", "--weight-decay", "0.001"];
    let options = [&options[..], &["--evaluate-every", "1", "--patience", "9", "--loss", "batch-negative"]].concat();
    let options = [&options[..], &["--negative", "random", "--memory", "16"]].concat();
    let start = |out: &Path| train(&data, &[&options[..], &["--out", out.to_str().unwrap()]].concat());
    succeeded(&start(&at("whole")).output().unwrap());
    assert_eq!(metrics(&at("whole")).len(), 3 * EPOCH);

    // Killed before the first step, as soon as there is a checkpoint. The folder has a space, as the printed command
    // must work when it is typed.
    let run = at("a run");
    let mut child = start(&run).spawn().unwrap();
    wait(&mut child, "the first checkpoint", || run.join("checkpoint.safetensors").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let done = saved(&run);

    // Interrupted in the first epoch: a checkpoint need not lie between two epochs.
    let mut child = resume(&run, &[]).spawn().unwrap();
    wait(&mut child, "step 2", || metrics(&run).len() >= 2.max(done + 1));
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    let typed = format!("is saved; to go on: tercet train --resume '{}'", run.display());
    ended(&output, 130, &[&typed]);
    assert!(stderr(&output).contains("before: EER"), "from the checkpoint, not measured again");
    assert_eq!(saved(&run), metrics(&run).len(), "nothing is lost");
    assert!(saved(&run) < 2 * EPOCH && !run.join("summary.json").exists());

    // Line ends that an editor or git has changed meanwhile do not break the metrics.
    let csv = run.join("metrics.csv");
    std::fs::write(&csv, std::fs::read_to_string(&csv).unwrap().replace('\n', "\r\n")).unwrap();

    // Killed in the middle of a later epoch: at most that epoch is lost.
    let mut child = resume(&run, &["--weight-decay", "0.001"]).spawn().unwrap();
    wait(&mut child, "step 9", || metrics(&run).len() > 2 * EPOCH);
    child.kill().unwrap();
    child.wait().unwrap();
    let (done, kept) = (metrics(&run).len(), saved(&run));
    assert!(!run.join("summary.json").exists(), "it was over before it was killed");
    assert!(kept >= 2 * EPOCH && kept <= done && done - kept <= EPOCH, "{kept} of {done}");

    // A killed process leaves no lock. Images that are decoded again for each batch are the same images.
    let output = resume(&run, &["--image-cache", "0", "--workers", "3"]).output().unwrap();
    succeeded(&output);
    assert!(stderr(&output).contains("0 images in memory, 48 decoded for each batch"), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).lines().last().unwrap().ends_with(run.to_str().unwrap()));
    same_results(&at("whole"), &run);
}

#[test]
fn a_second_interrupt_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = folders(dir.path());
    let out = dir.path().join("run");
    // An evaluation of many seconds, which only a second interrupt ends at once.
    let options = ["--encoder", "resnet18", "--image-size", "512", "--out", out.to_str().unwrap()];
    let mut command = Command::new(program());
    command.args(["train", "--device", "cpu", "--hold-out", "group1", "--data"]).arg(&data).args(options);
    command.stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = heeding_signals(command).spawn().unwrap();
    let _open = wait_for(&mut child, "evaluated on");
    // Nobody else may use the folder meanwhile.
    let other = train(&data, &["--out", out.to_str().unwrap()]).output().unwrap();
    ended(&other, 2, &["--out", "in use by process"]);
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "the first one only asks");
    let clock = Instant::now();
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(clock.elapsed() < Duration::from_secs(2));
    assert!(!out.join("checkpoint.safetensors").exists(), "it did not wait to save");
}

#[test]
fn a_signal_is_heard_wherever_the_run_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = folders(dir.path());
    // Evaluations of many batches of large images, which take seconds.
    let start = |run: &Path, options: &[&str]| {
        let fixed = ["--steps", "1", "--out", run.to_str().unwrap()];
        train_at("160", &data, &[&fixed[..], options].concat()).spawn().unwrap()
    };
    // In the evaluation before training there is nothing to save, and the folder can be used again.
    let run = dir.path().join("run");
    let mut child = start(&run, &[]);
    let mut rest = wait_for(&mut child, "evaluated on");
    signal(&child, "TERM");
    assert!(rest.any(|line| line.unwrap().contains("nothing is saved")));
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 1, "the lock's file alone");

    // In the evaluation after the last step that step is saved, even if no checkpoint was asked for.
    let mut child = start(&run, &["--checkpoint-every", "0"]);
    let mut rest = wait_for(&mut child, "step 1  loss");
    signal(&child, "HUP");
    assert!(rest.any(|line| line.unwrap().contains("step 1 is saved; to go on: tercet train --resume")));
    assert_eq!(child.wait().unwrap().code(), Some(129));
    assert!(saved(&run) == 1 && !run.join("summary.json").exists());
    let output = resume(&run, &[]).output().unwrap();
    succeeded(&output);
    assert_eq!(summary(&run)["steps"], 1);

    // A run that was started with a signal ignored (`nohup`) goes on ignoring it, and works if nobody reads what it
    // says.
    let quiet = dir.path().join("quiet");
    let words = ["--steps", "2", "--out", quiet.to_str().unwrap()];
    let command = train(&data, &words);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let mut child = shell.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(wait_for(&mut child, "evaluated on"));
    signal(&child, "HUP");
    assert!(child.wait().unwrap().success());
    assert_eq!(summary(&quiet)["steps"], 2);
}

/// Wherever a run is killed, it goes on to the same bits, or begins again in the same folder.
#[test]
fn a_run_that_is_killed_again_and_again_comes_to_the_same_end() {
    let dir = tempfile::tempdir().unwrap();
    let data = folders(dir.path());
    let options = ["--epochs", "2", "--evaluate-every", "1", "--patience", "9", "--loss", "batch-all", "--memory", "8"];
    let start = |out: &Path| train(&data, &[&options[..], &["--out", out.to_str().unwrap()]].concat());
    let [whole, run] = ["whole", "run"].map(|name| dir.path().join(name));
    let clock = Instant::now();
    succeeded(&start(&whole).output().unwrap());
    let all = clock.elapsed();
    // Killed later each time: in the first evaluation, a checkpoint, a step, an evaluation, the report.
    let begin = || if run.join("checkpoint.safetensors").exists() { resume(&run, &[]) } else { start(&run) };
    for part in 1..=6 {
        let mut child = begin().spawn().unwrap();
        let clock = Instant::now();
        while clock.elapsed() < all * part / 12 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        child.wait().unwrap();
    }
    if !run.join("summary.json").exists() {
        succeeded(&begin().output().unwrap());
    }
    same_results(&whole, &run);
    let left = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.ends_with(".partial")).count(), 0);
}

/// A folder whose name is Latin-1, as in old archives, works like any other, and is stored with the run.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_not_utf_8_work() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let latin = dir.path().join(OsStr::from_bytes(b"caf\xe9 1"));
    std::fs::create_dir(&latin).unwrap();
    let data = folders(&latin);
    let run = latin.join("run");
    let mut command = train(&data, &["--steps", "1"]);
    let output = command.arg("--out").arg(&run).output().unwrap();
    succeeded(&output);
    let printed = output.stdout.split(|&byte| byte == b'\n').rfind(|line| !line.is_empty()).unwrap();
    assert_eq!(printed, run.as_os_str().as_bytes(), "a script can go on with it");
    succeeded(&resume(&run, &["--steps", "2"]).output().unwrap());
    assert_eq!(summary(&run)["steps"], 2);
    let report = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("caf\\351 1/run"), "the commands are to be typed");
}

#[test]
fn a_run_goes_on_only_as_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let data = folders(dir.path());
    let run = dir.path().join("run");
    let run_text = run.to_str().unwrap().to_owned();
    succeeded(&train(&data, &["--epochs", "1", "--out", &run_text]).output().unwrap());
    let contents = || {
        let entries = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().path());
        entries.map(|file| (file.clone(), std::fs::read(file).unwrap())).collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = contents();
    let held = std::fs::File::open(run.join("lock")).unwrap();
    assert!(fs4::fs_std::FileExt::try_lock_exclusive(&held).unwrap());
    refuse(&run, &["--epochs", "2"], &["--resume", &run_text, "in use by another process"]);
    drop(held);
    refuse(&run, &["--margin", "0.5"], &["--margin 0.5", "has 0.2"]);
    refuse(&run, &["--loss", "batch-hard", "--epochs", "2"], &["--loss batch-hard", "has triplet"]);
    refuse(&run, &[], &["its 4 steps are done", "--epochs"]);
    refuse(&run, &["--out", "elsewhere"], &["--resume", "--out"]);
    refuse(&dir.path().join("absent"), &[], &["absent"]);
    refuse(dir.path(), &[], &["no checkpoint.safetensors in it"]);
    assert!(!dir.path().join("lock").exists());
    let extra = data.join("group0/writer00/extra.png");
    std::fs::copy(data.join("group0/writer00/0.png"), &extra).unwrap();
    refuse(&run, &["--epochs", "2"], &["images of", "others than when the run began"]);
    std::fs::remove_file(extra).unwrap();
    assert!(contents() == before, "nothing is overwritten");

    // As if killed in the last evaluation, after the last step: resuming evaluates again.
    std::fs::remove_file(run.join("summary.json")).unwrap();
    std::fs::remove_file(run.join("encoder.safetensors")).unwrap();
    succeeded(&resume(&run, &[]).output().unwrap());
    assert_eq!(summary(&run)["steps"], EPOCH);
    let weights = run.join("encoder.safetensors");
    assert!(std::fs::read(&weights).unwrap() == before[&weights], "the weights differ");

    // A limit on file sizes acts as a full disk: the first epoch's checkpoint survives, and the run goes on from it.
    let shell =
        format!("trap '' XFSZ; ulimit -f 2000; exec {} train --resume {run_text} --epochs 2", program().display());
    let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
    ended(&output, 1, &["cannot write", "checkpoint.safetensors", "the last checkpoint is kept", "--resume"]);
    assert_eq!((saved(&run), metrics(&run).len()), (EPOCH, 2 * EPOCH));
    let left = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains("partial") || name == "summary.json").count(), 0);
}

#[test]
fn every_way_to_train_trains() {
    let dir = tempfile::tempdir().unwrap();
    let data = folders(dir.path());
    let run = |name: &str, options: &[&str]| {
        let out = dir.path().join(name);
        let options = [options, &["--checkpoint-every", "0", "--out", out.to_str().unwrap()]].concat();
        let output = train(&data, &options).output().unwrap();
        (out, output)
    };
    for (name, options) in [
        ("bf16", &["--precision", "bf16", "--steps", "2"][..]),
        ("f16", &["--precision", "f16", "--steps", "2", "--loss", "batch-hard"]),
        ("three", &["--forwards", "three", "--batch-triplets", "4", "--steps", "2"]),
    ] {
        let (out, output) = run(name, options);
        succeeded(&output);
        assert_eq!(summary(&out)["steps"], 2, "{name}");
        assert!(!out.join("checkpoint.safetensors").exists());
    }
    for (options, words) in [
        (&["--forwards", "three", "--loss", "batch-hard"][..], ["--forwards three", "--loss triplet"]),
        (&["--memory", "64"], ["--memory 64", "--loss batch-all"]),
        (&["--swap", "--loss", "batch-hard"], ["--swap", "--loss triplet"]),
        (&["--soft-margin", "--margin", "1", "--loss", "batch-hard"], ["--margin 1", "--soft-margin"]),
    ] {
        let (out, output) = run("refused", options);
        ended(&output, 2, &words);
        assert!(!out.exists());
    }

    // At this rate the weights do not move: the second evaluation is no better than the first.
    let (out, output) = run("still", &["--learning-rate", "1e-30", "--patience", "1", "--epochs", "9"]);
    succeeded(&output);
    let summary = summary(&out);
    assert_eq!((&summary["ended_by"], &summary["steps"]), (&"patience".into(), &(2 * EPOCH).into()));
    assert_eq!(summary["eer_before"], summary["eer_after"]);
}
