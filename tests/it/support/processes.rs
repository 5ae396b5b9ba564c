//! Tests of several processes: a test starts its own program once for each, as a launcher would.

use std::env;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Set inside of the processes that a test has started.
const INSIDE: &str = "TERCET_TEST_INSIDE";

pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// A port of this host that nobody has, outside of those that the system gives to outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 97 * 100) as u16;
    (0..1000)
        .map(|_| 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of a thousand ports is free")
}

/// The command that runs the test of this name alone, without what another launcher may have set.
pub fn test_alone(module: &str, test: &str) -> Command {
    let (_, module) = module.split_once("::").expect("the program's name, and the module's");
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("{module}::{test}"), "--nocapture", "--test-threads=1"]);
    command.envs([(INSIDE, "1"), ("OMP_NUM_THREADS", "1"), ("RAYON_NUM_THREADS", "1"), ("RUST_BACKTRACE", "0")]);
    command
}

/// The variables that say which process of how many one is.
pub fn launched(rank: usize, size: usize, port: u16) -> [(&'static str, String); 6] {
    [
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.to_string()),
    ]
}

/// A process that is running; it ends with this.
pub struct Process {
    child: Child,
    output: Vec<JoinHandle<String>>,
    begin: Instant,
}

/// How a process has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; of a process that a signal has ended, 128 and the signal's number.
    pub code: i32,
    pub output: String,
    pub seconds: f64,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let read = |mut from: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = from.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let output = vec![read(Box::new(child.stdout.take().unwrap())), read(Box::new(child.stderr.take().unwrap()))];
        Self { child, output, begin: Instant::now() }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a process of this test, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for the end; a process that takes longer than `limit` is killed, with the code of that.
    pub fn ended(mut self, limit: Duration) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.begin.elapsed() > limit {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let seconds = self.begin.elapsed().as_secs_f64();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let output = std::mem::take(&mut self.output).into_iter().map(|part| part.join().unwrap()).collect();
        Ended { code, output, seconds }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the test of this name once more as `size` processes, all of which must pass; returns what each printed, and `None`
/// inside them. `module` is the test's `module_path!()`; `variables` are set for the processes.
pub fn as_processes(module: &str, test: &str, size: usize, variables: &[(&str, &str)]) -> Option<Vec<String>> {
    if is_inside() {
        return None;
    }
    let port = free_port();
    let start = |rank| {
        let mut command = test_alone(module, test);
        command.envs(launched(rank, size, port)).env("TERCET_TIMEOUT", "60").envs(variables.iter().copied());
        Process::start(&mut command)
    };
    let processes: Vec<Process> = (0..size).map(start).collect();
    let ended: Vec<Ended> = processes.into_iter().map(|process| process.ended(Duration::from_secs(300))).collect();
    let all = || ended.iter().map(|end| end.output.as_str()).collect::<Vec<_>>().join("\n----\n");
    for end in &ended {
        assert!(end.code == 0 && end.output.contains("1 passed"), "{test}, {size} processes: {}", all());
    }
    Some(ended.into_iter().map(|end| end.output).collect())
}
