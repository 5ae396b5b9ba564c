//! Every random draw of a run, as a function of (seed, epoch, step).
//!
//! ChaCha8 is a counter-based generator: its 256-bit key is filled with the four words
//!
//! ```text
//! key = seed | purpose | epoch | step        (u64 each, little-endian)
//! ```
//!
//! so the draws of one step depend on nothing that happened before it: a run repeats exactly, and a step can be
//! replayed alone. For draws that belong to no step, `epoch` and `step` hold other indices: the generator of signatures
//! puts the identity and the drawing there.

use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// What a stream of draws is for. The number is part of the key: never reuse one.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Which identities are held out, and which of their images are evaluated.
    Split = 1,
    /// The images and triplets of a training batch.
    Batch = 2,
    /// The affine views of a training batch.
    Augment = 3,
    /// The images that batch statistics are estimated on.
    Statistics = 4,
    /// The style of a generated signature's identity.
    Style = 5,
    /// One drawing of a generated signature.
    Drawing = 6,
    /// The initial weights: the first draw is libtorch's own seed.
    Weights = 7,
    /// One forgery of a generated signature.
    Forgery = 20,
    /// The identities and images of a one-shot trial.
    Trial = 21,
    /// The folds and pairs of `tercet pairs`.
    Pairs = 22,
    /// The people and samples of an open-set evaluation's gallery.
    Gallery = 23,
}

/// The stream of draws for one purpose at one (epoch, step).
pub fn stream(seed: u64, purpose: Purpose, epoch: u64, step: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    let words = [seed, purpose as u64, epoch, step];
    for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A standard normal draw (Box-Muller; the second value is not kept, so each draw costs two words).
pub fn normal(rng: &mut impl Rng) -> f32 {
    let u: f64 = 1.0 - rng.random::<f64>(); // (0, 1]: ln(0) cannot happen
    let v: f64 = rng.random();
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// A uniform draw from `-limit..limit`.
pub fn symmetric(rng: &mut impl Rng, limit: f32) -> f32 {
    (rng.random::<f32>() * 2.0 - 1.0) * limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_draws_and_any_other_key_gives_others() {
        let draw = |s, p, e, t| stream(s, p, e, t).random::<u64>();
        let here = draw(1, Purpose::Batch, 2, 3);
        assert_eq!(here, draw(1, Purpose::Batch, 2, 3));
        assert_ne!(here, draw(2, Purpose::Batch, 2, 3));
        assert_ne!(here, draw(1, Purpose::Augment, 2, 3));
        assert_ne!(here, draw(1, Purpose::Batch, 3, 2));
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut rng = stream(0, Purpose::Style, 0, 0);
        let n = 20_000;
        let draws: Vec<f32> = (0..n).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f32>() / n as f32;
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n as f32;
        // Five standard errors: 1/sqrt(n) for the mean, sqrt(2/n) for the variance.
        assert!(mean.abs() < 0.036 && (var - 1.0).abs() < 0.05, "{mean} {var}");
    }
}
