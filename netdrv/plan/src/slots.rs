//! Which slot of a balancing map each endpoint holds.
//!
//! A packet's slot is a number modulo the count of endpoints, so slots must be 0..n without holes. An endpoint that
//! leaves is replaced by a newcomer or by the last one, never by renumbering: at most two elements change.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use imbl::OrdMap;

use crate::desired::Protocol;

/// What clients call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    /// A published port on any address of the node.
    Port(Protocol, u16),
    /// A virtual address, every TCP and UDP port of it.
    Vip(Ipv4Addr),
}

/// A front on one network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontKey {
    /// The network's id.
    pub network: String,
    /// What clients call.
    pub front: Front,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub address: Ipv4Addr,
    /// The endpoint's port; 0 = the one that the client called.
    pub port: u16,
}

/// The holders of the slots of every front, in order.
pub type Slots = OrdMap<FrontKey, Vec<Backend>>;

/// The holders of the slots from now on: those of `previous` that are still wanted stay, newcomers fill holes, then
/// the last ones do.
#[must_use]
pub fn place(previous: &[Backend], wanted: &BTreeSet<Backend>) -> Vec<Backend> {
    let mut kept = BTreeSet::new();
    let mut slots: Vec<Option<Backend>> =
        previous.iter().map(|b| (wanted.contains(b) && kept.insert(*b)).then_some(*b)).collect();
    let mut newcomers = wanted.difference(&kept).copied();
    for slot in slots.iter_mut().filter(|s| s.is_none()) {
        *slot = newcomers.next();
    }
    slots.extend(newcomers.map(Some));
    let mut hole = 0;
    loop {
        while slots.last().is_some_and(Option::is_none) {
            slots.pop();
        }
        match slots.iter().skip(hole).position(Option::is_none) {
            // The last one is occupied, so it lies behind the hole.
            Some(offset) => {
                hole += offset;
                slots.swap_remove(hole);
            }
            None => return slots.into_iter().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b(n: u8) -> Backend {
        Backend { address: Ipv4Addr::new(10, 0, 0, n), port: 80 }
    }

    #[test]
    fn table() {
        let cases: &[(&[u8], &[u8], &[u8])] = &[
            (&[], &[], &[]),
            (&[], &[1, 2], &[1, 2]),
            (&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]),
            (&[1, 2, 3], &[2, 3], &[3, 2]),
            (&[1, 2, 3], &[1, 2], &[1, 2]),
            (&[1, 2, 3], &[2, 3, 9], &[9, 2, 3]),
            (&[1, 2, 3, 4], &[4], &[4]),
            (&[1, 2, 3, 4], &[], &[]),
            (&[1, 1, 2], &[1, 2], &[1, 2]),
        ];
        for (previous, wanted, expected) in cases {
            let previous: Vec<_> = previous.iter().map(|n| b(*n)).collect();
            let wanted: BTreeSet<_> = wanted.iter().map(|n| b(*n)).collect();
            let expected: Vec<_> = expected.iter().map(|n| b(*n)).collect();
            assert_eq!(place(&previous, &wanted), expected, "{previous:?} -> {wanted:?}");
        }
    }
}
