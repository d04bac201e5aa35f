//! The steps from what the namespaces were found to hold to what they must show.
//!
//! Ownership: in the node's namespace only links with our names, and what hangs on them; in a balancer's everything;
//! in a container's only what we know that we made (`believed`), for a container may add addresses and routes of its
//! own. Our nft tables are wholly ours everywhere. What others made is never in a step.
//!
//! Order: first what must go to be made anew, then links, their state, layer 3, then the firewall in one transaction a
//! namespace, and only then what goes for good: nothing is balanced to what isn't reachable yet, or no longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use imbl::ordset;

use crate::build::{Config, Planned};
use crate::nft::{NftOp, diff_tables};
use crate::space::{FdbKey, Link, LinkKind, Mac, Place, PolicyRule, PortFlags, Route, RouteKey, Seen, SeenLink, Space};
use crate::subnet::Subnet;

/// When a step is carried out; all steps of one phase, in all namespaces, before those of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Remove links that must be made anew, and set what new links will take over and what needs none.
    Unlink,
    /// Make links.
    Link,
    /// Set them up.
    LinkState,
    /// Addresses, routes, rules, neighbours, forwarding entries, sysctls.
    Layer3,
    /// The nft transaction.
    Firewall,
    /// Remove what is no longer wanted.
    Remove,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// In which namespace.
    pub place: Place,
    /// When.
    pub phase: Phase,
    /// What.
    pub op: Op,
}

/// What a step does. Removals of what is gone already count as done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the object's key and value")]
pub enum Op {
    /// Make a link, its peer included, with MAC and MTU.
    AddLink { name: String, link: Link },
    /// Remove a link.
    DelLink { name: String },
    /// Set the Ethernet address.
    SetMac { name: String, mac: Mac },
    /// Set the MTU.
    SetMtu { name: String, mtu: u32 },
    /// Make it a port of a bridge, or of none.
    SetMaster { name: String, master: Option<String> },
    /// Set its flags as a bridge port.
    SetPort { name: String, flags: PortFlags },
    /// Set it up.
    SetUp { name: String },
    /// Add an address.
    AddAddress { dev: String, address: Subnet },
    /// Remove an address.
    DelAddress { dev: String, address: Subnet },
    /// Add or replace a route.
    SetRoute { key: RouteKey, route: Route },
    /// Remove a route.
    DelRoute { key: RouteKey, route: Route },
    /// Add a policy rule.
    AddRule { rule: PolicyRule },
    /// Remove a policy rule.
    DelRule { rule: PolicyRule },
    /// Add or replace a permanent neighbour.
    SetNeighbour { dev: String, address: Ipv4Addr, mac: Mac },
    /// Remove a neighbour.
    DelNeighbour { dev: String, address: Ipv4Addr },
    /// Add or replace a forwarding entry.
    SetFdb { key: FdbKey, vtep: Option<Ipv4Addr> },
    /// Remove a forwarding entry.
    DelFdb { key: FdbKey, vtep: Option<Ipv4Addr> },
    /// Write a sysctl; one that the kernel hasn't got is no error under net/bridge and net/ipv6.
    SetSysctl { path: String, value: String },
    /// One nft transaction.
    Nft { ops: Vec<NftOp> },
}

/// The steps from `seen` to `wanted`, in order. `believed` is what the last application left (the same as `seen` when
/// the kernel wasn't read). Namespaces that are wanted but not seen are taken to be new and empty; those that are seen
/// but not wanted are left to the caller, which removes them as a whole. Links into a namespace that isn't wanted, for
/// it can't be read, stay as they are. A namespace that is seen to be the wanted image
/// itself is passed over, and of what is shared with it nothing is looked at: the cost is that of what differs.
#[must_use]
pub fn diff(
    seen: &BTreeMap<Place, Arc<Seen>>,
    believed: &BTreeMap<Place, Arc<Seen>>,
    wanted: &BTreeMap<Place, Planned>,
    config: &Config,
) -> Vec<Step> {
    let settled = |place: &Place, planned: &Planned| seen.get(place).is_some_and(|s| Arc::ptr_eq(s, planned.image()));
    let open: BTreeSet<&Place> = wanted.iter().filter(|(p, w)| !settled(p, w)).map(|(place, _)| place).collect();
    let anew = anew(seen, wanted, &open);
    let (nothing, no_links) = (Seen::default(), BTreeSet::new());
    let mut steps = Vec::new();
    for (place, space) in wanted.iter().filter(|(place, _)| open.contains(place) || anew.contains_key(*place)) {
        let seen = seen.get(place).map_or(&nothing, Arc::as_ref);
        let mut one = One {
            place,
            owner: Owner { place, believed: believed.get(place).map_or(&nothing, Arc::as_ref), config },
            anew: anew.get(place).unwrap_or(&no_links),
            steps: &mut steps,
        };
        one.links(seen, space, wanted);
        one.layer3(seen, space);
        one.firewall(seen, space);
        one.removals(seen, space);
    }
    steps.sort_by(|a, b| (a.phase, &a.place).cmp(&(b.phase, &b.place)));
    steps
}

/// The links that are made in this round, by namespace: those that are missing or of another kind, pairs of which
/// one end is missing, and the other ends of all these. Only what touches an `open` namespace can be among them.
fn anew(
    seen: &BTreeMap<Place, Arc<Seen>>,
    wanted: &BTreeMap<Place, Planned>,
    open: &BTreeSet<&Place>,
) -> BTreeMap<Place, BTreeSet<String>> {
    let found = |place: &Place, name: &str| seen.get(place).and_then(|s| s.links.get(name));
    let mut anew: BTreeMap<Place, BTreeSet<String>> = BTreeMap::new();
    for (place, space) in wanted {
        let here = open.contains(place);
        for (name, link) in &space.links {
            match &link.kind {
                LinkKind::Veth { peer } if !here && !open.contains(&peer.place) => continue,
                // Nobody knows what the namespace of the other end holds.
                LinkKind::Veth { peer } if !wanted.contains_key(&peer.place) => continue,
                LinkKind::Veth { .. } => {}
                _ if !here => continue,
                _ => {}
            }
            let kept = found(place, name).is_some_and(|l| l.kind == link.kind.seen());
            match &link.kind {
                LinkKind::End => {}
                LinkKind::Veth { peer } if !kept || found(&peer.place, &peer.name).is_none() => {
                    anew.entry(place.clone()).or_default().insert(name.clone());
                    anew.entry(peer.place.clone()).or_default().insert(peer.name.clone());
                }
                _ if !kept => {
                    anew.entry(place.clone()).or_default().insert(name.clone());
                }
                _ => {}
            }
        }
    }
    anew
}

/// What `wanted` holds that `seen` doesn't, and all that hangs on links that are made anew.
fn news<'a, K: Ord, V: PartialEq>(
    seen: &'a OrdMap<K, V>,
    wanted: &'a OrdMap<K, V>,
    anew: &BTreeSet<String>,
    dev: impl Fn(&K) -> &str,
) -> Vec<(&'a K, &'a V)> {
    if anew.is_empty() {
        let new = |item| match item {
            DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => Some((key, value)),
            DiffItem::Remove(..) => None,
        };
        return seen.diff(wanted).filter_map(new).collect();
    }
    wanted.iter().filter(|(key, value)| anew.contains(dev(key)) || seen.get(*key) != Some(*value)).collect()
}

/// The keys that `seen` has and `wanted` hasn't.
fn gone<'a, K: Ord, V: PartialEq>(
    seen: &'a OrdMap<K, V>,
    wanted: &'a OrdMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    seen.diff(wanted).filter_map(|item| match item {
        DiffItem::Remove(key, value) => Some((key, value)),
        _ => None,
    })
}

/// Tells what may be removed in a namespace.
struct Owner<'a> {
    place: &'a Place,
    believed: &'a Seen,
    config: &'a Config,
}

impl Owner<'_> {
    fn link(&self, name: &str) -> bool {
        match self.place {
            Place::Host => self.config.owns(name),
            Place::Balancer(_) => true,
            // The end in the balancer or on the bridge goes, and this one with it.
            Place::Sandbox(_) => false,
        }
    }

    /// Whether what hangs on a link is ours, or what `known` says that we made.
    fn on(&self, dev: &str, known: bool) -> bool {
        known || self.link(dev)
    }
}

/// The difference of one namespace.
struct One<'a> {
    place: &'a Place,
    owner: Owner<'a>,
    anew: &'a BTreeSet<String>,
    steps: &'a mut Vec<Step>,
}

impl One<'_> {
    fn push(&mut self, phase: Phase, op: Op) {
        self.steps.push(Step { place: self.place.clone(), phase, op });
    }

    fn links(&mut self, seen: &Seen, wanted: &Space, all: &BTreeMap<Place, Planned>) {
        for (name, link) in &wanted.links {
            let found = seen.links.get(name).filter(|_| !self.anew.contains(name));
            let leads_nowhere = matches!(&link.kind, LinkKind::Veth { peer } if !all.contains_key(&peer.place));
            if found.is_none() && leads_nowhere {
                continue;
            }
            if self.anew.contains(name) && link.kind != LinkKind::End {
                if seen.links.contains_key(name) {
                    self.push(Phase::Unlink, Op::DelLink { name: name.clone() });
                }
                self.push(Phase::Link, Op::AddLink { name: name.clone(), link: link.clone() });
            }
            self.state(name, link, found);
        }
    }

    /// MTU, MAC, master, flags, up. A link that was just made has its MAC and MTU, from whichever end it was made.
    fn state(&mut self, name: &str, link: &Link, found: Option<&SeenLink>) {
        let made_here = found.is_none() && (link.kind != LinkKind::End || self.anew.contains(name));
        let name = || name.to_owned();
        if !made_here && found.is_none_or(|f| f.mtu != link.mtu) {
            self.push(Phase::LinkState, Op::SetMtu { name: name(), mtu: link.mtu });
        }
        if let Some(mac) = link.mac.filter(|mac| !made_here && found.is_none_or(|f| f.mac != Some(*mac))) {
            self.push(Phase::LinkState, Op::SetMac { name: name(), mac });
        }
        let joins = found.map_or(link.master.is_some(), |f| f.master != link.master);
        if joins {
            self.push(Phase::LinkState, Op::SetMaster { name: name(), master: link.master.clone() });
        }
        // A port that was just made has no flags, and one that joins another bridge has lost them.
        let flags = found.filter(|_| !joins).map(|f| f.port).unwrap_or_default();
        if link.master.is_some() && flags != link.port {
            self.push(Phase::LinkState, Op::SetPort { name: name(), flags: link.port });
        }
        if found.is_none_or(|f| !f.up) {
            self.push(Phase::LinkState, Op::SetUp { name: name() });
        }
    }

    fn layer3(&mut self, seen: &Seen, wanted: &Space) {
        let kept = |dev: &str, anew: &BTreeSet<String>| !anew.contains(dev);
        let anew = self.anew;
        for (path, value) in &wanted.sysctls {
            let of_new_link = path.split('/').any(|part| anew.contains(part));
            // What new links take over comes before them: one that was up before IPv6 was off had an address of it for a
            // moment. All that needs no link of ours goes with it.
            let of_link = path.split('/').any(|part| wanted.links.contains_key(part));
            let phase = if of_link { Phase::Layer3 } else { Phase::Unlink };
            if of_new_link || seen.sysctls.get(path) != Some(value) {
                self.push(phase, Op::SetSysctl { path: path.clone(), value: value.clone() });
            }
        }
        let new_address = |item| match item {
            ordset::DiffItem::Add(item) => Some(item),
            _ => None,
        };
        let lost = wanted.addresses.iter().filter(|(dev, _)| !anew.is_empty() && anew.contains(dev));
        let lost = lost.filter(|item| seen.addresses.contains(*item));
        for (dev, address) in seen.addresses.diff(&wanted.addresses).filter_map(new_address).chain(lost) {
            self.push(Phase::Layer3, Op::AddAddress { dev: dev.clone(), address: *address });
        }
        for ((dev, address), mac) in news(&seen.neighbours, &wanted.neighbours, anew, |(dev, _)| dev) {
            self.push(Phase::Layer3, Op::SetNeighbour { dev: dev.clone(), address: *address, mac: *mac });
        }
        for (key, vtep) in news(&seen.fdb, &wanted.fdb, anew, |key| &key.dev) {
            self.push(Phase::Layer3, Op::SetFdb { key: key.clone(), vtep: *vtep });
        }
        for (key, route) in &wanted.routes {
            if !kept(&route.dev, anew) || seen.routes.get(key) != Some(route) {
                self.push(Phase::Layer3, Op::SetRoute { key: *key, route: route.clone() });
            }
        }
        for rule in wanted.rules.difference(&seen.rules) {
            self.push(Phase::Layer3, Op::AddRule { rule: *rule });
        }
    }

    fn firewall(&mut self, seen: &Seen, wanted: &Space) {
        let mut tables = seen.tables.clone();
        // Some kernels drop the chains of a device with the device, others keep them: make them (no change if they are
        // there) and fill them anew.
        let mut ops = Vec::new();
        for (id, table) in wanted.tables.iter().filter(|_| !self.anew.is_empty()) {
            for (name, chain) in table.chains.iter() {
                let device = chain.base.as_ref().and_then(|b| b.device.as_ref());
                let found = tables.get_mut(id).and_then(|t| t.chains.get_mut(name));
                if let Some(tags) = found.filter(|_| device.is_some_and(|d| self.anew.contains(d))) {
                    *tags = vec![String::new()];
                    ops.push(NftOp::AddChain { table: id.clone(), chain: name.clone(), base: chain.base.clone() });
                }
            }
        }
        ops.extend(diff_tables(&tables, &wanted.tables));
        if !ops.is_empty() {
            self.push(Phase::Firewall, Op::Nft { ops });
        }
    }

    fn removals(&mut self, seen: &Seen, wanted: &Space) {
        let believed = self.owner.believed;
        let no_link = |dev: &str| !wanted.links.contains_key(dev);
        for (key, vtep) in gone(&seen.fdb, &wanted.fdb) {
            if !no_link(&key.dev) && self.owner.on(&key.dev, believed.fdb.contains_key(key)) {
                self.push(Phase::Remove, Op::DelFdb { key: key.clone(), vtep: *vtep });
            }
        }
        for (key, _) in gone(&seen.neighbours, &wanted.neighbours) {
            let (dev, address) = key;
            if !no_link(dev) && self.owner.on(dev, believed.neighbours.contains_key(key)) {
                self.push(Phase::Remove, Op::DelNeighbour { dev: dev.clone(), address: *address });
            }
        }
        for rule in seen.rules.difference(&wanted.rules) {
            if believed.rules.contains(rule) || matches!(self.place, Place::Balancer(_)) {
                self.push(Phase::Remove, Op::DelRule { rule: *rule });
            }
        }
        for (key, route) in seen.routes.iter().filter(|(key, _)| !wanted.routes.contains_key(*key)) {
            if !no_link(&route.dev) && self.owner.on(&route.dev, believed.routes.contains_key(key)) {
                self.push(Phase::Remove, Op::DelRoute { key: *key, route: route.clone() });
            }
        }
        for item in seen.addresses.diff(&wanted.addresses) {
            let ordset::DiffItem::Remove(item) = item else { continue };
            let (dev, address) = item;
            if !no_link(dev) && self.owner.on(dev, believed.addresses.contains(item)) {
                self.push(Phase::Remove, Op::DelAddress { dev: dev.clone(), address: *address });
            }
        }
        for name in seen.links.keys().filter(|name| no_link(name)) {
            if self.owner.link(name) {
                self.push(Phase::Remove, Op::DelLink { name: name.clone() });
            }
        }
    }
}
