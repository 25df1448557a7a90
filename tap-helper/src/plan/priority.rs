//! Priorities of the filters on pods' interfaces.
//!
//! 32 to 159: even ones at ingress, odd ones at egress, so that 64 taps fit on one interface. Low, since a filter before ours
//! that ends classification hides frames from ours, while ours hide nothing from anybody; not below 32, since programs with
//! a fixed number of their own use small ones, and would then find ours in their place.

use podtap_model::Reason;

use crate::{failure::Failure, netlink::Hook};

const FIRST: u16 = 32;
const TAPS: u16 = 64;

/// Whether a priority is one that PodTap gives.
pub(super) fn is_in_range(priority: u16) -> bool {
    (FIRST..FIRST + 2 * TAPS).contains(&priority)
}

/// The lowest priority for a hook that is not taken.
pub(super) fn lowest_free(hook: Hook, taken: impl Fn(u16) -> bool) -> Option<u16> {
    let offset = u16::from(hook == Hook::Egress);
    (0..TAPS).map(|pair| FIRST + 2 * pair + offset).find(|priority| !taken(*priority))
}

/// Why a tap has no place.
pub(super) fn exhausted() -> Failure {
    Failure::refused(
        Reason::TooManyTaps,
        format!("{TAPS} taps are on this interface of the pod, and no more fit. Remove one of them."),
    )
}
