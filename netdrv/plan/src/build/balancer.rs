//! The namespace of one network on this node: bridge, VXLAN, a port for each local container, forwarding and neighbour
//! entries for everybody else, and the maps that balance. The address of the bridge is the node's own on the network.
//!
//! Virtual addresses are addresses of the bridge: it answers ARP for them, and refuses what no ready endpoint answers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Config, Scope, TABLE};
use crate::desired::Network;
use crate::nft::{
    Base, Chain, ChainKind, Data, Family, Field, Hook, PORT_SLOTS, Rule, Set, Table, VIP_SLOTS, Value, key,
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

pub(super) fn space(scope: &Scope<'_>, network: &Network) -> Space {
    let mut space = Space::default();
    links(scope, network, &mut space);
    entries(scope, network, &mut space);
    sysctls(network, &mut space);
    space.tables.insert((Family::Ip, TABLE.into()), table(scope, network));
    space
}

fn links(scope: &Scope<'_>, network: &Network, space: &mut Space) {
    let (mtu, underlay) = (scope.overlay_mtu(), &scope.desired.underlay);
    let link = |kind, mac, master: Option<&str>, port| Link { kind, mac, mtu, master: master.map(Into::into), port };
    let bridge = link(LinkKind::Bridge, Some(Mac::of(network.balancer)), None, PortFlags::default());
    space.links.insert(BRIDGE.into(), bridge);
    let vxlan = LinkKind::Vxlan { vni: network.vni, port: underlay.port, local: underlay.address };
    let flags = PortFlags { neigh_suppress: true, no_learning: true, isolated: false };
    space.links.insert(VXLAN.into(), link(vxlan, None, Some(BRIDGE), flags));
    for (id, sandbox, _) in scope.sandboxes() {
        let Some(attachment) = sandbox.networks.get(&network.id) else { continue };
        let Some(name) = super::sandbox::overlay_name(scope, sandbox, &network.id) else { continue };
        let peer = PeerEnd { place: Place::Sandbox(id.clone()), name, mac: Mac::of(attachment.address) };
        // The bridge knows where the container is; learning would let one claim another's address.
        let flags = PortFlags { no_learning: true, ..PortFlags::default() };
        space.links.insert(Config::port_link(id), link(LinkKind::Veth { peer }, None, Some(BRIDGE), flags));
        let key = FdbKey { dev: Config::port_link(id), mac: Mac::of(attachment.address), vtep: false };
        space.fdb.insert(key, None);
        space.neighbours.insert((BRIDGE.into(), attachment.address), Mac::of(attachment.address));
    }
    space.addresses.insert((BRIDGE.into(), network.subnet.with_addr(network.balancer)));
    if let Some((own, balancer)) =
        scope.ingress.iter().find(|(n, _)| n.id == network.id).and_then(|(_, r)| Scope::link_ends(*r))
    {
        let end = Link {
            kind: LinkKind::End,
            mac: Some(Mac::of(balancer)),
            mtu: scope.facts.mtu,
            master: None,
            port: PortFlags::default(),
        };
        space.links.insert(UPLINK.into(), end);
        space.addresses.insert((UPLINK.into(), scope.config.ingress_link.with_addr(balancer)));
        space.routes.insert(
            RouteKey { table: 254, destination: Subnet::new(Ipv4Addr::UNSPECIFIED, 0) },
            Route { via: own, dev: UPLINK.into(), onlink: false, source: None },
        );
    }
}

/// Neighbours for everybody on the network, forwarding entries for everybody elsewhere, addresses for services.
fn entries(scope: &Scope<'_>, network: &Network, space: &mut Space) {
    let mut far = |address: Ipv4Addr, vtep: Ipv4Addr| {
        space.neighbours.insert((BRIDGE.into(), address), Mac::of(address));
        if vtep != scope.desired.underlay.address {
            let key = |vtep| FdbKey { dev: VXLAN.into(), mac: Mac::of(address), vtep };
            space.fdb.insert(key(true), Some(vtep));
            space.fdb.insert(key(false), None);
        }
    };
    for peer in network.peers.values() {
        if peer.balancer != network.balancer {
            far(peer.balancer, peer.underlay);
        }
    }
    for endpoint in scope.desired.services.values().flat_map(|s| &s.endpoints) {
        if let Some(address) = endpoint.addresses.get(&network.id) {
            far(*address, endpoint.underlay);
        }
    }
    for on in scope.desired.services.values().filter_map(|s| s.networks.get(&network.id)) {
        if let Some(vip) = on.vip {
            space.addresses.insert((BRIDGE.into(), Subnet::new(vip, 32)));
        }
    }
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

fn table(scope: &Scope<'_>, network: &Network) -> Table {
    let set = |key: &[Field], data| Set { key: key.to_vec(), data, elements: BTreeMap::new() };
    let mut ports = set(&[Field::Proto, Field::Port], Data::Verdict);
    let mut vips = set(&[Field::Ipv4], Data::Verdict);
    let mut port_slots = set(&[Field::Proto, Field::Port, Field::Slot], Data::Value(vec![Field::Ipv4, Field::Port]));
    let mut vip_slots = set(&[Field::Ipv4, Field::Slot], Data::Value(vec![Field::Ipv4]));
    let mut hairpin = set(&[Field::Ipv4, Field::Ipv4], Data::None);
    let mut chains = BTreeMap::new();
    for (front, backends) in scope.slots.iter().filter(|(k, _)| k.network == network.id) {
        let n = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        let numbered = || (0_u32..).zip(backends.iter());
        let (name, rule) = match front.front {
            Front::Port(protocol, port) => {
                let name = format!("port-{}-{port}", protocol.name());
                ports.elements.insert(key::proto_port(protocol, port), Value::Goto(name.clone()));
                port_slots.elements.extend(numbered().map(|(slot, Backend { address, port: target })| {
                    (key::proto_port_slot(protocol, port, slot), Value::Bytes(key::addr_port(*address, *target)))
                }));
                (name, Rule::PickPort { n })
            }
            Front::Vip(vip) => {
                let name = format!("vip-{vip}");
                vips.elements.insert(key::addr(vip), Value::Goto(name.clone()));
                vip_slots.elements.extend(
                    numbered().map(|(slot, b)| (key::addr_slot(vip, slot), Value::Bytes(key::addr(b.address)))),
                );
                (name, Rule::PickVip { n })
            }
        };
        // A chain and a counter of its own for each front: with a counter shared by all fronts of one size, a client
        // that calls two services in turn would always meet the same endpoint of each.
        // The second rule is for a packet that meets a change halfway: the old count, and a slot that is gone already.
        // Slot 0 is there before and after.
        let first = match rule {
            Rule::PickPort { n } if n > 1 => Some(Rule::PickPort { n: 1 }),
            Rule::PickVip { n } if n > 1 => Some(Rule::PickVip { n: 1 }),
            _ => None,
        };
        chains.insert(name, Chain { base: None, rules: [rule].into_iter().chain(first).collect() });
    }
    for attachment in scope.sandboxes().filter_map(|(_, s, _)| s.networks.get(&network.id)) {
        hairpin.elements.insert(key::addr_addr(attachment.address, attachment.address), Value::None);
    }
    chains.extend(base_chains(network));
    let mut sets =
        BTreeMap::from([("vips".to_owned(), vips), (VIP_SLOTS.to_owned(), vip_slots), ("hairpin".to_owned(), hairpin)]);
    if network.ingress {
        sets.extend([("ports".to_owned(), ports), (PORT_SLOTS.to_owned(), port_slots)]);
    }
    Table { sets, chains }
}

fn base_chains(network: &Network) -> Vec<(String, Chain)> {
    let chain = |kind, hook, priority, rules| Chain { base: Some(Base { kind, hook, priority, device: None }), rules };
    let (bridge, uplink) = (|| BRIDGE.to_owned(), || UPLINK.to_owned());
    let mut pre = vec![Rule::VipFront { link: bridge() }];
    let mut chains = vec![(
        "post".to_owned(),
        chain(ChainKind::Nat, Hook::Postrouting, 100, vec![Rule::Hairpin { link: bridge() }]),
    )];
    if network.ingress {
        pre.push(Rule::PortFront { link: uplink() });
        let forward = vec![
            Rule::AcceptReplies { from: bridge(), to: uplink() },
            Rule::DropForward { from: bridge(), to: uplink() },
        ];
        chains.push(("forward".to_owned(), chain(ChainKind::Filter, Hook::Forward, 0, forward)));
    }
    chains.push(("pre".to_owned(), chain(ChainKind::Nat, Hook::Prerouting, -100, pre)));
    chains
}
