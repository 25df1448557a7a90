//! Priorities of the filters on pods' interfaces.
//!
//! 32 to 159: even ones at ingress, odd ones at egress, which allows 64 taps per interface. They are low because an earlier filter that
//! ends classification hides frames from ours, while ours hide no frame from later filters. They are not below 32 because programs
//! with a fixed priority use small ones.

use podtap_model::Reason;

use crate::{failure::Failure, netlink::Hook};

const FIRST: u16 = 32;
const TAPS: u16 = 64;

/// Whether PodTap assigns a priority.
pub(super) fn is_in_range(priority: u16) -> bool {
    (FIRST..FIRST + 2 * TAPS).contains(&priority)
}

/// The lowest free priority for a hook.
pub(super) fn lowest_free(hook: Hook, taken: impl Fn(u16) -> bool) -> Option<u16> {
    let offset = u16::from(hook == Hook::Egress);
    (0..TAPS).map(|tap| FIRST + 2 * tap + offset).find(|priority| !taken(*priority))
}

/// No priority is free.
pub(super) fn exhausted() -> Failure {
    Failure::refused(
        Reason::TooManyTaps,
        format!("The interface of the pod has {TAPS} taps already, which is the limit. Remove one of them."),
    )
}
