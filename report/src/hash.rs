//! A hash of what a device executes: a stem's machine code, and how it is launched. It is the same after everything that
//! changes neither, such as an edited comment or a file that was moved.

use crate::elf::Cubin;
use crate::sha256;

/// Digits of a hash that are kept: enough that two contents never share them by chance.
const DIGITS: usize = 16;

/// Sections that a device reads: instructions, the banks of constants, variables in global memory, and how much shared memory
/// there is. All others describe them: names, tables of lines, notes of the compiler.
const READ: [&str; 4] = [".text.", ".nv.constant", ".nv.global", ".nv.shared."];

/// The hash of a stem, by its cubin and a line for each launch.
///
/// # Errors
/// If the cubin is none.
pub fn of_stem(cubin: &[u8], launches: &str) -> Result<String, String> {
    let mut sections = Cubin::parse(cubin)?.sections;
    sections.retain(|section| READ.iter().any(|begin| section.name.starts_with(begin)));
    if !sections.iter().any(|section| section.name.starts_with(READ[0])) {
        return Err("expected sections of instructions, got none".into());
    }
    // The compiler's order says nothing.
    sections.sort_by_key(|section| section.name);
    let mut content = Vec::new();
    for section in sections {
        content
            .extend_from_slice(format!("{}\0{}\0{}\0", section.name, section.size, section.content.len()).as_bytes());
        content.extend_from_slice(section.content);
    }
    content.extend_from_slice(launches.as_bytes());
    Ok(sha256::hex(&content)[..DIGITS].into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::file;

    const LAUNCHES: &str = "a_one 4 blocks of 128 threads, 512 bytes\n";

    #[test]
    fn what_a_device_does_not_read_changes_nothing() {
        let one =
            file(&[(".text.a_one", b"code", 7), (".nv.constant0.a_one", b"xy", 0), (".debug_line", b"line 1", 0)]);
        let hash = of_stem(&one, LAUNCHES).unwrap();
        assert_eq!(hash.len(), DIGITS);
        let others = [
            file(&[
                (".text.a_one", b"code", 7),
                (".nv.constant0.a_one", b"xy", 0),
                (".debug_line", b"line 2, a.cu", 0),
            ]),
            file(&[(".note", b"made elsewhere", 0), (".nv.constant0.a_one", b"xy", 0), (".text.a_one", b"code", 9)]),
        ];
        for other in &others {
            assert_eq!(of_stem(other, LAUNCHES).unwrap(), hash);
        }
    }

    #[test]
    fn instructions_constants_and_launches_change_it() {
        let with = |name: &str, code: &[u8], constants: &[u8], launches: &str| {
            of_stem(&file(&[(name, code, 0), (".nv.constant0.a_one", constants, 0)]), launches).unwrap()
        };
        let hashes = [
            with(".text.a_one", b"code", b"xy", LAUNCHES),
            with(".text.a_one", b"codf", b"xy", LAUNCHES),
            with(".text.a_one", b"code", b"xz", LAUNCHES),
            with(".text.a_two", b"code", b"xy", LAUNCHES),
            with(".text.a_one", b"codex", b"y", LAUNCHES),
            with(".text.a_one", b"code", b"xy", &LAUNCHES.replace('4', "5")),
            with(".text.a_one", b"code", b"xy", ""),
        ];
        for (at, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..at].contains(hash), "{at}: {hashes:?}");
        }
    }

    #[test]
    fn what_is_no_machine_code_has_none() {
        assert!(of_stem(b".version 8.0", LAUNCHES).is_err());
        assert!(of_stem(&file(&[(".note", b"x", 0)]), LAUNCHES).unwrap_err().contains("got none"));
    }
}
