//! The node's own namespace: the gateway bridge, the link to the ingress balancer, and one nft table. Other people's
//! links and tables live here too, so everything bears our names, and only what does is ever changed.
//!
//! We can't keep others' base chains from dropping what passes through (a FORWARD policy of DROP): a packet that one
//! table accepts still visits the next. The documentation names the rule to add.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Frame, TABLE, element};
use crate::desired::{Protocol, Sandbox};
use crate::nft::{Base, Chain, ChainKind, Chains, Data, Elements, Family, Field, Hook, Rule, Set, Table, Value, key};
use crate::space::{Link, LinkKind, Mac, PeerEnd, Place, PortFlags, Space};

/// Name of the map `proto . port -> balancer`: the published ports that somebody is ready to answer. Others are the
/// node's own, which refuses them.
const MESH: &str = "mesh";
/// Name of the map `proto . port -> gateway address . port`.
const HOST_PORTS: &str = "hostports";
/// Whether packets pass through.
const FORWARD: &str = "net/ipv4/ip_forward";

/// The node's namespace before any container is there.
pub(super) fn space(frame: &Frame) -> Space {
    let mut space = Space::default();
    gateway(frame, &mut space);
    ingress(frame, &mut space);
    space.tables.insert((Family::Ip, TABLE.into()), table(frame));
    if frame.bridged {
        space.tables.insert((Family::Bridge, TABLE.into()), isolation(frame));
    }
    space
}

/// Keeps containers apart where their ports can't be isolated. Before all others, the translation among them: there a
/// frame still has the address that the container wrote.
fn isolation(frame: &Frame) -> Table {
    let rule = Rule::GatewayOnly { ports: frame.config.gateway_links(), gateway: Mac::of(frame.gateway.host()) };
    let base = Base { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -350, device: None };
    let chain = Chain { base: Some(base), rules: vec![rule] };
    Table { sets: BTreeMap::new(), chains: Chains::from_iter([("isolation", chain)]) }
}

/// Sysctls of our own links: no IPv6 where we promise none, and packets from 127/8 may leave through them.
fn quiet(space: &mut Space, link: &str) {
    space.sysctls.insert(no_ipv6(link), "1".into());
    space.sysctls.insert(format!("net/ipv4/conf/{link}/route_localnet"), "1".into());
}

fn no_ipv6(link: &str) -> String {
    format!("net/ipv6/conf/{link}/disable_ipv6")
}

fn gateway(frame: &Frame, space: &mut Space) {
    let bridge = &frame.config.gateway_bridge;
    let address = frame.gateway.with_addr(frame.gateway.host());
    let link = Link {
        kind: LinkKind::Bridge,
        mac: Some(Mac::of(address.addr)),
        mtu: frame.mtu,
        master: None,
        port: PortFlags::default(),
    };
    space.links.insert(bridge.clone(), link);
    space.addresses.insert((bridge.clone(), address));
    quiet(space, bridge);
}

/// A container gets its way out.
pub(super) fn plug(frame: &Frame, space: &mut Space, id: &str, sandbox: &Sandbox, lease: Ipv4Addr) {
    let peer = PeerEnd {
        place: Place::Sandbox(id.to_owned()),
        name: super::sandbox::gateway_name(sandbox),
        mac: Mac::of(lease),
    };
    let link = Link {
        kind: LinkKind::Veth { peer },
        mac: None,
        mtu: frame.mtu,
        master: Some(frame.config.gateway_bridge.clone()),
        port: PortFlags { isolated: !frame.bridged, hairpin: frame.bridged, ..PortFlags::default() },
    };
    let name = frame.config.gateway_link(id);
    space.sysctls.insert(no_ipv6(&name), "1".into());
    space.links.insert(name, link);
}

/// A container has no way out any more.
pub(super) fn unplug(frame: &Frame, space: &mut Space, id: &str) {
    let name = frame.config.gateway_link(id);
    space.sysctls.remove(&no_ipv6(&name));
    space.links.remove(&name);
}

/// A node that forwards for nobody stays as it is.
pub(super) fn forward(space: &mut Space, needed: bool) {
    if needed {
        space.sysctls.insert(FORWARD.into(), "1".into());
    } else {
        space.sysctls.remove(FORWARD);
    }
}

/// A published port leads to this balancer, or is the node's own again.
pub(super) fn mesh(space: &mut Space, protocol: Protocol, port: u16, balancer: Option<Ipv4Addr>) {
    element(space, MESH, key::proto_port(protocol, port), balancer.map(|to| Value::Bytes(key::addr(to))));
}

/// A port of the node leads to this address and port of a container, or is the node's own again.
pub(super) fn host_port(space: &mut Space, protocol: Protocol, port: u16, to: Option<(Ipv4Addr, u16)>) {
    let to = to.map(|(address, port)| Value::Bytes(key::addr_port(address, port)));
    element(space, HOST_PORTS, key::proto_port(protocol, port), to);
}

fn ingress(frame: &Frame, space: &mut Space) {
    for (network, range) in &frame.ingress {
        let Some((own, balancer)) = frame.link_ends(network) else { continue };
        let name = frame.config.ingress_link(network);
        let peer = PeerEnd {
            place: Place::Balancer(network.clone()),
            name: super::balancer::UPLINK.into(),
            mac: Mac::of(balancer),
        };
        let link = Link {
            kind: LinkKind::Veth { peer },
            mac: Some(Mac::of(own)),
            mtu: frame.mtu,
            master: None,
            port: PortFlags::default(),
        };
        space.links.insert(name.clone(), link);
        space.addresses.insert((name.clone(), range.with_addr(own)));
        quiet(space, &name);
    }
}

fn table(frame: &Frame) -> Table {
    let bridge = frame.config.gateway_bridge.clone();
    let from = frame.gateway.network();
    let gateway_address = frame.gateway.host();
    let to = frame.underlay.address;
    let links: Vec<_> = frame.ingress.iter().map(|(id, _)| frame.config.ingress_link(id)).collect();

    let mut post = Vec::new();
    for out in &links {
        post.push(Rule::LoopbackSource { out: out.clone(), to });
        post.push(Rule::GatewaySource { out: out.clone(), from, to });
    }
    post.push(Rule::LoopbackSource { out: bridge.clone(), to: gateway_address });
    post.push(Rule::BridgeHairpin { bridge: bridge.clone(), from });
    post.push(Rule::Egress { bridge: bridge.clone(), from });
    // A neighbour that routes the gateway subnet to this node must not reach what no port leads to.
    let forward = vec![
        Rule::AcceptAnswers { out: bridge.clone() },
        Rule::AcceptTranslated { out: bridge.clone() },
        Rule::DropOut { out: bridge.clone() },
    ];
    let guard = links.iter().chain([&bridge]).map(|l| Rule::DropLoopback { link: l.clone() }).collect();

    let chain = |kind, hook, priority, rules| Chain { base: Some(Base { kind, hook, priority, device: None }), rules };
    let ports = |data: &[Field]| Set {
        key: vec![Field::Proto, Field::Port],
        data: Data::Value(data.to_vec()),
        elements: Elements::new(),
    };
    let accept = || vec![Rule::HostMesh, Rule::HostPorts];
    Table {
        sets: BTreeMap::from([
            (MESH.into(), ports(&[Field::Ipv4])),
            (HOST_PORTS.into(), ports(&[Field::Ipv4, Field::Port])),
        ]),
        chains: Chains::from_iter([
            ("guard", chain(ChainKind::Filter, Hook::Prerouting, -300, guard)),
            ("forward", chain(ChainKind::Filter, Hook::Forward, 0, forward)),
            ("pre", chain(ChainKind::Nat, Hook::Prerouting, -100, accept())),
            ("out", chain(ChainKind::Nat, Hook::Output, -100, accept())),
            ("post", chain(ChainKind::Nat, Hook::Postrouting, 100, post)),
        ]),
    }
}
