//! What sees a pod's frames before PodTap's filters, and may hide some from them. Pure.

use std::collections::BTreeSet;

use crate::{
    marks::Cookie,
    netlink::{Filter, Hook},
    observe::Observed,
};

/// What may hide frames from the sender with a hash, in one sentence; none if nothing does.
#[must_use]
pub fn hidden(observed: &Observed, sender: u64) -> Option<String> {
    let of_sender = |filter: &&Filter| Cookie::of(filter).is_some_and(|cookie| cookie.owner == sender);
    let own: Vec<&Filter> = observed.filters.iter().filter(of_sender).collect();
    let interface = observed.link(own.first()?.id.interface)?;
    let ahead: BTreeSet<String> = own.iter().flat_map(|own| ahead(observed, own)).collect();
    if ahead.is_empty() {
        return None;
    }
    let list = ahead.into_iter().collect::<Vec<_>>().join(", ");
    Some(format!(
        "Frames that other programs drop, redirect or accept on {} before PodTap sees them may be missing: {list}.",
        interface.name
    ))
}

/// What comes before a filter at its hook.
fn ahead(observed: &Observed, own: &Filter) -> Vec<String> {
    let (interface, hook) = (own.id.interface, own.id.hook);
    let programs = observed.tcx.iter().filter(|(index, program)| *index == interface && program.hook == hook);
    let programs = programs.map(|(_, program)| format!("tcx program {} at {hook}", program.name));
    let has_xdp = hook == Hook::Ingress && observed.link(interface).is_some_and(|link| link.xdp);
    let xdp = has_xdp.then(|| format!("XDP program at {hook}"));
    // Chains other than the first are only reached from there. A mirror that continues hides nothing.
    let precedes = |filter: &&Filter| {
        (filter.id.interface, filter.id.hook, filter.id.chain) == (interface, hook, 0)
            && filter.id.handle != 0
            && filter.id.priority < own.id.priority
            && Cookie::of(filter).is_none()
            && !filter.mirror.as_ref().is_some_and(|mirror| mirror.as_ours)
    };
    let filters = observed.filters.iter().filter(precedes);
    let filters =
        filters.map(|filter| format!("filter of priority {} ({}) at {hook}", filter.id.priority, filter.id.kind));
    xdp.into_iter().chain(programs).chain(filters).collect()
}
