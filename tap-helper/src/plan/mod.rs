//! From what is wanted and what was observed in one namespace to the steps that lead there. Pure.
//!
//! Guarantees, each held by a property test:
//! - Applied, observed and planned again, a plan comes to no steps within four rounds, whatever was there.
//! - Nothing without PodTap's marks is changed or removed.
//! - The order of what is wanted does not matter.
//! - Every state between two steps is one from which a new plan finds the way: a helper may end anywhere.
//!
//! A plan never names a device that does not exist yet. One round makes devices, the next one everything on them.

mod cleanup;
mod priority;
mod program;
mod receiver;
mod sender;

use std::collections::BTreeMap;

use podtap_model::{DesiredSender, Receiver};

use crate::{
    bpf::Settings,
    failure::Failure,
    marks::is_ours,
    names::DEVICE_MTU,
    netlink::{Filter, Hook, Link, QdiscKind},
    observe::Observed,
    step::{Action, Resource, SenderKey, Step},
};

/// What one namespace is to hold.
#[derive(Clone, Debug, Default)]
pub struct Requested<'a> {
    /// Senders whose pod has this namespace.
    pub senders: Vec<&'a DesiredSender>,
    /// Receivers whose device stands in it.
    pub receivers: Vec<&'a Receiver>,
    /// What the programs of these senders are told. Senders that are not here have none: all they see is copied as it is.
    pub settings: BTreeMap<SenderKey, Settings>,
}

/// What to do, and what will be true of each wanted resource then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps in order. After a failure the resource's further ones must not be done.
    pub actions: Vec<Action>,
    /// For each wanted resource the interface that it uses, or why it must not be attempted.
    pub outcomes: BTreeMap<Resource, Result<String, Failure>>,
}

/// The plan.
#[must_use]
pub fn plan(wanted: &Requested<'_>, observed: &Observed) -> Plan {
    let mut planner = Planner { observed, settings: &wanted.settings, plan: Plan::default(), kept: Kept::default() };
    // The same plan in whatever order things are wanted: receivers and senders in the order of their identity.
    let mut receivers = wanted.receivers.clone();
    receivers.sort_by_key(|receiver| (receiver.vni, &receiver.tap.uid));
    let mut senders = wanted.senders.clone();
    senders.sort_by_key(|sender| (&sender.tap.uid, &sender.pod.uid));

    let mut building = Vec::new();
    for receiver in receivers {
        building.extend(planner.receiver(receiver));
    }
    for sender in senders {
        building.extend(planner.sender(sender));
    }
    planner.cleanup();
    planner.plan.actions.extend(building);
    planner.plan
}

/// What of the observed state has a place in the wanted one.
#[derive(Default)]
struct Kept {
    devices: Vec<u32>,
    /// Positions in [`Observed::filters`].
    filters: Vec<usize>,
    /// Interfaces that a sender taps.
    interfaces: Vec<u32>,
    /// Priorities that this plan gave away, by interface and hook.
    priorities: Vec<(u32, Hook, u16)>,
    /// Names that this plan gave away.
    names: Vec<String>,
}

struct Planner<'a> {
    observed: &'a Observed,
    settings: &'a BTreeMap<SenderKey, Settings>,
    plan: Plan,
    kept: Kept,
}

impl<'a> Planner<'a> {
    /// The steps that configure a device of ours as all of them are, except up: marked, with autoconfiguration disabled, and dropping
    /// what it receives.
    fn configure_link(&self, link: &Link, alias: &str) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut push = |step| steps.push(step);
        if link.alias != alias {
            push(Step::SetAlias(link.index, alias.to_owned()));
        }
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

    /// Filters at a hook, with their positions.
    fn filters(&self, interface: u32, hook: Hook) -> impl Iterator<Item = (usize, &'a Filter)> {
        let all = self.observed.filters.iter().enumerate();
        all.filter(move |(_, filter)| {
            filter.id.interface == interface && filter.id.hook == hook && filter.id.handle != 0
        })
    }

    /// Whether an observed device of ours can be configured as requested without being recreated.
    fn reusable(&self, link: &Link) -> bool {
        is_ours(link) && self.observed.qdisc(link.index) != Some(QdiscKind::Ingress)
    }
}

#[cfg(test)]
mod tests;
