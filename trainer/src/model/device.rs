//! The device that `--device` names, or the best that the machine has.

use crate::process::bad_input::bad_input;
use crate::process::ranks::Ranks;
use crate::process::say::note;
use anyhow::Result;
use tch::{Cuda, Device, Kind, Tensor};

/// What a device is wanted for.
#[derive(Clone, Copy, PartialEq)]
pub enum Job {
    /// The encoder, and the losses' kernels.
    Train,
    /// The encoder alone, which runs on libtorch's kernels.
    Embed,
}

/// The device that `--device` names; for `auto` the first GPU that does the whole job, else the CPU. A note says why.
pub fn device(name: &str, job: Job) -> Result<Device> {
    let there = Cuda::device_count().max(0) as usize;
    let (device, why) = choose(name, there, |number| does(number, job), unseen)?;
    if let Some(why) = why {
        note(&why);
    }
    Ok(device)
}

/// The device of one process among those of a run, which are all on GPUs or all on the CPU: `auto` and `cuda` are the GPU whose number is
/// the process's place among those of its host.
pub fn of_rank(name: &str, job: Job, ranks: &Ranks) -> Result<Device> {
    if ranks.is_alone() {
        return device(name, job);
    }
    let there = Cuda::device_count().max(0) as usize;
    let chosen = match (name, ranks.own_device()) {
        ("auto", _) if there == 0 => Device::Cpu,
        ("auto" | "cuda", Device::Cuda(own)) => device(&format!("cuda:{own}"), job)?,
        ("auto" | "cuda", _) => {
            let processes = ranks.on_this_host();
            return Err(bad_input(format!(
                "--device {name}: {processes} processes on a host with {there} GPUs; --device cpu uses none, and with \
                 TERCET_GLOO=1 processes share them"
            )));
        }
        ("cpu", _) => Device::Cpu,
        _ => {
            return Err(bad_input(format!(
                "--device {name}: expected auto, cpu or cuda where there are {} processes: each has a GPU of its own",
                ranks.size()
            )));
        }
    };
    let all = ranks.group().exchange(&[chosen.is_cuda().into()])?;
    match all.iter().position(|theirs| theirs != &all[0]) {
        Some(other) => Err(bad_input(format!(
            "--device {name}: process 0 is on {} and process {other} is not; expected all on GPUs, or all on the CPU",
            if all[0][0] == 0 { "the CPU" } else { "a GPU" }
        ))),
        None => Ok(chosen),
    }
}

/// The device's name as `--device` takes it.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(number) => format!("cuda:{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The choice among `there` GPUs, and what the user should know of it. `does` says why a GPU is unfit, `unseen` why
/// libtorch may see none.
fn choose(
    name: &str,
    there: usize,
    does: impl Fn(usize) -> Result<(), String>,
    unseen: impl Fn() -> Option<String>,
) -> Result<(Device, Option<String>)> {
    let number = match name {
        "cpu" => return Ok((Device::Cpu, None)),
        "auto" => return Ok(best(there, does, unseen)),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
    };
    let Some(number) = number else {
        return Err(bad_input(format!("--device {name}: expected auto, cpu, cuda or cuda:N")));
    };
    if number >= there {
        let why = unseen().map_or(String::new(), |why| format!("; {why}"));
        return Err(bad_input(format!("--device {name}: libtorch sees {there} GPUs{why}")));
    }
    does(number).map_err(|why| bad_input(format!("--device {name}: {why}")))?;
    Ok((Device::Cuda(number), None))
}

/// The choice for `--device auto`, and what the user should know of it.
fn best(
    there: usize,
    does: impl Fn(usize) -> Result<(), String>,
    unseen: impl Fn() -> Option<String>,
) -> (Device, Option<String>) {
    let mut refused = Vec::new();
    for number in 0..there {
        match does(number) {
            Ok(()) => {
                let why =
                    (!refused.is_empty()).then(|| format!("--device auto takes cuda:{number}: {}", refused.join("; ")));
                return (Device::Cuda(number), why);
            }
            Err(why) => refused.push(format!("cuda:{number}: {why}")),
        }
    }
    refused.extend(unseen().filter(|_| there == 0));
    let why = (!refused.is_empty()).then(|| format!("--device auto takes the CPU: {}", refused.join("; ")));
    (Device::Cpu, why)
}

/// Whether a GPU does the job, or why not.
fn does(number: usize, job: Job) -> Result<(), String> {
    if job == Job::Train {
        tercet::cuda::check_device(number).map_err(|why| why.to_string())?;
    }
    // libtorch too has kernels for some architectures only, and another process may hold a GPU exclusively.
    let sum = || Tensor::f_ones([2], (Kind::Float, Device::Cuda(number)))?.f_sum(Kind::Float)?.f_to_device(Device::Cpu);
    sum().map(drop).map_err(|error| {
        let text = error.to_string();
        format!("libtorch does not run on it: {}", text.lines().next().unwrap_or_default())
    })
}

/// Why libtorch sees no GPU although the driver does.
fn unseen() -> Option<String> {
    let (driver, libtorch) = (tercet::cuda::device_count(), Cuda::device_count().max(0));
    (driver > 0 && libtorch == 0)
        .then(|| format!("the driver sees {driver}, so this libtorch is one without CUDA, or needs a newer driver"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The choice on a machine with the listed GPUs, and the note.
    fn chosen(name: &str, gpus: &[Result<(), &str>], driver_alone: bool) -> Result<(Device, Option<String>), String> {
        let unseen = || driver_alone.then(|| "the driver sees 1".to_string());
        choose(name, gpus.len(), |number| gpus[number].map_err(String::from), unseen).map_err(|error| {
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            error.to_string()
        })
    }

    const OLD: Result<(), &str> = Err("too old");

    #[test]
    fn auto_takes_the_first_gpu_that_does_the_job_and_says_what_was_passed_over() {
        let auto = |gpus: &[Result<(), &str>]| chosen("auto", gpus, false).unwrap();
        assert_eq!(auto(&[]), (Device::Cpu, None));
        assert_eq!(auto(&[Ok(()), OLD]), (Device::Cuda(0), None));
        let (device, why) = auto(&[OLD, Ok(())]);
        assert_eq!((device, why.as_deref()), (Device::Cuda(1), Some("--device auto takes cuda:1: cuda:0: too old")));
        let (device, why) = auto(&[OLD, Err("busy")]);
        let said = "--device auto takes the CPU: cuda:0: too old; cuda:1: busy";
        assert_eq!((device, why.as_deref()), (Device::Cpu, Some(said)));
        let (device, why) = chosen("auto", &[], true).unwrap();
        assert_eq!((device, why.as_deref()), (Device::Cpu, Some("--device auto takes the CPU: the driver sees 1")));
    }

    #[test]
    fn a_named_gpu_is_taken_or_refused() {
        assert_eq!(chosen("cpu", &[Ok(())], false), Ok((Device::Cpu, None)));
        assert_eq!(chosen("cuda", &[Ok(()), OLD], false), Ok((Device::Cuda(0), None)));
        assert_eq!(chosen("cuda:1", &[OLD, Ok(())], false), Ok((Device::Cuda(1), None)));
        assert_eq!(chosen("cuda", &[OLD, Ok(())], false).unwrap_err(), "--device cuda: too old");
        assert_eq!(chosen("cuda:1", &[Ok(())], false).unwrap_err(), "--device cuda:1: libtorch sees 1 GPUs");
        let unseen = chosen("cuda", &[], true).unwrap_err();
        assert_eq!(unseen, "--device cuda: libtorch sees 0 GPUs; the driver sees 1");
        for wrong in ["tpu", "cuda:", "cuda:x", "cuda:-1", ""] {
            assert!(
                chosen(wrong, &[Ok(())], false).unwrap_err().contains("expected auto, cpu, cuda or cuda:N"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_does_nothing() {
        let beyond = Cuda::device_count().max(0) as usize;
        for job in [Job::Train, Job::Embed] {
            assert!(does(beyond, job).is_err());
        }
    }
}
