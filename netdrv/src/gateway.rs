//! Which gateway address each sandbox has. Pure; what it knows after a restart is what the kernel holds ([`Leases::adopt`]).
//!
//! The address after the last one given comes next, so that an address that became free rests as long as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use skep_net_plan::Subnet;

use crate::error::{Error, Result};

/// The addresses of one gateway subnet.
#[derive(Debug)]
pub(crate) struct Leases {
    subnet: Subnet,
    last: u32,
    held: BTreeMap<String, Ipv4Addr>,
}

impl Leases {
    pub(crate) fn new(subnet: Subnet) -> Self {
        Self { subnet, last: 0, held: BTreeMap::new() }
    }

    /// Another subnet: everybody gets a new address. The same one: nothing changes.
    pub(crate) fn set_subnet(&mut self, subnet: Subnet) {
        if subnet != self.subnet {
            *self = Self::new(subnet);
        }
    }

    /// Takes over an address that a sandbox was found to have, unless it is foreign, the gateway's, or taken.
    pub(crate) fn adopt(&mut self, sandbox: &str, address: Ipv4Addr) {
        let free = self.subnet.contains(address)
            && address != self.subnet.host()
            && !self.held.values().any(|a| *a == address);
        if free && !self.held.contains_key(sandbox) {
            self.last = self.last.max(u32::from(address) - u32::from(self.subnet.network().addr));
            self.held.insert(sandbox.to_owned(), address);
        }
    }

    /// The sandbox's address, if it has one already.
    pub(crate) fn held(&self, sandbox: &str) -> Option<Ipv4Addr> {
        self.held.get(sandbox).copied()
    }

    /// The sandbox's address; a new one at the first call.
    pub(crate) fn lease(&mut self, sandbox: &str) -> Result<Ipv4Addr> {
        if let Some(address) = self.held.get(sandbox) {
            return Ok(*address);
        }
        let taken: BTreeSet<_> = self.held.values().copied().chain([self.subnet.host()]).collect();
        let hosts = self.subnet.hosts();
        // As many candidates as there are taken addresses, and one more, are enough to find a free one.
        let tries = u32::try_from(taken.len()).unwrap_or(u32::MAX).saturating_add(1).min(hosts);
        let candidate = |i: u32| (self.last.wrapping_add(i) % hosts.max(1)) + 1;
        let found =
            (0..tries).map(candidate).find_map(|n| Some((n, self.subnet.nth(n)?)).filter(|(_, a)| !taken.contains(a)));
        let (n, address) = found.ok_or(Error::GatewayFull { subnet: self.subnet })?;
        self.last = n;
        self.held.insert(sandbox.to_owned(), address);
        Ok(address)
    }

    /// Keeps the leases of these sandboxes only.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.held.retain(|sandbox, _| keep(sandbox));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 19, 0, n)
    }

    #[test]
    fn addresses_rest_and_run_out() {
        let mut leases = Leases::new("172.19.0.0/29".parse().unwrap());
        let given: Vec<_> = ["a", "b", "c"].iter().map(|s| leases.lease(s).unwrap()).collect();
        assert_eq!(given, [ip(2), ip(3), ip(4)]);
        assert_eq!(leases.lease("b").unwrap(), ip(3));
        leases.retain(|s| s != "a");
        assert_eq!(leases.lease("d").unwrap(), ip(5), "the freed one rests");
        assert_eq!((leases.lease("e").unwrap(), leases.lease("f").unwrap()), (ip(6), ip(2)));
        assert!(matches!(leases.lease("g"), Err(Error::GatewayFull { .. })));
    }

    #[test]
    fn what_the_kernel_holds_is_taken_over() {
        let mut leases = Leases::new("172.19.0.1/24".parse().unwrap());
        leases.adopt("a", ip(9));
        leases.adopt("b", ip(9));
        leases.adopt("c", ip(1));
        leases.adopt("d", Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(leases.lease("a").unwrap(), ip(9));
        assert_eq!(["b", "c", "d"].map(|s| leases.lease(s).unwrap()), [ip(10), ip(11), ip(12)]);
        leases.set_subnet("172.19.0.1/24".parse().unwrap());
        assert_eq!(leases.lease("a").unwrap(), ip(9));
    }
}
