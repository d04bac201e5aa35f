//! Our nft tables as data: sets and maps with their elements, chains with rules named by intention, and the messages
//! that lead from a found table to a wanted one.
//!
//! Keys and values are in the kernel's layout: every field of a concatenation padded to 4 bytes. What expressions a
//! [`Rule`] becomes is the driver's business; two rules are the same when their [`Rule::tag`]s are.

mod transaction;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use imbl::OrdMap;

use crate::desired::Protocol;
use crate::space::Mac;
use crate::subnet::Subnet;

pub use transaction::{NftOp, diff_tables};

/// Family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv4 and IPv6.
    Inet,
    /// Frames of one device.
    Netdev,
    /// Frames that cross a bridge.
    Bridge,
}

/// A wanted table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Chains by name.
    pub chains: Chains,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The fields of its key.
    pub key: Vec<Field>,
    /// What it maps to.
    pub data: Data,
    /// Elements: key -> value.
    pub elements: Elements,
}

/// Elements of a set: key -> value.
pub type Elements = OrdMap<Vec<u8>, Value>;

/// Chains by name, each with the tags of its rules, by which it is compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains {
    made: OrdMap<String, Chain>,
    tags: OrdMap<String, Vec<String>>,
}

impl Chains {
    /// Adds or replaces a chain.
    pub fn insert(&mut self, name: impl Into<String>, chain: Chain) {
        let name = name.into();
        self.tags.insert(name.clone(), chain.rules.iter().map(Rule::tag).collect());
        self.made.insert(name, chain);
    }

    /// Takes a chain away.
    pub fn remove(&mut self, name: &str) {
        self.tags.remove(name);
        self.made.remove(name);
    }

    /// The chain of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Chain> {
        self.made.get(name)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Chain)> {
        self.made.iter()
    }
}

impl<N: Into<String>> FromIterator<(N, Chain)> for Chains {
    fn from_iter<I: IntoIterator<Item = (N, Chain)>>(chains: I) -> Self {
        let mut all = Self::default();
        chains.into_iter().for_each(|(name, chain)| all.insert(name, chain));
        all
    }
}

/// One field of a key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Layer 4 protocol, 1 byte.
    Proto,
    /// Port, 2 bytes in network order.
    Port,
    /// IPv4 address, 4 bytes in network order.
    Ipv4,
    /// Slot, 4 bytes in this machine's order.
    Slot,
}

/// What a set maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Nothing: a plain set.
    None,
    /// A concatenation.
    Value(Vec<Field>),
    /// A verdict: go to a chain.
    Verdict,
}

/// The value of an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// That of a plain set.
    None,
    /// A concatenation.
    Bytes(Vec<u8>),
    /// Go to this chain.
    Goto(String),
}

/// A chain and its rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where it is hooked in; `None` = only reached by a verdict.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain is hooked in. The policy is always to accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The type.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// The priority.
    pub priority: i32,
    /// The device, in the netdev family.
    pub device: Option<String>,
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Translates addresses.
    Nat,
    /// Filters.
    Filter,
    /// Routes again when a mark changes.
    Route,
}

/// A hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// Packets to this namespace.
    Input,
    /// Packets passing through.
    Forward,
    /// Locally made packets.
    Output,
    /// After routing.
    Postrouting,
    /// Frames leaving a device.
    Egress,
}

/// A rule, named by what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// To a local address, `proto . port` in map `mesh`: DNAT to the balancer that it names, port unchanged.
    HostMesh,
    /// To a local address, `proto . port` in map `hostports`: DNAT to the container's gateway address and port.
    HostPorts,
    /// From 127/8 leaving through `out`: SNAT to `to`, so that the reply finds back.
    LoopbackSource {
        /// Link.
        out: String,
        /// New source.
        to: Ipv4Addr,
    },
    /// From `from` leaving through `out`: SNAT to `to`. A container's gateway address means nothing on another node.
    GatewaySource {
        /// Link.
        out: String,
        /// Gateway subnet.
        from: Subnet,
        /// New source.
        to: Ipv4Addr,
    },
    /// From `from` out through `bridge` after DNAT: masquerade, or two containers would talk past the translation.
    BridgeHairpin {
        /// Gateway bridge.
        bridge: String,
        /// Gateway subnet.
        from: Subnet,
    },
    /// From `from`, leaving through anything but `bridge`: masquerade. The way out of containers.
    Egress {
        /// Gateway bridge.
        bridge: String,
        /// Gateway subnet.
        from: Subnet,
    },
    /// A frame from a port whose name starts with `ports`, no ARP, and not to `gateway`: drop. What isolated ports are
    /// where there can't be any: see [`Facts::bridged`](crate::Facts::bridged).
    GatewayOnly {
        /// First letters of the ports.
        ports: String,
        /// The bridge's own Ethernet address.
        gateway: Mac,
    },
    /// From `link` to 127/8: drop. `route_localnet` must not open the node's own services to containers.
    DropLoopback {
        /// Link.
        link: String,
    },
    /// From `link`: `proto . port` through verdict map `ports`.
    PortFront {
        /// Link.
        link: String,
    },
    /// From `link`: destination through verdict map `vips`, whatever the protocol.
    VipFront {
        /// Link.
        link: String,
    },
    /// `proto . port . (next of n)` through map `port-slots`: DNAT to address and port. The source stays.
    PickPort {
        /// Number of endpoints.
        n: u32,
    },
    /// `destination . (next of n)` through map `vip-slots`: DNAT to the address, port unchanged. The source stays.
    PickVip {
        /// Number of endpoints.
        n: u32,
    },
    /// Out through `link`, `source . destination` in set `hairpin`: masquerade. A task that reached itself.
    Hairpin {
        /// Link.
        link: String,
    },
    /// From `from` to `to` in reply direction: accept.
    AcceptReplies {
        /// Incoming link.
        from: String,
        /// Outgoing link.
        to: String,
    },
    /// From `from` to `to`: drop. A balancer is no router for what it didn't translate.
    DropForward {
        /// Incoming link.
        from: String,
        /// Outgoing link.
        to: String,
    },
    /// Out through `out` in reply direction: accept.
    AcceptAnswers {
        /// Outgoing link.
        out: String,
    },
    /// Out through `out` to a destination that was translated: accept.
    AcceptTranslated {
        /// Outgoing link.
        out: String,
    },
    /// Out through `out`: drop. Who is not asked and knows a container's address does not get at it.
    DropOut {
        /// Outgoing link.
        out: String,
    },
    /// From `link` with a source MAC in 02:42, before tracking: zone of the original direction := the MAC's last two
    /// bytes. A client may use one port towards two nodes at once, which both send it here.
    ZoneFromMac {
        /// Link.
        link: String,
    },
    /// New connection from `link` with a source MAC in 02:42: connection mark := the MAC's last four bytes.
    MarkFromMac {
        /// Link.
        link: String,
    },
    /// Reply direction, connection mark not zero: packet mark := connection mark.
    MarkReply,
    /// Packet mark not zero: last four bytes of the destination MAC := mark.
    MacFromMark,
    /// To `to` port 53, TCP and UDP: DNAT to `to` port `port`. The resolver leaves port 53 to the container.
    Resolver {
        /// Resolver address.
        to: Ipv4Addr,
        /// Its port.
        port: u16,
    },
    /// Out through `link` with another source than `keep`: masquerade.
    SourceOf {
        /// Link.
        link: String,
        /// The link's own address.
        keep: Ipv4Addr,
    },
}

impl Rule {
    /// A text that is the same for equal rules only; kept as the comment of the kernel's rule, at most 120 bytes.
    #[must_use]
    pub fn tag(&self) -> String {
        match self {
            Self::HostMesh => "host-mesh".into(),
            Self::HostPorts => "host-ports".into(),
            Self::LoopbackSource { out, to } => format!("loopback-source {out} {to}"),
            Self::GatewaySource { out, from, to } => format!("gateway-source {out} {from} {to}"),
            Self::BridgeHairpin { bridge, from } => format!("bridge-hairpin {bridge} {from}"),
            Self::Egress { bridge, from } => format!("egress {bridge} {from}"),
            Self::GatewayOnly { ports, gateway } => format!("gateway-only {ports} {gateway}"),
            Self::DropLoopback { link } => format!("drop-loopback {link}"),
            Self::PortFront { link } => format!("port-front {link}"),
            Self::VipFront { link } => format!("vip-front {link}"),
            Self::PickPort { n } => format!("pick-port {n}"),
            Self::PickVip { n } => format!("pick-vip {n}"),
            Self::Hairpin { link } => format!("hairpin {link}"),
            Self::AcceptReplies { from, to } => format!("accept-replies {from} {to}"),
            Self::DropForward { from, to } => format!("drop-forward {from} {to}"),
            Self::AcceptAnswers { out } => format!("accept-answers {out}"),
            Self::AcceptTranslated { out } => format!("accept-translated {out}"),
            Self::DropOut { out } => format!("drop-out {out}"),
            Self::ZoneFromMac { link } => format!("zone-from-mac {link}"),
            Self::MarkFromMac { link } => format!("mark-from-mac {link}"),
            Self::MarkReply => "mark-reply".into(),
            Self::MacFromMark => "mac-from-mark".into(),
            Self::Resolver { to, port } => format!("resolver {to} {port}"),
            Self::SourceOf { link, keep } => format!("source-of {link} {keep}"),
        }
    }
}

/// Builders of keys and values in the kernel's layout.
pub mod key {
    use super::{Ipv4Addr, Mac, Protocol};

    fn padded(protocol: Protocol, port: u16) -> Vec<u8> {
        let [hi, lo] = port.to_be_bytes();
        vec![protocol.number(), 0, 0, 0, hi, lo, 0, 0]
    }

    /// `proto . port`.
    #[must_use]
    pub fn proto_port(protocol: Protocol, port: u16) -> Vec<u8> {
        padded(protocol, port)
    }

    /// `proto . port . slot`.
    #[must_use]
    pub fn proto_port_slot(protocol: Protocol, port: u16, slot: u32) -> Vec<u8> {
        let mut k = padded(protocol, port);
        k.extend(slot.to_ne_bytes());
        k
    }

    /// `addr`.
    #[must_use]
    pub fn addr(addr: Ipv4Addr) -> Vec<u8> {
        addr.octets().to_vec()
    }

    /// `addr . addr`.
    #[must_use]
    pub fn addr_addr(a: Ipv4Addr, b: Ipv4Addr) -> Vec<u8> {
        [a.octets(), b.octets()].concat()
    }

    /// `addr . slot`.
    #[must_use]
    pub fn addr_slot(addr: Ipv4Addr, slot: u32) -> Vec<u8> {
        [addr.octets(), slot.to_ne_bytes()].concat()
    }

    /// `addr . port`.
    #[must_use]
    pub fn addr_port(addr: Ipv4Addr, port: u16) -> Vec<u8> {
        let [hi, lo] = port.to_be_bytes();
        let [a, b, c, d] = addr.octets();
        vec![a, b, c, d, hi, lo, 0, 0]
    }

    /// The mark that stands for a MAC: its last four bytes as they lie in memory.
    #[must_use]
    pub fn mark(mac: Mac) -> u32 {
        let [_, _, a, b, c, d] = mac.0;
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// Name of the map `proto . port . slot -> addr . port`.
pub(crate) const PORT_SLOTS: &str = "port-slots";
/// Name of the map `addr . slot -> addr`.
pub(crate) const VIP_SLOTS: &str = "vip-slots";

/// Reads the slots back from a found balancer table: what a restarted driver goes on from. Elements that can't be
/// ours are skipped.
#[must_use]
pub fn slots_of(table: &SeenTable) -> Vec<(crate::slots::Front, Vec<crate::slots::Backend>)> {
    use crate::slots::{Backend, Front};
    let mut found: BTreeMap<Front, BTreeMap<u32, Backend>> = BTreeMap::new();
    let ip = |b: &[u8]| <[u8; 4]>::try_from(b).ok().map(Ipv4Addr::from);
    let slot = |b: &[u8]| <[u8; 4]>::try_from(b).ok().map(u32::from_ne_bytes);
    for (k, value) in table.sets.get(PORT_SLOTS).into_iter().flatten() {
        let ([proto, _, _, _, hi, lo, _, _, s @ ..], Value::Bytes(v)) = (k.as_slice(), value) else { continue };
        let [a, b, c, d, phi, plo, ..] = v.as_slice() else { continue };
        let protocol = match proto {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => continue,
        };
        let Some(slot) = slot(s) else { continue };
        let backend = Backend { address: Ipv4Addr::new(*a, *b, *c, *d), port: u16::from_be_bytes([*phi, *plo]) };
        found.entry(Front::Port(protocol, u16::from_be_bytes([*hi, *lo]))).or_default().insert(slot, backend);
    }
    for (k, value) in table.sets.get(VIP_SLOTS).into_iter().flatten() {
        let (Some((vip, s)), Value::Bytes(v)) = (k.split_at_checked(4), value) else { continue };
        let (Some(vip), Some(slot), Some(address)) = (ip(vip), slot(s), v.get(..4).and_then(ip)) else { continue };
        found.entry(Front::Vip(vip)).or_default().insert(slot, Backend { address, port: 0 });
    }
    found.into_iter().map(|(front, slots)| (front, slots.into_values().collect())).collect()
}

/// A table as found: what is needed to tell whether it is the wanted one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenTable {
    /// Elements by set.
    pub sets: BTreeMap<String, Elements>,
    /// Tags of the rules by chain.
    pub chains: OrdMap<String, Vec<String>>,
}

impl SeenTable {
    /// What the kernel holds when `table` is wholly in force.
    #[must_use]
    pub fn of(table: &Table) -> Self {
        Self {
            sets: table.sets.iter().map(|(name, s)| (name.clone(), s.elements.clone())).collect(),
            chains: table.chains.tags.clone(),
        }
    }
}
