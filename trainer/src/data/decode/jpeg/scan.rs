//! Reads the codes of all scans without decoding a pixel: are there as many blocks as the picture has, and nothing
//! else?
//!
//! A damaged byte changes all codes after it. Sooner or later one of them does not exist, or the data end before the
//! blocks do, or the other way round. Files without Huffman codes or samples of 8 bits are left to the decoder.

use super::parts::{Component, Frame, Parts, Scan};
use anyhow::{Result, bail, ensure};
use std::rc::Rc;

/// Bytes after a scan's last block that are no sign of damage. Files with one or two are common, and read everywhere.
const LEFT_OVER: usize = 4;

/// Refuses a file whose pixels are damaged or not all there.
pub fn check(parts: &Parts) -> Result<()> {
    let Some(frame) = parts.frame.as_ref().filter(|frame| frame.known) else { return Ok(()) };
    let cut_off = "the file is cut off: its JPEG data have no end";
    ensure!(!parts.scans.is_empty(), cut_off);
    let mut walk = Walk::new(frame);
    for (number, scan) in parts.scans.iter().enumerate() {
        let last = number + 1 == parts.scans.len();
        match walk.scan(scan) {
            Ok(()) => {}
            Err(Fault::Short) if last && !parts.ended => bail!(cut_off),
            Err(Fault::Short) => bail!("the file is damaged: scan {} lacks a part of its data", number + 1),
            Err(Fault::Code) => bail!("the file is damaged: scan {} has a code that does not exist", number + 1),
            Err(Fault::Long(bytes)) => {
                bail!("the file is damaged: {bytes} bytes are left over in scan {}", number + 1)
            }
            // Motion JPEG, for one, leaves its tables to the reader.
            Err(Fault::Unknown) => return Ok(()),
        }
    }
    // An end marker says that no more was to come.
    ensure!(parts.ended || walk.is_complete(), cut_off);
    Ok(())
}

enum Fault {
    Short,
    Long(usize),
    Code,
    /// A stream that this cannot follow.
    Unknown,
}

type Walked<T> = std::result::Result<T, Fault>;

/// For each value of the next 16 bits, the code's length (0 if there is none) and its symbol.
type Table = Rc<Vec<(u8, u8)>>;

struct Walk<'a> {
    frame: &'a Frame,
    /// How many MCUs a row has, and how many rows there are.
    mcus: [u32; 2],
    largest: [u32; 2],
    /// The tables of DC, then those of AC.
    tables: [[Option<Table>; 4]; 2],
    /// In progressive files, for each component, which coefficients of each block are not zero.
    nonzero: Vec<Vec<u64>>,
    /// For each component, the lowest bit of each coefficient that has come; 255 for none yet.
    low: Vec<[u8; 64]>,
}

/// The content of a scan's header.
struct Spectrum {
    /// The components, by their place in the frame, with their tables of DC and AC.
    of: Vec<(usize, usize, usize)>,
    from: usize,
    to: usize,
    /// Whether the scan refines what earlier ones began.
    refines: bool,
    low: u8,
}

impl<'a> Walk<'a> {
    fn new(frame: &'a Frame) -> Self {
        let largest = [
            frame.components.iter().map(|c| c.horizontal).max().unwrap_or(1),
            frame.components.iter().map(|c| c.vertical).max().unwrap_or(1),
        ];
        let [width, height] = [u32::from(frame.width), u32::from(frame.height)];
        let mcus = [width.div_ceil(8 * largest[0]), height.div_ceil(8 * largest[1])];
        let blocks = |c: &Component| (mcus[0] * c.horizontal * mcus[1] * c.vertical) as usize;
        let held = |c| if frame.progressive { vec![0; blocks(c)] } else { Vec::new() };
        Self {
            frame,
            mcus,
            largest,
            tables: Default::default(),
            nonzero: frame.components.iter().map(held).collect(),
            low: vec![[255; 64]; frame.components.len()],
        }
    }

    /// Whether all bits of all coefficients have come.
    fn is_complete(&self) -> bool {
        self.low.iter().flatten().all(|&low| low == 0)
    }

    fn scan(&mut self, scan: &Scan) -> Walked<()> {
        for tables in &scan.tables {
            self.define(tables)?;
        }
        let spectrum = self.spectrum(scan.header)?;
        // A scan of one component has only its blocks, as many as cover the picture.
        let units = match spectrum.of[..] {
            [(own, ..)] => {
                let component = &self.frame.components[own];
                let of = |size: u16, factor: u32, largest| (u32::from(size) * factor).div_ceil(largest).div_ceil(8);
                [
                    of(self.frame.width, component.horizontal, self.largest[0]),
                    of(self.frame.height, component.vertical, self.largest[1]),
                ]
            }
            _ => self.mcus,
        };
        let all = units[0] as usize * units[1] as usize;
        let interval = if scan.restart_interval == 0 { all } else { scan.restart_interval };
        let mut pieces = restarts(scan.data);
        let mut done = 0;
        while done < all {
            let mut bits = Bits::new(pieces.next().ok_or(Fault::Short)?);
            let mut run = 0; // blocks in which no more coefficients come
            for unit in done..(done + interval).min(all) {
                let (x, y) = (unit as u32 % units[0], unit as u32 / units[0]);
                self.unit(&spectrum, x, y, &mut bits, &mut run)?;
            }
            done += interval;
            bits.end()?;
        }
        let rest: usize = pieces.map(<[u8]>::len).sum();
        if rest > LEFT_OVER {
            return Err(Fault::Long(rest));
        }
        for &(own, ..) in &spectrum.of {
            self.low[own][spectrum.from..=spectrum.to].fill(spectrum.low);
        }
        Ok(())
    }

    fn spectrum(&self, header: &[u8]) -> Walked<Spectrum> {
        let count = usize::from(*header.first().ok_or(Fault::Unknown)?);
        let [from, to, bits] = *header.get(1 + 2 * count..).and_then(<[u8]>::first_chunk).ok_or(Fault::Unknown)?;
        let own = |pair: &[u8]| {
            let place = self.frame.components.iter().position(|component| component.id == pair[0]);
            Some((place?, usize::from(pair[1] >> 4), usize::from(pair[1] & 15)))
        };
        let of: Option<Vec<_>> = header[1..1 + 2 * count].chunks_exact(2).map(own).collect();
        let of = of.filter(|of| !of.is_empty()).ok_or(Fault::Unknown)?;
        let known = of.iter().all(|&(_, dc, ac)| dc < 4 && ac < 4);
        let (from, to) = if self.frame.progressive { (from.into(), to.into()) } else { (0, 63) };
        let alone = !self.frame.progressive || from == 0 && to == 0 || from > 0 && of.len() == 1;
        if !known || !alone || from > to || to > 63 {
            return Err(Fault::Unknown);
        }
        let (high, low) = if self.frame.progressive { (bits >> 4, bits & 15) } else { (0, 0) };
        Ok(Spectrum { of, from, to, refines: high > 0, low })
    }

    fn unit(&mut self, spectrum: &Spectrum, x: u32, y: u32, bits: &mut Bits, run: &mut u32) -> Walked<()> {
        let interleaved = spectrum.of.len() > 1;
        for &(own, dc, ac) in &spectrum.of {
            let component = &self.frame.components[own];
            let [across, down] = if interleaved { [component.horizontal, component.vertical] } else { [1, 1] };
            for (dx, dy) in (0..down).flat_map(|dy| (0..across).map(move |dx| (dx, dy))) {
                if !self.frame.progressive {
                    let [dc, ac] = [&self.tables[0][dc], &self.tables[1][ac]];
                    let (Some(dc), Some(ac)) = (dc, ac) else { return Err(Fault::Unknown) };
                    bits.block(dc, ac)?;
                    continue;
                }
                if spectrum.from == 0 {
                    match (&self.tables[0][dc], spectrum.refines) {
                        (_, true) => bits.skip(1)?,
                        (Some(dc), false) => bits.number(dc)?,
                        (None, false) => return Err(Fault::Unknown),
                    }
                    continue;
                }
                let row = self.mcus[0] * component.horizontal;
                let block = ((y * down + dy) * row + x * across + dx) as usize;
                let Some(table) = &self.tables[1][ac] else { return Err(Fault::Unknown) };
                let nonzero = self.nonzero[own].get_mut(block).ok_or(Fault::Unknown)?;
                match spectrum.refines {
                    false => bits.first(table, spectrum, nonzero, run)?,
                    true => bits.refine(table, spectrum, nonzero, run)?,
                }
            }
        }
        Ok(())
    }

    /// Reads the tables of a segment: a byte for class and number, 16 counts of codes by length, the symbols.
    fn define(&mut self, mut segment: &[u8]) -> Walked<()> {
        while let Some((&[name, ref counts @ ..], rest)) = segment.split_first_chunk::<17>() {
            let symbols = counts.iter().map(|&n| usize::from(n)).sum();
            let symbols = rest.get(..symbols).ok_or(Fault::Unknown)?;
            let slot =
                self.tables.get_mut(usize::from(name >> 4)).and_then(|class| class.get_mut(usize::from(name & 15)));
            let mut table = vec![(0, 0); 1 << 16];
            let (mut code, mut next) = (0usize, symbols.iter());
            for (length, &count) in (1u8..).zip(counts) {
                for &symbol in next.by_ref().take(count.into()) {
                    let places = 1usize << (16 - length);
                    table.get_mut(code..code + places).ok_or(Fault::Unknown)?.fill((length, symbol));
                    code += places;
                }
            }
            *slot.ok_or(Fault::Unknown)? = Some(Rc::new(table));
            segment = &rest[symbols.len()..];
        }
        Ok(())
    }
}

/// The pieces of data between restart markers.
fn restarts(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let data = rest?;
        let marker = data.windows(2).position(|w| w[0] == 0xff && (0xd0..=0xd7).contains(&w[1]));
        rest = marker.map(|at| &data[at + 2..]);
        Some(&data[..marker.unwrap_or(data.len())])
    })
}

/// A reader of bits, the highest of a byte first; 0xff 0x00 is a byte 0xff.
struct Bits<'a> {
    rest: &'a [u8],
    /// The next bits, at the top of the word.
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self { rest: data, held: 0, count: 0 }
    }

    fn fill(&mut self) {
        while self.count <= 48
            && let Some((&byte, rest)) = self.rest.split_first()
        {
            self.rest = match (byte, rest.first()) {
                (0xff, Some(0)) => &rest[1..],
                _ => rest,
            };
            self.held |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    fn skip(&mut self, bits: u8) -> Walked<()> {
        self.take(bits).map(drop)
    }

    fn take(&mut self, bits: u8) -> Walked<u32> {
        if bits == 0 {
            return Ok(0);
        }
        self.fill();
        let bits = u32::from(bits);
        self.count = self.count.checked_sub(bits).ok_or(Fault::Short)?;
        let value = self.held >> (64 - bits);
        self.held <<= bits;
        Ok(value as u32)
    }

    fn symbol(&mut self, table: &Table) -> Walked<u8> {
        self.fill();
        let (length, symbol) = table[(self.held >> 48) as usize];
        match length {
            0 if self.count < 16 => Err(Fault::Short),
            0 => Err(Fault::Code),
            length => self.skip(length).map(|()| symbol),
        }
    }

    /// Reads a code for the length of a number, and the number.
    fn number(&mut self, table: &Table) -> Walked<()> {
        match self.symbol(table)? {
            length @ 0..=16 => self.skip(length),
            _ => Err(Fault::Code),
        }
    }

    /// Reads a block of a sequential scan.
    fn block(&mut self, dc: &Table, ac: &Table) -> Walked<()> {
        self.number(dc)?;
        let mut k = 1;
        while k < 64 {
            let symbol = self.symbol(ac)?;
            match (symbol >> 4, symbol & 15) {
                (15, 0) => k += 16,
                (_, 0) => return Ok(()),
                (zeros, length) => {
                    self.skip(length)?;
                    k += zeros + 1;
                }
            }
        }
        if k > 64 { Err(Fault::Code) } else { Ok(()) }
    }

    /// Reads a block of the first scan of a part of the spectrum.
    fn first(&mut self, table: &Table, of: &Spectrum, nonzero: &mut u64, run: &mut u32) -> Walked<()> {
        if *run > 0 {
            *run -= 1;
            return Ok(());
        }
        let mut k = of.from;
        while k <= of.to {
            let symbol = self.symbol(table)?;
            match (symbol >> 4, symbol & 15) {
                (15, 0) => k += 16,
                (zeros, 0) => {
                    *run = (1 << zeros) - 1 + self.take(zeros)?;
                    return Ok(());
                }
                (zeros, length) => {
                    k += usize::from(zeros);
                    if k > of.to {
                        return Err(Fault::Code);
                    }
                    *nonzero |= 1 << k;
                    self.skip(length)?;
                    k += 1;
                }
            }
        }
        Ok(())
    }

    /// Reads a block of a scan that adds a bit to each coefficient: those that are not zero have one each, between the
    /// codes for those that become so.
    fn refine(&mut self, table: &Table, of: &Spectrum, nonzero: &mut u64, run: &mut u32) -> Walked<()> {
        let mut k = of.from;
        while *run == 0 && k <= of.to {
            let symbol = self.symbol(table)?;
            let (mut zeros, length) = (symbol >> 4, symbol & 15);
            match length {
                0 if zeros < 15 => {
                    *run = (1 << zeros) + self.take(zeros)?;
                    break;
                }
                0 => {}
                1 => self.skip(1)?,
                _ => return Err(Fault::Code),
            }
            while k <= of.to {
                if *nonzero >> k & 1 == 1 {
                    self.skip(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if length == 1 {
                if k > of.to {
                    return Err(Fault::Code);
                }
                *nonzero |= 1 << k;
            }
            k += 1;
        }
        if *run > 0 {
            (k..=of.to).filter(|&k| *nonzero >> k & 1 == 1).try_for_each(|_| self.skip(1))?;
            *run -= 1;
        }
        Ok(())
    }

    /// Checks what follows the last block: less than a byte of padding, or what is tolerated.
    fn end(mut self) -> Walked<()> {
        self.fill();
        let held = (self.count / 8) as usize;
        let left = self.rest.len() + held;
        // Some writers fill up the last block of the disk.
        let filled = |byte: u8| {
            let held_too = (0..held).all(|i| (self.held << (self.count % 8)) >> (56 - 8 * i) & 255 == u64::from(byte));
            held_too && self.rest.iter().all(|&b| b == byte)
        };
        if left <= LEFT_OVER || filled(0) || filled(0xff) { Ok(()) } else { Err(Fault::Long(left)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use std::io::Cursor;

    /// Bits as bytes, filled up with ones, and with a 0 after each 0xff.
    fn packed(bits: &str) -> Vec<u8> {
        let filled = bits.to_owned() + &"1".repeat(bits.len().next_multiple_of(8) - bits.len());
        let bytes = filled.as_bytes().chunks(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | (bit - b'0')));
        bytes.flat_map(|byte: u8| if byte == 0xff { vec![0xff, 0] } else { vec![byte] }).collect()
    }

    fn segment(code: u8, data: &[u8]) -> Vec<u8> {
        [&[0xff, code], &(data.len() as u16 + 2).to_be_bytes()[..], data].concat()
    }

    /// A progressive file of 16 x 16, and so of four blocks, without its end marker: DC and AC, a bit each, then the
    /// lower bits.
    fn progressive() -> Vec<u8> {
        let scan = |from: u8, to: u8, bits: u8| segment(0xda, &[1, 1, 0, from, to, bits]);
        // DC: codes 0, 10, 110 and 1110 for numbers of 0, 1, 2 and 3 bits. AC: 0 and 10 for runs of 1 and 2 blocks
        // without more coefficients, 110 for a number of one bit, 1110 for such a number after a zero.
        let tables = [
            segment(0xc4, &[&[0x00, 1, 1, 1, 1][..], &[0; 12], &[0, 1, 2, 3]].concat()),
            segment(0xc4, &[&[0x10, 1, 1, 1, 1][..], &[0; 12], &[0x00, 0x10, 0x01, 0x11]].concat()),
        ];
        [
            vec![0xff, 0xd8],
            segment(0xdb, &[&[0][..], &[16; 64]].concat()),
            segment(0xc2, &[8, 0, 16, 0, 16, 1, 1, 0x11, 0]),
            tables.concat(),
            scan(0, 0, 0x01),
            packed("1110111010111000"), // 7, 0, 1 and -3
            scan(0, 0, 0x10),
            packed("1010"),
            scan(1, 63, 0x01),
            // A coefficient in the first block, and no more; one after a zero in the second; nothing in the other two.
            packed("1101011100101"),
            scan(1, 63, 0x10),
            // One more in the first block, between the bits of those that were there.
            packed("1101001011"),
        ]
        .concat()
    }

    fn checked(bytes: &[u8]) -> Result<()> {
        check(&Parts::read(bytes))
    }

    fn coloured(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let picture =
            RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * x) as u8, (x ^ y) as u8 * 3]));
        DynamicImage::from(picture).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
        bytes
    }

    #[test]
    fn whole_files_are_whole_and_parts_of_them_are_not() {
        for (width, height) in [(1, 1), (8, 8), (9, 17), (100, 63)] {
            let bytes = coloured(width, height);
            checked(&bytes).unwrap_or_else(|error| panic!("{width} x {height}: {error}"));
            checked(&bytes[..bytes.len() - 2]).unwrap();
            for cut in [3, 5, bytes.len() / 4] {
                let error = checked(&bytes[..bytes.len() - cut]).unwrap_err().to_string();
                assert!(error.contains("cut off") || error.contains("damaged"), "{error}");
            }
        }
    }

    #[test]
    fn of_a_progressive_file_all_bits_must_have_come() {
        let bytes = progressive();
        checked(&bytes).unwrap();
        let ended = [&bytes[..], &[0xff, 0xd9]].concat();
        checked(&ended).unwrap();
        image::load_from_memory(&ended).unwrap();
        // Without its last scan: with an end marker that is how it was written, without one it is cut off.
        let last = bytes.len() - Parts::read(&bytes).scans[3].data.len() - 10;
        assert_eq!(bytes[last..last + 2], [0xff, 0xda]);
        assert!(checked(&bytes[..last]).unwrap_err().to_string().contains("cut off"));
        checked(&[&bytes[..last], &[0xff, 0xd9]].concat()).unwrap();
        // The last byte, 0xff, takes two in the file.
        for cut in 2..4 {
            assert!(checked(&bytes[..bytes.len() - cut]).unwrap_err().to_string().contains("cut off"), "{cut}");
        }
    }

    #[test]
    fn a_few_bytes_or_padding_behind_the_last_block_are_no_damage() {
        let bytes = coloured(40, 40);
        let (data, end) = bytes.split_at(bytes.len() - 2);
        for (extra, good) in [(&[0x7f][..], true), (&[0; 700], true), (&[1, 2, 3, 4, 5, 6], false)] {
            assert_eq!(checked(&[data, extra, end].concat()).is_ok(), good, "{extra:?}");
        }
    }

    #[test]
    fn most_damage_is_found() {
        let bytes = coloured(200, 200);
        let header = Parts::read(&bytes).image.len() - Parts::read(&bytes).scans[0].data.len() - 2;
        let mut found = 0;
        for n in 0..100 {
            let mut damaged = bytes.clone();
            let place = header + (bytes.len() - header) * n / 101;
            damaged[place] = damaged[place].wrapping_mul(7).wrapping_add(91);
            found += u32::from(damaged[place] != bytes[place] && checked(&damaged).is_err());
        }
        // After damage the codes often fall into step again, with as many blocks as before.
        assert!(found >= 60, "{found}");
    }
}
