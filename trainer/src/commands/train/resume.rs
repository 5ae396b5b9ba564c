//! The options of a run that goes on are those it began with; the command line may repeat but not contradict them.

use crate::commands::cli::TrainArgs;
use crate::model::device;
use crate::process::bad_input::bad_input;
use crate::process::ranks::Ranks;
use crate::process::say::note;
use crate::run_folder;
use crate::training::schedule::Schedule;
use anyhow::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tch::Device;

/// Options that decide when a run ends, what it keeps, how fast it is and what it has room for, not what its steps compute.
const FREE: [&str; 5] = ["time_limit", "checkpoint_every", "workers", "image_cache", "pairs_at_once"];
/// Options that decide when a run ends, and what its steps compute only if the learning rate falls towards the last
/// step.
const LENGTH: [&str; 2] = ["epochs", "steps"];

/// The folder of the run to go on with, if there is one: that of `--resume`, or `--out` if `--resume-if-any` says so, or because a
/// launcher has started the run's processes anew. Looks whether `--out` can be used if not.
pub fn folder(args: &mut TrainArgs, ranks: &Ranks) -> Result<Option<PathBuf>> {
    if let Some(folder) = args.resume.take() {
        return Ok(Some(folder));
    }
    if args.resume_if_any || ranks.is_restart() {
        if let Some(folder) = args.out.as_ref().filter(|folder| run_folder::checkpoint(folder).exists()) {
            return Ok(Some(folder.clone()));
        }
        if ranks.is_restart() && args.out.is_none() {
            note("a restart without --out: the run begins anew, in another folder");
        }
    }
    run_folder::check("--out", args.out.as_deref().unwrap_or(Path::new(run_folder::RUNS)))?;
    Ok(None)
}

/// The name of a device in the form in which it is stored. Of several processes each has a GPU of its own, whatever the number
/// that the first one stored.
pub fn as_stored(device: Device, stored: Option<&str>, several: bool) -> String {
    let of_gpu = stored.filter(|stored| stored.starts_with("cuda:") && device.is_cuda() && several);
    of_gpu.map_or_else(|| device::name(device), str::to_owned)
}

/// The stored options, with those of `now` that were `given` on the command line and may change. `given`
/// holds the names of the fields of [`TrainArgs`].
pub fn resumed(stored: &Value, now: &TrainArgs, given: &[String]) -> Result<TrainArgs> {
    let mut options = stored.clone();
    let now = serde_json::to_value(now)?;
    let constant = stored["schedule"] == serde_json::to_value(Schedule::Constant)?;
    // Options that are not stored, such as `--resume` itself, are not compared.
    for name in given.iter().filter(|name| stored.get(name.as_str()).is_some()) {
        let may_change = match name.as_str() {
            // A run without patience has not kept its best weights.
            "patience" => !stored["patience"].is_null(),
            name => FREE.contains(&name) || constant && LENGTH.contains(&name),
        };
        if !may_change && now[name] != stored[name] {
            return Err(bad_input(format!(
                "--{} {}: the run to resume has {}, and another value would change its numbers",
                name.replace('_', "-"),
                shown(&now[name]),
                shown(&stored[name])
            )));
        }
        options[name] = now[name].clone();
    }
    // A limit of steps that the run has reached gives way to more epochs, and the other way round.
    for [one, other] in [LENGTH, [LENGTH[1], LENGTH[0]]] {
        let given = |name: &str| given.iter().any(|g| g == name);
        if constant && given(one) && !given(other) {
            options[other] = Value::Null;
        }
    }
    Ok(serde_json::from_value(options)?)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::cli::{Cli, Command, given};
    use clap::{CommandFactory, FromArgMatches};

    fn parse(arguments: &[&str]) -> (TrainArgs, Vec<String>) {
        let matches = Cli::command().get_matches_from([&["tercet", "train"], arguments].concat());
        match Cli::from_arg_matches(&matches).unwrap().command {
            Command::Train(args) => (*args, given(&matches)),
            other => panic!("{other:?}"),
        }
    }

    /// The options as a checkpoint stores them.
    fn stored(options: &[&str]) -> Value {
        let (mut args, _) = parse(options);
        args.loss = args.loss.resolved().unwrap();
        serde_json::to_value(args).unwrap()
    }

    fn resume(options: &[&str], now: &[&str]) -> Result<TrainArgs> {
        let stored = stored(options);
        let (args, given) = parse(now);
        resumed(&stored, &args, &given)
    }

    #[test]
    fn each_of_several_processes_may_have_another_gpu_than_the_stored_one() {
        let cases = [
            (Device::Cuda(1), "cuda:0", true, "cuda:0"),
            (Device::Cuda(1), "cuda:0", false, "cuda:1"),
            (Device::Cuda(1), "cpu", true, "cuda:1"),
            (Device::Cpu, "cuda:0", true, "cpu"),
        ];
        for (device, stored, several, expected) in cases {
            assert_eq!(as_stored(device, Some(stored), several), expected, "{device:?} {stored} {several}");
        }
    }

    #[test]
    fn stored_options_hold_where_none_is_given() {
        let options = ["--margin", "0.3", "--encoder", "resnet18", "--loss", "batch-hard", "--hold-out", "a,b"];
        let options = [&options[..], &["--distance", "cosine", "--data", "x", "--steps", "7"]].concat();
        let args = resume(&options, &["--resume", "runs/0001"]).unwrap();
        assert_eq!(serde_json::to_value(args).unwrap(), stored(&options));
    }

    #[cfg(unix)]
    #[test]
    fn paths_that_are_not_utf_8_are_stored_and_compared() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let with = |data: &[u8]| {
            let mut args = parse(&["--data", "x"]).0;
            args.data = Some(OsStr::from_bytes(data).into());
            args
        };
        let given = ["data".to_owned()];
        let stored = serde_json::to_value(with(b"caf\xe9")).unwrap();
        let read = resumed(&stored, &with(b"caf\xe9"), &given).unwrap();
        assert_eq!(read.data, with(b"caf\xe9").data);
        let error = resumed(&stored, &with(b"caf\xe8"), &given).unwrap_err();
        assert!(error.to_string().contains("--data"), "{error}");
    }

    #[test]
    fn what_would_change_the_numbers_is_refused_by_name() {
        for (stored, now, words) in [
            (&["--margin", "0.3"][..], &["--margin", "0.2"][..], ["--margin 0.2", "has 0.3"]),
            (&[], &["--samples-per-class", "5"], ["--samples-per-class 5", "has 4"]),
            (&[], &["--encoder", "resnet18"], ["--encoder resnet18", "has resnet152"]),
            (&["--data", "x"], &["--data", "y"], ["--data y", "has x"]),
            (&[], &["--weights", "w"], ["--weights w", "has none"]),
            (&["--schedule", "cosine"], &["--epochs", "9"], ["--epochs 9", "has none"]),
            (&["--evaluate-every", "1"], &["--patience", "3"], ["--patience 3", "has none"]),
            (&[], &["--warmup-steps", "9"], ["--warmup-steps 9", "has 0"]),
            (&["--memory", "64"], &["--memory", "65"], ["--memory 65", "has 64"]),
            (
                &["--loss", "batch-negative", "--negative", "semi-hard"],
                &["--negative", "random"],
                ["--negative random", "has semi-hard"],
            ),
            (&["--loss", "batch-hard"], &["--margin", "0.5"], ["--margin 0.5", "has none"]),
            (&["--loss", "batch-hard"], &["--soft-margin", "false"], ["--soft-margin false", "has true"]),
            (&["--loss", "batch-hard"], &["--distance", "cosine"], ["--distance cosine", "has euclidean"]),
            (&["--swap"], &["--swap", "false"], ["--swap false", "has true"]),
            (&["--loss", "batch-all"], &["--mean-over", "valid"], ["--mean-over valid", "has active"]),
            (&[], &["--reduction", "sum"], ["--reduction sum", "has mean"]),
            (&[], &["--normalize", "false"], ["--normalize false", "has true"]),
            (&[], &["--batch-triplets", "9"], ["--batch-triplets 9", "has 512"]),
        ] {
            let error = resume(stored, &[now, &["--resume", "r"]].concat()).unwrap_err();
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
            words.iter().for_each(|word| assert!(error.to_string().contains(word), "{word}: {error}"));
        }
        // The same option again is no contradiction.
        resume(&["--margin", "0.3"], &["--margin", "0.3", "--resume", "r"]).unwrap();
    }

    #[test]
    fn a_run_may_be_made_longer() {
        let args = resume(&["--steps", "5"], &["--steps", "9", "--time-limit", "60", "--resume", "r"]).unwrap();
        assert_eq!((args.steps, args.epochs, args.time_limit), (Some(9), None, Some(60.0)));
        let args = resume(&["--patience", "2"], &["--patience", "3", "--resume", "r"]).unwrap();
        assert_eq!(args.patience, Some(3));
        let args = resume(&[], &["--workers", "3", "--image-cache", "0", "--resume", "r"]).unwrap();
        assert_eq!((args.workers, args.image_cache), (Some(3), 0));
        let args = resume(&["--loss", "batch-all"], &["--pairs-at-once", "9", "--resume", "r"]).unwrap();
        assert_eq!(args.loss.pairs_at_once, Some(9));
        let args = resume(&["--steps", "5"], &["--epochs", "2", "--resume", "r"]).unwrap();
        assert_eq!((args.steps, args.epochs), (None, Some(2)));
    }
}
