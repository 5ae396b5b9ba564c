//! Whether bytes are those of before, by 128 bits of XXH3. That two contents meet in them by accident need not be
//! reckoned with; they are no defence against somebody who makes contents meet on purpose.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// A hash of bytes. JSON has it as 32 hexadecimal digits, because its numbers are exact to 64 bits at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// The fingerprint of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxh3_128(bytes))
    }

    /// Its bits as two numbers.
    pub fn halves(self) -> [i64; 2] {
        [self.0 as i64, (self.0 >> 64) as i64]
    }
}

impl From<Fingerprint> for String {
    fn from(of: Fingerprint) -> Self {
        format!("{:032x}", of.0)
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = digits.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        value.map(Self).ok_or_else(|| format!("{text:?} is no fingerprint; expected 32 hexadecimal digits"))
    }
}

/// The fingerprint of a sequence of numbers and fingerprints.
#[derive(Default)]
pub struct Sequence(Xxh3);

impl Sequence {
    /// Adds a number.
    pub fn number(&mut self, value: usize) {
        self.0.update(&(value as u64).to_le_bytes());
    }

    /// Adds a fingerprint.
    pub fn fingerprint(&mut self, of: Fingerprint) {
        self.0.update(&of.0.to_le_bytes());
    }

    /// The fingerprint of what has been added.
    pub fn end(&self) -> Fingerprint {
        Fingerprint(self.0.digest128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_stored_to_the_bit_and_nothing_else_is_read_as_one() {
        // XXH3 of no bytes, by its specification.
        let empty = "99aa06d3014798d86001c324468d497f";
        assert_eq!(String::from(Fingerprint::of(b"")), empty);
        for bytes in [&b""[..], b"a", &[7; 1 << 20]] {
            let value = serde_json::to_value(Fingerprint::of(bytes)).unwrap();
            assert_eq!(serde_json::from_value::<Fingerprint>(value).unwrap(), Fingerprint::of(bytes));
        }
        for text in ["", "99aa", &empty[1..], &format!("+{}", &empty[1..]), &format!("{empty}0")] {
            let error = Fingerprint::try_from(text.to_owned()).unwrap_err();
            assert!(error.contains("expected 32 hexadecimal digits"), "{error}");
        }
    }

    #[test]
    fn a_sequence_depends_on_each_part_and_on_their_order() {
        let of = |numbers: &[usize]| {
            let mut sequence = Sequence::default();
            numbers.iter().for_each(|&number| sequence.number(number));
            sequence.fingerprint(Fingerprint::of(b"x"));
            sequence.end()
        };
        assert_eq!(of(&[1, 2]), of(&[1, 2]));
        assert!(of(&[1, 2]) != of(&[2, 1]) && of(&[1]) != of(&[1, 0]));
    }
}
