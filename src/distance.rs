//! The distances between two embeddings.

use crate::Error;

/// The distance `d(x, y)` between two embeddings.
///
/// | Variant | `d(x, y)` | Gradient where it is undefined |
/// |---|---|---|
/// | `SquaredEuclidean` | `Σ (x - y)²` | – |
/// | `Euclidean` | `√Σ (x - y)²` | 0 at `x = y` |
/// | `Cosine` | `1 - x·y / (max(‖x‖, 1e-12) max(‖y‖, 1e-12))` | below a norm of 1e-12 that of plain scaling |
/// | `Lp { p, eps }` | `(Σ abs(x - y + eps)^p)^(1/p)` | as in torch: 0 where the difference or the distance is 0 |
///
/// `Lp` is `torch.nn.functional.pairwise_distance`, where `eps` is added to each difference; with `p = ∞` the
/// elements that reach the maximum share the gradient. Paired losses alone take it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Distance {
    /// `Σ (x - y)²`, FaceNet's.
    #[default]
    SquaredEuclidean,
    /// `√Σ (x - y)²`. Paired losses compute it wherever it is a number, also where the squares are none.
    Euclidean,
    /// One minus the cosine of the angle between the embeddings. A row whose norm is below 1e-12 is divided by that, as torch's
    /// `normalize` does, and so is its gradient: a row of zeros, as of an encoder whose units are all off, gets one of 1e12.
    Cosine,
    /// `(Σ |x - y + eps|^p)^(1/p)`, of paired losses: `m (Σ (|x - y + eps| / m)^p)^(1/p)` with m the largest `|x - y + eps|`, so
    /// that no power leaves the numbers where the distance does not. Its gradient is torch's, `sign(e) (|e| / d)^(p - 1)`, 0 where
    /// an element e is.
    Lp {
        /// The exponent, any number above 0; infinity gives the largest difference. An exponent p below 1 makes of an error of
        /// the sum one that is 1 / p times as large.
        p: f64,
        /// Added to each difference; 1e-6 in torch.
        eps: f64,
    },
}

/// The distances as kernels see them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// `Σ e²` or its root, `e = x - y + eps`. Torch's default, `Lp` with p = 2, is one of them.
    Difference { root: bool, eps: f64 },
    /// `1 - u_x·u_y`.
    Cosine,
    /// `(Σ |e|^p)^(1/p)`.
    Power { p: f64, eps: f64 },
}

impl Distance {
    pub(crate) fn metric(self) -> Result<Metric, Error> {
        Ok(match self {
            Distance::SquaredEuclidean => Metric::Difference { root: false, eps: 0.0 },
            Distance::Euclidean => Metric::Difference { root: true, eps: 0.0 },
            Distance::Cosine => Metric::Cosine,
            Distance::Lp { p, eps } => {
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
