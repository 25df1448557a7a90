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
    /// Highest version that the watch has told of, as far as versions are numbers.
    told: u64,
}

/// Facts of all objects of one kind, in the order of their names. Clones share one memory.
///
/// kube's `Store` is not used, because it keeps whole objects, says "changed" when nothing of interest did, and does not
/// know what this process just wrote.
///
/// # Guarantees
/// - What [`Cache::wrote`] took in is not undone by something older that the watch tells later, nor does it undo what the watch
///   has told before.
/// - Whatever changes is reported as a change once: by [`Cache::take`], or by [`Cache::wrote`] where the answer to a write
///   shows what somebody else did, since the watch then brings nothing new.
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
        let state = State { entries: BTreeMap::new(), listing: BTreeMap::new(), told: 0 };
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
            Event::Apply(object) => {
                let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
                let mut state = self.write();
                state.hear(&version);
                let known = state.entries.get(&key);
                if known.is_some_and(|known| is_older(&version, &known.version)) {
                    return false;
                }
                let fact = fact(object);
                let changed = known.is_none_or(|known| *known.fact != fact);
                state.entries.insert(key, Entry { version, fact: Arc::new(fact) });
                changed
            }
            Event::Delete(object) => {
                let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
                let mut state = self.write();
                state.hear(&version);
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
                let changed = self.write().replace();
                // The first list is news even when it is empty.
                !self.synced.send_replace(true) || changed
            }
        }
    }

    /// Remembers what a write of ours has returned. Whether it shows more than the write was meant to change, which
    /// `is_ours` decides from what was known and what is new: nobody else will tell that.
    pub fn wrote<K: ResourceExt>(&self, object: K, fact: impl Fn(K) -> T, is_ours: impl Fn(&T, &T) -> bool) -> bool {
        let (key, version) = (key(&object), object.resource_version().unwrap_or_default());
        let mut state = self.write();
        let known = state.entries.get(&key);
        // The watch was faster. Where it told of a deletion, this would bring back what is gone, for good.
        let is_past = version.parse::<u64>().is_ok_and(|version| version <= state.told);
        if is_past || known.is_some_and(|known| is_older(&version, &known.version)) {
            return false;
        }
        let fact = fact(object);
        let shows_more = known.is_none_or(|known| !is_ours(&known.fact, &fact));
        state.entries.insert(key, Entry { version, fact: Arc::new(fact) });
        shows_more
    }

    /// Forgets an object that a write has deleted; whether it was known.
    pub fn forget(&self, namespace: &str, name: &str) -> bool {
        self.write().entries.remove(&(namespace.to_owned(), name.to_owned())).is_some()
    }

    // A poisoned lock means that a fact's constructor panicked before anything was changed.
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: PartialEq> State<T> {
    fn hear(&mut self, version: &str) {
        self.told = version.parse::<u64>().unwrap_or_default().max(self.told);
    }

    /// The list that was read becomes what is known; whether anything of interest changed.
    fn replace(&mut self) -> bool {
        let mut listed = std::mem::take(&mut self.listing);
        for (key, entry) in &mut listed {
            self.told = entry.version.parse::<u64>().unwrap_or_default().max(self.told);
            // Written by us since the list was made.
            if let Some(known) = self.entries.get(key).filter(|known| is_older(&entry.version, &known.version)) {
                *entry = known.clone();
            }
        }
        let changed = listed.len() != self.entries.len()
            || listed.iter().zip(&self.entries).any(|(new, old)| new.0 != old.0 || new.1.fact != old.1.fact);
        self.entries = listed;
        changed
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
mod tests;
