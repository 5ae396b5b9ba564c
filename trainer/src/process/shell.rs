//! Commands that are printed for people to type again.

use std::path::Path;

/// The path as one word of a POSIX shell, which this program does not take for an option.
///
/// It is quoted if necessary; if it has control characters or is not UTF-8, it is written as `$'...'` with its bytes in
/// octal, which bash, zsh, ksh and POSIX 2024 know.
pub fn word(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let here = if bytes.starts_with(b"-") { "./" } else { "" };
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => {
            let text = format!("{here}{text}");
            shlex::try_quote(&text).map_or_else(|_| text.clone(), |quoted| quoted.into_owned())
        }
        _ => {
            let escaped = bytes.iter().map(|&byte| match byte {
                b'\'' | b'\\' => format!("\\{}", char::from(byte)),
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\{byte:03o}"),
            });
            format!("$'{here}{}'", escaped.collect::<String>())
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_shell_reads_the_path_back() {
        assert_eq!(word(Path::new("runs/0001")), "runs/0001");
        for bytes in [
            &b"my runs/0001"[..],
            b"it's",
            b"a \"b\" $HOME `c` \\ *?[!x]",
            "Übung & Prüfung".as_bytes(),
            b"-run",
            b"- run",
            b"two\nlines\t'quoted' \\",
            b"caf\xe9 1",
        ] {
            let path = Path::new(OsStr::from_bytes(bytes));
            let script = format!("printf %s {}", word(path));
            let Ok(output) = std::process::Command::new("bash").args(["-c", &script]).output() else { return };
            let expected = if bytes.starts_with(b"-") { [b"./", bytes].concat() } else { bytes.to_vec() };
            assert_eq!(output.stdout, expected, "{script}");
        }
    }
}
