use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    bounds::MAX_STATUS_TEXT,
    ether_type::EtherType,
    identity::{Pod, PodDetails},
    node_state::{Receiver, Tap},
    node_status::{NodeStatus, ReceiverStatus, SenderStatus, State},
    program::Program,
    unix_time::UnixTime,
};

/// The desired state of a node, decoded and with its references resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// UID of the `NodeTap` that it comes from; none when there is no such object.
    pub uid: Option<String>,
    /// Generation of the `NodeTap`.
    pub generation: i64,
    /// [`DesiredUpdate::now`](crate::DesiredUpdate::now).
    pub now: Option<UnixTime>,
    /// The senders that this version understands.
    pub senders: Vec<DesiredSender>,
    /// The receivers that this version understands.
    pub receivers: Vec<Receiver>,
    /// Networks from which they accept mirrored frames.
    pub sources: Vec<IpNet>,
    /// The EtherType of the probes that they expect.
    pub probe_ether_type: EtherType,
    /// A status for each of the other senders.
    pub refused_senders: Vec<SenderStatus>,
    /// A status for each of the other receivers.
    pub refused_receivers: Vec<ReceiverStatus>,
}

/// One pod under one tap, with all that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredSender {
    /// The tap, shared by all of its senders.
    pub tap: Arc<Tap>,
    /// The tapped pod.
    pub pod: Pod,
    /// What metadata tell of it besides its name and its addresses.
    pub details: Box<PodDetails>,
    /// The compiled filter expression, shared by all senders that have it.
    pub program: Option<Arc<Program>>,
    /// Largest IP packet that the network between the nodes carries; the MTU of the route applies if it is smaller.
    pub underlay_mtu: Option<u32>,
    /// How long it mirrors after it was renewed.
    pub orphan_timeout: Duration,
    /// The EtherType of probes.
    pub probe_ether_type: EtherType,
}

impl DesiredState {
    /// The status of the node from what it has, and from the entries that were refused without being attempted.
    ///
    /// Texts are shortened if they are too long for an object of the API.
    ///
    /// An entry that was readable before and is refused now may still exist: then its removal is reported, and not the refusal.
    #[must_use]
    pub fn status(
        &self,
        mut senders: Vec<SenderStatus>,
        mut receivers: Vec<ReceiverStatus>,
        features: BTreeMap<String, bool>,
    ) -> NodeStatus {
        let known: BTreeSet<_> = senders.iter().map(SenderStatus::key).collect();
        let refused = self.refused_senders.iter().filter(|sender| !known.contains(&sender.key()));
        let refused: Vec<_> = refused.cloned().collect();
        senders.extend(refused);
        senders.sort_by(|one, other| one.key().cmp(&other.key()));
        let known: BTreeSet<_> = receivers.iter().map(|receiver| receiver.vni).collect();
        receivers.extend(self.refused_receivers.iter().filter(|receiver| !known.contains(&receiver.vni)).cloned());
        receivers.sort_by(|one, other| (one.vni, &one.tap_uid).cmp(&(other.vni, &other.tap_uid)));
        let of_senders =
            senders.iter_mut().flat_map(|sender| std::iter::once(&mut sender.message).chain(&mut sender.degraded));
        shorten(of_senders.chain(receivers.iter_mut().map(|receiver| &mut receiver.message)).collect());
        NodeStatus {
            observed_generation: Some(self.generation),
            active_senders: active(senders.iter().map(|sender| sender.state)),
            active_receivers: active(receivers.iter().map(|receiver| receiver.state)),
            senders,
            receivers,
            features,
            ..NodeStatus::default()
        }
    }
}

/// Shortens texts that are more than [`MAX_STATUS_TEXT`] together, each to an equal share.
fn shorten(texts: Vec<&mut String>) {
    let texts: Vec<_> = texts.into_iter().filter(|text| !text.is_empty()).collect();
    if texts.iter().map(|text| text.len()).sum::<usize>() > MAX_STATUS_TEXT {
        let share = MAX_STATUS_TEXT / texts.len();
        for text in texts {
            let end = (0..=share.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or_default());
        }
    }
}

fn active(states: impl Iterator<Item = State>) -> u32 {
    u32::try_from(states.filter(|state| *state == State::Active).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
