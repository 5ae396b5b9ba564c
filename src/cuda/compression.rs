//! How images are compressed in this binary: as LZMA, whose window is as long as an image. Deflate's is 32 KiB, and a kernel is
//! longer: variants of one kernel, which are most of an image, are out of its sight. The build script reads this file too.
#![allow(dead_code, reason = "each build reads its share")]

/// What a cache of compressed images must not mix: another name for each change of what is below.
pub const COMPRESSION: &str = "lzma";

/// LZMA's preset: a quick one. The slowest makes a seventh less in ten times the time, and build scripts are not optimised.
pub const PRESET: u32 = 1;

/// How far back a repetition may lie, in bytes.
pub const WINDOW: u32 = 4 << 20;

/// LZMA's `lc`, `lp` and `pb`: what a byte is predicted from. An instruction has 16 bytes, so that of machine code it is the place
/// in an instruction; of PTX, which is text, the byte before.
pub const fn predicted_from(is_code: bool) -> [u32; 3] {
    if is_code { [0, 4, 4] } else { [4, 0, 0] }
}
