//! How machine code lies in this binary before it is compressed. The build script reads this file too.
//!
//! Deflate finds what was there before within 32 KiB, and a kernel is longer; an instruction of 16 bytes is hardly ever equal to
//! another, but its opcodes, registers and barriers are. So bytes of one place in half an instruction lie together: as many
//! bytes compress to a tenth less.
#![allow(dead_code, reason = "each build reads its share")]

/// Bytes of half an instruction, on every architecture since 7.0.
const STRIDE: usize = 8;

/// What a cache of packed images must not mix: another name for each change of [`pack`].
pub const PACKING: &str = "places of 8 bytes";

/// The bytes of each place together, from the first to the last.
pub fn pack(code: &[u8]) -> Vec<u8> {
    (0..STRIDE).flat_map(|place| code.iter().skip(place).step_by(STRIDE)).copied().collect()
}

/// What [`pack`] was given.
pub fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut code = vec![0; packed.len()];
    let places = (0..STRIDE).flat_map(|place| (place..packed.len()).step_by(STRIDE));
    for (at, byte) in places.zip(packed) {
        code[at] = *byte;
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        assert_eq!(pack(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), [0, 8, 1, 9, 2, 3, 4, 5, 6, 7]);
        for len in 0..40u8 {
            let code: Vec<u8> = (0..len).collect();
            assert_eq!(unpack(&pack(&code)), code);
        }
    }
}
