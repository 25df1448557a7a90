//! Names of receiver interfaces, unique in each network namespace.

use std::collections::BTreeMap;

use podtap_model::{InterfaceName, Reason, TapReference, Uid};

use crate::{failure::Failure, plan::tap_plan::TapPlan};

/// Of two receivers with one name in one network namespace, the older tap's wins.
pub fn resolve_conflicts(taps: &mut [TapPlan<'_>]) {
    let mut taken: BTreeMap<(String, Option<Uid>, InterfaceName), TapReference> = BTreeMap::new();
    for plan in taps.iter_mut().filter(|plan| plan.is_executed()) {
        let tap = plan.tap.reference.clone();
        for destination in plan.destinations.iter_mut().filter(|destination| destination.endpoint.is_some()) {
            let (Some(interface), Some(resolved)) = (&destination.interface, &destination.resolved) else { continue };
            let Some(node) = resolved.node() else { continue };
            let netns = (node.to_owned(), resolved.pod().map(|pod| pod.uid.clone()), interface.clone());
            match taken.get(&netns) {
                None => drop(taken.insert(netns, tap.clone())),
                Some(holder) => {
                    destination.endpoint = None;
                    destination.failure = Some(Failure::new(
                        Reason::InterfaceNameConflict,
                        format!(
                            "the interface {interface} on node {node} belongs to {}: choose another interfaceName, or leave it out to have it made from the VNI",
                            shown_to(&tap, holder)
                        ),
                    ));
                }
            }
        }
    }
}

/// The holder as the users of `tap` may see it: who taps in other namespaces is not their business. Administrators see all.
fn shown_to(tap: &TapReference, holder: &TapReference) -> String {
    if tap.uid == holder.uid {
        "another destination of this tap".to_owned()
    } else if tap.is_cluster_scoped() {
        format!("the {holder}")
    } else if tap.namespace == holder.namespace {
        format!("the PodTap {}", holder.name)
    } else {
        "an older tap that is not of this namespace".to_owned()
    }
}
