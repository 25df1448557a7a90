//! Plans the steps that turn the observed state of one namespace into its desired state. Pure.
//!
//! Guarantees, each checked by a property test:
//! - Planning, executing and observing reach a plan without steps within four rounds, from any initial state.
//! - Nothing without PodTap's marks is changed or removed, except what others add to PodTap's devices.
//! - The order of the requested senders and receivers does not matter.
//! - A helper may end between any two steps: a new plan converges from there, too.
//! - While no programs can be loaded for a sender that needs them, it is refused, and what exists of it is not changed.
//!
//! A plan never refers to a device that does not exist yet. One round creates devices, the next one everything on them.

mod cleanup;
mod priority;
mod program;
mod receiver;
mod sender;

use std::collections::{BTreeMap, BTreeSet};

use podtap_model::{DesiredSender, EtherType, Receiver};

use crate::{
    bpf::Settings,
    failure::Failure,
    marks::is_ours,
    names::DEVICE_MTU,
    netlink::{Filter, Hook, Link, QdiscKind},
    observe::Observed,
    resource::{Resource, SenderKey},
    step::{Action, Step},
};

/// The desired state of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Requested<'a> {
    /// Senders of the pods in this namespace, with the settings of their programs.
    pub senders: Vec<(&'a DesiredSender, Settings)>,
    /// Receivers whose interface belongs in it.
    pub receivers: Vec<&'a Receiver>,
    /// The receivers' interfaces that somebody reads or has read a short time ago, by their ifindex.
    pub recently_read: BTreeSet<u32>,
    /// Those with readers that the kernel does not report.
    pub unreported: BTreeSet<u32>,
    /// The senders for which no programs can be loaded, and why.
    pub unloadable: BTreeMap<SenderKey, Failure>,
    /// The EtherType of the probes that the receivers expect.
    pub probe_ether_type: EtherType,
}

/// The steps to execute, and the result for each requested resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps in order. After a failure, the further steps of the same resource must not be executed.
    pub actions: Vec<Action>,
    /// For each requested resource the interface that it uses, or why it is refused.
    pub results: BTreeMap<Resource, Result<String, Failure>>,
}

/// Plans one round.
#[must_use]
pub fn plan(requested: &Requested<'_>, observed: &Observed) -> Plan {
    let unloadable = &requested.unloadable;
    let probe_ether_type = requested.probe_ether_type;
    let mut planner = Planner {
        observed,
        recently_read: &requested.recently_read,
        unreported: &requested.unreported,
        unloadable,
        probe_ether_type,
        plan: Plan::default(),
        kept: Kept::default(),
        marking: Vec::new(),
    };
    // Sorted by identity, so that the order of the request does not matter.
    let mut receivers = requested.receivers.clone();
    receivers.sort_by_key(|receiver| (receiver.vni, &receiver.tap.uid));
    let mut senders: Vec<_> = requested.senders.iter().collect();
    senders.sort_by_key(|(sender, _)| (&sender.tap.uid, &sender.pod.uid));

    let mut additions = Vec::new();
    for receiver in receivers {
        additions.extend(planner.receiver(receiver));
    }
    for (sender, settings) in senders {
        additions.extend(planner.sender(sender, settings));
    }
    planner.cleanup();
    planner.plan.actions.extend(additions);
    planner.plan
}

/// What stays of the observed state, and what this plan has assigned.
#[derive(Default)]
struct Kept {
    devices: Vec<u32>,
    /// Positions in [`Observed::filters`].
    filters: Vec<usize>,
    /// Interfaces that senders with devices tap.
    interfaces: Vec<u32>,
    /// Priorities that this plan assigned, by interface and hook.
    priorities: Vec<(u32, Hook, u16)>,
    /// Names that this plan assigned.
    names: Vec<String>,
}

struct Planner<'a> {
    observed: &'a Observed,
    recently_read: &'a BTreeSet<u32>,
    unreported: &'a BTreeSet<u32>,
    unloadable: &'a BTreeMap<SenderKey, Failure>,
    probe_ether_type: EtherType,
    plan: Plan,
    kept: Kept,
    /// Steps that change the marks of senders, which record whose the clsact of an interface is. Before them, devices without a clamp are
    /// set down.
    marking: Vec<Action>,
}

impl<'a> Planner<'a> {
    /// The steps that every device of ours needs before it is set up: it has autoconfiguration disabled, and drops what it receives.
    fn configure_link(&self, link: &Link) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut push = |step| steps.push(step);
        if !link.autoconf_disabled || link.mtu != DEVICE_MTU {
            push(Step::DisableAutoconf(link.index));
        }
        if self.observed.qdisc(link.index).is_none() {
            push(Step::AddDeviceClsact(link.index));
        }
        if !self.filters(link.index, Hook::Ingress).any(|(_, filter)| filter.drops_all) {
            push(Step::AddDrop(link.index));
        }
        steps
    }

    /// The steps that remove the forwarding entries of a VXLAN device that are no destinations.
    fn undivert(&self, device: u32) -> impl Iterator<Item = Step> + use<> {
        self.observed.diverted(device).into_iter().map(move |mac| Step::RemoveEntries(device, mac))
    }

    /// Filters at a hook, with their positions.
    fn filters(&self, interface: u32, hook: Hook) -> impl Iterator<Item = (usize, &'a Filter)> {
        let all = self.observed.filters.iter().enumerate();
        all.filter(move |(_, filter)| {
            filter.id.interface == interface && filter.id.hook == hook && filter.id.handle != 0
        })
    }

    /// Whether an observed device of ours can be configured as requested without being recreated.
    fn reusable(&self, link: &Link) -> bool {
        is_ours(link) && self.observed.is_genuine(link) && self.observed.qdisc(link.index) != Some(QdiscKind::Ingress)
    }
}

/// Marks a device, unless it is marked so.
fn set_alias(link: &Link, alias: &str) -> Option<Step> {
    (link.alias != alias).then(|| Step::SetAlias(link.index, alias.to_owned()))
}

#[cfg(test)]
mod tests;
