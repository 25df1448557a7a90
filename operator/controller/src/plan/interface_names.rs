//! Names of receiver interfaces, unique in each network namespace.

use std::collections::BTreeMap;

use podtap_model::{InterfaceName, Reason, TapReference, Uid};

use crate::{failure::Failure, plan::tap_plan::TapPlan};

/// Of two receivers with one name in one network namespace, the older tap's wins.
pub fn resolve_conflicts(taps: &mut [TapPlan<'_>]) {
    let mut taken: BTreeMap<(String, Option<Uid>, InterfaceName), TapReference> = BTreeMap::new();
    for plan in taps.iter_mut().filter(|plan| plan.is_executed()) {
        let tap = &plan.tap.reference;
        for destination in plan.destinations.iter_mut().filter(|destination| destination.endpoint.is_some()) {
            let (Some(interface), Some(resolved)) = (&destination.interface, &destination.resolved) else { continue };
            let Some(node) = resolved.node() else { continue };
            let netns = (node.to_owned(), resolved.pod().map(|pod| pod.uid.clone()), interface.clone());
            match taken.get(&netns) {
                None => drop(taken.insert(netns, tap.clone())),
                Some(holder) => {
                    // A tenant learns of no other tenant's taps.
                    let holder = if holder.namespace == tap.namespace {
                        format!("the PodTap {}", holder.name)
                    } else {
                        "another tap".to_owned()
                    };
                    destination.endpoint = None;
                    destination.failure = Some(Failure::new(
                        Reason::InterfaceNameConflict,
                        format!(
                            "{holder} has an interface {interface} on the node {node} already: choose another interfaceName, or leave it out to have it made from the VNI"
                        ),
                    ));
                }
            }
        }
    }
}
