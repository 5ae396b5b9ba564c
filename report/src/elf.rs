//! The parts of a cubin, which is an ELF file of 64 bits.

/// A section.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// The name, such as `.text.batch_order`.
    pub name: &'a str,
    /// Bytes in memory, which a section of zeros has and the file has not.
    pub size: u64,
    /// The bytes in the file; none of a section of zeros.
    pub content: &'a [u8],
    /// What the kind of the section says; of code, the registers in the highest byte.
    pub info: u32,
    kind: u32,
    link: u32,
}

/// A cubin.
#[derive(Debug)]
pub struct Cubin<'a> {
    /// In the order of the file.
    pub sections: Vec<Section<'a>>,
}

const SYMBOLS: u32 = 2;
const ZEROS: u32 = 8;
/// Bytes of an entry of the table of symbols.
const SYMBOL: usize = 24;
const FUNCTION: u8 = 2;

fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Result<u64, String> {
    let bytes = at.checked_add(BYTES).and_then(|end| bytes.get(at..end));
    let bytes = bytes.ok_or_else(|| format!("expected {BYTES} bytes at {at}, got the end"))?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn text(bytes: &[u8], at: usize) -> Result<&str, String> {
    let rest = bytes.get(at..).ok_or_else(|| format!("expected a name at {at}, got the end"))?;
    let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(name).map_err(|_| format!("expected a name at {at}, got other bytes"))
}

impl<'a> Cubin<'a> {
    /// Reads the sections of a file.
    ///
    /// # Errors
    /// If the bytes are not such a file; says where.
    pub fn parse(file: &'a [u8]) -> Result<Self, String> {
        if !file.starts_with(b"\x7fELF\x02\x01") {
            return Err("expected an ELF file of 64 bits, lowest byte first, got other bytes".into());
        }
        let (table, size) = (number::<8>(file, 40)? as usize, number::<2>(file, 58)? as usize);
        let (count, of_names) = (number::<2>(file, 60)? as usize, number::<2>(file, 62)? as usize);
        let content = |at: usize, kind: u32| {
            let number = |after: usize| number::<8>(file, at.saturating_add(after));
            let (from, size) = (number(24)? as usize, number(32)? as usize);
            let bytes = from.checked_add(size).and_then(|end| file.get(from..end));
            if kind == ZEROS {
                Ok(&[][..])
            } else {
                bytes.ok_or_else(|| format!("a section of {size} bytes at {from}"))
            }
        };
        let names = content(table.saturating_add(of_names * size), 3)?;
        let section = |index: usize| {
            let at = table.saturating_add(index * size);
            number::<8>(file, at.saturating_add(56))?; // the last of its numbers: the others are there
            let kind = number::<4>(file, at + 4)? as u32;
            Ok(Section {
                name: text(names, number::<4>(file, at)? as usize)?,
                size: number::<8>(file, at + 32)?,
                content: content(at, kind)?,
                info: number::<4>(file, at + 44)? as u32,
                kind,
                link: number::<4>(file, at + 40)? as u32,
            })
        };
        Ok(Self { sections: (0..count).map(section).collect::<Result<_, String>>()? })
    }

    /// The section of that name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The functions that are global, which the kernels are, with their indices among the symbols.
    ///
    /// # Errors
    /// If the table of symbols is not whole.
    pub fn kernels(&self) -> Result<Vec<(usize, &'a str)>, String> {
        let table = self.sections.iter().find(|section| section.kind == SYMBOLS).ok_or("a file without symbols")?;
        let names = self.sections.get(table.link as usize).ok_or("symbols without names")?.content;
        let mut kernels = Vec::new();
        for (index, symbol) in table.content.chunks_exact(SYMBOL).enumerate() {
            if symbol[4] & 15 == FUNCTION && symbol[4] >> 4 == 1 {
                kernels.push((index, text(names, number::<4>(symbol, 0)? as usize)?));
            }
        }
        Ok(kernels)
    }

    /// The most threads of a block of a kernel, which its bounds of launches say.
    #[must_use]
    pub fn threads(&self, kernel: &str) -> Option<u32> {
        /// An attribute's form: its size follows, and then its value.
        const SIZED: u8 = 4;
        const MAX_THREADS: u8 = 5;
        let mut rest = self.section(&format!(".nv.info.{kernel}"))?.content;
        while let [form, attribute, low, high, after @ ..] = rest {
            let size = if *form == SIZED { usize::from(u16::from_le_bytes([*low, *high])) } else { 0 };
            if (*form, *attribute) == (SIZED, MAX_THREADS) {
                let by_dimension = [0, 4, 8].map(|at| number::<4>(after, at).unwrap_or(0) as u32);
                return Some(by_dimension.iter().product());
            }
            rest = after.get(size..)?;
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file of these sections, each with its bytes and what `info` says.
    pub(crate) fn file(sections: &[(&str, &[u8], u32)]) -> Vec<u8> {
        let mut names = b"\0".to_vec();
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        let mut table = Vec::new();
        let of_names: (&str, &[u8], u32) = (".shstrtab", &[], 0);
        let with_names = sections.iter().chain([&of_names]);
        for (name, bytes, info) in with_names {
            let at = names.len() as u32;
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            let bytes = if *name == ".shstrtab" { &names[..] } else { bytes };
            table.extend_from_slice(&at.to_le_bytes());
            table.extend_from_slice(&1u32.to_le_bytes());
            table.extend_from_slice(&[0; 16]);
            table.extend_from_slice(&(file.len() as u64).to_le_bytes());
            table.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            table.extend_from_slice(&0u32.to_le_bytes());
            table.extend_from_slice(&info.to_le_bytes());
            table.extend_from_slice(&[0; 16]);
            file.extend_from_slice(bytes);
        }
        let at = (file.len() as u64).to_le_bytes();
        file[40..48].copy_from_slice(&at);
        file[58..64].copy_from_slice(&[64, 0, sections.len() as u8 + 1, 0, sections.len() as u8, 0]);
        file.extend_from_slice(&table);
        file
    }

    #[test]
    fn sections_have_their_names_and_bytes() {
        let file = file(&[(".text.a", b"code", 7 << 24), (".nv.constant0.a", b"xy", 0)]);
        let cubin = Cubin::parse(&file).unwrap();
        let code = cubin.section(".text.a").unwrap();
        assert_eq!((code.content, code.size, code.info >> 24), (&b"code"[..], 4, 7));
        assert_eq!(cubin.section(".nv.constant0.a").unwrap().content, b"xy");
        assert!(cubin.section(".text.b").is_none());
    }

    #[test]
    fn other_bytes_are_an_error() {
        assert!(Cubin::parse(b"PTX").unwrap_err().contains("expected an ELF file"));
        let whole = file(&[(".text.a", b"code", 0)]);
        for length in 0..whole.len() {
            assert!(Cubin::parse(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn threads_are_those_of_the_launch_bounds() {
        let mut info = vec![4, 0x2f, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 0x1b, 0xff, 0];
        info.extend([4, 5, 12, 0, 128, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        let file = file(&[(".nv.info.a", &info, 0)]);
        let cubin = Cubin::parse(&file).unwrap();
        assert_eq!(cubin.threads("a"), Some(256));
        assert_eq!(cubin.threads("b"), None);
    }
}
