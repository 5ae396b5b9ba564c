//! Names of files as text: every name has a text, no two names have the same, and it can be printed.

use std::ffi::OsStr;
use std::path::Path;
use unicode_normalization::UnicodeNormalization;

/// A path as text, with `/` between its parts. Bytes that are no UTF-8 and control characters become `\xE9` and the
/// like and, so that this can be undone, `\` becomes `\\`.
pub fn text(path: &Path) -> String {
    let parts: Vec<String> = path.iter().map(part).collect();
    match path.is_absolute() {
        true => format!("/{}", parts[1..].join("/")),
        false => parts.join("/"),
    }
}

/// One part of a path as text, escaped as by [`text`].
pub fn part(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text += "\\\\",
                c if c.is_control() => c.to_string().bytes().for_each(|byte| text += &hexadecimal(byte)),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|&byte| text += &hexadecimal(byte));
    }
    text
}

fn hexadecimal(byte: u8) -> String {
    format!("\\x{byte:02X}")
}

/// The name in one of several forms that look the same: macOS takes é apart, other systems do not.
pub fn composed(name: &str) -> String {
    name.nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_can_be_read_is_itself() {
        for name in ["Ada_X/0001.png", "été", "e\u{301}te\u{301}", "漢字", "a b'c\"", "\u{fffd}"] {
            assert_eq!(text(Path::new(name)), name);
        }
        assert_eq!(text(Path::new("/a/b")), "/a/b");
        assert_eq!(text(Path::new("")), "");
    }

    #[cfg(unix)]
    #[test]
    fn no_two_names_are_the_same_text_and_all_can_be_undone() {
        use std::os::unix::ffi::OsStrExt;
        /// The bytes that the documentation of `text` gives for a text.
        fn undone(text: &str) -> Vec<u8> {
            let (mut bytes, mut rest) = (Vec::new(), text);
            while let Some(place) = rest.find('\\') {
                bytes.extend(rest[..place].bytes());
                rest = &rest[place + 1..];
                match rest.strip_prefix('x') {
                    Some(digits) => {
                        bytes.push(u8::from_str_radix(&digits[..2], 16).unwrap());
                        rest = &digits[2..];
                    }
                    None => {
                        bytes.push(b'\\');
                        rest = &rest[1..];
                    }
                }
            }
            bytes.extend(rest.bytes());
            bytes
        }
        let names: [&[u8]; 8] = [
            b"caf\xe9",
            b"caf\xea",
            b"caf\\xE9",
            b"caf\\\\xE9",
            b"tab\there",
            b"\x1b[31m",
            b"\xff\xfe",
            "é\\".as_bytes(),
        ];
        let texts: std::collections::BTreeSet<String> =
            names.iter().map(|name| part(OsStr::from_bytes(name))).collect();
        assert_eq!(texts.len(), names.len());
        for name in names {
            let text = part(OsStr::from_bytes(name));
            assert_eq!(undone(&text), name);
            assert!(!text.chars().any(char::is_control), "{text}");
        }
        assert_eq!(part(OsStr::from_bytes(b"caf\xe9")), "caf\\xE9");
    }

    #[test]
    fn both_forms_of_an_accent_are_one() {
        assert_eq!(composed("e\u{301}"), composed("é"));
        assert_ne!(composed("e"), composed("é"));
    }
}
