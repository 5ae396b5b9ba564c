//! What goes wrong, and what the other processes say of it and when: text, exit code and seconds.

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tch::{Device, Kind, Tensor};
use tercet::torch::distributed::{Options, ProcessGroup, average};
use tercet::{BatchAllTripletLoss, BatchHardTripletLoss, Distance, Error};

use super::setting::{over, unavailable};
use crate::support::processes::{Ended, Process, free_port, is_inside, launched, test_alone};

/// The timeout of these groups, in seconds: longer than processes take to meet where many begin at once on two cores.
pub const TIMEOUT: f64 = 8.0;
/// How much later than a process learns of it an error may come, on a busy machine.
const LATE: f64 = 3.0;
/// The exit code of a process with an error.
const FAILED: i32 = 3;
/// The exit codes of processes that a signal has ended.
const KILLED: i32 = 128 + libc::SIGKILL;
const ABORTED: i32 = 128 + libc::SIGABRT;
/// The exit code of the test's program if a test panics.
const PANICKED: i32 = 101;
/// In this step a process does what is wrong.
const FAULT_AT: usize = 3;

/// Steps of a training, in the process of rank 1 with a fault; for the tests that start it, of which this is no part otherwise.
#[test]
fn faulty() {
    if !is_inside() {
        return;
    }
    let fault = std::env::var("TERCET_TEST_FAULT").unwrap();
    if let Err(error) = steps(&fault) {
        say(&format!("error at {:.3}: {error}", now()));
        std::process::exit(FAILED);
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn say(text: &str) {
    println!("\n{text}");
    std::io::stdout().flush().unwrap();
}

pub fn steps(fault: &str) -> Result<(), Error> {
    tch::set_num_threads(1);
    say(&format!("begin at {:.3}", now()));
    let options = Options { checks: fault != "other sizes, unchecked", ..Options::from_env()? };
    let mark = std::env::var_os("TERCET_TEST_MARK");
    let group = if fault.is_empty() && mark.is_none() {
        ProcessGroup::new(&options)?
    } else {
        // On a busy machine processes begin seconds apart, which is not the fault that is meant.
        let patient = Options { timeout: Duration::from_secs(60), name: "begin".into(), ..options.clone() };
        let patient = ProcessGroup::new(&patient)?;
        patient.barrier()?;
        ProcessGroup::new(&options)?
    };
    let loss_fn = BatchAllTripletLoss { margin: 1.0, ..Default::default() };
    let shards = group.shards(16)?;
    for step in 0..FAULT_AT + 3 {
        let fault = if step == FAULT_AT && group.rank() == 1 { fault } else { "" };
        let fault_at = || say(&format!("fault at {:.3}", now()));
        let signal = |signal| {
            fault_at();
            // SAFETY: ends or stops this process.
            unsafe { libc::kill(libc::getpid(), signal) };
        };
        match fault {
            "kill -9 in forward" => signal(libc::SIGKILL),
            "SIGSTOP" => signal(libc::SIGSTOP),
            "a return" => {
                fault_at();
                return Ok(());
            }
            "a panic" => {
                fault_at();
                panic!("on purpose");
            }
            "a step more" => {
                fault_at();
                group.barrier()?;
            }
            "other sizes, unchecked" => {
                fault_at();
                let _ = group.all_gather(&Tensor::zeros([4000], (Kind::Float, Device::Cpu)))?.wait()?;
            }
            _ => {}
        }
        let x = Tensor::randn([16, 32], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let y = Tensor::arange(16, (Kind::Int64, Device::Cpu)).remainder(5);
        let loss = loss_fn.on(&x, &y).over(&shards).f_forward()?;
        if fault == "kill -9 in backward" {
            signal(libc::SIGKILL);
        }
        loss.f_backward()?;
        average(&mut [x.grad()], &group)?;
        if let Some(mark) = mark.as_ref().filter(|_| step == FAULT_AT) {
            // The network may now be cut.
            std::fs::write(mark, "").unwrap();
            loop {
                group.any(&[false])?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    group.barrier()
}

/// Starts [`faulty`].
fn start(fault: &str, variables: &[(&'static str, String)]) -> Process {
    let mut command = test_alone(module_path!(), "faulty");
    command.env("TERCET_TEST_FAULT", fault).env("TERCET_TIMEOUT", TIMEOUT.to_string());
    Process::start(command.envs(variables.iter().map(|(name, value)| (*name, value))))
}

/// The time after `word` in what a process printed.
fn time_of(output: &str, word: &str) -> Option<f64> {
    output.lines().find_map(|line| line.strip_prefix(word)?.trim_start().split(':').next()?.parse().ok())
}

fn text_of(output: &str) -> &str {
    output.lines().find_map(|line| line.strip_prefix("error at ")?.split_once(": ")).map_or("", |(_, text)| text)
}

/// A line of docs/distributed.md, and the assertion of what it says.
fn check(what: &str, ended: &Ended, since: f64, code: i32, text: &str, seconds: std::ops::Range<f64>) {
    let said = text_of(&ended.output);
    let after = time_of(&ended.output, "error at").map_or(f64::NAN, |at| at - since);
    println!("{what} | exit {} after {after:.2} s | {said}", ended.code);
    assert!(ended.code == code && said.contains(text), "{what}: {ended:?}");
    assert!(seconds.contains(&after), "{what}: after {after} s\n{ended:?}");
}

/// Three processes, of which that of rank 1 does something wrong: how the others end.
fn of_three(fault: &'static str, own: i32, others: i32, text: &str, seconds: std::ops::Range<f64>) {
    let port = free_port();
    let mut processes: Vec<Process> = (0..3).map(|rank| start(fault, &launched(rank, 3, port))).collect();
    let odd = processes.remove(1);
    let limit = Duration::from_secs(40);
    let ended: Vec<Ended> = processes.into_iter().map(|process| process.ended(limit)).collect();
    odd.signal(libc::SIGCONT);
    let odd = odd.ended(limit);
    let since = time_of(&odd.output, "fault at").unwrap_or_else(|| panic!("{fault}: {odd:?} {ended:?}"));
    assert_eq!(odd.code, own, "{fault}: {odd:?}");
    for (ended, rank) in ended.iter().zip([0, 2]) {
        let text = text.replace("RANK", &rank.to_string());
        check(&format!("{fault}, process {rank}"), ended, since, others, &text, seconds.clone());
    }
}

#[test]
fn a_process_that_is_lost_or_hangs() {
    if unavailable("a_process_that_is_lost_or_hangs") {
        return;
    }
    // A few at a time: each begins three processes.
    std::thread::scope(|scope| {
        // It goes on when the others have ended.
        scope.spawn(|| of_three("SIGSTOP", FAILED, FAILED, "Timed out waiting", TIMEOUT - 1.0..TIMEOUT + LATE));
        for (fault, own) in
            [("kill -9 in forward", KILLED), ("kill -9 in backward", KILLED), ("a return", 0), ("a panic", PANICKED)]
        {
            of_three(fault, own, FAILED, "process RANK of 3: ", 0.0..LATE);
        }
        let text = "processes 0 and 1 make different calls: a loss and barrier";
        of_three("a step more", FAILED, FAILED, text, 0.0..LATE);
    });
}

/// Why sizes are compared: without it a receiver of more than it expects is ended by gloo.
#[test]
fn without_checks_other_sizes_end_a_process() {
    if unavailable("without_checks_other_sizes_end_a_process") {
        return;
    }
    let port = free_port();
    let fault = "other sizes, unchecked";
    let processes: Vec<Process> = (0..2).map(|rank| start(fault, &launched(rank, 2, port))).collect();
    let ended: Vec<Ended> = processes.into_iter().map(|process| process.ended(Duration::from_secs(40))).collect();
    let codes: Vec<i32> = ended.iter().map(|ended| ended.code).collect();
    println!("{fault}: exit {codes:?}");
    assert!(codes.contains(&ABORTED) && !codes.contains(&0), "{ended:?}");
}

#[test]
fn processes_that_do_not_meet() {
    if unavailable("processes_that_do_not_meet") {
        return;
    }
    let limit = Duration::from_secs(40);
    let begun = |ended: &Ended| time_of(&ended.output, "begin at").unwrap_or_else(|| panic!("{ended:?}"));
    let each = |what: &str, ranks: &[(usize, usize)], port: u16, expected: &[(&str, std::ops::Range<f64>)]| {
        // What is said at once is not said for a timeout.
        let timeout = if ranks.len() > 1 { 60.0 } else { TIMEOUT };
        let timeout = ("TERCET_TIMEOUT", timeout.to_string());
        let start = |(rank, size): &(usize, usize)| {
            let variables: Vec<_> = launched(*rank, *size, port).into_iter().chain([timeout.clone()]).collect();
            start("", &variables)
        };
        let processes: Vec<Process> = ranks.iter().map(start).collect();
        let ended: Vec<Ended> = processes.into_iter().map(|process| process.ended(limit)).collect();
        let last = ended.iter().map(begun).fold(0.0, f64::max);
        ended.iter().zip(expected).for_each(|(ended, (text, seconds))| {
            check(what, ended, last, FAILED, text, seconds.clone());
        });
    };
    let at_once = -1.0..LATE;
    let in_time = TIMEOUT - 1.0..TIMEOUT + LATE;
    std::thread::scope(|scope| {
        let text = "after 8000 ms these ranks of 2 have not come: 1";
        scope.spawn(|| each("a process that does not come", &[(0, 2)], free_port(), &[(text, in_time.clone())]));
        let text = "nobody listens there after 8.0 s: Connection refused";
        scope.spawn(|| each("a wrong address", &[(1, 2)], free_port(), &[(text, in_time.clone())]));
        scope.spawn(|| {
            let taken = TcpListener::bind(("0.0.0.0", free_port())).unwrap();
            let port = taken.local_addr().unwrap().port();
            let expected = [("EADDRINUSE", at_once.clone())];
            each("a port in use, rank 0", &[(0, 2)], port, &expected);
            let expected = [("another program may have the port", in_time.clone())];
            each("a port in use, rank 1", &[(1, 2)], port, &expected);
        });
        scope.spawn(|| {
            let expected = ["", "", ""].map(|text| (text, at_once.clone()));
            each("two ranks alike", &[(0, 3), (1, 3), (1, 3)], free_port(), &expected);
        });
        scope.spawn(|| {
            let expected = ["", ""].map(|text| (text, at_once.clone()));
            each("another WORLD_SIZE", &[(0, 2), (1, 3)], free_port(), &expected);
        });
        scope.spawn(|| {
            let two = [("LOCAL_WORLD_SIZE", "1".to_string())];
            let variables: Vec<_> = launched(0, 2, free_port()).into_iter().chain(two).collect();
            let ended = start("", &variables).ended(limit);
            check(
                "a loopback address of two hosts",
                &ended,
                begun(&ended),
                FAILED,
                "GLOO_SOCKET_IFNAME",
                at_once.clone(),
            );
        });
    });
}

/// Losses that the processes call with something else, and what they then say; the group goes on each time.
#[test]
fn a_loss_that_differs_is_refused_in_all() {
    over(module_path!(), "a_loss_that_differs_is_refused_in_all", 2, |group| {
        let odd = group.rank() == 1;
        let (f32s, f64s) = ((Kind::Float, Device::Cpu), (Kind::Double, Device::Cpu));
        let all = BatchAllTripletLoss::default();
        let labels = Tensor::arange(6, (Kind::Int64, Device::Cpu)).remainder(2);
        let rows = |options| Tensor::ones([6, 32], options);
        let shards = group.shards(6).unwrap();
        let said = |result: Result<Tensor, Error>, text: &str| {
            let error = result.expect_err(text).to_string();
            assert_eq!(error, format!("process {} of 2: {text}", group.rank()));
            group.barrier().unwrap();
        };
        let of_all = |x: &Tensor| all.on(x, &labels).over(&shards).f_forward();
        let text = "a loss: processes 0 and 1 differ in D: 32 and 33";
        said(of_all(&Tensor::ones([6, if odd { 33 } else { 32 }], f32s)), text);
        said(
            of_all(&rows(if odd { f64s } else { f32s })),
            "a loss: processes 0 and 1 differ in dtype: Float and Double",
        );
        let text = "a loss: processes 0 and 1 differ in the tensors that need a gradient: 0 and 1";
        said(of_all(&rows(f32s).set_requires_grad(odd)), text);
        let text = "a loss: processes 0 and 1 differ in the loss or its options";
        let other = BatchAllTripletLoss { distance: Distance::Cosine, ..all };
        let x = rows(f32s);
        said(if odd { other } else { all }.on(&x, &labels).over(&shards).f_forward(), text);
        let hard = BatchHardTripletLoss::default();
        said(if odd { hard.on(&x, &labels).over(&shards).f_forward() } else { of_all(&x) }, text);
        let repeated = shards.repeated();
        let text = "a loss: processes 0 and 1 differ in whether the work is shared or repeated";
        said(all.on(&x, &labels).over(if odd { &repeated } else { &shards }).f_forward(), text);
        // Labels, rows and options that are wrong in one process only.
        let own = |result: Result<Tensor, Error>, text: &str| {
            let other = format!("process {} of 2: process 1 has an error of its own, and takes no part", group.rank());
            assert_eq!(result.expect_err(text).to_string(), if odd { text.into() } else { other });
            group.barrier().unwrap();
        };
        let short = labels.narrow(0, 0, if odd { 5 } else { 6 });
        own(all.on(&x, &short).over(&shards).f_forward(), "labels: expected shape [6], got [5]");
        let (few, few_labels) = (x.narrow(0, 0, if odd { 5 } else { 6 }), &short);
        let text = "embeddings: expected 6 rows, as the shards say, got [5, 32]";
        own(all.on(&few, few_labels).over(&shards).f_forward(), text);
        let nobody = group.shards(0).unwrap();
        let (none, no_labels) = (x.narrow(0, 0, 0), labels.narrow(0, 0, 0));
        let error = all.on(&none, &no_labels).over(&nobody).f_forward().unwrap_err().to_string();
        assert_eq!(error, "embeddings: expected at least one row in one of the processes, got none");
        // A backward pass that only one process runs.
        let x = rows(f32s).set_requires_grad(true);
        let loss = of_all(&x).unwrap();
        let text = "processes 0 and 1 make different calls: a backward pass and barrier";
        let error =
            if odd { group.barrier().unwrap_err().to_string() } else { loss.f_backward().unwrap_err().to_string() };
        assert!(error.contains(text), "{error}");
    });
}
