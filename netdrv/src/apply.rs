//! Carries steps out, in their order. The kernel gets those of one namespace and phase in order and at once.
//!
//! A step that fails keeps no other step from being tried. Every failure is laid at somebody's door: at the sandbox if
//! the step was about a link of it, else at the namespace of the step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use skep_net_kernel::conntrack::{self, Entry, Filter, Tuple};
use skep_net_kernel::link::{
    self, Bridge, Change, Fdb, FdbPlace, IpNet, Neighbour, Port, VethEnd, Vxlan, absent_is_fine, present_is_fine,
};
use skep_net_plan::{
    Called, FdbKey, Flush, Link, LinkKind, Mac, Op, Place, Planned, PolicyRule, PortFlags, Route, RouteKey, Step,
    Subnet,
};
use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};
use crate::firewall;
use crate::wire::{Wire, blocking};

/// Open namespaces.
pub(crate) type Wires = BTreeMap<Place, Wire>;

/// Steps that are on their way to the kernel at once: their answers fit the socket's buffer.
const AT_ONCE: usize = 128;
/// How long new links, all together, may take until packets pass.
const PASSING: Duration = Duration::from_millis(500);
/// Tracked connections that one flush deletes at once, and how often it goes on.
const FLUSH: (usize, usize) = (4096, 64);

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Where the step was to be carried out.
    pub(crate) place: Place,
    /// Who it was for.
    pub(crate) culprit: Place,
    pub(crate) error: Error,
}

/// Carries out all steps.
pub(crate) async fn apply(wires: &mut Wires, steps: &[Step], spaces: &BTreeMap<Place, Planned>) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut rest = steps;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|s| s.phase == first.phase && s.place == first.place).count();
        let (now, later) = rest.split_at(same);
        rest = later;
        let results = group(wires, &first.place, now).await;
        for (step, result) in now.iter().zip(results) {
            if let Err(error) = result {
                let culprit = culprit(step, spaces);
                failures.push(Failure { place: step.place.clone(), culprit, error });
            }
        }
    }
    pass(wires, steps).await;
    failures
}

/// Waits until packets pass the pairs that were made, and the bridges that these joined: the kernel switches a link on a
/// moment after its other end is up, and drops what is sent until then. One that doesn't get there is somebody else's
/// doing; the next verification tells.
async fn pass(wires: &Wires, steps: &[Step]) {
    let mut made = BTreeSet::new();
    for step in steps {
        if let Op::AddLink { name, link: Link { kind: LinkKind::Veth { .. }, master, .. } } = &step.op {
            made.extend([Some(name), master.as_ref()].into_iter().flatten().map(|name| (&step.place, name)));
        }
    }
    let until = Instant::now() + PASSING;
    for (place, name) in made {
        let Some(wire) = wires.get(place) else { continue };
        while wire.link.link(name).await.is_ok_and(|link| link.up && !link.operational) && Instant::now() < until {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The sandbox whose link a step is about, or the step's own place.
fn culprit(step: &Step, spaces: &BTreeMap<Place, Planned>) -> Place {
    let link = dev(&step.op).and_then(|name| spaces.get(&step.place)?.links.get(name));
    match link.map(|l| &l.kind) {
        Some(LinkKind::Veth { peer }) if matches!(peer.place, Place::Sandbox(_)) => peer.place.clone(),
        _ => step.place.clone(),
    }
}

/// The link that a step is about.
fn dev(op: &Op) -> Option<&str> {
    match op {
        Op::AddLink { name, .. }
        | Op::DelLink { name }
        | Op::SetMac { name, .. }
        | Op::SetMtu { name, .. }
        | Op::SetMaster { name, .. }
        | Op::SetPort { name, .. }
        | Op::SetUp { name } => Some(name),
        Op::AddAddress { dev, .. }
        | Op::DelAddress { dev, .. }
        | Op::SetNeighbour { dev, .. }
        | Op::DelNeighbour { dev, .. } => Some(dev),
        Op::SetRoute { route, .. } | Op::DelRoute { route, .. } => Some(&route.dev),
        Op::SetFdb { key, .. } | Op::DelFdb { key, .. } => Some(&key.dev),
        Op::AddRule { .. } | Op::DelRule { .. } | Op::SetSysctl { .. } | Op::Nft { .. } => None,
    }
}

/// The links whose indexes a step needs.
fn needed(op: &Op) -> impl Iterator<Item = &str> {
    let own = match op {
        Op::AddLink { .. } => None,
        other => dev(other),
    };
    let master = match op {
        Op::SetMaster { master, .. } => master.as_deref(),
        _ => None,
    };
    own.into_iter().chain(master)
}

/// Steps of one phase in one namespace; a result for each.
async fn group(wires: &mut Wires, place: &Place, steps: &[Step]) -> Vec<Result<()>> {
    let all = |error: fn(&Place) -> Error| steps.iter().map(|_| Err(error(place))).collect();
    let Some(wire) = wires.get_mut(place) else {
        return all(|place| Error::NoNamespace { place: place.to_string() });
    };
    let names: Vec<_> = steps.iter().flat_map(|s| needed(&s.op)).collect();
    if let Err(error) = wire.learn(&names).await {
        // Every step below says for itself which link it misses.
        tracing::debug!(place = %place, %error, "links not read");
    }
    let mut results = Vec::with_capacity(steps.len());
    // Sysctls are written together, and a firewall transaction is one step.
    let (settings, others): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|s| matches!(s.op, Op::SetSysctl { .. }));
    let settings: Vec<_> = settings.iter().filter_map(|s| setting(&s.op)).collect();
    let written = if settings.is_empty() { None } else { wire.set_sysctls(settings).await.err() };
    for chunk in others.chunks(AT_ONCE) {
        // The firewall's phase has one step a namespace.
        if let ([Step { op: Op::Nft { ops }, .. }], Some(wire)) = (chunk, wires.get_mut(place)) {
            results.push(wire.commit(firewall::batch(ops)).await);
            continue;
        }
        let open = &*wires;
        results.extend(join_all(chunk.iter().map(|step| one(open, place, &step.op))).await);
    }
    finish(wires, steps, results, written)
}

/// Puts results into the steps' order, and forgets the indexes of links that came or went.
fn finish(wires: &mut Wires, steps: &[Step], results: Vec<Result<()>>, mut sysctls: Option<Error>) -> Vec<Result<()>> {
    let mut results = results.into_iter();
    let mut ordered = Vec::with_capacity(steps.len());
    for step in steps {
        match &step.op {
            Op::SetSysctl { .. } => ordered.push(sysctls.take().map_or(Ok(()), Err)),
            Op::AddLink { name, link } => {
                forget(wires, &step.place, name);
                if let LinkKind::Veth { peer } = &link.kind {
                    forget(wires, &peer.place, &peer.name);
                }
                ordered.extend(results.next());
            }
            Op::DelLink { name } => {
                forget(wires, &step.place, name);
                ordered.extend(results.next());
            }
            _ => ordered.extend(results.next()),
        }
    }
    ordered
}

fn forget(wires: &mut Wires, place: &Place, link: &str) {
    if let Some(wire) = wires.get_mut(place) {
        wire.forget_link(link);
    }
}

fn is_removal(op: &Op) -> bool {
    matches!(
        op,
        Op::DelAddress { .. } | Op::DelRoute { .. } | Op::DelRule { .. } | Op::DelNeighbour { .. } | Op::DelFdb { .. }
    )
}

fn setting(op: &Op) -> Option<(String, String)> {
    match op {
        Op::SetSysctl { path, value } => Some((path.clone(), value.clone())),
        _ => None,
    }
}

fn mac(mac: Mac) -> link::Mac {
    link::Mac(mac.0)
}

fn net(subnet: Subnet) -> IpNet {
    IpNet::new(subnet.addr, subnet.prefix)
}

async fn one(wires: &Wires, place: &Place, op: &Op) -> Result<()> {
    let wire = wires.get(place).ok_or_else(|| Error::NoNamespace { place: place.to_string() })?;
    match op {
        Op::AddLink { name, link } => add_link(wires, wire, name, link).await,
        Op::DelLink { name } => Ok(absent_is_fine(wire.link.delete_link_named(name).await)?),
        Op::SetMac { .. } | Op::SetMtu { .. } | Op::SetMaster { .. } | Op::SetPort { .. } | Op::SetUp { .. } => {
            link_state(wire, op).await
        }
        Op::SetSysctl { .. } | Op::Nft { .. } => Ok(()),
        _ => match layer3(wire, op).await {
            // The link went, and took what hung on it along.
            Err(Error::NoLink { .. }) if is_removal(op) => Ok(()),
            other => other,
        },
    }
}

async fn add_link(wires: &Wires, wire: &Wire, name: &str, wanted: &Link) -> Result<()> {
    let (own_mac, mtu) = (wanted.mac.map(mac), Some(wanted.mtu));
    match &wanted.kind {
        LinkKind::Bridge => {
            let bridge = Bridge { name, mac: own_mac, mtu, up: false, multicast_snooping: false };
            Ok(wire.link.add_bridge(&bridge).await?)
        }
        LinkKind::Vxlan { vni, port, local } => {
            // Made from the node's namespace, where its outer packets stay, straight into this one.
            let node = wires.get(&Place::Host).ok_or_else(|| Error::NoNamespace { place: Place::Host.to_string() })?;
            let vxlan = Vxlan {
                name,
                vni: *vni,
                port: *port,
                local: *local,
                learning: false,
                mac: own_mac,
                mtu,
                namespace: Some(&wire.namespace),
            };
            Ok(node.link.add_vxlan(&vxlan).await?)
        }
        LinkKind::Veth { peer } => {
            let other = wires.get(&peer.place).ok_or_else(|| Error::NoNamespace { place: peer.place.to_string() })?;
            let own = VethEnd { name, mac: own_mac, mtu, ..VethEnd::default() };
            let far = VethEnd {
                name: &peer.name,
                mac: Some(mac(peer.mac)),
                mtu,
                namespace: Some(&other.namespace),
                ..VethEnd::default()
            };
            Ok(wire.link.add_veth(&own, &far).await?)
        }
        LinkKind::End => Ok(()),
    }
}

async fn link_state(wire: &Wire, op: &Op) -> Result<()> {
    match op {
        Op::SetMac { name, mac: wanted } => {
            let change = Change { mac: Some(mac(*wanted)), ..Change::default() };
            wire.link.change(wire.index(name)?, &change).await?;
        }
        Op::SetMtu { name, mtu } => {
            let change = Change { mtu: Some(*mtu), ..Change::default() };
            wire.link.change(wire.index(name)?, &change).await?;
        }
        Op::SetMaster { name, master } => {
            let master = master.as_deref().map(|m| wire.index(m)).transpose()?;
            wire.link.set_master(wire.index(name)?, master).await?;
        }
        Op::SetPort { name, flags } => {
            let PortFlags { neigh_suppress, no_learning, isolated, hairpin } = *flags;
            let port = Port {
                neigh_suppress: Some(neigh_suppress),
                learning: Some(!no_learning),
                isolated: Some(isolated),
                hairpin: Some(hairpin),
                ..Port::default()
            };
            wire.link.set_port(wire.index(name)?, &port).await?;
        }
        Op::SetUp { name } => wire.link.set_up(wire.index(name)?).await?,
        _ => {}
    }
    Ok(())
}

async fn layer3(wire: &Wire, op: &Op) -> Result<()> {
    let (handle, index) = (&wire.link, |name: &str| wire.index(name));
    match op {
        Op::AddAddress { dev, address } => present_is_fine(handle.add_address(index(dev)?, net(*address)).await)?,
        Op::DelAddress { dev, address } => absent_is_fine(handle.delete_address(index(dev)?, net(*address)).await)?,
        Op::SetRoute { key, route } => handle.replace_route(&route_of(*key, route, index(&route.dev)?)).await?,
        Op::DelRoute { key, route } => {
            absent_is_fine(handle.delete_route(&route_of(*key, route, index(&route.dev)?)).await)?;
        }
        Op::AddRule { rule } => present_is_fine(handle.add_rule(&rule_of(*rule)).await)?,
        Op::DelRule { rule } => absent_is_fine(handle.delete_rule(&rule_of(*rule)).await)?,
        Op::SetNeighbour { dev, address, mac: wanted } => {
            let entry = Neighbour { device: index(dev)?, address: (*address).into(), mac: mac(*wanted) };
            handle.replace_neighbour(&entry).await?;
        }
        Op::DelNeighbour { dev, address } => {
            absent_is_fine(handle.delete_neighbour(index(dev)?, (*address).into()).await)?;
        }
        Op::SetFdb { key, vtep } => handle.replace_fdb(&fdb_of(key, *vtep, index(&key.dev)?)).await?,
        Op::DelFdb { key, vtep } => {
            absent_is_fine(handle.delete_fdb(&fdb_of(key, *vtep, index(&key.dev)?)).await)?;
        }
        _ => {}
    }
    Ok(())
}

fn route_of(key: RouteKey, route: &Route, device: u32) -> link::Route {
    link::Route {
        via: Some(route.via.into()),
        device: Some(device),
        table: key.table,
        onlink: route.onlink,
        source: route.source.map(Into::into),
        ..link::Route::to(net(key.destination))
    }
}

fn rule_of(rule: PolicyRule) -> link::Rule {
    link::Rule { mark: Some((rule.mark, rule.mask)), ..link::Rule::to(rule.table) }
}

fn fdb_of(key: &FdbKey, vtep: Option<Ipv4Addr>, device: u32) -> Fdb {
    let place = match vtep {
        Some(remote) => FdbPlace::Tunnel { remote: remote.into() },
        None => FdbPlace::Bridge,
    };
    Fdb { device, mac: mac(key.mac), place }
}

/// Deletes tracked connections, with one walk over a namespace's table; returns the flushes that failed.
pub(crate) async fn flush(wires: &Wires, flushes: Vec<Flush>) -> Vec<(Flush, Arc<Error>)> {
    let mut by_place: BTreeMap<Place, Vec<Flush>> = BTreeMap::new();
    for flush in flushes {
        by_place.entry(flush.place.clone()).or_default().push(flush);
    }
    let mut failed = Vec::new();
    for (place, flushes) in by_place {
        // A namespace that is gone took its connections along.
        let Some(wire) = wires.get(&place) else { continue };
        if let Err(error) = flush_in(wire, &flushes).await {
            let error = Arc::new(error);
            failed.extend(flushes.into_iter().map(|flush| (flush, error.clone())));
        }
    }
    failed
}

async fn flush_in(wire: &Wire, flushes: &[Flush]) -> Result<()> {
    let mut own = BTreeSet::new();
    if flushes.iter().any(|f| f.destination == Some(Called::Own)) {
        own.extend(wire.link.addresses().await?.into_iter().map(|a| a.net.address));
    }
    let namespace = wire.namespace.clone();
    let wanted: Vec<_> = flushes.iter().map(|f| (filter(f), f.destination == Some(Called::Own))).collect();
    // What all have in common is left to the kernel.
    let protocol = flushes.first().and_then(|f| f.protocol).filter(|p| flushes.iter().all(|f| f.protocol == Some(*p)));
    let shared = Filter { protocol: protocol.map(|p| p.number()), ..Filter::default() };
    let work = move || -> conntrack::Result<()> {
        let mut socket = conntrack::Socket::open(&namespace)?;
        let called = |to: IpAddr| to.is_loopback() || own.contains(&to);
        let any =
            |e: &Entry| wanted.iter().any(|(f, own)| f.matches(e) && (!own || called(e.original.destination.ip())));
        for _ in 0..FLUSH.1 {
            if !socket.delete_where(&shared, any, FLUSH.0)?.more {
                break;
            }
        }
        Ok(())
    };
    Ok(blocking(work).await??)
}

fn filter(flush: &Flush) -> Filter {
    let destination = match flush.destination {
        Some(Called::Address(address)) => Some(address.into()),
        // Looked up where the flush is done.
        Some(Called::Own) | None => None,
    };
    Filter {
        v6: false,
        protocol: flush.protocol.map(|p| p.number()),
        original: Tuple { destination, destination_port: flush.port, ..Tuple::default() },
        reply: Tuple { source: flush.endpoint.map(Into::into), ..Tuple::default() },
    }
}
