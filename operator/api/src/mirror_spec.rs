use kube::{KubeSchema, core::Duration};
use podtap_model::{Direction, MirrorOptions, Vni};
use serde::{Deserialize, Serialize};

use crate::Destination;

/// What every tap has besides its targets: which frames are mirrored, and where to.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorSpec {
    /// Which frames are mirrored, as seen from the pod: Ingress (frames that enter it), Egress (frames that leave it) or Both.
    #[serde(default)]
    pub direction: Direction,

    /// Which of these frames are mirrored, and how.
    #[serde(flatten)]
    pub options: MirrorOptions,

    /// Where the mirrored frames are sent: one to four destinations, each of which gets every frame.
    #[schemars(
        length(min = 1, max = 4),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[x_kube(validation = Rule::new("self.all(d, self.exists_one(e, (has(e.frameFormat) ? e.frameFormat : 'Wire') == (has(d.frameFormat) ? d.frameFormat : 'Wire') && (has(d.node) ? has(e.node) && e.node == d.node : has(d.pod) ? has(e.pod) && e.pod == d.pod : has(d.external) ? has(e.external) && e.external == d.external : e.name == d.name)))")
        .message("destinations must differ from each other in more than their names: remove the repeated one"))]
    pub destinations: Vec<Destination>,

    /// VXLAN settings. Unset: a free VXLAN network identifier is allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<Vxlan>,

    /// How long frames are mirrored, counted from when the first pod was tapped, for example 90s or 1h30m; at most 8760h (a year).
    /// After that the object stays, with Ready=False and the reason Expired. Unset: until the object is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(r"self.matches('^([0-9]+([.][0-9]+)?(h|m|s|ms))+$') && duration(self) >= duration('1s') && duration(self) <= duration('8760h')")
        .message("duration must be between 1s and 8760h (a year), for example 90s or 1h30m; leave it out for a tap without an end"))]
    pub duration: Option<Duration>,

    /// Stops mirroring while it is true, and keeps the object.
    #[serde(default)]
    pub suspend: bool,
}

/// VXLAN settings.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vxlan {
    /// VXLAN network identifier, within the range of the PodTapPolicy. No two taps have the same one: the younger one waits, with
    /// the reason VNIInUse. All external destinations use it, and one node or pod; further nodes and pods get others. Unset: a
    /// free one is allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 16777215")
        .message("vxlan.vni must be between 1 and 16777215 (24 bits); leave it out to have a free one allocated"))]
    pub vni: Option<Vni>,
}
