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
    /// Thresholds for searches among many people; none in files of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub identification: Option<Identification>,
}

/// Thresholds at which a stranger's search among so many people finds somebody in a share `fpir` of the cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identification {
    /// The false positive identification rate.
    pub fpir: f64,
    /// People, and the threshold that searches among so many validation identities gave. Both ascend and descend.
    pub searches: Vec<(usize, f32)>,
    /// Shares of all impostor pairs, descending, and the threshold that no more lie within.
    pub matches: Vec<(f64, f32)>,
}

/// Where a threshold comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Origin {
    /// Searches among so many validation identities.
    Searches(usize),
    /// This share of impostor pairs: more people than there were to search among, who count as independent.
    Matches(f64),
    /// The same, but there were too few pairs for so many people: this was the smallest share.
    TooFew(f64),
}

impl Identification {
    /// The threshold for a gallery of so many people.
    pub fn threshold(&self, people: usize) -> (f32, Origin) {
        if let Some((of, threshold)) = self.searches.iter().find(|(of, _)| *of >= people) {
            return (*threshold, Origin::Searches(*of));
        }
        // 1 - (1 - rate)^people is the FPIR of independent people.
        let rate = -f64::exp_m1(f64::ln_1p(-self.fpir) / people as f64);
        // No looser than for fewer people.
        let most = self.searches.last().map_or(f32::INFINITY, |(_, threshold)| *threshold);
        match (self.matches.iter().find(|(share, _)| *share <= rate), self.matches.last()) {
            (Some((share, threshold)), _) => (threshold.min(most), Origin::Matches(*share)),
            (None, Some((share, threshold))) => (threshold.min(most), Origin::TooFew(*share)),
            (None, None) => (0.0, Origin::TooFew(1.0)),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Searches(people) => write!(f, "by searches among {people} validation identities"),
            Self::Matches(share) => write!(f, "by the nearest {share:e} of validation's impostor pairs"),
            Self::TooFew(share) => {
                write!(
                    f,
                    "by the nearest {share:e} of validation's impostor pairs, which are too few for so many people"
                )
            }
        }
    }
}
