//! `tercet train` in several processes, as torchrun, slurm or mpirun start it.

use crate::program::program;
use serde_json::Value;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Signers, images and steps so few that a run takes seconds.
const SMALL: [&str; 14] = [
    "--signers",
    "8",
    "--encoder",
    "resnet18",
    "--image-size",
    "8",
    "--embedding-dim",
    "8",
    "--classes-per-batch",
    "3",
    "--samples-per-class",
    "4",
    "--val-images",
    "8",
];

/// So that several processes compute what one does.
const F64: [&str; 3] = ["--precision", "f64", "--sync-batch-norm"];

/// How long a process waits for another one.
const TIMEOUT: u64 = 20;

/// Starts the program once for each rank, with what a launcher would set.
fn launched(size: usize, arguments: &[&str], folders: &[&Path]) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = Command::new(program());
        command.arg("train").args(arguments).args(["--device", "cpu"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(
            [("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", size)]
                .map(|(name, value)| (name, value.to_string())),
        );
        command.envs([("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())]);
        command.envs([("TERCET_TIMEOUT", TIMEOUT.to_string()), ("OMP_NUM_THREADS", "1".into())]);
        if let Some(folder) = folders.get(rank) {
            command.current_dir(folder);
        }
        command.spawn().expect("tercet starts")
    };
    (0..size).map(start).collect()
}

fn ended(processes: Vec<Child>) -> Vec<Output> {
    processes.into_iter().map(|process| process.wait_with_output().unwrap()).collect()
}

#[track_caller]
fn succeeded(outputs: &[Output]) {
    for (rank, output) in outputs.iter().enumerate() {
        assert!(output.status.success(), "{rank}: {}", text(output));
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run(size: usize, arguments: &[&str]) -> Vec<Output> {
    let outputs = ended(launched(size, arguments, &[]));
    succeeded(&outputs);
    outputs
}

fn at(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

fn losses(run: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(format!("{run}/metrics.csv")).unwrap();
    text.lines().skip(1).map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect()
}

fn summary(run: &str) -> Value {
    serde_json::from_slice(&std::fs::read(format!("{run}/summary.json")).unwrap()).unwrap()
}

/// With batch norm over all processes the losses are those of one process but for rounding. In f32 a rounding that turns the sign
/// of an activation changes a gradient by a thousandth; in f64 none is seen.
#[test]
fn several_processes_train_as_one_does() {
    let dir = tempfile::tempdir().unwrap();
    for (loss, several, more) in
        [("batch-hard", 3, &[][..]), ("batch-all", 2, &["--memory", "16"]), ("triplet", 2, &["--forwards", "three"])]
    {
        let [alone, together] = [1, several].map(|size| {
            let out = at(dir.path(), &format!("{loss}{}{size}", more.len()));
            let arguments = [&SMALL[..], more, &F64[..], &["--steps", "2", "--loss", loss, "--out", &out]].concat();
            let outputs = run(size, &arguments);
            for other in &outputs[1..] {
                assert_eq!((text(other).as_str(), other.stdout.len()), ("", 0), "only the first process speaks");
            }
            assert_eq!(summary(&out)["processes"], size);
            losses(&out)
        });
        // As metrics.csv has them, with six decimals.
        let are_equal = alone.iter().zip(&together).all(|(one, other)| (one - other).abs() < 1.5e-6);
        assert!(are_equal && together.len() == 2, "{loss} {more:?}: {alone:?} {together:?}");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_processes_and_to_the_bits_with_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (through, stopped) = (at(dir.path(), "through"), at(dir.path(), "stopped"));
    fn all(out: &str) -> Vec<&str> {
        [&SMALL[..], &["--loss", "batch-all", "--evaluate-every", "1", "--out", out]].concat()
    }
    run(2, &[&all(&through)[..], &["--steps", "6"]].concat());
    run(2, &[&all(&stopped)[..], &["--steps", "4"]].concat());
    run(2, &["--resume", &stopped, "--steps", "6"]);
    assert_eq!(losses(&stopped), losses(&through));
    let model = |run: &str| std::fs::read(format!("{run}/encoder.safetensors")).unwrap();
    assert!(model(&stopped) == model(&through), "the same weights");
    run(3, &["--resume", &stopped, "--steps", "8"]);
    assert_eq!((losses(&stopped).len(), &summary(&stopped)["processes"]), (8, &Value::from(3)));
    assert_eq!(losses(&stopped)[..6], losses(&through)[..]);
    // As a launcher does it that starts processes again.
    run(2, &[&all(&stopped)[..], &["--resume-if-any", "--steps", "9"]].concat());
    assert_eq!(losses(&stopped).len(), 9);
}

/// What is asked of one process ends all of them before the same step, and what one process finds wrong ends all.
#[test]
#[cfg(unix)]
fn all_processes_end_together() {
    let dir = tempfile::tempdir().unwrap();
    let out = at(dir.path(), "asked");
    let processes = launched(2, &[&SMALL[..], &["--epochs", "1000", "--out", &out]].concat(), &[]);
    let begin = Instant::now();
    while !Path::new(&format!("{out}/metrics.csv")).exists() || losses(&out).len() < 2 {
        assert!(begin.elapsed() < Duration::from_secs(60), "no step in a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: a signal to a child that nobody has waited for.
    assert_eq!(unsafe { libc::kill(processes[1].id() as i32, libc::SIGTERM) }, 0);
    let outputs = ended(processes);
    for output in &outputs {
        assert_eq!(output.status.code(), Some(143), "{}", text(output));
    }
    let steps = losses(&out).len();
    assert!(text(&outputs[0]).contains(&format!("interrupted: step {steps} is saved")), "{}", text(&outputs[0]));

    // One is killed: the other one names it, and the last checkpoint is whole.
    let mut processes = launched(2, &["--resume", &out], &[]);
    while losses(&out).len() < steps + 2 {
        std::thread::sleep(Duration::from_millis(20));
    }
    processes[1].kill().unwrap();
    let clock = Instant::now();
    let output = ended(processes).remove(0);
    assert!(clock.elapsed() < Duration::from_secs(10), "{:?}", clock.elapsed());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("process 0 of 2"), "{}", text(&output));
    assert!(text(&output).contains("the last checkpoint is kept"), "{}", text(&output));
    run(2, &["--resume", &out, "--steps", &(steps + 3).to_string()]);

    // An error of the first process is said once, and is the exit code of all.
    let outputs = ended(launched(2, &[&SMALL[..], &["--out", &out]].concat(), &[]));
    assert_eq!([&outputs[0], &outputs[1]].map(|output| output.status.code()), [Some(2); 2]);
    assert!(text(&outputs[0]).contains("not empty") && text(&outputs[1]).is_empty(), "{}", text(&outputs[1]));
}

#[test]
fn a_host_with_other_images_is_named_and_so_are_batches_too_small() {
    let dir = tempfile::tempdir().unwrap();
    let folders = [0, 1].map(|host| dir.path().join(format!("host{host}")));
    for (host, folder) in folders.iter().enumerate() {
        std::fs::create_dir(folder).unwrap();
        let signers =
            ["generate", "--identities", "5", "--drawings", "3", "--out", "images", "--seed", &host.to_string()];
        assert!(Command::new(program()).args(signers).current_dir(folder).status().unwrap().success());
    }
    let small = ["--data", "images", "--encoder", "resnet18", "--image-size", "16", "--steps", "1"];
    let outputs = ended(launched(2, &small, &[&folders[0], &folders[1]]));
    for output in &outputs {
        assert_eq!(output.status.code(), Some(2), "{}", text(output));
        assert!(text(output).contains("the images of process 1, on "), "{}", text(output));
    }
    assert!(text(&outputs[1]).starts_with("error: process 1 of 2: "), "{}", text(&outputs[1]));

    let few = ["--classes-per-batch", "2", "--samples-per-class", "2"];
    let outputs = ended(launched(3, &[&small[..], &few].concat(), &[&folders[0], &folders[0], &folders[0]]));
    assert_eq!(outputs[0].status.code(), Some(2), "{}", text(&outputs[0]));
    assert!(text(&outputs[0]).contains("a batch has 4 images for 3 processes"), "{}", text(&outputs[0]));
}
