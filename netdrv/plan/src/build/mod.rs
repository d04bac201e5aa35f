//! From one desired value and what the driver knows to what every namespace of the node must show.
//!
//! The same input gives the same output; the slots of the balancing maps are the one thing that depends on the past,
//! and they come in through [`Facts`]. One file a kind of namespace: what it shows before anybody is connected, and how a
//! container, an endpoint or a front changes it. [`Planner`] (in `planner.rs`) calls these for what changed, with
//! a ledger (`ledger.rs`) of what several of them say about one address.

mod balancer;
mod host;
mod planner;
mod sandbox;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::Arc;

use imbl::OrdMap;

use crate::desired::{Desired, Network, Underlay};
use crate::names::NameTable;
use crate::nft::{Family, Value};
use crate::slots::Slots;
use crate::space::{Place, Seen, Space};
use crate::subnet::Subnet;

pub use planner::Planner;

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
        format!("{}{}", self.gateway_links(), short(sandbox))
    }

    /// First letters of all of these.
    fn gateway_links(&self) -> String {
        format!("{}g", self.prefix)
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
    /// The node's bridges show their packets to the IP hooks (`bridge-nf-call-iptables`, as where Docker runs too), and
    /// can filter frames. A packet from one container to a port of the node that leads to another container, or back to
    /// the same one, is then translated inside the bridge and stays there: it goes from port to port, which isolated
    /// ports don't do, and back through its own port, which needs hairpin. So the ports are not isolated but filtered.
    pub bridged: bool,
}

/// What one namespace must show, shared between plans as long as it stays the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    space: Arc<Space>,
    image: Arc<Seen>,
}

impl Planned {
    /// The namespace is to show this.
    #[must_use]
    pub fn new(space: Arc<Space>) -> Self {
        let image = Arc::new(Seen::of(&space));
        Self { space, image }
    }

    /// What the kernel holds when it shows it. A namespace that is believed to hold this very value (the same allocation)
    /// differs in nothing.
    #[must_use]
    pub fn image(&self) -> &Arc<Seen> {
        &self.image
    }
}

impl Deref for Planned {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

/// Everything that the namespaces of a node must show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// The generation that this is the plan of.
    pub generation: u64,
    /// Every namespace.
    pub spaces: BTreeMap<Place, Planned>,
    /// The holders of slots.
    pub slots: Slots,
    /// What names mean.
    pub names: NameTable,
}

/// What all builders share. With another one, everything is planned anew; peers of networks are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    config: Config,
    underlay: Underlay,
    gateway: Subnet,
    /// The underlay's MTU in bytes.
    mtu: u32,
    /// See [`Facts::bridged`].
    bridged: bool,
    /// Networks by id, without their peers.
    networks: BTreeMap<String, Network>,
    /// Ingress networks with the range of their link to the node.
    ingress: Vec<(String, Subnet)>,
}

impl Frame {
    fn new(desired: &Desired, config: &Config, facts: &Facts) -> Self {
        let step = 1_u32 << (32 - u32::from(config.ingress_link.prefix.clamp(1, 32)));
        let link = |i: usize| {
            let offset = step.saturating_mul(u32::try_from(i).unwrap_or(u32::MAX));
            Subnet::new(
                Ipv4Addr::from(u32::from(config.ingress_link.network().addr).saturating_add(offset)),
                config.ingress_link.prefix,
            )
        };
        let ingress = desired.networks.values().filter(|n| n.ingress).enumerate();
        let bare = |n: &Network| Network {
            id: n.id.clone(),
            name: n.name.clone(),
            peers: BTreeMap::new(),
            vni: n.vni,
            subnet: n.subnet,
            balancer: n.balancer,
            ingress: n.ingress,
            internal: n.internal,
        };
        Self {
            config: config.clone(),
            underlay: desired.underlay.clone(),
            gateway: desired.gateway,
            mtu: facts.mtu,
            bridged: facts.bridged,
            ingress: ingress.map(|(i, n)| (n.id.clone(), link(i))).collect(),
            networks: desired.networks.iter().map(|(id, n)| (id.clone(), bare(n))).collect(),
        }
    }

    fn overlay_mtu(&self) -> u32 {
        self.mtu.saturating_sub(VXLAN_OVERHEAD)
    }

    /// Addresses of the link between the node and an ingress network's balancer: the node's and the balancer's.
    fn link_ends(&self, network: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let (_, range) = self.ingress.iter().find(|(id, _)| id == network)?;
        Some((range.nth(1)?, range.nth(2)?))
    }
}

/// What the node's namespaces must show for `desired`. Sandboxes that aren't open are left out. [`Planner::next`] gives
/// the same for less when little has changed.
#[must_use]
pub fn plan(desired: &Desired, config: &Config, facts: &Facts) -> NodePlan {
    Planner::new(config.clone()).next(&Arc::new(desired.clone()), facts)
}

/// Makes an element of a set hold `value`, or go.
fn element(space: &mut Space, name: &str, key: Vec<u8>, value: Option<Value>) {
    let table = space.tables.get_mut(&(Family::Ip, TABLE.into()));
    if let Some(found) = table.and_then(|t| t.sets.get_mut(name)) {
        set(&mut found.elements, key, value);
    }
}

/// Makes a key hold `value`, or go; what is so already stays shared.
fn set<K: Ord + Clone, V: Clone + PartialEq>(map: &mut OrdMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) if map.get(&key) != Some(&value) => drop(map.insert(key, value)),
        None if map.contains_key(&key) => drop(map.remove(&key)),
        _ => {}
    }
}
