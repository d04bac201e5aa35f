//! What one namespace shows: links, addresses, routes, rules, neighbours, forwarding entries, sysctls, nft tables.
//! [`Space`] is what is wanted, [`Seen`] what the kernel was found to hold (or is believed to).
//!
//! What grows with the cluster (addresses, neighbours, forwarding entries, elements, chains) is in maps that share what
//! they have in common with their copies: a copy is free, and the difference of two costs what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use imbl::{OrdMap, OrdSet};

use crate::nft::{Family, SeenTable, Table};
use crate::subnet::Subnet;

/// A namespace of the node. The order is the order of work: what is nearer to the containers comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A container's namespace, by sandbox id.
    Sandbox(String),
    /// The balancer of a network, by network id.
    Balancer(String),
    /// The node's own namespace.
    Host,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(id) => write!(f, "sandbox {id}"),
            Self::Balancer(id) => write!(f, "balancer of network {id}"),
            Self::Host => f.write_str("node"),
        }
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of an endpoint: 02:42 and its IPv4 address. Everything in the mesh rests on this.
    #[must_use]
    pub const fn of(addr: Ipv4Addr) -> Self {
        let [a, b, c, d] = addr.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Everything that one namespace must show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Space {
    /// Links by name.
    pub links: BTreeMap<String, Link>,
    /// Addresses by link.
    pub addresses: OrdSet<(String, Subnet)>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Policy rules.
    pub rules: BTreeSet<PolicyRule>,
    /// Permanent neighbours.
    pub neighbours: Neighbours,
    /// Forwarding entries.
    pub fdb: Fdb,
    /// Sysctls: path under /proc/sys -> value.
    pub sysctls: BTreeMap<String, String>,
    /// Own nft tables.
    pub tables: BTreeMap<(Family, String), Table>,
}

/// Permanent neighbours: (link, address) -> MAC.
pub type Neighbours = OrdMap<(String, Ipv4Addr), Mac>;

/// Forwarding entries -> remote VTEP (`None` = an entry of the bridge itself).
pub type Fdb = OrdMap<FdbKey, Option<Ipv4Addr>>;

/// One wanted link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it is and how it is made.
    pub kind: LinkKind,
    /// Its Ethernet address; `None` = whatever the kernel chose.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The bridge it is a port of.
    pub master: Option<String>,
    /// Flags as a bridge port.
    pub port: PortFlags,
}

/// Flags of a bridge port; all off is what a port of no bridge has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// Answer ARP for known neighbours instead of flooding.
    pub neigh_suppress: bool,
    /// Learn no addresses.
    pub no_learning: bool,
    /// No bridging to other isolated ports.
    pub isolated: bool,
    /// A frame may leave by the port that it came in by.
    pub hairpin: bool,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A VXLAN whose outer packets travel in the node's namespace.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Address of this node's VTEP.
        local: Ipv4Addr,
    },
    /// One end of a pair; this place makes both.
    Veth {
        /// The other end.
        peer: PeerEnd,
    },
    /// The end of a pair that another place makes.
    End,
}

/// The other end of a veth pair, made together with this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEnd {
    /// Where it is.
    pub place: Place,
    /// Its name there.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// What tells routes apart: one route for a destination and table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The routing table; 254 is the main one.
    pub table: u32,
    /// The destination; prefix 0 is the default route.
    pub destination: Subnet,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The next hop.
    pub via: Ipv4Addr,
    /// The link.
    pub dev: String,
    /// The next hop is taken to be on the link, whatever addresses say.
    pub onlink: bool,
    /// The source address that local senders get.
    pub source: Option<Ipv4Addr>,
}

/// A policy rule: marked packets use a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// The mark, in this machine's byte order.
    pub mark: u32,
    /// The bits of it that count.
    pub mask: u32,
    /// The table.
    pub table: u32,
}

/// What tells forwarding entries apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbKey {
    /// The link.
    pub dev: String,
    /// The Ethernet address.
    pub mac: Mac,
    /// Whether it is the VXLAN's own entry (`self permanent dst`); else the bridge's (`master static`).
    pub vtep: bool,
}

/// What a namespace was found to hold, or is believed to hold after an application.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Links by name, `lo` left out.
    pub links: BTreeMap<String, SeenLink>,
    /// Addresses by link.
    pub addresses: OrdSet<(String, Subnet)>,
    /// Routes that somebody made (none of the kernel's own).
    pub routes: BTreeMap<RouteKey, Route>,
    /// Policy rules with a mark.
    pub rules: BTreeSet<PolicyRule>,
    /// Permanent neighbours.
    pub neighbours: Neighbours,
    /// Forwarding entries that somebody made.
    pub fdb: Fdb,
    /// Sysctls that were set.
    pub sysctls: BTreeMap<String, String>,
    /// Own nft tables.
    pub tables: BTreeMap<(Family, String), SeenTable>,
}

/// A link as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenLink {
    /// What it is.
    pub kind: SeenKind,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// The bridge it is a port of.
    pub master: Option<String>,
    /// Flags as a bridge port.
    pub port: PortFlags,
}

/// What a found link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenKind {
    /// A bridge.
    Bridge,
    /// A VXLAN.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Address of this node's VTEP.
        local: Ipv4Addr,
    },
    /// One end of a pair.
    Veth,
    /// Something else.
    Other,
}

impl LinkKind {
    /// The kind as the kernel shows it.
    #[must_use]
    pub fn seen(&self) -> SeenKind {
        match self {
            Self::Bridge => SeenKind::Bridge,
            Self::Vxlan { vni, port, local } => SeenKind::Vxlan { vni: *vni, port: *port, local: *local },
            Self::Veth { .. } | Self::End => SeenKind::Veth,
        }
    }
}

impl Seen {
    /// What the kernel holds when `space` is wholly in force.
    #[must_use]
    pub fn of(space: &Space) -> Self {
        let link = |l: &Link| SeenLink {
            kind: l.kind.seen(),
            mac: l.mac,
            mtu: l.mtu,
            up: true,
            master: l.master.clone(),
            port: l.port,
        };
        Self {
            links: space.links.iter().map(|(name, l)| (name.clone(), link(l))).collect(),
            addresses: space.addresses.clone(),
            routes: space.routes.clone(),
            rules: space.rules.clone(),
            neighbours: space.neighbours.clone(),
            fdb: space.fdb.clone(),
            sysctls: space.sysctls.clone(),
            tables: space.tables.iter().map(|(key, t)| (key.clone(), SeenTable::of(t))).collect(),
        }
    }
}
