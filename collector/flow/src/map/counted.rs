//! Counts of few things, in a list: the maps of the standard library take hundreds of bytes for a single one.

use std::{fmt, slice};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

/// Counts by key, in the order of the keys. In JSON, a list of pairs: keys of objects are strings there.
#[derive(Clone, PartialEq, Eq)]
pub struct Counted<Key>(Vec<(Key, u64)>);

impl<Key: Ord> Counted<Key> {
    fn find(&self, key: &Key) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(key))
    }

    /// How often it was counted.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<u64> {
        self.find(key).ok().map(|at| self.0[at].1)
    }

    /// Adds to the count of a key. Returns whether the key is new; if `may_insert` does not allow that, it is not counted: `None`.
    pub(super) fn add(&mut self, key: Key, by: u64, may_insert: bool) -> Option<bool> {
        match self.find(&key) {
            Ok(at) => {
                self.0[at].1 += by;
                Some(false)
            }
            Err(at) if may_insert => {
                // Most have one.
                self.0.reserve_exact(1);
                self.0.insert(at, (key, by));
                Some(true)
            }
            Err(_) => None,
        }
    }
}

impl<Key> Counted<Key> {
    /// Forgets the other keys.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&Key) -> bool) {
        self.0.retain(|(key, _)| is_kept(key));
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keys and counts.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Key, &u64)> {
        self.0.iter().map(|(key, count)| (key, count))
    }

    /// Keys, in order.
    #[must_use]
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Key> {
        self.0.iter().map(|(key, _)| key)
    }

    /// Counts, in the order of the keys.
    #[must_use]
    pub fn values(&self) -> impl ExactSizeIterator<Item = &u64> {
        self.0.iter().map(|(_, count)| count)
    }
}

impl<Key> Default for Counted<Key> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Key: fmt::Debug> fmt::Debug for Counted<Key> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<Key: Ord> FromIterator<(Key, u64)> for Counted<Key> {
    fn from_iter<Pairs: IntoIterator<Item = (Key, u64)>>(pairs: Pairs) -> Self {
        let mut counted = Self::default();
        for (key, count) in pairs {
            counted.add(key, count, true);
        }
        counted
    }
}

impl<Key: Ord, const COUNT: usize> From<[(Key, u64); COUNT]> for Counted<Key> {
    fn from(pairs: [(Key, u64); COUNT]) -> Self {
        pairs.into_iter().collect()
    }
}

impl<'a, Key> IntoIterator for &'a Counted<Key> {
    type Item = (&'a Key, &'a u64);
    type IntoIter = std::iter::Map<slice::Iter<'a, (Key, u64)>, fn(&'a (Key, u64)) -> (&'a Key, &'a u64)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, count)| (key, count))
    }
}

impl<Key: Serialize> Serialize for Counted<Key> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

impl<'de, Key: DeserializeOwned + Ord> Deserialize<'de> for Counted<Key> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_order_and_counted_once() {
        let mut counted: Counted<u8> = [(7, 1), (3, 1), (5, 1), (3, 2)].into();
        assert_eq!(counted.iter().collect::<Vec<_>>(), [(&3, &3), (&5, &1), (&7, &1)]);
        assert_eq!((counted.add(5, 4, false), counted.add(6, 1, false), counted.len()), (Some(false), None, 3));
        assert_eq!((counted.get(&5), counted.get(&6)), (Some(5), None));
        let text = serde_json::to_string(&counted).expect("JSON");
        assert_eq!(text, "[[3,3],[5,5],[7,1]]");
        assert_eq!(serde_json::from_str::<Counted<u8>>(&text).expect("JSON"), counted);
    }
}
