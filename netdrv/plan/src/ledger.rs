//! Who says that an address, a port or a front is in use. Several may: a container here is an endpoint of its service
//! too, two services may publish one port for a moment. What a plan shows of a key depends on all who hold it, and never
//! on the order in which they came.

use std::collections::{BTreeMap, BTreeSet};

/// Who says something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Another node, by id.
    Peer(String),
    /// A container of this node, by sandbox id.
    Sandbox(String),
    /// A service, by id.
    Service(String),
}

/// What is said about keys, by source, and which keys are to be looked at again.
#[derive(Debug, Clone)]
pub(crate) struct Ledger<K, V> {
    held: BTreeMap<K, BTreeMap<Source, V>>,
    dirty: BTreeSet<K>,
}

impl<K, V> Default for Ledger<K, V> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), dirty: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V> Ledger<K, V> {
    /// `source` says `value` about `key`, instead of what it said before.
    pub(crate) fn put(&mut self, key: K, source: &Source, value: V) {
        self.dirty.insert(key.clone());
        self.held.entry(key).or_default().insert(source.clone(), value);
    }

    /// `source` says nothing about `key` any more.
    pub(crate) fn take(&mut self, key: &K, source: &Source) {
        self.dirty.insert(key.clone());
        if let Some(holders) = self.held.get_mut(key) {
            holders.remove(source);
            if holders.is_empty() {
                self.held.remove(key);
            }
        }
    }

    /// Looks at a key again, whatever was said.
    pub(crate) fn touch(&mut self, key: &K) {
        self.dirty.insert(key.clone());
    }

    /// All that is said about a key, in the order of the sources.
    pub(crate) fn about(&self, key: &K) -> impl DoubleEndedIterator<Item = (&Source, &V)> {
        self.held.get(key).into_iter().flatten()
    }

    /// The keys to look at, each once.
    pub(crate) fn changes(&mut self) -> BTreeSet<K> {
        std::mem::take(&mut self.dirty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_the_sources_speaks_whoever_came_first() {
        let (peer, service) = (Source::Peer("p".into()), Source::Service("s".into()));
        let last = |ledger: &Ledger<u8, u8>| ledger.about(&1).next_back().map(|(_, v)| *v);
        let mut ledger = Ledger::default();
        ledger.put(1, &service, 7);
        ledger.put(1, &peer, 8);
        assert_eq!((last(&ledger), ledger.changes(), ledger.changes()), (Some(7), [1].into(), [].into()));
        ledger.take(&1, &service);
        assert_eq!((last(&ledger), ledger.changes()), (Some(8), [1].into()));
        ledger.take(&1, &peer);
        assert_eq!(last(&ledger), None);
    }
}
