//! Warns about labels and annotations under `podtap.dev/` that PodTap does not read: a mistyped opt-out would otherwise be overlooked.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::ObjectReference,
    jiff::{SignedDuration, Timestamp},
};
use podtap_api::EXCLUDE;
use podtap_model::Reason;

use crate::{
    events::{Occurrence, Publisher},
    store::snapshot::{Snapshot, UnknownKeys},
};

/// How many warnings one reconcile sends: the pods of a Deployment with a mistyped label can be thousands.
const MAX_WARNINGS: usize = 8;
/// When the next ones are sent.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);

/// The UIDs and keys that were reported.
pub type Reported = BTreeSet<(String, String)>;

/// Warns once about each object and key. Returns when to go on if there are more.
pub fn report(publisher: &Publisher, snapshot: &Snapshot, reported: &mut Reported) -> Option<Timestamp> {
    let (due, are_more) = due(&snapshot.unknown_keys, reported);
    for (regarding, key) in due {
        let note = format!("PodTap does not know the {key}, and ignores it. {EXCLUDE} opts out of every tap");
        let occurrence = Occurrence { is_warning: true, reason: Reason::UnknownKey, note };
        publisher.publish_about(regarding, [occurrence]);
    }
    are_more.then(|| snapshot.now + PAUSE)
}

/// What to report now, and whether something is left for later.
fn due<'a>(unknown: &'a [UnknownKeys], reported: &mut Reported) -> (Vec<(&'a ObjectReference, &'a String)>, bool) {
    let all = unknown.iter().flat_map(|object| object.keys.iter().map(|key| (&object.regarding, key)));
    let id = |(regarding, key): &(&ObjectReference, &String)| {
        (regarding.uid.clone().unwrap_or_default(), String::clone(key))
    };
    let current: Reported = all.clone().map(|entry| id(&entry)).collect();
    reported.retain(|entry| current.contains(entry));
    let mut new: Vec<_> = all.filter(|entry| !reported.contains(&id(entry))).take(MAX_WARNINGS + 1).collect();
    let are_more = new.len() > MAX_WARNINGS;
    new.truncate(MAX_WARNINGS);
    reported.extend(new.iter().map(id));
    (new, are_more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, keys: &[&str]) -> UnknownKeys {
        let regarding = ObjectReference { uid: Some(uid.to_owned()), ..ObjectReference::default() };
        UnknownKeys { regarding, keys: keys.iter().map(|key| (*key).to_owned()).collect() }
    }

    #[test]
    fn each_object_and_key_once_and_not_all_at_the_same_time() {
        let mut reported = Reported::new();
        let mut count = |unknown: &[UnknownKeys]| {
            let (due, are_more) = due(unknown, &mut reported);
            (due.len(), are_more)
        };
        let one = [object("a", &["k", "l"])];
        assert_eq!((count(&one), count(&one)), ((2, false), (0, false)));
        let many: Vec<UnknownKeys> = (0..20).map(|number| object(&number.to_string(), &["k"])).collect();
        assert_eq!(
            [count(&many), count(&many), count(&many), count(&many)],
            [(8, true), (8, true), (4, false), (0, false)]
        );
        assert_eq!(count(&one), (2, false), "an object that is gone is forgotten");
    }
}
