use std::collections::BTreeMap;

use tap_wire::{Features, Pod, Reason, ReceiverReport, Report, SenderReport, State, Status};

use super::{Node, pods::PodNetns};
use crate::{
    settings::degraded,
    step::{Resource, SenderKey},
};

impl Node {
    /// The state of the node; none before the first desired state.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let desired = self.desired.as_ref()?;
        let ebpf = self.features.usable().is_ok();
        let features = Features { ebpf, fit: ebpf && self.features.clamp.is_ok() };
        let mut report = Report { generation: desired.generation, features, ..Report::default() };
        for sender in &desired.senders {
            let resource = Resource::Sender(SenderKey::of(sender));
            report.senders.push(SenderReport {
                tap: sender.tap.clone(),
                pod: sender.pod.uid.clone(),
                interface: self.resources.get(&resource).map(|state| state.interface.clone()).unwrap_or_default(),
                status: self.status(&resource, Some(&sender.pod)),
                degraded: degraded(sender, &self.features),
            });
        }
        for receiver in &desired.receivers {
            let resource = Resource::Receiver(receiver.tap.clone(), receiver.vni);
            report.receivers.push(ReceiverReport {
                tap: receiver.tap.clone(),
                vni: receiver.vni,
                status: self.status(&resource, receiver.pod.as_ref()),
            });
        }
        // Those that were observed have a reason; the others have not been observed yet.
        let found: BTreeMap<_, _> = self.netns.values().flat_map(|netns| &netns.leftovers).collect();
        let unseen = self.resources.removing().filter(|(resource, _)| !found.contains_key(resource));
        for (resource, status) in found.iter().map(|(resource, status)| (*resource, *status)).chain(unseen) {
            let status = status.clone();
            match resource.clone() {
                Resource::Sender(SenderKey { tap, pod }) => {
                    let (interface, degraded) = (String::new(), Vec::new());
                    report.senders.push(SenderReport { tap, pod, interface, status, degraded });
                }
                Resource::Receiver(tap, vni) => report.receivers.push(ReceiverReport { tap, vni, status }),
                Resource::Leftover => {}
            }
        }
        report.senders.sort_by(|one, other| (&one.tap, &one.pod).cmp(&(&other.tap, &other.pod)));
        report.receivers.sort_by(|one, other| (one.vni, &one.tap).cmp(&(other.vni, &other.tap)));
        Some(report)
    }

    fn status(&self, resource: &Resource, pod: Option<&Pod>) -> Status {
        if let Some(failure) = self.invalid.get(resource) {
            return failure.status();
        }
        match pod.map(|pod| self.pods.netns_of(&pod.uid)) {
            Some(PodNetns::Unknown) => Status {
                state: State::Waiting,
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
                || Status { state: State::Waiting, reason: Reason::PodNotRunning, message: String::new() },
                |state| state.status.clone(),
            ),
        }
    }
}
