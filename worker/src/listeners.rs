//! Who listens on this node's own ports: a published port takes them away from whoever does.
//!
//! Decides, from what the kernel lists, whether a port is taken; what follows from that is for the callers: a task that
//! would publish it on this host is refused, for one that every node publishes there is a warning. Never binds a socket
//! itself, so that nobody else is refused meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};

use skep_net_plan::Protocol;

/// The most bytes of one of the kernel's lists that are read: those that listen come first in it.
const MAX_LIST: u64 = 8 << 20;
/// State of a TCP socket that listens (the kernel's include/net/tcp_states.h), and of a UDP socket without a peer.
const LISTENS: &str = "0A";
const NO_PEER: &str = "07";

/// Ports that are listened on, each with the number of a socket that does.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listeners(BTreeMap<(Protocol, u16), u64>);

impl Listeners {
    /// Those of this process's network namespace, which is the node's.
    fn read() -> Self {
        let mut all = Self::default();
        for (protocol, path) in [
            (Protocol::Tcp, "/proc/self/net/tcp"),
            (Protocol::Tcp, "/proc/self/net/tcp6"),
            (Protocol::Udp, "/proc/self/net/udp"),
            (Protocol::Udp, "/proc/self/net/udp6"),
        ] {
            let mut text = Vec::new();
            // What can't be read (no IPv6 here) has no listeners.
            if let Ok(file) = fs::File::open(path) {
                let _ = file.take(MAX_LIST).read_to_end(&mut text);
            }
            all.0.extend(listed(protocol, &String::from_utf8_lossy(&text)));
        }
        all
    }

    /// The socket that listens on a port.
    fn socket(&self, protocol: Protocol, port: u16) -> Option<u64> {
        self.0.get(&(protocol, port)).copied()
    }
}

/// The sockets of a list (proc_net(5)) that would lose the IPv4 traffic of their port.
fn listed(protocol: Protocol, text: &str) -> impl Iterator<Item = ((Protocol, u16), u64)> + '_ {
    let wanted = if protocol == Protocol::Tcp { LISTENS } else { NO_PEER };
    text.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let socket = fields.nth(5)?.parse().ok()?;
        let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
        (state == wanted && hears_ipv4(address)).then_some(((protocol, port), socket))
    })
}

/// Whether a socket bound to this address may be sent IPv4 packets. Addresses are words of 32 bits, each as the machine
/// holds it.
fn hears_ipv4(address: &str) -> bool {
    if address.len() == 8 {
        return u32::from_str_radix(address, 16).is_ok();
    }
    let word = |at: usize| address.get(at * 8..at * 8 + 8).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let (Some(a), Some(b), Some(c), Some(d)) = (word(0), word(1), word(2), word(3)) else { return false };
    let mut octets = [0; 16];
    for (at, word) in [a, b, c, d].into_iter().enumerate() {
        octets[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    let address = Ipv6Addr::from(octets);
    address.is_unspecified() || address.to_ipv4_mapped().is_some_and(|mapped: Ipv4Addr| !mapped.is_broadcast())
}

/// Those of the ports that are listened on, each as a message: `port 80/tcp is in use on this node by nginx (pid 12)`.
/// Reads files: not for async threads.
pub(crate) fn taken(ports: impl IntoIterator<Item = (Protocol, u16)>) -> Vec<String> {
    let listeners = Listeners::read();
    let said = |(protocol, port)| {
        let socket = listeners.socket(protocol, port)?;
        let word = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
        Some(format!("port {port}/{word} is in use on this node by {}", holder(socket)))
    };
    ports.into_iter().filter_map(said).collect()
}

/// Who holds a socket, for a message: `nginx (pid 12)`, or "another process" when that can't be seen.
fn holder(socket: u64) -> String {
    let wanted = format!("socket:[{socket}]");
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let held = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if held.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("{} (pid {pid})", name.trim());
        }
    }
    "another process".to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1 0000000000000000 100 0 0 10 0
   2: 0100007F:0050 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 333 1 0000000000000000 20 4 30 10 -1
   3: 0100007F:9C40 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 444 1 0000000000000000 20 4 30 10 -1
   torn";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 555 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 666 1 0000000000000000 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 0000000000000000 100 0 0 10 0";
    const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  12: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 888 2 0000000000000000 0
  13: 0100007F:9C41 0100007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 999 2 0000000000000000 0";

    #[test]
    fn what_is_listened_on() {
        for (protocol, text, found) in [
            (Protocol::Tcp, TCP, vec![(8080, 111), (80, 222)]),
            (Protocol::Tcp, TCP6, vec![(22, 555), (8082, 777)]),
            (Protocol::Udp, UDP, vec![(53, 888)]),
            (Protocol::Udp, "", vec![]),
        ] {
            let listed: Vec<_> = listed(protocol, text).map(|((_, port), socket)| (port, socket)).collect();
            assert_eq!(listed, found, "{text}");
        }
    }

    #[test]
    fn a_real_listener_is_found_with_its_process() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let all = Listeners::read();
        let socket = all.socket(Protocol::Tcp, tcp_port).expect("the listener is not listed");
        assert!(all.socket(Protocol::Udp, udp_port).is_some());
        assert!(holder(socket).ends_with(&format!("(pid {})", std::process::id())));
        assert_eq!(holder(u64::MAX), "another process");
    }
}
