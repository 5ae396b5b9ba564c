//! PyTorch's own launcher, on one host and on two.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tch::Kind;
use tercet::torch::distributed::{Options, ProcessGroup};

use super::failures::{TIMEOUT, steps};
use super::losses::of_dtype;
use super::setting::unavailable;
use crate::support;
use crate::support::processes::{Ended, Process, free_port, is_inside, test_alone};
use crate::support::skipped::skipped;

const LIMIT: Duration = Duration::from_secs(120);

/// torchrun of the environment that libtorch lies in.
fn torchrun(test: &str) -> Option<PathBuf> {
    if unavailable(test) {
        return None;
    }
    let libtorch = std::env::var_os("LIBTORCH").map_or_else(|| support::checkout().join(".libtorch"), PathBuf::from);
    let libtorch = libtorch.canonicalize().unwrap_or(libtorch);
    // <environment>/lib/python3.x/site-packages/torch
    let found = libtorch.ancestors().nth(4).map(|environment| environment.join("bin/torchrun"));
    let found = found.filter(|program| program.is_file());
    if found.is_none() {
        skipped(&format!("no torchrun beside libtorch: {test}"));
    }
    found
}

/// torchrun with these options, of this test's program with the test of this name alone.
fn launch(torchrun: &PathBuf, options: &[&str], test: &str) -> Command {
    let alone = test_alone(module_path!(), test);
    let mut command = Command::new(torchrun);
    command.args(["--no-python"]).args(options).arg(alone.get_program()).args(alone.get_args());
    command.envs(alone.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn torchrun_starts_two() {
    const TEST: &str = "torchrun_starts_two";
    if is_inside() {
        tch::set_num_threads(1);
        let options = Options::from_env().unwrap();
        assert!(options.launcher_listens);
        assert_eq!((options.local_size, options.size), (2, 2));
        let group = ProcessGroup::new(&options).unwrap();
        let all = group.exchange(&[group.rank() as i64 + 10]).unwrap();
        assert_eq!(all, [[10], [11]]);
        println!("\nexchanged in process {}", group.rank());
        group.barrier().unwrap();
        return;
    }
    let Some(torchrun) = torchrun(TEST) else { return };
    let port = free_port().to_string();
    let options = ["--nproc-per-node", "2", "--master-port", &port];
    let ended = Process::start(&mut launch(&torchrun, &options, TEST)).ended(LIMIT);
    assert_eq!(ended.code, 0, "{ended:?}");
    for rank in 0..2 {
        assert!(ended.output.contains(&format!("exchanged in process {rank}")), "{ended:?}");
    }
}

/// One of two processes aborts in the first of two starts; torchrun starts both anew.
#[test]
fn torchrun_restarts_what_was_lost() {
    const TEST: &str = "torchrun_restarts_what_was_lost";
    if is_inside() {
        let options = Options::from_env().unwrap();
        println!("\nstart {} of process {}", options.restart, options.rank);
        let fault = if options.restart == 0 { "kill -9 in backward" } else { "" };
        if let Err(error) = steps(fault) {
            println!("\nerror: {error}");
            std::process::exit(3);
        }
        return;
    }
    let Some(torchrun) = torchrun(TEST) else { return };
    let port = free_port().to_string();
    let options = ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.2", "--master-port", &port];
    let ended = Process::start(&mut launch(&torchrun, &options, TEST)).ended(LIMIT);
    println!("a restart by torchrun: exit {} after {:.1} s", ended.code, ended.seconds);
    assert_eq!(ended.code, 0, "{ended:?}");
    for start in ["start 0 of process 0", "start 0 of process 1", "start 1 of process 0", "start 1 of process 1"] {
        assert!(ended.output.contains(start), "{ended:?}");
    }
}

/// Two network namespaces of this machine, which are two hosts to the programs in them, and the cable between them.
struct TwoHosts {
    names: [String; 2],
}

impl TwoHosts {
    const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

    fn new(test: &str) -> Option<Self> {
        let id = std::process::id();
        let hosts = Self { names: ["a", "b"].map(|end| format!("tercet-{id}-{end}-{test}")) };
        let [a, b] = &hosts.names;
        // 15 characters are the most that a network device's name may have.
        let [va, vb] = ["va", "vb"];
        let mut steps = vec![
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add {va} netns {a} type veth peer name {vb} netns {b}"),
        ];
        for ((name, link), address) in [(a, va), (b, vb)].into_iter().zip(Self::ADDRESSES) {
            steps.push(format!("-n {name} addr add {address}/24 dev {link}"));
            steps.push(format!("-n {name} link set {link} up"));
            steps.push(format!("-n {name} link set lo up"));
        }
        for step in steps {
            let done = Command::new("ip").args(step.split(' ')).output();
            if !done.as_ref().is_ok_and(|output| output.status.success()) {
                let why = done.map_or_else(
                    |error| error.to_string(),
                    |output| String::from_utf8_lossy(&output.stderr).trim().replace(':', ",").to_string(),
                );
                skipped(&format!("no network namespaces here ({why}): {test}"));
                return None;
            }
        }
        Some(hosts)
    }

    /// The command, on one of the hosts.
    fn on(&self, host: usize, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.names[host]]).arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    fn pull_the_cable(&self) {
        let status = Command::new("ip").args(["-n", &self.names[0], "link", "set", "va", "down"]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Every loss over four processes on two hosts that find each other by torchrun's c10d rendezvous.
#[test]
fn two_hosts() {
    const TEST: &str = "two_hosts";
    if is_inside() {
        tch::set_num_threads(1);
        let options = Options::from_env().unwrap();
        assert_eq!((options.local_size, options.size), (2, 4));
        let group = ProcessGroup::new(&options).unwrap();
        of_dtype(Kind::Double, &group, false);
        println!("\nall losses in process {}", group.rank());
        group.barrier().unwrap();
        return;
    }
    let Some(torchrun) = torchrun(TEST) else { return };
    let Some(hosts) = TwoHosts::new(TEST) else { return };
    let port = free_port();
    let endpoint = format!("{}:{port}", TwoHosts::ADDRESSES[0]);
    let processes = [0, 1].map(|host| {
        let is_host = format!("is_host={}", 1 - host);
        let address = TwoHosts::ADDRESSES[host];
        #[rustfmt::skip]
        let options = [
            "--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", &endpoint,
            "--rdzv-id", "7", "--local-addr", address, "--rdzv-conf", &is_host,
        ];
        Process::start(&mut hosts.on(host, &launch(&torchrun, &options, TEST)))
    });
    let ended = processes.map(|process| process.ended(LIMIT));
    assert!(ended.iter().all(|ended| ended.code == 0), "{ended:?}");
    for rank in 0..4 {
        let said = format!("all losses in process {rank}");
        assert!(ended.iter().any(|ended| ended.output.contains(&said)), "{rank}: {ended:?}");
    }
}

/// The network between two hosts is cut: both end after the timeout.
#[test]
fn a_pulled_cable() {
    const TEST: &str = "a_pulled_cable";
    if is_inside() {
        if let Err(error) = steps("") {
            println!("\nerror: {error}");
            std::process::exit(3);
        }
        return;
    }
    if unavailable(TEST) {
        return;
    }
    let Some(hosts) = TwoHosts::new(TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let marks = ["a", "b"].map(|name| folder.path().join(name));
    let processes = [0, 1].map(|host| {
        let mut command = test_alone(module_path!(), TEST);
        let rank = host.to_string();
        command.envs([("RANK", rank.as_str()), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")]);
        command.envs([("MASTER_ADDR", TwoHosts::ADDRESSES[0]), ("MASTER_PORT", port.as_str())]);
        command.env("TERCET_TIMEOUT", TIMEOUT.to_string()).env("TERCET_TEST_MARK", &marks[host]);
        Process::start(&mut hosts.on(host, &command))
    });
    let begin = Instant::now();
    while !marks.iter().all(|mark| mark.exists()) && begin.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(10));
    }
    hosts.pull_the_cable();
    let cut = Instant::now();
    let ended: Vec<Ended> = processes.into_iter().map(|process| process.ended(LIMIT)).collect();
    let seconds = cut.elapsed().as_secs_f64();
    for ended in &ended {
        let said = ended.output.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_default();
        println!("a pulled cable | exit {} | {said}", ended.code);
        assert!(ended.code == 3 && said.contains(" of 2: "), "{ended:?}");
    }
    println!("a pulled cable: both after {seconds:.1} s");
    assert!((TIMEOUT - 1.0..TIMEOUT + 3.0).contains(&seconds), "{seconds}");
}
