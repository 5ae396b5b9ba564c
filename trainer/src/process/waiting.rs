//! How libtorch's threads wait for each other on a CPU.
//!
//! libgomp's threads spin at every barrier, for milliseconds. On a machine that does anything else
//! at the same time, the spinning thread takes the core from the one it waits for: with two cores
//! and a load of 6, a short run of ResNet-50 took 150 s spinning and 23 s sleeping. libgomp reads
//! its environment once, when the library is loaded, which is before `main`: so the program
//! starts itself again, once, in the same process.

/// Makes idle threads sleep, unless the environment already says how they wait. It may start the program anew, so it is
/// to be called before any file is opened: a lock would be lost, and what was read would be read twice. The device is
/// not known yet then, as a run that goes on has it in its checkpoint.
#[cfg(unix)]
pub fn sleep_instead_of_spinning() {
    use std::os::unix::process::CommandExt;
    let settled = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
    if settled.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // `exec` returns only if it fails; the run is then slower at worst.
        let _ = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .exec();
    }
}

/// Does nothing: other systems' OpenMP libraries have their own ways to wait.
#[cfg(not(unix))]
pub fn sleep_instead_of_spinning() {}
