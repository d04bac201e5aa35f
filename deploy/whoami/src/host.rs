//! Who we are: the name and the addresses of the namespaces that this process lives in. Read from `/proc`,
//! since a static binary has no name service.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Networks come and go while a container runs, but not within one request.
const ADDRESSES_FRESH: Duration = Duration::from_secs(1);

/// What a server says about itself.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    pub(crate) name: String,
    addresses: Mutex<Option<(Instant, Arc<Vec<IpAddr>>)>>,
}

impl Identity {
    /// `WHOAMI_NAME`, or the task's name if the service passes it as `TASK_NAME`, or the host name.
    pub(crate) fn new() -> Self {
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
        let hostname = hostname.or_else(|_| std::env::var("HOSTNAME")).unwrap_or_else(|_| "unknown".to_owned());
        let name = ["WHOAMI_NAME", "TASK_NAME"].iter().find_map(|name| std::env::var(name).ok());
        Self { name: name.unwrap_or_else(|| hostname.clone()), hostname, addresses: Mutex::new(None) }
    }

    /// All addresses but loopback and link-local ones.
    pub(crate) fn addresses(&self) -> Arc<Vec<IpAddr>> {
        let mut cached = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, addresses)) = cached.as_ref()
            && read.elapsed() < ADDRESSES_FRESH
        {
            return Arc::clone(addresses);
        }
        let trie = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        let inet6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        let v4 = parse_fib_trie(&trie).into_iter().map(IpAddr::V4);
        let addresses = Arc::new(v4.chain(parse_if_inet6(&inet6).into_iter().map(IpAddr::V6)).collect::<Vec<_>>());
        *cached = Some((Instant::now(), Arc::clone(&addresses)));
        addresses
    }
}

/// An address of this host is a leaf that is followed by a line `/32 host LOCAL`.
fn parse_fib_trie(text: &str) -> BTreeSet<Ipv4Addr> {
    let mut leaf = None;
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf.filter(|address| !address.is_loopback()));
        }
    }
    found
}

fn parse_if_inet6(text: &str) -> BTreeSet<Ipv6Addr> {
    let address = |line: &str| {
        let hex = line.split_whitespace().next().filter(|hex| hex.len() == 32)?;
        let address = Ipv6Addr::from(u128::from_str_radix(hex, 16).ok()?);
        (!address.is_loopback() && !address.is_unicast_link_local()).then_some(address)
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 10.0.0.0/24 2 0 2\n        |-- 10.0.0.0\n           /24 link UNICAST\n        |-- 10.0.0.7\n           /32 host LOCAL\n        |-- 10.0.0.255\n           /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n        |-- 10.0.0.7\n           /32 host LOCAL\n";
        assert_eq!(parse_fib_trie(trie).into_iter().collect::<Vec<_>>(), [Ipv4Addr::new(10, 0, 0, 7)]);
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\nfe80000000000000000000000000000a 02 40 20 80     eth0\nfd000000000000000000000000000007 02 40 00 80     eth0\nbad\n";
        let expected: Ipv6Addr = "fd00::7".parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
        assert_eq!(parse_if_inet6(inet6).into_iter().collect::<Vec<_>>(), [expected]);
    }
}
