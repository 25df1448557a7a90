use std::collections::BTreeMap;

use tap_wire::{Features, Pod, Reason, ReceiverReport, Report, SenderReport, State, Status};

use super::{Node, pods::Place};
use crate::{
    settings::degraded,
    step::{Item, SenderKey},
};

impl Node {
    /// What the node holds; none before anything was wanted.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let desired = self.desired.as_ref()?;
        let ebpf = self.features.usable().is_ok();
        let features = Features { ebpf, fit: ebpf && self.features.clamp.is_ok() };
        let mut report = Report { generation: desired.generation, features, ..Report::default() };
        for sender in &desired.senders {
            let item = Item::Sender(SenderKey::of(sender));
            report.senders.push(SenderReport {
                tap: sender.tap.clone(),
                pod: sender.pod.uid.clone(),
                interface: self.items.get(&item).map(|state| state.interface.clone()).unwrap_or_default(),
                status: self.status(&item, Some(&sender.pod)),
                degraded: degraded(sender, &self.features),
            });
        }
        for receiver in &desired.receivers {
            let item = Item::Receiver(receiver.tap.clone(), receiver.vni);
            report.receivers.push(ReceiverReport {
                tap: receiver.tap.clone(),
                vni: receiver.vni,
                status: self.status(&item, receiver.pod.as_ref()),
            });
        }
        // Those that a look has found say why; the others have not been looked for yet.
        let found: BTreeMap<_, _> = self.spaces.values().flat_map(|space| &space.leftovers).collect();
        let unseen = self.items.removing().filter(|(item, _)| !found.contains_key(item));
        for (item, status) in found.iter().map(|(item, status)| (*item, *status)).chain(unseen) {
            let status = status.clone();
            match item.clone() {
                Item::Sender(SenderKey { tap, pod }) => {
                    let (interface, degraded) = (String::new(), Vec::new());
                    report.senders.push(SenderReport { tap, pod, interface, status, degraded });
                }
                Item::Receiver(tap, vni) => report.receivers.push(ReceiverReport { tap, vni, status }),
                Item::Leftover => {}
            }
        }
        report.senders.sort_by(|one, other| (&one.tap, &one.pod).cmp(&(&other.tap, &other.pod)));
        report.receivers.sort_by(|one, other| (one.vni, &one.tap).cmp(&(other.vni, &other.tap)));
        Some(report)
    }

    fn status(&self, item: &Item, pod: Option<&Pod>) -> Status {
        if let Some(failure) = self.invalid.get(item) {
            return failure.status();
        }
        match pod.map(|pod| self.pods.place_of(&pod.uid)) {
            Some(Place::Absent) => Status {
                state: State::Waiting,
                reason: Reason::PodNotRunning,
                message: "No process of the pod runs on this node yet. The tap is put in place as soon as one does.".to_owned(),
            },
            Some(Place::Host) => Status {
                state: State::Refused,
                reason: Reason::HostNetwork,
                message: "The pod uses the node's network: tapping it would copy the traffic of the whole node. Exclude it from the tap."
                    .to_owned(),
            },
            Some(Place::In(_)) | None => self.items.get(item).map_or_else(
                || Status { state: State::Waiting, reason: Reason::PodNotRunning, message: String::new() },
                |state| state.status.clone(),
            ),
        }
    }
}
