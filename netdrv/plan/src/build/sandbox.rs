//! The namespace of one container: a link to each of its networks, the way out, and rules that are the same for every
//! container and never change while it lives. Nothing about services is in here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{DNS_ADDRESS, DNS_PORT, Frame, TABLE};
use crate::desired::{Attachment, Network, Sandbox};
use crate::nft::{Base, Chain, ChainKind, Chains, Family, Hook, Rule, Table, key};
use crate::space::{Link, LinkKind, Mac, PolicyRule, PortFlags, Route, RouteKey, Space};
use crate::subnet::Subnet;

/// Next hop of replies to a balancer. Nobody has it: the egress rule writes the balancer's MAC over its own.
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 254);
/// First table of reply routes; the container's n-th network has the n-th one.
const REPLY_TABLE: u32 = 100;
/// The main routing table.
const MAIN: u32 = 254;
/// Everywhere.
const DEFAULT: Subnet = Subnet::new(Ipv4Addr::UNSPECIFIED, 0);

/// The sandbox's networks that exist, each with its number: the n-th of all that it is to be on, so that a name never
/// moves to another network when one comes or goes.
pub(super) fn overlays<'a>(
    frame: &'a Frame,
    sandbox: &'a Sandbox,
) -> impl Iterator<Item = (u32, &'a Network, &'a Attachment)> {
    let numbered = (0_u32..).zip(&sandbox.networks);
    numbered.filter_map(|(i, (id, attachment))| Some((i, frame.networks.get(id)?, attachment)))
}

/// Name of the sandbox's link to its network of that number.
pub(super) fn overlay_name(number: u32) -> String {
    format!("eth{number}")
}

/// Name of the sandbox's link to the gateway: the last one.
pub(super) fn gateway_name(sandbox: &Sandbox) -> String {
    format!("eth{}", sandbox.networks.len())
}

/// What a sandbox shows. `serves_udp`: it is an endpoint of a service with a published UDP port.
pub(super) fn space(frame: &Frame, sandbox: &Sandbox, lease: Option<Ipv4Addr>, serves_udp: bool) -> Space {
    let mut space = Space::default();
    // No IPv6 but the container's own loopback; "all" comes first, and covers every link.
    for (link, off) in [("all", "1"), ("default", "1"), ("lo", "0")] {
        space.sysctls.insert(format!("net/ipv6/conf/{link}/disable_ipv6"), off.into());
    }
    // Clients of anywhere come in through the overlays, and nobody on them tells us about routes.
    // Links are made after "default" is set, and take it over.
    for link in ["all", "default"] {
        for setting in ["rp_filter", "accept_redirects"] {
            space.sysctls.insert(format!("net/ipv4/conf/{link}/{setting}"), "0".into());
        }
    }
    let mut links = Vec::new();
    for (i, network, attachment) in overlays(frame, sandbox) {
        let dev = overlay_name(i);
        overlay(frame, &mut space, &dev, REPLY_TABLE + i, network.subnet.with_addr(attachment.address));
        links.push(dev);
    }
    let gateway = lease.filter(|_| sandbox.gateway);
    let source = gateway.and_then(|lease| {
        let dev = gateway_name(sandbox);
        let source = if serves_udp { reply_source(frame, sandbox) } else { None };
        way_out(frame, &mut space, &dev, lease, source);
        source.map(|_| Rule::SourceOf { link: dev, keep: lease })
    });
    tables(&mut space, &links, source);
    space
}

/// Where unconnected UDP servers must answer from. Clients outside the overlay are routed to through the gateway, so
/// a datagram socket would answer from the gateway address, which the client never called. A container that serves a
/// published UDP port answers from its ingress address instead; what it sends out is translated as it leaves.
fn reply_source(frame: &Frame, sandbox: &Sandbox) -> Option<Ipv4Addr> {
    frame.ingress.iter().find_map(|(network, _)| sandbox.networks.get(network)).map(|attachment| attachment.address)
}

fn overlay(frame: &Frame, space: &mut Space, dev: &str, table: u32, address: Subnet) {
    let link = Link {
        kind: LinkKind::End,
        mac: Some(Mac::of(address.addr)),
        mtu: frame.overlay_mtu(),
        master: None,
        port: PortFlags::default(),
    };
    space.links.insert(dev.into(), link);
    space.addresses.insert((dev.into(), address));
    // The mark is a balancer's address as it lies in memory, so a mask of it tells which network the balancer is on.
    let bytes = |addr: u32| u32::from_ne_bytes(addr.to_be_bytes());
    let rule = PolicyRule { mark: bytes(u32::from(address.network().addr)), mask: bytes(address.mask()), table };
    space.rules.insert(rule);
    let route = Route { via: NEXT_HOP, dev: dev.into(), onlink: true, source: None };
    space.routes.insert(RouteKey { table, destination: DEFAULT }, route);
    debug_assert_eq!(rule.mark, key::mark(Mac::of(address.network().addr)));
    space.neighbours.insert((dev.into(), NEXT_HOP), Mac::of(Ipv4Addr::UNSPECIFIED));
}

fn way_out(frame: &Frame, space: &mut Space, dev: &str, lease: Ipv4Addr, source: Option<Ipv4Addr>) {
    let gateway = frame.gateway;
    let link = Link {
        kind: LinkKind::End,
        mac: Some(Mac::of(lease)),
        mtu: frame.mtu,
        master: None,
        port: PortFlags::default(),
    };
    space.links.insert(dev.into(), link);
    space.addresses.insert((dev.into(), gateway.with_addr(lease)));
    let route = Route { via: gateway.host(), dev: dev.into(), onlink: false, source };
    space.routes.insert(RouteKey { table: MAIN, destination: DEFAULT }, route);
}

fn tables(space: &mut Space, links: &[String], source: Option<Rule>) {
    let chain = |kind, hook, priority, device: Option<&String>, rules| Chain {
        base: Some(Base { kind, hook, priority, device: device.cloned() }),
        rules,
    };
    let zones = links.iter().map(|l| Rule::ZoneFromMac { link: l.clone() }).collect();
    let marks = links.iter().map(|l| Rule::MarkFromMac { link: l.clone() }).collect();
    let resolver = vec![Rule::Resolver { to: DNS_ADDRESS, port: DNS_PORT }];
    let mut chains = Chains::from_iter([
        ("zones", chain(ChainKind::Filter, Hook::Prerouting, -300, None, zones)),
        // Without a rule: its presence makes the kernel give one of two equal connections another source port.
        ("unique", chain(ChainKind::Nat, Hook::Input, 100, None, Vec::new())),
        ("in", chain(ChainKind::Filter, Hook::Prerouting, -150, None, marks)),
        ("out", chain(ChainKind::Route, Hook::Output, -150, None, vec![Rule::MarkReply])),
        ("names", chain(ChainKind::Nat, Hook::Output, -100, None, resolver)),
    ]);
    if let Some(rule) = source {
        chains.insert("source", chain(ChainKind::Nat, Hook::Postrouting, 100, None, vec![rule]));
    }
    space.tables.insert((Family::Ip, TABLE.into()), Table { sets: BTreeMap::new(), chains });
    let egress = links
        .iter()
        .map(|l| (format!("egress-{l}"), chain(ChainKind::Filter, Hook::Egress, 0, Some(l), vec![Rule::MacFromMark])));
    if !links.is_empty() {
        let egress = egress.collect();
        space.tables.insert((Family::Netdev, TABLE.into()), Table { sets: BTreeMap::new(), chains: egress });
    }
}
