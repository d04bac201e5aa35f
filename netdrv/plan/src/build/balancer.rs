//! The namespace of one network on this node: bridge, VXLAN, a port for each local container, forwarding and neighbour
//! entries for everybody else, and the maps that balance. The address of the bridge is the node's own on the network.
//!
//! Virtual addresses are addresses of the bridge: it answers ARP for them, and refuses what no ready endpoint answers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Config, Frame, TABLE, element, set};
use crate::desired::{Attachment, Network, Protocol};
use crate::ledger::{Ledger, Source};
use crate::nft::{
    Base, Chain, ChainKind, Chains, Data, Elements, Family, Field, Hook, PORT_SLOTS, Rule, Set, Table, VIP_SLOTS,
    Value, key,
};
use crate::slots::{Backend, Front};
use crate::space::{FdbKey, Link, LinkKind, Mac, PeerEnd, Place, PortFlags, Route, RouteKey, Space};
use crate::subnet::Subnet;

/// The bridge.
pub(super) const BRIDGE: &str = "br0";
/// The VXLAN.
pub(super) const VXLAN: &str = "vx0";
/// The balancer's end of the pair to the node; ingress networks only.
pub(super) const UPLINK: &str = "gw0";
/// Name of the map `proto . port -> chain`.
const PORTS: &str = "ports";
/// Name of the map `virtual address -> chain`.
const VIPS: &str = "vips";
/// Name of the set of containers that may reach themselves.
const HAIRPIN: &str = "hairpin";

/// A balancer before anybody is on its network.
pub(super) fn space(frame: &Frame, network: &Network) -> Space {
    let mut space = Space::default();
    links(frame, network, &mut space);
    sysctls(network, &mut space);
    space.tables.insert((Family::Ip, TABLE.into()), table(network));
    space
}

fn links(frame: &Frame, network: &Network, space: &mut Space) {
    let (mtu, underlay) = (frame.overlay_mtu(), &frame.underlay);
    let link = |kind, mac, master: Option<&str>, port| Link { kind, mac, mtu, master: master.map(Into::into), port };
    let bridge = link(LinkKind::Bridge, Some(Mac::of(network.balancer)), None, PortFlags::default());
    space.links.insert(BRIDGE.into(), bridge);
    let vxlan = LinkKind::Vxlan { vni: network.vni, port: underlay.port, local: underlay.address };
    let flags = PortFlags { neigh_suppress: true, no_learning: true, ..PortFlags::default() };
    space.links.insert(VXLAN.into(), link(vxlan, None, Some(BRIDGE), flags));
    space.addresses.insert((BRIDGE.into(), network.subnet.with_addr(network.balancer)));
    if let Some((own, balancer)) = frame.link_ends(&network.id) {
        let end = Link {
            kind: LinkKind::End,
            mac: Some(Mac::of(balancer)),
            mtu: frame.mtu,
            master: None,
            port: PortFlags::default(),
        };
        space.links.insert(UPLINK.into(), end);
        space.addresses.insert((UPLINK.into(), frame.config.ingress_link.with_addr(balancer)));
        space.routes.insert(
            RouteKey { table: 254, destination: Subnet::new(Ipv4Addr::UNSPECIFIED, 0) },
            Route { via: own, dev: UPLINK.into(), onlink: false, source: None },
        );
    }
}

/// A container is plugged in; `end` is the name of its link.
pub(super) fn plug(frame: &Frame, space: &mut Space, id: &str, end: String, attachment: &Attachment) {
    let peer = PeerEnd { place: Place::Sandbox(id.to_owned()), name: end, mac: Mac::of(attachment.address) };
    let link = Link {
        kind: LinkKind::Veth { peer },
        mac: None,
        mtu: frame.overlay_mtu(),
        master: Some(BRIDGE.into()),
        // The bridge knows where the container is; learning would let one claim another's address.
        port: PortFlags { no_learning: true, ..PortFlags::default() },
    };
    let key = FdbKey { dev: Config::port_link(id), mac: Mac::of(attachment.address), vtep: false };
    space.links.insert(key.dev.clone(), link);
    space.fdb.insert(key, None);
}

/// A container is unplugged.
pub(super) fn unplug(space: &mut Space, id: &str, attachment: &Attachment) {
    let key = FdbKey { dev: Config::port_link(id), mac: Mac::of(attachment.address), vtep: false };
    space.links.remove(&key.dev);
    space.fdb.remove(&key);
}

/// An address on the network is somebody's, or nobody's any more: a neighbour for everybody, forwarding entries for
/// those elsewhere. The values are the nodes' addresses.
pub(super) fn reach(frame: &Frame, space: &mut Space, address: Ipv4Addr, said: &Ledger<Ipv4Addr, Ipv4Addr>) {
    let known = said.about(&address).next().map(|_| Mac::of(address));
    set(&mut space.neighbours, (BRIDGE.into(), address), known);
    let far = said.about(&address).rev().map(|(_, vtep)| *vtep).find(|vtep| *vtep != frame.underlay.address);
    let key = |vtep| FdbKey { dev: VXLAN.into(), mac: Mac::of(address), vtep };
    set(&mut space.fdb, key(true), far.map(Some));
    set(&mut space.fdb, key(false), far.map(|_| None));
    let here = said.about(&address).any(|(source, _)| matches!(source, Source::Sandbox(_)));
    element(space, HAIRPIN, key::addr_addr(address, address), here.then_some(Value::None));
}

/// A virtual address is in use, or no longer.
pub(super) fn vip(space: &mut Space, vip: Ipv4Addr, wanted: bool) {
    let key = (BRIDGE.to_owned(), Subnet::new(vip, 32));
    if !wanted {
        space.addresses.remove(&key);
    } else if !space.addresses.contains(&key) {
        space.addresses.insert(key);
    }
}

/// A front is balanced to `wanted` instead of `held`; to nobody: it is taken away, and the node refuses.
pub(super) fn front(space: &mut Space, front: Front, held: &[Backend], wanted: &[Backend]) {
    let shown = Shown::of(front);
    for (slot, i) in (0_u32..).zip(0..held.len().max(wanted.len())) {
        element(space, shown.slots, front_slot(front, slot), wanted.get(i).map(|backend| holder(front, *backend)));
    }
    let goto = (!wanted.is_empty()).then(|| Value::Goto(shown.chain.clone()));
    element(space, shown.fronts, shown.key, goto);
    let Some(table) = space.tables.get_mut(&(Family::Ip, TABLE.into())) else { return };
    if wanted.is_empty() {
        return table.chains.remove(&shown.chain);
    }
    let n = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let chain = Chain { base: None, rules: picks(front, n) };
    if table.chains.get(&shown.chain) != Some(&chain) {
        table.chains.insert(shown.chain, chain);
    }
}

/// How a front is shown: its maps, its key, its chain.
struct Shown {
    fronts: &'static str,
    slots: &'static str,
    key: Vec<u8>,
    chain: String,
}

impl Shown {
    fn of(front: Front) -> Self {
        match front {
            Front::Port(protocol, port) => Self {
                fronts: PORTS,
                slots: PORT_SLOTS,
                key: key::proto_port(protocol, port),
                chain: format!("port-{}-{port}", Protocol::name(protocol)),
            },
            Front::Vip(vip) => {
                Self { fronts: VIPS, slots: VIP_SLOTS, key: key::addr(vip), chain: format!("vip-{vip}") }
            }
        }
    }
}

fn front_slot(front: Front, slot: u32) -> Vec<u8> {
    match front {
        Front::Port(protocol, port) => key::proto_port_slot(protocol, port, slot),
        Front::Vip(vip) => key::addr_slot(vip, slot),
    }
}

fn holder(front: Front, Backend { address, port }: Backend) -> Value {
    Value::Bytes(match front {
        Front::Port(..) => key::addr_port(address, port),
        Front::Vip(_) => key::addr(address),
    })
}

/// The rules of a front's chain. A chain and a counter of its own for each front: with a counter shared by all fronts of
/// one size, a client that calls two services in turn would always meet the same endpoint of each. The second rule is
/// for a packet that meets a change halfway: the old count, and a slot that is gone already. Slot 0 is there before and
/// after.
fn picks(front: Front, n: u32) -> Vec<Rule> {
    let pick = |n| match front {
        Front::Port(..) => Rule::PickPort { n },
        Front::Vip(_) => Rule::PickVip { n },
    };
    [pick(n)].into_iter().chain((n > 1).then(|| pick(1))).collect()
}

fn sysctls(network: &Network, space: &mut Space) {
    let mut set = |path: &str, value: &str| space.sysctls.insert(path.into(), value.into());
    set("net/ipv4/ip_forward", "1");
    // Clients of anywhere come in here with their own addresses, and replies to them leave here.
    for link in ["all", "default", BRIDGE].into_iter().chain(network.ingress.then_some(UPLINK)) {
        set(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
        set(&format!("net/ipv4/conf/{link}/send_redirects"), "0");
    }
    // Bridged packets would be translated twice.
    set("net/bridge/bridge-nf-call-iptables", "0");
    set("net/ipv6/conf/all/disable_ipv6", "1");
    set("net/ipv6/conf/default/disable_ipv6", "1");
}

fn table(network: &Network) -> Table {
    let set = |key: &[Field], data| Set { key: key.to_vec(), data, elements: Elements::new() };
    let slots = |key: &[Field], data: &[Field]| set(key, Data::Value(data.to_vec()));
    let mut sets = BTreeMap::from([
        (VIPS.to_owned(), set(&[Field::Ipv4], Data::Verdict)),
        (VIP_SLOTS.to_owned(), slots(&[Field::Ipv4, Field::Slot], &[Field::Ipv4])),
        (HAIRPIN.to_owned(), set(&[Field::Ipv4, Field::Ipv4], Data::None)),
    ]);
    if network.ingress {
        let port_slots = slots(&[Field::Proto, Field::Port, Field::Slot], &[Field::Ipv4, Field::Port]);
        sets.extend([
            (PORTS.to_owned(), set(&[Field::Proto, Field::Port], Data::Verdict)),
            (PORT_SLOTS.to_owned(), port_slots),
        ]);
    }
    Table { sets, chains: base_chains(network) }
}

fn base_chains(network: &Network) -> Chains {
    let chain = |kind, hook, priority, rules| Chain { base: Some(Base { kind, hook, priority, device: None }), rules };
    let (bridge, uplink) = (|| BRIDGE.to_owned(), || UPLINK.to_owned());
    let mut pre = vec![Rule::VipFront { link: bridge() }];
    let hairpin = vec![Rule::Hairpin { link: bridge() }];
    let mut chains = Chains::from_iter([("post", chain(ChainKind::Nat, Hook::Postrouting, 100, hairpin))]);
    if network.ingress {
        pre.push(Rule::PortFront { link: uplink() });
        let forward = vec![
            Rule::AcceptReplies { from: bridge(), to: uplink() },
            Rule::DropForward { from: bridge(), to: uplink() },
        ];
        chains.insert("forward", chain(ChainKind::Filter, Hook::Forward, 0, forward));
    }
    chains.insert("pre", chain(ChainKind::Nat, Hook::Prerouting, -100, pre));
    chains
}
