//! Finds a Python that can make the environment.

use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// The Pythons that the pinned torch has packages for.
const OLDEST: (u32, u32) = (3, 10);
const NEWEST: (u32, u32) = (3, 14);

/// `python3` first: it is the one that the user chose.
const CANDIDATES: [&str; 6] = ["python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.14"];

/// Prints version, bits, and whether `python3 -m venv` has what it needs: Debian packages `ensurepip` on its own.
const PROBE: &str = "import sys
print('%d.%d.%d' % sys.version_info[:3])
print(64 if sys.maxsize > 2**32 else 32)
try:
    import venv, ensurepip
    print('venv')
except ImportError:
    print('no venv')
";

pub struct Python {
    pub program: &'static str,
    pub version: String,
}

/// The first candidate that is fit; the error names each that was found and what it lacks.
pub fn find() -> Result<Python> {
    let mut refused = Vec::new();
    for program in CANDIDATES {
        match probe(program) {
            None => {}
            Some(Ok(version)) => return Ok(Python { program, version }),
            Some(Err(why)) => refused.push(format!("  {program}: {why}")),
        }
    }
    let needed = format!("Python {}.{} to {}.{}", OLDEST.0, OLDEST.1, NEWEST.0, NEWEST.1);
    Err(Error::Failed(if refused.is_empty() {
        format!("no Python found: set-up needs {needed} on PATH, with its venv module")
    } else {
        format!(
            "no fit Python found: set-up needs {needed} on PATH, with its venv module. Found:\n{}",
            refused.join("\n")
        )
    }))
}

/// The version of a Python, or what is wrong with it; `None` if there is no such program.
fn probe(program: &str) -> Option<Result<String, String>> {
    // It is run, not only looked for: a version manager leaves shims on PATH for Pythons that are switched off.
    let output = clean(&mut Command::new(program)).args(["-c", PROBE]).stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return Some(Err("does not run".into()));
    }
    Some(judge(&String::from_utf8_lossy(&output.stdout)))
}

/// The version, or what is wrong, from the probe's output.
fn judge(output: &str) -> Result<String, String> {
    let mut lines = output.lines();
    let version = lines.next().unwrap_or_default().to_string();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return Err("does not say its version".into());
    };
    if (major, minor) < OLDEST {
        return Err(format!("is {version}, older than {}.{}", OLDEST.0, OLDEST.1));
    }
    if (major, minor) > NEWEST {
        return Err(format!("is {version}: the pinned torch has no package for it (newest {}.{})", NEWEST.0, NEWEST.1));
    }
    if lines.next() != Some("64") {
        return Err(format!("is {version}, but a 32-bit program"));
    }
    if lines.next() != Some("venv") {
        return Err(format!(
            "is {version}, but without venv and ensurepip (Debian, Ubuntu: apt-get install python{major}.{minor}-venv)"
        ));
    }
    Ok(version)
}

/// Drops variables with which Python or pip would put packages elsewhere than into the environment.
pub fn clean(command: &mut Command) -> &mut Command {
    for name in ["PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"] {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn versions_at_the_bounds() {
        for fit in ["3.10.0", "3.11.7", "3.14.2"] {
            assert_eq!(judge(&format!("{fit}\n64\nvenv\n")), Ok(fit.into()));
        }
        for (unfit, why) in [("3.9.18", "older than 3.10"), ("2.7.18", "older than 3.10"), ("3.15.0", "newest 3.14")] {
            let error = judge(&format!("{unfit}\n64\nvenv\n")).unwrap_err();
            assert!(error.contains(unfit) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_else_can_be_missing() {
        assert!(judge("3.12.1\n32\nvenv\n").unwrap_err().contains("32-bit"));
        assert!(judge("3.12.1\n64\nno venv\n").unwrap_err().contains("apt-get install python3.12-venv"));
        assert!(judge("").unwrap_err().contains("version"));
        assert!(judge("Python 3.12\n").unwrap_err().contains("version"));
    }
}
