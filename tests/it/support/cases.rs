//! How many random cases a property test takes, and which. They are the same in every run unless these variables are
//! set:
//!
//! | `TERCET_CASES` | how many for each dtype, instead of the test's own number |
//! | `TERCET_SEED`  | a number: other cases, which it decides; `random`: other cases in every run |

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::time::SystemTime;

use proptest::strategy::BoxedStrategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};

/// `TERCET_CASES` if it is set, else `count`.
pub fn count(count: u32) -> u32 {
    let Ok(text) = std::env::var("TERCET_CASES") else { return count };
    text.parse().unwrap_or_else(|_| panic!("TERCET_CASES: expected a number of cases, got {text:?}"))
}

/// `TERCET_SEED`, if it is set.
pub fn seed() -> Option<u64> {
    static SEED: OnceLock<Option<u64>> = OnceLock::new();
    *SEED.get_or_init(|| {
        let text = std::env::var("TERCET_SEED").ok()?;
        if text == "random" {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            return Some(now.as_nanos() as u64);
        }
        Some(text.parse().unwrap_or_else(|_| panic!("TERCET_SEED: expected a number or `random`, got {text:?}")))
    })
}

/// Runs `test` on `count` cases of `what`: sequence number `sequence` of them, or another if `TERCET_SEED` is set.
///
/// # Panics
/// At the first failure, with the smallest case that fails, and how to run the same cases again.
pub fn check<C: Debug>(
    what: &str,
    sequence: u8,
    count: u32,
    cases: &BoxedStrategy<C>,
    test: &dyn Fn(C) -> TestCaseResult, // not generic: proptest's runner is compiled once for each kind of case
) {
    let count = self::count(count);
    let mut bytes = [sequence; 32];
    if let Some(seed) = seed() {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&hasher.finish().to_le_bytes());
    }
    let max_global_rejects = count.saturating_mul(20).max(Config::default().max_global_rejects);
    let config = Config { cases: count, failure_persistence: None, max_global_rejects, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    if let Err(error) = TestRunner::new_with_rng(config, rng).run(cases, test) {
        let seed = seed().map_or("without TERCET_SEED".into(), |seed| format!("TERCET_SEED={seed}"));
        panic!("{what}: {error}\nthe same cases again: {seed}, TERCET_CASES={count}");
    }
}
