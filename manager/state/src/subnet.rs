//! IPv4 subnets as the objects write them (`10.0.3.0/24`), and addresses as numbers.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 subnet; the host bits of its address are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

/// A text that is no IPv4 subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no IPv4 subnet: write it as ADDRESS/LENGTH with all host bits zero, for example 10.0.3.0/24")]
pub struct ParseError(String);

impl Subnet {
    /// The subnet that holds `address` with a prefix of `prefix` bits; `None` above 32.
    pub fn of(address: u32, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { base: address & mask(prefix), prefix })
    }

    /// First address: the network's own.
    pub fn base(self) -> u32 {
        self.base
    }

    /// Length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Last address: the broadcast address.
    pub fn last(self) -> u32 {
        self.base | !mask(self.prefix)
    }

    /// Whether the address lies inside.
    pub fn contains(self, address: u32) -> bool {
        address & mask(self.prefix) == self.base
    }

    /// Whether any address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = parse_address(address).ok_or_else(wrong)?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let subnet = Self::of(address, prefix).ok_or_else(wrong)?;
        if subnet.base == address { Ok(subnet) } else { Err(wrong()) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

/// An IPv4 address as a number.
pub fn parse_address(text: &str) -> Option<u32> {
    text.parse::<Ipv4Addr>().ok().map(u32::from)
}

/// A number as the objects write addresses.
pub fn format_address(address: u32) -> String {
    Ipv4Addr::from(address).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn subnets_are_read_strictly() {
        for (text, last) in [("10.0.3.0/24", "10.0.3.255"), ("0.0.0.0/0", "255.255.255.255"), ("1.2.3.4/32", "1.2.3.4")]
        {
            let subnet: Subnet = text.parse().unwrap();
            assert_eq!(subnet.to_string(), text);
            assert_eq!(format_address(subnet.last()), last);
        }
        for text in ["10.0.3.1/24", "10.0.3.0", "10.0.3.0/33", "10.0.3.0/-1", "::/0", "", "/"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_adjacent_subnets_have_none() {
        let s = |t: &str| t.parse::<Subnet>().unwrap();
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.9.0.0/16", true),
            ("10.0.0.0/24", "10.0.1.0/24", false),
            ("10.0.0.0/24", "10.0.0.0/24", true),
        ] {
            assert_eq!(s(a).overlaps(s(b)), expected, "{a} {b}");
            assert_eq!(s(b).overlaps(s(a)), expected, "{b} {a}");
        }
    }
}
