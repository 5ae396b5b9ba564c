//! The distances between two embeddings.

use crate::Error;

/// The distance `d(x, y)` between two rows of a batch, or of two matrices.
///
/// | Variant | `d(x, y)` | Gradient at points without one |
/// |---|---|---|
/// | `SquaredEuclidean` | `Σ (x - y)²` | – |
/// | `Euclidean` | `√Σ (x - y)²` | 0 at `x = y` |
/// | `Cosine` | `1 - x·y / (max(‖x‖, 1e-12) max(‖y‖, 1e-12))` | below a norm of 1e-12 that of the row divided by 1e-12 |
///
/// All three are functions of `‖x‖`, `‖y‖` and `x·y`, so that one product of matrices gives the distances of all pairs.
/// Losses of pre-formed pairs and triplets take [`PairedDistance`], which has torch's p-norms too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Distance {
    /// `Σ (x - y)²`, FaceNet's distance.
    #[default]
    SquaredEuclidean,
    /// `√Σ (x - y)²`.
    Euclidean,
    /// One minus the cosine of the angle between the embeddings. A row whose norm is below 1e-12 is divided by 1e-12,
    /// as torch's `normalize` does, and so is its gradient: that of a row of zeros, from an encoder whose units are all
    /// off, is 1e12 times as large.
    Cosine,
}

/// The distance `d(x, y)` between the rows of a pair: any [`Distance`], or a p-norm.
///
/// | Variant | `d(x, y)` | Gradient at points without one |
/// |---|---|---|
/// | `SquaredEuclidean` | `Σ (x - y)²` | – |
/// | `Euclidean` | `√Σ (x - y)²` | 0 at `x = y` |
/// | `Cosine` | `1 - x·y / (max(‖x‖, 1e-12) max(‖y‖, 1e-12))` | below a norm of 1e-12 that of the row divided by 1e-12 |
/// | `Lp { p, eps }` | `(Σ abs(x - y + eps)^p)^(1/p)` | as in torch: 0 if the difference or the distance is 0 |
///
/// `Lp` is `torch.nn.functional.pairwise_distance`, which adds `eps` to each difference; with `p = ∞` the elements that
/// reach the maximum share the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PairedDistance {
    /// `Σ (x - y)²`, FaceNet's distance.
    SquaredEuclidean,
    /// `√Σ (x - y)²`, also if the squares overflow or underflow and the root does not.
    Euclidean,
    /// One minus the cosine of the angle between the embeddings. A row whose norm is below 1e-12 is divided by 1e-12,
    /// as torch's `normalize` does, and so is its gradient: that of a row of zeros, from an encoder whose units are all
    /// off, is 1e12 times as large.
    Cosine,
    /// `(Σ |x - y + eps|^p)^(1/p)`, computed as `m (Σ (|x - y + eps| / m)^p)^(1/p)` with m the largest `|x - y + eps|`:
    /// right also if the powers of `|x - y + eps|` itself would overflow or underflow. Its gradient is torch's,
    /// `sign(e) (|e| / d)^(p - 1)` with e an element of `x - y + eps`, and 0 if e is 0.
    Lp {
        /// The exponent, any number above 0; infinity gives the largest difference. An exponent p below 1 multiplies
        /// the relative error of the sum by 1 / p.
        p: f64,
        /// The number added to each difference; 1e-6 in torch.
        eps: f64,
    },
}

impl Default for PairedDistance {
    fn default() -> Self {
        Distance::default().into()
    }
}

impl From<Distance> for PairedDistance {
    fn from(distance: Distance) -> Self {
        match distance {
            Distance::SquaredEuclidean => Self::SquaredEuclidean,
            Distance::Euclidean => Self::Euclidean,
            Distance::Cosine => Self::Cosine,
        }
    }
}

/// A [`PairedDistance`] as the loops and kernels of paired losses see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// `Σ e²`, or with `root` `√Σ e²`, of `e = x - y + eps`; torch's default, `Lp` with p = 2, is the latter.
    Difference { root: bool, eps: f64 },
    /// `1 - u_x·u_y`, of rows divided by their norms.
    Cosine,
    /// `(Σ |e|^p)^(1/p)`, of `e = x - y + eps`.
    Power { p: f64, eps: f64 },
}

impl PairedDistance {
    pub(crate) fn metric(self) -> Result<Metric, Error> {
        Ok(match self {
            Self::SquaredEuclidean => Metric::Difference { root: false, eps: 0.0 },
            Self::Euclidean => Metric::Difference { root: true, eps: 0.0 },
            Self::Cosine => Metric::Cosine,
            Self::Lp { p, eps } => {
                if p.is_nan() || p <= 0.0 {
                    return Err(Error::argument("distance.p", "a number above 0", p.to_string()));
                }
                if !eps.is_finite() {
                    return Err(Error::argument("distance.eps", "a finite number", eps.to_string()));
                }
                match p {
                    2.0 => Metric::Difference { root: true, eps },
                    _ => Metric::Power { p, eps },
                }
            }
        })
    }
}
