//! The threshold of a model, and how it was chosen.

use serde::{Deserialize, Serialize};

/// A threshold, and what it does to the pairs that it was chosen on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operating {
    /// Pairs up to this distance are accepted.
    pub threshold: f32,
    /// Share of impostor pairs accepted.
    pub far: f64,
    /// Share of genuine pairs rejected.
    pub frr: f64,
}

/// A threshold at the equal error rate of validation identities, against random impostors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The threshold, and its two errors on the validation pairs.
    #[serde(flatten)]
    pub operating: Operating,
    /// The equal error rate on the validation pairs.
    pub eer: f64,
    /// The share of skilled forgeries that the threshold accepts, if there were any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub far_skilled: Option<f64>,
    /// How many validation identities there were.
    pub identities: usize,
    /// How many validation images there were; all pairs of them were compared.
    pub images: usize,
}
