//! A bounded map that forgets what was not used for longest.

use std::{collections::HashMap, hash::Hash};

/// Holds the entries of two generations: a full one becomes the old one, and the old one is forgotten. What is read moves to the young
/// one.
#[derive(Debug)]
pub(crate) struct Recent<Key, Value> {
    young: HashMap<Key, Value>,
    old: HashMap<Key, Value>,
    capacity: usize,
    /// Entries that were forgotten.
    pub evicted: u64,
}

impl<Key: Hash + Eq, Value> Recent<Key, Value> {
    /// Holds `capacity` entries at most, and at least half as many of the latest.
    pub fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), capacity, evicted: 0 }
    }

    pub fn insert(&mut self, key: Key, value: Value) {
        self.old.remove(&key);
        if self.young.len() >= self.capacity.div_ceil(2) && !self.young.contains_key(&key) {
            self.evicted += self.old.len() as u64;
            self.old.clear();
            std::mem::swap(&mut self.young, &mut self.old);
        }
        self.young.insert(key, value);
    }

    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    pub fn get(&mut self, key: &Key) -> Option<&mut Value> {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let mut recent = Recent::new(100);
        for number in 0..1000 {
            recent.insert(number, number);
            assert!(recent.get(&0).is_some(), "used all the time");
            assert!(recent.young.len() + recent.old.len() <= 100);
        }
        assert!((960..1000).all(|number| recent.get(&number).is_some()));
        assert!(recent.get(&500).is_none());
        assert!(recent.evicted >= 900);
    }
}
