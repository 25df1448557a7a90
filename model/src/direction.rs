use serde::{Deserialize, Serialize};

/// Which frames are mirrored, as seen from the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Direction {
    /// Frames that enter the pod.
    Ingress,
    /// Frames that leave the pod.
    Egress,
    /// All frames.
    #[default]
    Both,
}

impl Direction {
    /// Whether frames that enter the pod are mirrored.
    #[must_use]
    pub fn has_ingress(self) -> bool {
        self != Self::Egress
    }

    /// Whether frames that leave the pod are mirrored.
    #[must_use]
    pub fn has_egress(self) -> bool {
        self != Self::Ingress
    }
}
