//! The node's own namespace: the gateway bridge, the link to the ingress balancer, and one nft table. Other people's
//! links and tables live here too, so everything bears our names, and only what does is ever changed.
//!
//! We can't keep others' base chains from dropping what passes through (a FORWARD policy of DROP): a packet that one
//! table accepts still visits the next. The documentation names the rule to add.

use std::collections::BTreeMap;

use super::{Scope, TABLE};
use crate::nft::{Base, Chain, ChainKind, Data, Family, Field, Hook, Rule, Set, Table, Value, key};
use crate::slots::Front;
use crate::space::{Link, LinkKind, Mac, PeerEnd, Place, PortFlags, Space};
use crate::subnet::Subnet;

pub(super) fn space(scope: &Scope<'_>) -> Space {
    let mut space = Space::default();
    // A node that forwards for nobody stays as it is.
    if !scope.ingress.is_empty() || scope.sandboxes().any(|(_, sandbox, _)| sandbox.gateway) {
        space.sysctls.insert("net/ipv4/ip_forward".into(), "1".into());
    }
    gateway(scope, &mut space);
    ingress(scope, &mut space);
    space.tables.insert((Family::Ip, TABLE.into()), table(scope));
    space
}

/// Sysctls of our own links: no IPv6 where we promise none, and packets from 127/8 may leave through them.
fn quiet(space: &mut Space, link: &str) {
    space.sysctls.insert(format!("net/ipv6/conf/{link}/disable_ipv6"), "1".into());
    space.sysctls.insert(format!("net/ipv4/conf/{link}/route_localnet"), "1".into());
}

fn gateway(scope: &Scope<'_>, space: &mut Space) {
    let bridge = &scope.config.gateway_bridge;
    let (subnet, mtu) = (scope.desired.gateway, scope.facts.mtu);
    let address = subnet.with_addr(subnet.host());
    let link = Link {
        kind: LinkKind::Bridge,
        mac: Some(Mac::of(address.addr)),
        mtu,
        master: None,
        port: PortFlags::default(),
    };
    space.links.insert(bridge.clone(), link);
    space.addresses.insert((bridge.clone(), address));
    quiet(space, bridge);
    for (id, sandbox, lease) in scope.sandboxes() {
        let Some(lease) = lease.filter(|_| sandbox.gateway) else { continue };
        let peer = PeerEnd {
            place: Place::Sandbox(id.clone()),
            name: super::sandbox::gateway_name(sandbox),
            mac: Mac::of(lease),
        };
        let link = Link {
            kind: LinkKind::Veth { peer },
            mac: None,
            mtu,
            master: Some(bridge.clone()),
            port: PortFlags { isolated: true, ..PortFlags::default() },
        };
        let name = scope.config.gateway_link(id);
        space.sysctls.insert(format!("net/ipv6/conf/{name}/disable_ipv6"), "1".into());
        space.links.insert(name, link);
    }
}

fn ingress(scope: &Scope<'_>, space: &mut Space) {
    for (network, range) in &scope.ingress {
        let Some((own, balancer)) = Scope::link_ends(*range) else { continue };
        let name = scope.config.ingress_link(&network.id);
        let peer = PeerEnd {
            place: Place::Balancer(network.id.clone()),
            name: super::balancer::UPLINK.into(),
            mac: Mac::of(balancer),
        };
        let link = Link {
            kind: LinkKind::Veth { peer },
            mac: Some(Mac::of(own)),
            mtu: scope.facts.mtu,
            master: None,
            port: PortFlags::default(),
        };
        space.links.insert(name.clone(), link);
        space.addresses.insert((name.clone(), range.with_addr(own)));
        quiet(space, &name);
    }
}

fn table(scope: &Scope<'_>) -> Table {
    let bridge = scope.config.gateway_bridge.clone();
    let from = scope.desired.gateway.network();
    let gateway_address = scope.desired.gateway.host();
    let to = scope.desired.underlay.address;
    let links: Vec<_> = scope.ingress.iter().map(|(n, _)| scope.config.ingress_link(&n.id)).collect();

    let mut post = Vec::new();
    for out in &links {
        post.push(Rule::LoopbackSource { out: out.clone(), to });
        post.push(Rule::GatewaySource { out: out.clone(), from, to });
    }
    post.push(Rule::LoopbackSource { out: bridge.clone(), to: gateway_address });
    post.push(Rule::BridgeHairpin { bridge: bridge.clone(), from });
    post.push(Rule::Egress { bridge: bridge.clone(), from });
    let guard = links.iter().chain([&bridge]).map(|l| Rule::DropLoopback { link: l.clone() }).collect();

    let chain = |kind, hook, priority, rules| Chain { base: Some(Base { kind, hook, priority, device: None }), rules };
    let accept = || vec![Rule::HostMesh, Rule::HostPorts];
    Table {
        sets: BTreeMap::from([("mesh".into(), mesh(scope)), ("hostports".into(), host_ports(scope))]),
        chains: BTreeMap::from([
            ("guard".into(), chain(ChainKind::Filter, Hook::Prerouting, -300, guard)),
            ("pre".into(), chain(ChainKind::Nat, Hook::Prerouting, -100, accept())),
            ("out".into(), chain(ChainKind::Nat, Hook::Output, -100, accept())),
            ("post".into(), chain(ChainKind::Nat, Hook::Postrouting, 100, post)),
        ]),
    }
}

/// `proto . port -> balancer`: the published ports that somebody is ready to answer. Others are the node's own, which
/// refuses them.
fn mesh(scope: &Scope<'_>) -> Set {
    let balancer = |network: &str| {
        let range: Option<Subnet> = scope.ingress.iter().find(|(n, _)| n.id == network).map(|(_, r)| *r);
        range.and_then(Scope::link_ends).map(|(_, balancer)| balancer)
    };
    let mut elements = BTreeMap::new();
    for front in scope.slots.keys() {
        if let (Front::Port(protocol, port), Some(to)) = (front.front, balancer(&front.network)) {
            elements.insert(key::proto_port(protocol, port), Value::Bytes(key::addr(to)));
        }
    }
    Set { key: vec![Field::Proto, Field::Port], data: Data::Value(vec![Field::Ipv4]), elements }
}

/// `proto . port -> gateway address . port`.
fn host_ports(scope: &Scope<'_>) -> Set {
    let mut elements = BTreeMap::new();
    for (_, sandbox, lease) in scope.sandboxes() {
        let Some(lease) = lease.filter(|_| sandbox.gateway) else { continue };
        for port in &sandbox.host_ports {
            let to = Value::Bytes(key::addr_port(lease, port.target));
            elements.insert(key::proto_port(port.protocol, port.published), to);
        }
    }
    Set { key: vec![Field::Proto, Field::Port], data: Data::Value(vec![Field::Ipv4, Field::Port]), elements }
}
