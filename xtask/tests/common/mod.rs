//! A checkout that has the files' names and no more, with fake programs on PATH, for tests of `xtask` as a program.
#![allow(dead_code, reason = "each test uses its share")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// The fake Python: makes environments, "installs" torch as empty files, and fails as `FAKE_PIP` says.
const PYTHON: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin
sandbox="@SANDBOX@"
echo "$*" >>"$sandbox/calls"
case "$1 $2" in
*/python/wheel.py*)
  echo x >"$4/tercet-0.1.0-py3-none-any.whl"
  echo "$4/tercet-0.1.0-py3-none-any.whl"
  ;;
"-c "*)
  echo "${FAKE_VERSION:-3.11.7}"
  echo 64
  echo "${FAKE_VENV:-venv}"
  ;;
"-m venv")
  mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
  printf 'home = /nowhere\nversion = 3.11.7\n' >"$3/pyvenv.cfg"
  cp "$0" "$3/bin/python"
  ;;
"-m pip")
  site=$(dirname "$(dirname "$0")")/lib/python3.11/site-packages
  for file; do :; done
  torch=$(sed -n 's/^torch==//p' "$file")
  minor=${torch#2.}
  echo "Collecting torch==$torch"
  echo "  Downloading torch-$torch-cp311-cp311-manylinux_2_28_x86_64.whl (530.7 MB)"
  mkdir -p "$site/torch/lib"
  echo x >"$site/torch/lib/libtorch_cpu.so"
  case "$FAKE_PIP" in
  network)
    echo "WARNING: Retrying (Retry(total=0)): Temporary failure in name resolution" >&2
    echo "ERROR: Could not find a version that satisfies the requirement torch==$torch (from versions: none)" >&2
    exit 1
    ;;
  disk)
    echo "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device" >&2
    exit 1
    ;;
  hang)
    touch "$sandbox/hanging"
    exec sleep 60
    ;;
  slow)
    touch "$sandbox/hanging"
    sleep 1.5
    ;;
  esac
  echo "Installing collected packages: mpmath, torch"
  for library in libtorch libtorch_cpu libc10; do echo x >"$site/torch/lib/$library.so"; done
  mkdir -p "$site/torch/include/torch/csrc/api/include/torch" "$site/torch-$torch.dist-info"
  mkdir -p "$site/torch/include/torch/headeronly" "$site/nvidia/cuda_nvrtc/lib"
  echo x >"$site/torch/include/torch/csrc/api/include/torch/torch.h"
  printf '#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR %s\n' "${minor%.*}" >"$site/torch/include/torch/headeronly/version.h"
  echo "__version__ = '$torch+cu130'" >"$site/torch/version.py"
  echo x >"$site/torch-$torch.dist-info/RECORD"
  echo x >"$site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
  if [ "$FAKE_PIP" = short ]; then rm "$site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"; fi
  ;;
esac
"#;

const DF: &str = "#!/bin/sh
echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'
echo \"/dev/fake 100 1 ${FAKE_FREE:-99999999} 1% /\"
";

/// A cargo that records how it was called, and then runs `FAKE_CARGO` as a script.
const CARGO: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin
echo "$*" >>"@SANDBOX@/cargo-calls"
env >"@SANDBOX@/cargo-environment"
eval "$FAKE_CARGO"
"#;

pub struct Sandbox {
    pub dir: PathBuf,
}

impl Sandbox {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tercet-xtask-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let sandbox = Self { dir: dir.canonicalize().unwrap() };
        sandbox.program("python3", PYTHON);
        sandbox.program("df", DF);
        sandbox.program("c++", "#!/bin/sh\n");
        sandbox.program("cargo", CARGO);
        sandbox.checkout("checkout");
        sandbox
    }

    /// Makes a further checkout of that name.
    pub fn checkout(&self, name: &str) -> PathBuf {
        self.write(&format!("{name}/xtask/Cargo.toml"), "");
        self.write(&format!("{name}/requirements.txt"), "# pinned\ntorch==2.11.0\n");
        self.write(&format!("{name}/Cargo.lock"), "tch 0.24\n");
        self.dir.join(name)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Writes a program onto the PATH of what the sandbox runs.
    pub fn program(&self, name: &str, script: &str) {
        let name = if name.contains('/') { name.to_string() } else { format!("bin/{name}") };
        let _nobody_forks = FORKS.write().unwrap_or_else(PoisonError::into_inner);
        self.write(&name, &script.replace("@SANDBOX@", self.dir.to_str().unwrap()));
        fs::set_permissions(self.path(&name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// `xtask` in the checkout, with the environment that `cargo run` gives it, in a process group of its own.
    pub fn xtask(&self, arguments: &[&str]) -> Command {
        self.xtask_in("checkout", arguments)
    }

    pub fn xtask_in(&self, checkout: &str, arguments: &[&str]) -> Command {
        let root = self.path(checkout);
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("TMPDIR", &self.dir)
            .env("LIBTORCH", root.join(".libtorch"))
            .env("CARGO", self.path("bin/cargo"))
            .env("CARGO_MANIFEST_DIR", root.join("xtask"))
            .env("CARGO_PKG_NAME", "xtask")
            .current_dir(&root)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    pub fn setup(&self) -> Command {
        self.xtask(&["setup"])
    }

    /// How often the fake Python was started as `python3 WHAT`.
    pub fn calls(&self, what: &str) -> usize {
        self.read("calls").lines().filter(|line| line.starts_with(what)).count()
    }

    pub fn wait_for(&self, name: &str) {
        let start = Instant::now();
        while !self.exists(name) {
            assert!(start.elapsed() < Duration::from_secs(10), "{name} never came");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// How a command ended.
pub struct Outcome {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Outcome {
    #[track_caller]
    pub fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    /// Asserts that the two streams together hold each of `texts`.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.out.contains(text) || self.err.contains(text), "no {text:?} in\n{}{}", self.out, self.err);
        }
        self
    }
}

pub fn run(command: &mut Command) -> Outcome {
    outcome(start(command))
}

pub fn outcome(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Held while a program is written: a process that another test starts meanwhile would have the file open, and Linux does not run a file
/// that somebody may write to.
static FORKS: RwLock<()> = RwLock::new(());

pub fn start(command: &mut Command) -> Child {
    let _nobody_writes = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs kill -9 on one process or (if negative) on a whole group.
pub fn kill(process: i64) {
    let status = Command::new("/bin/sh").arg("-c").arg(format!("kill -9 {process}")).status().unwrap();
    assert!(status.success());
}

/// Every path below `dir` with the time of its last change, which tells whether anything was touched.
pub fn fingerprint(dir: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(path) = open.pop() {
        let meta = path.symlink_metadata().unwrap();
        found.push((path.clone(), meta.modified().unwrap()));
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found.sort();
    found
}
