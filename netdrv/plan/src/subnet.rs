//! An IPv4 address with the length of its network prefix. Decides membership and host addresses; called wherever a
//! network's range matters. It must never accept a prefix longer than 32 bits.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address and a prefix length, written `10.0.0.0/24`. Host bits may be set (`10.0.0.2/24` is the address of a
/// host together with its network).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subnet {
    /// The address, host bits included.
    pub addr: Ipv4Addr,
    /// Length of the network part in bits, 0 to 32; larger values count as 32.
    pub prefix: u8,
}

/// Why a text is not a subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 subnet; write it like 10.0.0.0/24")]
pub struct ParseSubnetError {
    text: String,
}

impl Subnet {
    /// A subnet from its two parts.
    #[must_use]
    pub const fn new(addr: Ipv4Addr, prefix: u8) -> Self {
        Self { addr, prefix }
    }

    /// The netmask as 32 bits, most significant first.
    #[must_use]
    pub fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0)
    }

    /// The same range with the host bits cleared.
    #[must_use]
    pub fn network(&self) -> Self {
        Self { addr: Ipv4Addr::from(u32::from(self.addr) & self.mask()), prefix: self.prefix.min(32) }
    }

    /// Whether `addr` lies in the range.
    #[must_use]
    pub fn contains(&self, addr: Ipv4Addr) -> bool {
        u32::from(addr) & self.mask() == u32::from(self.addr) & self.mask()
    }

    /// The `n`th address of the range (0 is the network's own); `None` outside it.
    #[must_use]
    pub fn nth(&self, n: u32) -> Option<Ipv4Addr> {
        let addr = Ipv4Addr::from(u32::from(self.network().addr).checked_add(n)?);
        self.contains(addr).then_some(addr)
    }

    /// The number of host addresses: without the network's and the broadcast address.
    #[must_use]
    pub fn hosts(&self) -> u32 {
        (!self.mask()).saturating_sub(1)
    }

    /// The address of the host that this names: `addr` itself, or the first host if only the network is given.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        if self.network().addr == self.addr { self.nth(1).unwrap_or(self.addr) } else { self.addr }
    }

    /// The same range with another address in front.
    #[must_use]
    pub const fn with_addr(&self, addr: Ipv4Addr) -> Self {
        Self { addr, prefix: self.prefix }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = ParseSubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseSubnetError { text: text.to_owned() };
        let (addr, prefix) = text.split_once('/').ok_or_else(bad)?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > 32 {
            return Err(bad());
        }
        Ok(Self { addr: addr.parse().map_err(|_| bad())?, prefix })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parses_contains_and_counts() {
        let s: Subnet = "10.0.0.0/24".parse().unwrap();
        assert_eq!((s.hosts(), s.nth(255), s.nth(256)), (254, Some(Ipv4Addr::new(10, 0, 0, 255)), None));
        assert!(s.contains(Ipv4Addr::new(10, 0, 0, 9)) && !s.contains(Ipv4Addr::new(10, 0, 1, 9)));
        assert_eq!(s.host(), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!("10.0.0.7/24".parse::<Subnet>().unwrap().host(), Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(Subnet::new(Ipv4Addr::UNSPECIFIED, 0).mask(), 0);
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "a/8", "10.0.0.0/x"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
