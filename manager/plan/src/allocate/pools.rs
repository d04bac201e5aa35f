//! Free addresses of networks during one round.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use skep_proto::v1::Network;
use skep_state::State;
use skep_state::subnet::{Subnet, format_address, parse_address};

use crate::draft::Draft;

/// The networks from which something was asked in this round.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    open: BTreeMap<String, Pool>,
    /// Why there is no address, by network.
    exhausted: BTreeMap<String, Arc<str>>,
}

#[derive(Debug)]
struct Pool {
    first: u32,
    last: u32,
    /// The search goes on behind it, so that an address that was just freed rests.
    cursor: u32,
    moved: bool,
    held: HashSet<u32>,
    /// How many are free.
    left: u32,
    /// Nothing is free: a search through a large subnet is not repeated for every task that waits.
    full: bool,
}

impl Pools {
    /// A free address; `None` when there is none, or no such network.
    pub(crate) fn take(&mut self, state: &State, network_id: &str) -> Option<u32> {
        self.pool(state, network_id)?.take()
    }

    /// How many addresses are free.
    pub(crate) fn left(&mut self, state: &State, network_id: &str) -> u32 {
        self.pool(state, network_id).map_or(0, |pool| pool.left)
    }

    /// A free address, if at least so many are free beside it.
    pub(crate) fn take_beside(&mut self, state: &State, network_id: &str, others: u32) -> Option<u32> {
        self.pool(state, network_id).filter(|pool| pool.left > others)?.take()
    }

    /// Returns an address that nothing was told about.
    pub(crate) fn give_back(&mut self, network_id: &str, address: u32) {
        if let Some(pool) = self.open.get_mut(network_id) {
            pool.left += u32::from(pool.held.remove(&address));
            pool.full = false;
        }
    }

    /// Why there is no address.
    pub(crate) fn exhausted(&mut self, state: &State, network_id: &str) -> Arc<str> {
        if let Some(known) = self.exhausted.get(network_id) {
            return Arc::clone(known);
        }
        let why: Arc<str> = exhausted(state, network_id).into();
        self.exhausted.insert(network_id.to_owned(), Arc::clone(&why));
        why
    }

    /// Whether an address could be taken.
    pub(crate) fn has_room(&mut self, state: &State, network_id: &str) -> bool {
        self.pool(state, network_id).is_some_and(|pool| pool.free().is_some())
    }

    /// Notes in each network where the search goes on.
    pub(crate) fn save(&self, draft: &mut Draft<'_>) {
        for (id, pool) in self.open.iter().filter(|(_, pool)| pool.moved) {
            if let Some(network) = draft.state.network(id) {
                let last_address = format_address(pool.cursor);
                draft.put_network(Network { last_address, ..network.as_ref().clone() });
            }
        }
    }

    fn pool(&mut self, state: &State, network_id: &str) -> Option<&mut Pool> {
        if !self.open.contains_key(network_id) {
            let pool = Pool::of(state, state.network(network_id)?.as_ref())?;
            self.open.insert(network_id.to_owned(), pool);
        }
        self.open.get_mut(network_id)
    }
}

impl Pool {
    fn of(state: &State, network: &Network) -> Option<Self> {
        let subnet: Subnet = network.subnet.parse().ok()?;
        let ipam = network.spec.as_ref().and_then(|s| s.ipam.as_ref()).and_then(|i| i.configs.first());
        let range: Subnet = ipam.and_then(|c| c.range.parse().ok()).unwrap_or(subnet);
        let first = range.base().max(subnet.base().saturating_add(1));
        let last = range.last().min(subnet.last().saturating_sub(1));
        let mut held: HashSet<u32> = state.addresses_of(&network.id).map(|(address, _)| address).collect();
        held.extend(parse_address(&network.gateway));
        held.extend(ipam.iter().flat_map(|c| c.reserved.values()).filter_map(|a| parse_address(a)));
        let cursor = parse_address(&network.last_address).unwrap_or(0);
        let taken = held.iter().filter(|address| (first..=last).contains(*address)).count();
        let left =
            (last.saturating_add(1).saturating_sub(first)).saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        Some(Self { first, last, cursor, moved: false, held, left, full: false })
    }

    fn free(&mut self) -> Option<u32> {
        if self.full {
            return None;
        }
        let start = if (self.first..self.last).contains(&self.cursor) { self.cursor + 1 } else { self.first };
        let found = (start..=self.last).chain(self.first..start).find(|address| !self.held.contains(address));
        self.full = found.is_none();
        found
    }

    fn take(&mut self) -> Option<u32> {
        let address = self.free()?;
        self.held.insert(address);
        self.left = self.left.saturating_sub(1);
        self.cursor = address;
        self.moved = true;
        Some(address)
    }
}

fn exhausted(state: &State, network_id: &str) -> String {
    match state.network(network_id) {
        Some(network) => {
            let name = network.spec.as_ref().and_then(|s| s.annotations.as_ref()).map_or("", |a| a.name.as_str());
            format!(
                "network {name} has no free address left in {}: remove tasks, or use a larger subnet",
                network.subnet
            )
        }
        None => format!("network {network_id} does not exist any more: update the service"),
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::{Action, Annotations, Command, NetworkSpec, Object, action, object};

    use super::*;

    #[test]
    fn a_full_network_is_not_searched_again_until_something_is_given_back() {
        let annotations = Some(Annotations { name: "net".into(), ..Annotations::default() });
        let spec = Some(NetworkSpec { annotations, ..NetworkSpec::default() });
        let network = Network { id: "net".into(), spec, subnet: "10.9.0.0/29".into(), ..Network::default() };
        let put = action::Kind::Put(Object { kind: Some(object::Kind::Network(network)) });
        let mut state = State::default();
        let command = Command { actions: vec![Action { kind: Some(put) }], ..Command::default() };
        assert_eq!(state.apply(1, &command).0.refusal, None);
        let mut pools = Pools::default();
        let taken: Vec<u32> = std::iter::from_fn(|| pools.take(&state, "net")).collect();
        assert_eq!((taken.len(), pools.left(&state, "net")), (6, 0));
        assert!(pools.open["net"].full && !pools.has_room(&state, "net"));
        pools.give_back("net", taken[2]);
        assert!(pools.has_room(&state, "net"));
        assert_eq!((pools.left(&state, "net"), pools.take_beside(&state, "net", 1)), (1, None), "one stays free");
        assert_eq!((pools.take(&state, "net"), pools.take(&state, "net")), (Some(taken[2]), None));
        assert!(pools.exhausted(&state, "net").contains("10.9.0.0/29"));
    }
}
