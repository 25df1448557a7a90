//! The controller's memory of one kind.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use kube::{ResourceExt, runtime::watcher::Event};
use tokio::sync::watch;

/// One remembered object.
#[derive(Debug)]
pub struct Entry<T> {
    /// `metadata.resourceVersion`, for optimistic locks.
    pub version: String,
    pub fact: Arc<T>,
}

// Derived, it would ask for `T: Clone`.
impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { version: self.version.clone(), fact: Arc::clone(&self.fact) }
    }
}

/// Namespace and name; the namespace is empty for cluster-scoped kinds.
type Key = (String, String);

#[derive(Debug)]
struct State<T> {
    entries: BTreeMap<Key, Entry<T>>,
    /// What a list that is under way has brought so far.
    listing: BTreeMap<Key, Entry<T>>,
}

/// Facts of all objects of one kind, in the order of their names. Clones share one memory.
///
/// kube's `Store` is not used, because it keeps whole objects, says "changed" when nothing of interest did, and does not
/// know what this process just wrote.
///
/// # Guarantees
/// What was recorded by [`Cache::record`] is not undone by an older event of the watch.
#[derive(Debug)]
pub struct Cache<T> {
    state: Arc<RwLock<State<T>>>,
    synced: Arc<watch::Sender<bool>>,
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), synced: Arc::clone(&self.synced) }
    }
}

impl<T: PartialEq> Cache<T> {
    pub fn new() -> Self {
        let state = State { entries: BTreeMap::new(), listing: BTreeMap::new() };
        Self { state: Arc::new(RwLock::new(state)), synced: Arc::new(watch::Sender::new(false)) }
    }

    /// All of them, sorted by namespace and name.
    pub fn list(&self) -> Vec<Entry<T>> {
        self.read().entries.values().cloned().collect()
    }

    /// Returns once the first list is complete.
    pub async fn wait_until_synced(&self) {
        // The sender lives as long as `self`.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Takes in what the watch says; whether anything of interest changed.
    pub fn take<K: ResourceExt>(&self, event: Event<K>, fact: impl Fn(K) -> T) -> bool {
        match event {
            Event::Apply(object) => self.record(object, fact),
            Event::Delete(object) => {
                let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
                let mut state = self.write();
                if state.entries.get(&key).is_some_and(|known| is_older(&version, &known.version)) {
                    return false;
                }
                state.entries.remove(&key).is_some()
            }
            Event::Init => {
                self.write().listing.clear();
                false
            }
            Event::InitApply(object) => {
                let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
                let entry = Entry { version, fact: Arc::new(fact(object)) };
                self.write().listing.insert(key, entry);
                false
            }
            Event::InitDone => {
                let mut state = self.write();
                let listed = std::mem::take(&mut state.listing);
                let changed = listed.len() != state.entries.len()
                    || listed.iter().zip(&state.entries).any(|(new, old)| new.0 != old.0 || new.1.fact != old.1.fact);
                state.entries = listed;
                drop(state);
                // The first list is news even when it is empty.
                !self.synced.send_replace(true) || changed
            }
        }
    }

    /// Remembers an object, for example one that a write has returned; whether anything of interest changed.
    pub fn record<K: ResourceExt>(&self, object: K, fact: impl Fn(K) -> T) -> bool {
        let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
        let mut state = self.write();
        let known = state.entries.get(&key);
        if known.is_some_and(|known| is_older(&version, &known.version)) {
            return false;
        }
        let fact = fact(object);
        let changed = known.is_none_or(|known| *known.fact != fact);
        state.entries.insert(key, Entry { version, fact: Arc::new(fact) });
        changed
    }

    /// Forgets an object that a write has deleted.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.write().entries.remove(&(namespace.to_owned(), name.to_owned()));
    }

    // A poisoned lock means that a fact's constructor panicked before anything was changed.
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Whether `version` is certainly older than `known`. Resource versions of one kind are numbers that grow
/// (etcd's revision; part of the API's promises since Kubernetes 1.35); where they are not, nothing is older.
fn is_older(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;

    use super::*;
    use crate::controller::facts::NamespaceFact;

    fn namespace(name: &str, version: u32, excluded: bool) -> Namespace {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.into());
        namespace.metadata.resource_version = Some(version.to_string());
        namespace.metadata.labels = Some([(podtap_api::EXCLUDE.into(), excluded.to_string())].into());
        namespace
    }

    fn excluded(cache: &Cache<NamespaceFact>) -> Vec<(String, bool)> {
        cache.list().into_iter().map(|entry| (entry.fact.name.clone(), entry.fact.excluded)).collect()
    }

    #[test]
    fn a_change_that_does_not_matter_is_none() {
        let cache = Cache::new();
        assert!(cache.take(Event::Apply(namespace("shop", 5, false)), NamespaceFact::from));
        assert!(!cache.take(Event::Apply(namespace("shop", 6, false)), NamespaceFact::from));
        assert_eq!(cache.list()[0].version, "6");
        assert!(cache.take(Event::Apply(namespace("shop", 7, true)), NamespaceFact::from));
    }

    #[test]
    fn older_events_do_not_undo_what_was_written() {
        let cache = Cache::new();
        cache.record(namespace("shop", 10, true), NamespaceFact::from);
        assert!(!cache.take(Event::Apply(namespace("shop", 9, false)), NamespaceFact::from));
        assert!(!cache.take(Event::Delete(namespace("shop", 8, false)), NamespaceFact::from));
        assert_eq!(excluded(&cache), [("shop".to_owned(), true)]);
        assert!(cache.take(Event::Delete(namespace("shop", 11, true)), NamespaceFact::from));
        assert_eq!(excluded(&cache), []);
    }

    #[test]
    fn a_list_replaces_everything() {
        let cache = Cache::new();
        cache.record(namespace("gone", 1, false), NamespaceFact::from);
        for event in [Event::<Namespace>::Init, Event::InitApply(namespace("shop", 2, false))] {
            assert!(!cache.take(event, NamespaceFact::from));
        }
        assert_eq!(excluded(&cache), [("gone".to_owned(), false)], "the old state holds until the list is complete");
        assert!(cache.take(Event::<Namespace>::InitDone, NamespaceFact::from));
        assert_eq!(excluded(&cache), [("shop".to_owned(), false)]);
        cache.take(Event::<Namespace>::Init, NamespaceFact::from);
        cache.take(Event::InitApply(namespace("shop", 3, false)), NamespaceFact::from);
        assert!(!cache.take(Event::<Namespace>::InitDone, NamespaceFact::from), "the second list brought nothing new");
    }
}
