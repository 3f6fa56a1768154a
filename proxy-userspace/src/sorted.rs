//! A map in one allocation: for the many small maps that hold what each Service has.

use std::ops::Index;

/// Entries sorted by key. A change in the middle moves what lies behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SortedMap<K, V>(Vec<(K, V)>);

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> SortedMap<K, V> {
    /// Nothing in it, and nothing allocated.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes entries in any order; of those with one key, `merge` folds each into the one before.
    pub fn merged(mut entries: Vec<(K, V)>, mut merge: impl FnMut(&mut V, V)) -> Self {
        if !entries.is_sorted_by(|one, next| one.0 < next.0) {
            // Stable: equal keys stay in their order.
            entries.sort_by(|one, next| one.0.cmp(&next.0));
            let mut folded: Vec<(K, V)> = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                match folded.last_mut() {
                    Some((last, known)) if *last == key => merge(known, value),
                    _ => folded.push((key, value)),
                }
            }
            entries = folded;
        }
        entries.shrink_to_fit();
        Self(entries)
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|index| &self.0[index].1)
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.find(key).ok().map(|index| &mut self.0[index].1)
    }

    /// True if the key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Sets the value of a key, and returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(index) => Some(std::mem::replace(&mut self.0[index].1, value)),
            Err(index) => {
                self.0.insert(index, (key, value));
                None
            }
        }
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.find(key).ok()?;
        Some(self.0.remove(index).1)
    }

    /// Makes room for exactly so many more.
    pub fn reserve(&mut self, additional: usize) {
        self.0.reserve_exact(additional);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All entries, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> + Clone {
        self.0.iter().map(|(key, _)| key)
    }

    /// All values, by key.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        match self.0.last() {
            // Filled in order, as most are.
            Some((last, _)) if last < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(known, _)| known.cmp(key)),
        }
    }
}

impl<K, V> IntoIterator for SortedMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Of entries with one key the last counts.
impl<K: Ord, V> FromIterator<(K, V)> for SortedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        Self::merged(entries.into_iter().collect(), |known, value| *known = value)
    }
}

impl<K: Ord, V> Index<&K> for SortedMap<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is there")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sorted_map_is_a_map(
            changes in prop::collection::vec((any::<bool>(), 0..20_u8, any::<u8>()), 0..60),
        ) {
            let (mut ours, mut model) = (SortedMap::new(), BTreeMap::new());
            for (is_insert, key, value) in changes {
                match is_insert {
                    true => prop_assert_eq!(ours.insert(key, value), model.insert(key, value)),
                    false => prop_assert_eq!(ours.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(ours.get(&key), model.get(&key));
            }
            prop_assert!(ours.iter().eq(model.iter()));
            let entries = ours.iter().map(|(key, value)| (*key, *value));
            let collected: SortedMap<u8, u8> = entries.collect();
            prop_assert_eq!(collected, ours);
        }

        #[test]
        fn entries_of_one_key_are_folded_in_their_order(
            entries in prop::collection::vec((0..4_u8, any::<u8>()), 0..20),
        ) {
            let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            for (key, value) in &entries {
                model.entry(*key).or_default().push(*value);
            }
            let lists = entries.into_iter().map(|(key, value)| (key, vec![value])).collect();
            let fold = |known: &mut Vec<u8>, mut value| known.append(&mut value);
            let ours = SortedMap::merged(lists, fold);
            prop_assert!(ours.iter().eq(model.iter()));
        }
    }
}
