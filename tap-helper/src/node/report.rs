use std::collections::{BTreeMap, BTreeSet};

use podtap_model::{NodeStatus, Pod, Reason, ReceiverStatus, Report, SenderStatus, SentVnis, State, Vni};

use super::{Node, pods::PodNetns, sweep::REPORTED};
use crate::{
    failure::{Failure, Status},
    namespace::NamespaceId,
    resource::{Resource, SenderKey},
};

impl Node {
    /// The state of the node, as the status of its `NodeTap`; none before the first desired state, and before all namespaces were searched
    /// for what is left of others.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let desired = self.desired.as_ref().filter(|_| self.sweep.is_complete())?;
        let mut senders: Vec<SenderStatus> = Vec::new();
        for sender in &desired.senders {
            let resource = Resource::sender(sender);
            let state = self.resources.get(&resource);
            let mut status = self.status(&resource, Some(&sender.pod));
            if status == Status::ACTIVE {
                status = self.stopped(sender).unwrap_or(status);
            }
            senders.push(SenderStatus {
                interface: state.map(|state| state.interface.clone()).filter(|name| !name.is_empty()),
                addresses: state.map(|state| state.addresses.clone()).unwrap_or_default(),
                degraded: state.and_then(|state| state.degraded.clone()).into_iter().collect(),
                ..sender_status(SenderKey::of(sender), status)
            });
        }
        let mut receivers: Vec<ReceiverStatus> = Vec::new();
        for receiver in &desired.receivers {
            let status = match self.sources.failure(receiver) {
                Some(failure) => failure.status(),
                None => self.status(&Resource::receiver(receiver), receiver.pod.as_ref()),
            };
            let [pods_with_probes, pods_without_full_size_probes] =
                if status == Status::ACTIVE { self.pods_with_probes(receiver) } else { Default::default() };
            let status = receiver_status(receiver.tap.uid.to_string(), receiver.vni.get(), status);
            receivers.push(ReceiverStatus { pods_with_probes, pods_without_full_size_probes, ..status });
        }
        // Leftovers that were observed have a message; others have not been observed yet.
        let found: BTreeMap<_, _> = self.netns.values().flat_map(|netns| &netns.leftovers).collect();
        let unseen = self.resources.removing().filter(|(resource, _)| !found.contains_key(resource));
        for (resource, status) in found.iter().map(|(resource, status)| (*resource, *status)).chain(unseen) {
            match resource.clone() {
                Resource::Sender(key) => senders.push(sender_status(key, status.clone())),
                Resource::Receiver(tap, vni) => receivers.push(receiver_status(tap, vni, status.clone())),
                // Below: it has no tap.
                Resource::Leftover => {}
            }
        }
        let features = [("ebpf".to_owned(), self.program_sets.can_load())].into();
        let status = desired.status(senders, receivers, features);
        let status = NodeStatus {
            sent_vnis: self.sent_vnis(),
            source_addresses: self.paths.sources(),
            helper_restarts: self.restarts,
            unsearched: self.sweep.failures(),
            leftovers: self.leftovers(),
            ..status
        };
        Some(Report { uid: desired.uid.clone(), status })
    }

    /// A sentence for each namespace with something of ours that no tap is known for.
    fn leftovers(&self) -> Vec<String> {
        let why = |message: &str| match message {
            "" => "What is left there is being removed.".to_owned(),
            message => message.to_owned(),
        };
        let found = self.netns.iter().filter_map(|(id, netns)| Some((*id, netns.leftovers.get(&Resource::Leftover)?)));
        // A namespace whose state cannot be read.
        let unreadable = self.resources.get(&Resource::Leftover).map(|state| (state.netns, &state.status));
        let leftovers: BTreeMap<_, _> = unreadable.into_iter().chain(found).collect();
        let sentence = |(id, status): (NamespaceId, &Status)| {
            format!("Network namespace {}: {}", id.inode(), why(&status.message))
        };
        leftovers.into_iter().take(REPORTED).map(sentence).collect()
    }

    fn sent_vnis(&self) -> Vec<SentVnis> {
        let mut taps: BTreeMap<&str, BTreeSet<Vni>> = BTreeMap::new();
        for (tap, vnis) in self.netns.values().flat_map(|netns| &netns.sent_vnis) {
            taps.entry(tap).or_default().extend(vnis);
        }
        let sent =
            |(tap, vnis): (&str, BTreeSet<Vni>)| SentVnis { tap_uid: tap.to_owned(), vnis: vnis.into_iter().collect() };
        taps.into_iter().map(sent).collect()
    }

    fn status(&self, resource: &Resource, pod: Option<&Pod>) -> Status {
        if let Some(failure) = self.invalid.get(resource) {
            return failure.status();
        }
        match pod.map(|pod| self.pods.netns_of(&pod.uid)) {
            Some(PodNetns::Unknown) => Status {
                state: State::Pending,
                reason: Reason::PodNotRunning,
                message: "No process of the pod runs on this node yet. The tap is established as soon as one does.".to_owned(),
            },
            Some(PodNetns::Host) => Status {
                state: State::Refused,
                reason: Reason::HostNetwork,
                message: "The pod shares the node's network (hostNetwork): tapping it would mirror the traffic of the whole node. Exclude it from the tap."
                    .to_owned(),
            },
            Some(PodNetns::Own(_)) | None => self.resources.get(resource).map_or_else(
                || Status { reason: Reason::PodNotRunning, ..Status::PENDING },
                |state| match self.netns.get(&state.netns) {
                    Some(netns) if state.status == Status::ACTIVE && netns.is_contested() => {
                        Failure::contested().status()
                    }
                    _ => state.status.clone(),
                },
            ),
        }
    }
}

fn sender_status(key: SenderKey, status: Status) -> SenderStatus {
    let Status { state, reason, message } = status;
    SenderStatus {
        tap_uid: key.tap,
        pod_uid: key.pod,
        interface: None,
        addresses: Vec::new(),
        state,
        reason,
        message,
        degraded: Vec::new(),
    }
}

fn receiver_status(tap_uid: String, vni: u32, status: Status) -> ReceiverStatus {
    let Status { state, reason, message } = status;
    ReceiverStatus {
        tap_uid,
        vni,
        state,
        reason,
        message,
        pods_with_probes: Vec::new(),
        pods_without_full_size_probes: Vec::new(),
    }
}
