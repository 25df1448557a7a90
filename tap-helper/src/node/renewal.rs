//! The deadlines of the node's senders: renewed when the API server confirms the desired state, watched so that reports are true.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Instant,
};

use podtap_model::{DesiredSender, Renewal};
use tracing::{debug, info, warn};

use super::{Node, NodeError};
use crate::{
    bpf::{Maps, Monotonic},
    deadline::{ClockReading, not_renewed},
    failure::Status,
    resource::Resource,
};

impl Node {
    /// Takes the API server's confirmation of the desired state.
    pub fn renew(&mut self, renewal: &Renewal) {
        let uid = self.desired.as_ref().and_then(|desired| desired.uid.as_ref());
        if uid != Some(&renewal.uid) {
            debug!(uid = renewal.uid, "renewal of another NodeTap ignored");
            return;
        }
        self.renewals.confirm(ClockReading { at: Monotonic::now(), time: renewal.now });
    }

    /// Stops requesting the senders whose taps have expired.
    pub(super) async fn expire(&mut self, now: Instant) -> Result<(), NodeError> {
        let desired = self.desired.as_ref();
        let Some(left) = desired.and_then(|desired| self.renewals.without_expired(desired, Monotonic::now())) else {
            return Ok(());
        };
        info!(senders = left.refused_senders.len(), "taps have expired");
        self.request(left, now).await
    }

    /// Writes the deadlines that have changed. Nothing is observed or planned for that. Senders that are no longer requested stop at once:
    /// their filters may stay for long, where the namespace cannot be read.
    pub(super) fn write_deadlines(&mut self) {
        let senders = self.desired.iter().flat_map(|desired| &desired.senders);
        let senders = senders.map(|sender| (Resource::sender(sender), sender));
        let requested: BTreeMap<Resource, &DesiredSender> =
            senders.filter(|(resource, _)| !self.invalid.contains_key(resource)).collect();
        let mut sets: BTreeMap<u32, Maps> = BTreeMap::new();
        for (resource, running) in self.resources.running_mut() {
            let Some(program) = running else { continue };
            let sender = requested.get(resource);
            let deadline = sender.map(|sender| self.renewals.deadline(sender).after(program.deadline));
            if program.deadline == deadline {
                continue;
            }
            let maps = match sets.entry(program.configs) {
                Entry::Occupied(entry) => Ok(entry.into_mut()),
                Entry::Vacant(entry) => Maps::adopt(program.id).map(|maps| entry.insert(maps)),
            };
            match maps.and_then(|maps| maps.set_deadline(program.classid, deadline)) {
                Ok(()) => program.deadline = deadline,
                Err(error) => {
                    let pod = sender.map(|sender| format!("{}/{}", sender.pod.namespace, sender.pod.name));
                    let tap = sender.map(|sender| sender.tap.name.clone());
                    warn!(pod, tap, %error, "cannot move the deadline of a mirror");
                    // Until the next observation finds the program again.
                    *running = None;
                }
            }
        }
    }

    /// The status of a sender whose mirror is complete, but has stopped at its deadline.
    pub(super) fn stopped(&self, sender: &DesiredSender) -> Option<Status> {
        let deadline = self.running_deadline(sender)?;
        (deadline <= Monotonic::now()).then(|| not_renewed(sender))
    }

    /// When the next deadline passes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let now = Monotonic::now();
        let senders = self.desired.iter().flat_map(|desired| &desired.senders);
        let moments = senders.flat_map(|sender| [self.running_deadline(sender), self.renewals.expiration(sender)]);
        let next = moments.flatten().filter(|moment| *moment > now).min()?;
        Instant::now().checked_add(next.left(now))
    }

    fn running_deadline(&self, sender: &DesiredSender) -> Option<Monotonic> {
        self.resources.get(&Resource::sender(sender))?.running?.deadline
    }
}
