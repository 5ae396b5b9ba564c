//! The random choices of mined losses: pure functions of a seed, a step and the rows themselves, so that a permuted batch,
//! a shard of the anchors and every backend draw the same triplets. Rows that are equal, bit for bit, draw alike.
//! `kernels/random.cuh` has the same functions under the same names; all arithmetic wraps.
//!
//! ```text
//! session      = philox([step, 0, 0], seed)[0..2]
//! pair_word    = philox([hash of a, hash of p], session)[0]
//! row_word     = philox([hash of n, 1, 0], session)[1]
//! priority     = fmix(pair_word ^ row_word)      the candidate with the least is taken, of equals the lowest index
//! ```

/// The bits of a number of arithmetic that a row's hash is made of.
pub trait Bits: Copy {
    /// The bits of an f32; both words of an f64, folded.
    fn word(self) -> u32;
}

impl Bits for f32 {
    #[inline(always)]
    fn word(self) -> u32 {
        self.to_bits()
    }
}

impl Bits for f64 {
    #[inline(always)]
    fn word(self) -> u32 {
        let bits = self.to_bits();
        bits as u32 ^ fmix((bits >> 32) as u32)
    }
}

/// MurmurHash3's 32-bit finalizer.
#[inline(always)]
pub(crate) fn fmix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// The hash of a row as it is given, before any normalisation: two sums over its columns, so that they may be added in
/// any order.
pub(crate) fn row_hash<S: Bits>(row: &[S]) -> [u32; 2] {
    let mut hash = [0u32; 2];
    for (c, x) in row.iter().enumerate() {
        let (place, word) = (c as u32 + 1, x.word());
        hash[0] = hash[0].wrapping_add(fmix(word.wrapping_add(0x9e37_79b9u32.wrapping_mul(place))));
        hash[1] = hash[1].wrapping_add(fmix(fmix(word) ^ 0x85eb_ca77u32.wrapping_mul(place)));
    }
    hash
}

/// Philox4x32-10: "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon, Moraes, Dror, Shaw 2011).
pub(crate) fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(c0) * 0xd251_1f53;
        let p1 = u64::from(c2) * 0xcd9e_8d57;
        [c0, c1, c2, c3] = [(p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32];
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [c0, c1, c2, c3]
}

fn words(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// The key of all draws of one call.
pub(crate) fn session(seed: u64, step: i64) -> [u32; 2] {
    let [low, high] = words(step as u64);
    let [s0, s1, ..] = philox([low, high, 0, 0], words(seed));
    [s0, s1]
}

/// What the pair of anchor and positive adds to its candidates' priorities.
pub(crate) fn pair_word(session: [u32; 2], anchor: [u32; 2], positive: [u32; 2]) -> u32 {
    philox([anchor[0], anchor[1], positive[0], positive[1]], session)[0]
}

/// What a row adds to its priorities as a negative.
pub(crate) fn row_word(session: [u32; 2], row: [u32; 2]) -> u32 {
    philox([row[0], row[1], 1, 0], session)[1]
}

/// The priority of a candidate: the one with the least is taken, of equals the one with the lowest original index.
#[inline(always)]
pub(crate) fn priority(pair_word: u32, row_word: u32) -> u32 {
    fmix(pair_word ^ row_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_numbers() {
        // The known answers for `philox4x32 10` of Random123, the authors' own library.
        let pi = ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        for ((counter, key), expected) in [
            (([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox(counter, key), expected, "{counter:x?} {key:x?}");
        }
    }

    #[test]
    fn fmix_is_the_finalizer_of_murmur3() {
        // MurmurHash3_x86_32 of nothing is the finalizer of its seed.
        for (seed, expected) in [(0, 0), (1, 0x514e_28b7), (u32::MAX, 0x81f1_6f39)] {
            assert_eq!(fmix(seed), expected);
        }
    }

    #[test]
    fn a_rows_hash_sees_every_place_and_both_words() {
        let row: Vec<f64> = (0..37).map(|i| f64::from(i * i) / 3.0).collect();
        let hash = row_hash(&row);
        for i in 0..row.len() {
            for flip in [1, 1 << 31, 1 << 32, 1 << 63] {
                let mut other = row.clone();
                other[i] = f64::from_bits(other[i].to_bits() ^ flip);
                let [h0, h1] = row_hash(&other);
                assert!(h0 != hash[0] && h1 != hash[1], "{i} {flip:x}");
            }
        }
        let mut swapped = row.clone();
        swapped.swap(3, 30);
        assert_ne!(row_hash(&swapped), hash);
        let narrow: Vec<f32> = row.iter().map(|x| *x as f32).collect();
        assert_eq!(row_hash(&narrow)[0], {
            let terms = narrow.iter().zip(1u32..);
            let terms = terms.map(|(x, c)| fmix(x.to_bits().wrapping_add(c.wrapping_mul(0x9e37_79b9))));
            terms.fold(0u32, u32::wrapping_add)
        });
    }

    #[test]
    fn steps_and_seeds_are_told_apart() {
        let all = [(0, 0), (1, 0), (0, 1), (1, 1), (1 << 32, 0), (0, 1 << 32), (0, -1)];
        let sessions: std::collections::BTreeSet<_> = all.into_iter().map(|(seed, step)| session(seed, step)).collect();
        assert_eq!(sessions.len(), all.len());
    }

    /// The chi-squared test at 11 degrees of freedom for each of: one pair over many sessions, many pairs of one session.
    #[test]
    fn each_candidate_is_drawn_equally_often() {
        const CANDIDATES: usize = 12;
        const DRAWS: usize = 60_000;
        let rows: Vec<[u32; 2]> = (0..CANDIDATES).map(|n| row_hash(&[n as f32, 0.5])).collect();
        let draw = |session, anchor, positive| {
            let pair = pair_word(session, anchor, positive);
            (0..CANDIDATES).min_by_key(|&n| (priority(pair, row_word(session, rows[n])), n)).unwrap()
        };
        let over_steps: Vec<usize> =
            (0..DRAWS).map(|step| draw(session(7, step as i64), row_hash(&[-1f32]), row_hash(&[-2f32]))).collect();
        let one = session(7, 0);
        let over_pairs: Vec<usize> = (0..DRAWS)
            .map(|pair| draw(one, row_hash(&[(pair / 200) as f32, -1.0]), row_hash(&[(pair % 200) as f32, -2.0])))
            .collect();
        for drawn in [over_steps, over_pairs] {
            let expected = DRAWS as f64 / CANDIDATES as f64;
            let mut counts = [0.0; CANDIDATES];
            drawn.iter().for_each(|&n| counts[n] += 1.0);
            let chi: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
            // 1 in 10,000 exceeds 37.4; the numbers are the same in every run.
            assert!(chi <= 37.4, "{chi}: {counts:?}");
            // One draw says nothing about the next: pairs of them fill a table as evenly.
            let mut table = [[0.0; CANDIDATES]; CANDIDATES];
            drawn.windows(2).step_by(2).for_each(|pair| table[pair[0]][pair[1]] += 1.0);
            let expected = DRAWS as f64 / 2.0 / (CANDIDATES * CANDIDATES) as f64;
            let chi: f64 = table.iter().flatten().map(|count: &f64| (count - expected).powi(2) / expected).sum();
            // 143 degrees of freedom: 1 in 10,000 exceeds 213.
            assert!(chi <= 213.0, "{chi}");
        }
    }
}
