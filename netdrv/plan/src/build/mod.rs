//! From one desired value and what the driver knows to what every namespace of the node must show.
//!
//! The same input gives the same output; the slots of the balancing maps are the one thing that depends on the past,
//! and they come in through [`Facts`]. One file a kind of namespace.

mod balancer;
mod host;
mod sandbox;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::desired::{Desired, Network, Sandbox};
use crate::names::NameTable;
use crate::slots::{Backend, Front, FrontKey, Slots, place};
use crate::space::{Place, Space};
use crate::subnet::Subnet;

/// Address of the resolver in every sandbox.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Port that the resolver is bound to: below the ephemeral ports and in no wide use, so that a container
/// may have port 53, also on all addresses; a constant rule in the sandbox leads port 53 of [`DNS_ADDRESS`] there.
pub const DNS_PORT: u16 = 25_353;

/// Bytes that VXLAN adds to a packet: outer IPv4, UDP, VXLAN and inner Ethernet header.
pub(crate) const VXLAN_OVERHEAD: u32 = 50;

/// Name of every table of ours.
pub(crate) const TABLE: &str = "skep";

/// Names and ranges that an installation may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// First letters of every link of ours in the node's namespace, at most 4.
    pub prefix: String,
    /// Name of the gateway bridge, at most 15 letters.
    pub gateway_bridge: String,
    /// First link range between the node and its ingress balancer; further ingress networks take the next ones.
    pub ingress_link: Subnet,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefix: "skep".into(),
            gateway_bridge: "skep-gw".into(),
            ingress_link: Subnet::new(Ipv4Addr::new(169, 254, 172, 0), 30),
        }
    }
}

impl Config {
    /// Name of the node's end of a sandbox's gateway pair.
    #[must_use]
    pub fn gateway_link(&self, sandbox: &str) -> String {
        format!("{}g{}", self.prefix, short(sandbox))
    }

    /// Name of the node's end of the pair to an ingress balancer.
    #[must_use]
    pub fn ingress_link(&self, network: &str) -> String {
        format!("{}i{}", self.prefix, short(network))
    }

    /// Name of a balancer's end of a sandbox's pair.
    #[must_use]
    pub fn port_link(sandbox: &str) -> String {
        format!("p{}", short(sandbox))
    }

    /// Whether a link of the node's namespace is ours: the bridge, or our prefix, one of our letters, ten hex digits.
    #[must_use]
    pub fn owns(&self, link: &str) -> bool {
        let tail = link.strip_prefix(self.prefix.as_str()).and_then(|t| t.strip_prefix(['g', 'i']));
        link == self.gateway_bridge || tail.is_some_and(|t| t.len() == 10 && t.bytes().all(|b| b.is_ascii_hexdigit()))
    }
}

/// Ten hex digits for an id (FNV-1a, 40 bits): link names hold 15 letters.
fn short(id: &str) -> String {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{:010x}", (hash ^ (hash >> 40)) & 0xff_ffff_ffff)
}

/// What the driver knows beside the desired value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The underlay's MTU in bytes.
    pub mtu: u32,
    /// Open sandboxes, each with its gateway address if it has one.
    pub sandboxes: BTreeMap<String, Option<Ipv4Addr>>,
    /// The holders of slots until now.
    pub slots: Slots,
}

/// Everything that the namespaces of a node must show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// The generation that this is the plan of.
    pub generation: u64,
    /// Every namespace.
    pub spaces: BTreeMap<Place, Space>,
    /// The holders of slots.
    pub slots: Slots,
    /// What names mean.
    pub names: NameTable,
}

/// What the builders share.
struct Scope<'a> {
    desired: &'a Desired,
    config: &'a Config,
    facts: &'a Facts,
    slots: Slots,
    /// Ingress networks with the range of their link to the node.
    ingress: Vec<(&'a Network, Subnet)>,
}

impl Scope<'_> {
    fn overlay_mtu(&self) -> u32 {
        self.facts.mtu.saturating_sub(VXLAN_OVERHEAD)
    }

    /// The open sandboxes that are attached to something.
    fn sandboxes(&self) -> impl Iterator<Item = (&String, &Sandbox, Option<Ipv4Addr>)> {
        self.facts
            .sandboxes
            .iter()
            .filter_map(|(id, gateway)| self.desired.attachments.get(id).map(|sandbox| (id, sandbox, *gateway)))
    }

    /// Addresses of a range of a link: the node's and the balancer's.
    fn link_ends(link: Subnet) -> Option<(Ipv4Addr, Ipv4Addr)> {
        Some((link.nth(1)?, link.nth(2)?))
    }
}

/// What the node's namespaces must show for `desired`. Sandboxes that aren't open are left out.
#[must_use]
pub fn plan(desired: &Desired, config: &Config, facts: &Facts) -> NodePlan {
    let step = 1_u32 << (32 - u32::from(config.ingress_link.prefix.clamp(1, 32)));
    let link = |i: usize| {
        let offset = step.saturating_mul(u32::try_from(i).unwrap_or(u32::MAX));
        Subnet::new(
            Ipv4Addr::from(u32::from(config.ingress_link.network().addr).saturating_add(offset)),
            config.ingress_link.prefix,
        )
    };
    let ingress = desired.networks.values().filter(|n| n.ingress).enumerate().map(|(i, n)| (n, link(i))).collect();
    let slots = all_slots(desired, &facts.slots);
    let scope = Scope { desired, config, facts, slots, ingress };
    let mut spaces = BTreeMap::new();
    for network in desired.networks.values() {
        spaces.insert(Place::Balancer(network.id.clone()), balancer::space(&scope, network));
    }
    for id in facts.sandboxes.keys() {
        spaces.insert(Place::Sandbox(id.clone()), Space::default());
    }
    for (id, sandbox, gateway) in scope.sandboxes() {
        spaces.insert(Place::Sandbox(id.clone()), sandbox::space(&scope, id, sandbox, gateway));
    }
    spaces.insert(Place::Host, host::space(&scope));
    NodePlan { generation: desired.generation, spaces, names: NameTable::new(desired), slots: scope.slots }
}

/// Every front with its ready endpoints in slots; fronts without any are left out, so that nothing is balanced to
/// nobody.
fn all_slots(desired: &Desired, previous: &Slots) -> Slots {
    let mut wanted: BTreeMap<FrontKey, BTreeSet<Backend>> = BTreeMap::new();
    for service in desired.services.values() {
        let ready = |network: &str| {
            let network = network.to_owned();
            service.endpoints.iter().filter(|e| e.ready).filter_map(move |e| e.addresses.get(&network).copied())
        };
        for network in desired.networks.values() {
            if let Some(vip) = service.networks.get(&network.id).and_then(|on| on.vip) {
                let key = FrontKey { network: network.id.clone(), front: Front::Vip(vip) };
                wanted.entry(key).or_default().extend(ready(&network.id).map(|address| Backend { address, port: 0 }));
            }
            for port in service.ports.iter().filter(|_| network.ingress) {
                let front = Front::Port(port.protocol, port.published);
                let backends = ready(&network.id).map(|address| Backend { address, port: port.target });
                wanted.entry(FrontKey { network: network.id.clone(), front }).or_default().extend(backends);
            }
        }
    }
    wanted.retain(|_, backends| !backends.is_empty());
    let held = |key: &FrontKey| previous.get(key).map(Vec::as_slice).unwrap_or_default();
    wanted.iter().map(|(key, backends)| (key.clone(), place(held(key), backends))).collect()
}
