//! The cache of one kind.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use kube::{ResourceExt, runtime::watcher::Event};
use tokio::sync::watch;

/// One cached object.
#[derive(Debug)]
pub struct Entry<T> {
    /// `metadata.resourceVersion`, for optimistic locks.
    pub version: String,
    pub object: Arc<T>,
}

// Derived, it would ask for `T: Clone`.
impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { version: self.version.clone(), object: Arc::clone(&self.object) }
    }
}

/// Namespace and name; the namespace is empty for cluster-scoped kinds.
type Key = (String, String);

#[derive(Debug)]
struct State<T> {
    entries: BTreeMap<Key, Entry<T>>,
    /// Objects that the list in progress has returned so far.
    listing: BTreeMap<Key, Entry<T>>,
    /// Highest numeric resource version that the watch has reported.
    latest: u64,
}

/// Projections of all objects of one kind, sorted by namespace and name. Clones share one cache.
///
/// kube's `Store` keeps whole objects, reports changes that affect nothing here, and does not know what this process has just
/// written.
///
/// # Guarantees
/// - A write recorded by [`Cache::record_write`] is not undone by an older watch event, nor does it undo a newer one.
/// - Each change is reported once: by [`Cache::apply`], or by [`Cache::record_write`] if the response to a write shows a
///   change by another client, since the watch event for it then changes nothing.
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
        let state = State { entries: BTreeMap::new(), listing: BTreeMap::new(), latest: 0 };
        Self { state: Arc::new(RwLock::new(state)), synced: Arc::new(watch::Sender::new(false)) }
    }

    /// All entries, sorted by namespace and name.
    pub fn list(&self) -> Vec<Entry<T>> {
        self.read().entries.values().cloned().collect()
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.read().entries.get(&key).map(|entry| Arc::clone(&entry.object))
    }

    /// Returns once the first list is complete.
    pub async fn wait_until_synced(&self) {
        // The sender lives as long as `self`.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Applies a watch event. Returns whether a cached object changed.
    pub fn apply<K: ResourceExt>(&self, event: Event<K>, project: impl Fn(K) -> T) -> bool {
        match event {
            Event::Apply(object) => {
                let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
                let mut state = self.write();
                state.observe(&version);
                let known = state.entries.get(&key);
                if known.is_some_and(|known| is_older(&version, &known.version)) {
                    return false;
                }
                let object = project(object);
                let changed = known.is_none_or(|known| *known.object != object);
                state.entries.insert(key, Entry { version, object: Arc::new(object) });
                changed
            }
            Event::Delete(object) => {
                let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
                let mut state = self.write();
                state.observe(&version);
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
                let entry = Entry { version, object: Arc::new(project(object)) };
                self.write().listing.insert(key, entry);
                false
            }
            Event::InitDone => {
                let changed = self.write().replace();
                // The first list counts as a change even if it is empty.
                !self.synced.send_replace(true) || changed
            }
        }
    }

    /// Records the response to one of our writes. Returns whether it shows more than the write itself, which `is_ours` decides
    /// from the cached and the new object: no watch event will report that difference.
    pub fn record_write<K: ResourceExt>(
        &self,
        object: K,
        project: impl Fn(K) -> T,
        is_ours: impl Fn(&T, &T) -> bool,
    ) -> bool {
        let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
        let mut state = self.write();
        let known = state.entries.get(&key);
        // The watch is ahead. If it has reported a deletion, recording this write would bring the object back for good.
        let is_past = version.parse::<u64>().is_ok_and(|version| version <= state.latest);
        if is_past || known.is_some_and(|known| is_older(&version, &known.version)) {
            return false;
        }
        let object = project(object);
        let shows_more = known.is_none_or(|known| !is_ours(&known.object, &object));
        state.entries.insert(key, Entry { version, object: Arc::new(object) });
        shows_more
    }

    /// Removes an object that one of our requests has deleted. Returns whether it was cached.
    pub fn remove(&self, namespace: &str, name: &str) -> bool {
        self.write().entries.remove(&(namespace.to_owned(), name.to_owned())).is_some()
    }

    // A poisoned lock means that a projection panicked before anything was changed.
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: PartialEq> State<T> {
    fn observe(&mut self, version: &str) {
        self.latest = version.parse::<u64>().unwrap_or_default().max(self.latest);
    }

    /// Replaces the entries with the completed list. Returns whether any object changed.
    fn replace(&mut self) -> bool {
        let mut listed = std::mem::take(&mut self.listing);
        for (key, entry) in &mut listed {
            self.latest = entry.version.parse::<u64>().unwrap_or_default().max(self.latest);
            // We wrote it after the list was read.
            if let Some(known) = self.entries.get(key).filter(|known| is_older(&entry.version, &known.version)) {
                *entry = known.clone();
            }
        }
        let changed = listed.len() != self.entries.len()
            || listed.iter().zip(&self.entries).any(|(new, old)| new.0 != old.0 || new.1.object != old.1.object);
        self.entries = listed;
        changed
    }
}

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Whether `version` is older than `known`. Resource versions of one kind are increasing integers (etcd revisions, guaranteed by
/// the API since Kubernetes 1.35, KEP-5504); versions that are not integers never compare as older.
fn is_older(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
