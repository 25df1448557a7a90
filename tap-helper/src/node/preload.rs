//! Which programs are loaded ahead: those of senders whose pod does not run yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use podtap_model::DesiredSender;

use super::{Node, pods::PodNetns};
use crate::{bpf::Settings, resource::SenderKey, settings::settings};

impl Node {
    /// Starts to load programs that the next pods will need, if any are missing. To be called when nothing else is left to do.
    pub fn preload(&mut self, now: Instant) {
        if !std::mem::take(&mut self.preload_is_due) {
            return;
        }
        let senders = self.desired.iter().flat_map(|desired| &desired.senders);
        let waiting = |sender: &&DesiredSender| self.pods.netns_of(&sender.pod.uid) == PodNetns::Unknown;
        let waiting: Vec<&DesiredSender> = senders.filter(waiting).collect();
        // All senders of a tap have the same settings.
        let mut by_tap: BTreeMap<&str, Settings> = BTreeMap::new();
        for sender in &waiting {
            let of_sender = || settings(sender, self.paths.of(sender), self.frag_list_safe);
            by_tap.entry(&sender.tap.uid).or_insert_with(of_sender);
        }
        let settings = |sender: &DesiredSender| Some((SenderKey::of(sender), by_tap.get(&*sender.tap.uid)?));
        self.program_sets.preload(waiting.into_iter().filter_map(settings), now);
    }

    /// Forgets the programs of senders that are no longer requested.
    pub(super) fn forget_programs(&mut self) {
        let senders = self.desired.iter().flat_map(|desired| &desired.senders);
        let senders: BTreeSet<SenderKey> = senders.map(SenderKey::of).collect();
        self.program_sets.retain(&senders);
        self.preload_is_due = true;
    }
}
