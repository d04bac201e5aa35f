//! Plans one desired value after another, and plans only what changed: what a service, a container or another node says
//! is taken out of the ledgers and put in anew, and the keys that this touches are written into the last plan.
//!
//! There is one way to a plan: the first one is made of everything that is "new". The result never depends on the way,
//! only on the value, the facts, and the slots in them; a property test compares. Whatever is not of services, containers
//! or peers (see [`Frame`]) makes the planner begin anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;

use super::{Config, Facts, Frame, NodePlan, Planned, balancer, host, sandbox};
use crate::desired::{Desired, Network, Protocol, Sandbox, Service};
use crate::ledger::{Ledger, Source};
use crate::names::NameTable;
use crate::slots::{Backend, Front, FrontKey, Slots, place};
use crate::space::{Place, Space};

/// Plans for one node, each from the one before.
#[derive(Debug)]
pub struct Planner {
    config: Config,
    state: Option<State>,
}

impl Planner {
    /// A planner that has planned nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, state: None }
    }

    /// What [`plan`](super::plan) says about the same value and facts, at the cost of what changed since the last call.
    pub fn next(&mut self, desired: &Arc<Desired>, facts: &Facts) -> NodePlan {
        let frame = Frame::new(desired, &self.config, facts);
        let (state, replaced) = match self.state.take() {
            Some(state) if *state.frame == frame => (state, BTreeMap::new()),
            other => (State::new(frame), other.map(|state| state.spaces).unwrap_or_default()),
        };
        let state = self.state.insert(state);
        state.advance(desired, facts);
        // What came out the same is the same, and nobody has to compare it again.
        for (place, planned) in &mut state.spaces {
            if let Some(before) = replaced.get(place).filter(|before| ***before == **planned) {
                *planned = before.clone();
            }
        }
        NodePlan {
            generation: desired.generation,
            spaces: state.spaces.clone(),
            slots: state.slots.clone(),
            names: state.names.clone(),
        }
    }
}

/// An open sandbox that is attached to something.
#[derive(Debug, Clone)]
struct Plug {
    sandbox: Arc<Sandbox>,
    lease: Option<Ipv4Addr>,
}

impl Plug {
    fn same(&self, other: &Self) -> bool {
        let sandbox = Arc::ptr_eq(&self.sandbox, &other.sandbox) || self.sandbox == other.sandbox;
        sandbox && self.lease == other.lease
    }

    /// Its gateway address, if it gets a way out.
    fn way_out(&self) -> Option<Ipv4Addr> {
        self.lease.filter(|_| self.sandbox.gateway)
    }
}

#[derive(Debug)]
struct State {
    frame: Arc<Frame>,
    /// The value that the last plan is of.
    desired: Arc<Desired>,
    /// Open sandboxes; `None` = attached to nothing.
    sandboxes: BTreeMap<String, Option<Plug>>,
    /// Addresses by network, each with the node that it is on.
    reach: BTreeMap<String, Ledger<Ipv4Addr, Ipv4Addr>>,
    /// Virtual addresses by network.
    vips: BTreeMap<String, Ledger<Ipv4Addr, ()>>,
    /// Who is ready behind each front.
    fronts: Ledger<FrontKey, BTreeSet<Backend>>,
    /// Ports of the node that lead to one container: its gateway address and port.
    host_ports: Ledger<(Protocol, u16), (Ipv4Addr, u16)>,
    /// Tasks of services with a published UDP port.
    serves_udp: Ledger<String, ()>,
    slots: Slots,
    names: NameTable,
    spaces: BTreeMap<Place, Planned>,
    /// Namespaces that this plan has changed so far.
    edited: BTreeMap<Place, Space>,
}

/// What one service says.
#[derive(Default)]
struct Says {
    reach: Vec<(String, Ipv4Addr, Ipv4Addr)>,
    vips: Vec<(String, Ipv4Addr)>,
    fronts: BTreeMap<FrontKey, BTreeSet<Backend>>,
    serves_udp: Vec<String>,
}

impl State {
    /// The plan of a node whose networks nobody is on.
    fn new(frame: Frame) -> Self {
        let mut edited = BTreeMap::from([(Place::Host, host::space(&frame))]);
        for (id, network) in &frame.networks {
            edited.insert(Place::Balancer(id.clone()), balancer::space(&frame, network));
        }
        Self {
            names: NameTable::on(frame.networks.values()),
            reach: frame.networks.keys().map(|id| (id.clone(), Ledger::default())).collect(),
            vips: frame.networks.keys().map(|id| (id.clone(), Ledger::default())).collect(),
            frame: Arc::new(frame),
            desired: Arc::default(),
            sandboxes: BTreeMap::new(),
            fronts: Ledger::default(),
            host_ports: Ledger::default(),
            serves_udp: Ledger::default(),
            slots: Slots::new(),
            spaces: BTreeMap::new(),
            edited,
        }
    }

    fn advance(&mut self, desired: &Arc<Desired>, facts: &Facts) {
        let last = std::mem::replace(&mut self.desired, desired.clone());
        for (_, old, new) in changes(&last.networks, &desired.networks) {
            self.change_peers(old.map(Arc::as_ref), new.map(Arc::as_ref));
        }
        for (_, old, new) in changes(&last.services, &desired.services) {
            self.change_service(old.map(Arc::as_ref), new.map(Arc::as_ref));
        }
        for (id, old, new) in changes(&last.attachments, &desired.attachments) {
            self.names.change_sandbox(id, old.map(Arc::as_ref), new.map(Arc::as_ref));
        }
        let planned_anew = self.change_sandboxes(desired, facts);
        self.write_fronts(&facts.slots);
        self.write_networks();
        self.write_sandboxes(planned_anew);
        for key in self.host_ports.changes() {
            let to = self.host_ports.about(&key).next_back().map(|(_, to)| *to);
            if let Some(space) = self.edit(&Place::Host) {
                host::host_port(space, key.0, key.1, to);
            }
        }
        for (place, space) in std::mem::take(&mut self.edited) {
            if self.spaces.get(&place).is_none_or(|held| **held != space) {
                self.spaces.insert(place, Planned::new(Arc::new(space)));
            }
        }
    }

    /// The space of a namespace, to be changed; `None` for one that isn't planned.
    fn edit(&mut self, place: &Place) -> Option<&mut Space> {
        if !self.edited.contains_key(place) {
            let space = Space::clone(self.spaces.get(place)?);
            self.edited.insert(place.clone(), space);
        }
        self.edited.get_mut(place)
    }

    fn change_peers(&mut self, old: Option<&Network>, new: Option<&Network>) {
        let Some(network) = new.or(old) else { return };
        let Some(said) = self.reach.get_mut(&network.id) else { return };
        let others = |n: Option<&Network>| {
            let peers = n.map(|n| n.peers.clone()).unwrap_or_default();
            peers.into_iter().filter(|(_, p)| p.balancer != network.balancer)
        };
        for (id, peer) in others(old) {
            said.take(&peer.balancer, &Source::Peer(id));
        }
        for (id, peer) in others(new) {
            said.put(peer.balancer, &Source::Peer(id), peer.underlay);
        }
    }

    fn change_service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        let Some(id) = new.or(old).map(|s| s.id.clone()) else { return };
        self.names.change_service(old, new);
        let source = Source::Service(id);
        let (old, new) = (old.map(|s| self.says(s)), new.map(|s| self.says(s)));
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        for (network, address, _) in &old.reach {
            self.reach.get_mut(network).into_iter().for_each(|said| said.take(address, &source));
        }
        for (network, address, vtep) in new.reach {
            self.reach.get_mut(&network).into_iter().for_each(|said| said.put(address, &source, vtep));
        }
        for (network, vip) in &old.vips {
            self.vips.get_mut(network).into_iter().for_each(|said| said.take(vip, &source));
        }
        for (network, vip) in new.vips {
            self.vips.get_mut(&network).into_iter().for_each(|said| said.put(vip, &source, ()));
        }
        old.fronts.keys().for_each(|key| self.fronts.take(key, &source));
        new.fronts.into_iter().for_each(|(key, ready)| self.fronts.put(key, &source, ready));
        old.serves_udp.iter().for_each(|task| self.serves_udp.take(task, &source));
        new.serves_udp.into_iter().for_each(|task| self.serves_udp.put(task, &source, ()));
    }

    fn says(&self, service: &Service) -> Says {
        let mut says = Says::default();
        for endpoint in &service.endpoints {
            let at = |(network, address): (&String, &Ipv4Addr)| (network.clone(), *address, endpoint.underlay);
            says.reach.extend(endpoint.addresses.iter().map(at));
        }
        for (id, network) in &self.frame.networks {
            let ready = |port: u16| {
                let at = service.endpoints.iter().filter(|e| e.ready).filter_map(|e| e.addresses.get(id));
                at.map(move |address| Backend { address: *address, port })
            };
            let key = |front| FrontKey { network: id.clone(), front };
            if let Some(vip) = service.networks.get(id).and_then(|on| on.vip) {
                says.vips.push((id.clone(), vip));
                says.fronts.entry(key(Front::Vip(vip))).or_default().extend(ready(0));
            }
            for port in service.ports.iter().filter(|_| network.ingress) {
                let front = key(Front::Port(port.protocol, port.published));
                says.fronts.entry(front).or_default().extend(ready(port.target));
            }
        }
        if service.ports.iter().any(|p| p.protocol == Protocol::Udp) {
            says.serves_udp.extend(service.endpoints.iter().map(|e| e.task_id.clone()));
        }
        says
    }

    /// Plugs and unplugs; gives the sandboxes whose own space is to be planned.
    fn change_sandboxes(&mut self, desired: &Desired, facts: &Facts) -> BTreeSet<String> {
        let plug = |id: &String, lease: Option<Ipv4Addr>| {
            desired.attachments.get(id).map(|sandbox| Plug { sandbox: sandbox.clone(), lease })
        };
        let open: BTreeMap<_, _> = facts.sandboxes.iter().map(|(id, lease)| (id.clone(), plug(id, *lease))).collect();
        let last = std::mem::replace(&mut self.sandboxes, open.clone());
        let mut anew = BTreeSet::new();
        for (id, old) in &last {
            match open.get(id) {
                Some(Some(new)) if old.as_ref().is_some_and(|old| old.same(new)) => {}
                Some(None) if old.is_none() => {}
                new => {
                    old.iter().for_each(|old| self.unplug(id, old));
                    if new.is_none() {
                        self.spaces.remove(&Place::Sandbox(id.clone()));
                    } else {
                        anew.insert(id.clone());
                    }
                }
            }
        }
        anew.extend(open.keys().filter(|id| !last.contains_key(*id)).cloned());
        for id in &anew {
            if let Some(Some(plug)) = open.get(id) {
                self.plug(id, plug);
            }
        }
        if last.len() != open.len() || !anew.is_empty() || !self.spaces.contains_key(&Place::Host) {
            let needed = !self.frame.ingress.is_empty() || open.values().flatten().any(|plug| plug.sandbox.gateway);
            self.edit(&Place::Host).into_iter().for_each(|space| host::forward(space, needed));
        }
        anew
    }

    /// The networks of a sandbox that exist: id, name of the link, attachment.
    fn networks_of(&self, sandbox: &Sandbox) -> Vec<(String, String, crate::desired::Attachment)> {
        let overlays = sandbox::overlays(&self.frame, sandbox);
        overlays.map(|(i, network, at)| (network.id.clone(), sandbox::overlay_name(i), at.clone())).collect()
    }

    fn plug(&mut self, id: &str, plug: &Plug) {
        let (source, frame) = (Source::Sandbox(id.to_owned()), self.frame.clone());
        for (network, end, attachment) in self.networks_of(&plug.sandbox) {
            let own = frame.underlay.address;
            self.reach.get_mut(&network).into_iter().for_each(|said| said.put(attachment.address, &source, own));
            let space = self.edit(&Place::Balancer(network));
            space.into_iter().for_each(|space| balancer::plug(&frame, space, id, end.clone(), &attachment));
        }
        let Some(lease) = plug.way_out() else { return };
        let space = self.edit(&Place::Host);
        space.into_iter().for_each(|space| host::plug(&frame, space, id, &plug.sandbox, lease));
        for port in &plug.sandbox.host_ports {
            self.host_ports.put((port.protocol, port.published), &source, (lease, port.target));
        }
    }

    fn unplug(&mut self, id: &str, plug: &Plug) {
        let (source, frame) = (Source::Sandbox(id.to_owned()), self.frame.clone());
        for (network, _, attachment) in self.networks_of(&plug.sandbox) {
            self.reach.get_mut(&network).into_iter().for_each(|said| said.take(&attachment.address, &source));
            let space = self.edit(&Place::Balancer(network));
            space.into_iter().for_each(|space| balancer::unplug(space, id, &attachment));
        }
        if plug.way_out().is_some() {
            self.edit(&Place::Host).into_iter().for_each(|space| host::unplug(&frame, space, id));
        }
        for port in &plug.sandbox.host_ports {
            self.host_ports.take(&(port.protocol, port.published), &source);
        }
    }

    /// Gives slots to those who are ready, going on from `held`; fronts without any are left out, so that nothing is
    /// balanced to nobody.
    fn write_fronts(&mut self, held: &Slots) {
        for item in self.slots.diff(held) {
            let (DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. }) = item;
            self.fronts.touch(key);
        }
        let mut ports = BTreeSet::new();
        for key in self.fronts.changes() {
            let ready: BTreeSet<Backend> = self.fronts.about(&key).flat_map(|(_, ready)| ready).copied().collect();
            let shown = self.slots.get(&key).cloned().unwrap_or_default();
            let slots = place(held.get(&key).map(Vec::as_slice).unwrap_or_default(), &ready);
            if shown == slots {
                continue;
            }
            let space = self.edit(&Place::Balancer(key.network.clone()));
            space.into_iter().for_each(|space| balancer::front(space, key.front, &shown, &slots));
            if let Front::Port(protocol, port) = key.front {
                ports.insert((protocol, port));
            }
            if slots.is_empty() {
                self.slots.remove(&key);
            } else {
                self.slots.insert(key, slots);
            }
        }
        for (protocol, port) in ports {
            let leads = |network: &String| {
                let key = FrontKey { network: network.clone(), front: Front::Port(protocol, port) };
                self.slots.contains_key(&key)
            };
            let network = self.frame.ingress.iter().map(|(id, _)| id).rfind(|id| leads(id));
            let balancer = network.and_then(|id| self.frame.link_ends(id)).map(|(_, balancer)| balancer);
            let space = self.edit(&Place::Host);
            space.into_iter().for_each(|space| host::mesh(space, protocol, port, balancer));
        }
    }

    /// Neighbours, forwarding entries and virtual addresses.
    fn write_networks(&mut self) {
        let (frame, mut reach, mut vips) =
            (self.frame.clone(), std::mem::take(&mut self.reach), std::mem::take(&mut self.vips));
        for (network, said) in &mut reach {
            for address in said.changes() {
                let space = self.edit(&Place::Balancer(network.clone()));
                space.into_iter().for_each(|space| balancer::reach(&frame, space, address, said));
            }
        }
        for (network, said) in &mut vips {
            for vip in said.changes() {
                let wanted = said.about(&vip).next().is_some();
                let space = self.edit(&Place::Balancer(network.clone()));
                space.into_iter().for_each(|space| balancer::vip(space, vip, wanted));
            }
        }
        (self.reach, self.vips) = (reach, vips);
    }

    fn write_sandboxes(&mut self, mut anew: BTreeSet<String>) {
        anew.extend(self.serves_udp.changes().into_iter().filter(|task| self.sandboxes.contains_key(task)));
        for id in anew {
            let serves_udp = self.serves_udp.about(&id).next().is_some();
            let plug = self.sandboxes.get(&id).and_then(Option::as_ref);
            let space = plug.map(|plug| sandbox::space(&self.frame, &plug.sandbox, plug.lease, serves_udp));
            self.edited.insert(Place::Sandbox(id), space.unwrap_or_default());
        }
    }
}

/// Key, old value, new value.
type Changed<'a, V> = (&'a String, Option<&'a Arc<V>>, Option<&'a Arc<V>>);

/// What differs between two maps. What is shared is seen without looking into it.
fn changes<'a, V: PartialEq>(
    old: &'a BTreeMap<String, Arc<V>>,
    new: &'a BTreeMap<String, Arc<V>>,
) -> Vec<Changed<'a, V>> {
    let mut found = Vec::new();
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (olds.peek().copied(), news.peek().copied()) {
            (None, None) => return found,
            (Some((key, value)), other) if other.is_none_or(|(k, _)| key < k) => {
                found.push((key, Some(value), None));
                olds.next();
            }
            (Some((key, was)), Some((k, is))) if key == k => {
                if !Arc::ptr_eq(was, is) && was != is {
                    found.push((key, Some(was), Some(is)));
                }
                olds.next();
                news.next();
            }
            (_, Some((key, value))) => {
                found.push((key, None, Some(value)));
                news.next();
            }
            // The second arm takes every old value that has no partner.
            (Some(_), None) => {
                olds.next();
            }
        }
    }
}
