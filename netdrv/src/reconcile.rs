//! One round of the loop: read what is wanted, compare with what is there (or believed to be), carry the difference out.
//!
//! A round after a change trusts what the last one left; a round for verification reads the kernel. A namespace in which
//! something failed isn't believed any more, so the next round reads it. There is no other path at start: the first
//! round believes nothing, finds what an earlier daemon left, and changes only what differs.

mod lease;
mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use skep_net_kernel::ns::{self, Namespace};
use skep_net_plan::{
    Config as Names, Desired, Facts, Family, Flush, FrontKey, Link, LinkKind, NodePlan, Op, Place, Planner, Seen,
    Slots, Step, diff, flushes,
};
use tokio::sync::watch;

use lease::Unread;
pub(crate) use look::Look;

use crate::apply::{self, Failure, Wires};
use crate::dns::{Book, Resolver, Upstream};
use crate::error::{Error, Result};
use crate::gateway::Leases;
use crate::pins::{self, Opened, Opening, Pins};
use crate::status::{SandboxState, Status};
use crate::watches::Watches;
use crate::wire::{Wire, blocking};

/// Flushes that failed and are tried again; beyond that the oldest are given up.
const MAX_FLUSHES: usize = 1024;

/// What the loop knows.
pub(crate) struct Reconciler {
    names: Names,
    pins: Pins,
    opening: Opening,
    upstream: Upstream,
    wires: Wires,
    /// What each namespace holds, as the last round left it: the images of the plan's namespaces, shared with it.
    believed: BTreeMap<Place, Arc<Seen>>,
    planner: Planner,
    slots: Slots,
    leases: Leases,
    unread: Unread,
    resolvers: BTreeMap<String, Resolver>,
    book: watch::Sender<Arc<Book>>,
    /// The underlay's address and MTU, as last found.
    underlay: Option<(Ipv4Addr, u32)>,
    /// Whether packets on bridges are translated, as last found.
    bridged: bool,
    /// Whether this kernel filters frames on bridges; `None` = not asked yet.
    filters_frames: Option<bool>,
    flushes: Vec<Flush>,
    watches: Watches,
    /// Entries that the last round read.
    read: usize,
    /// Namespaces of which the kernel told a change that wasn't ours.
    disturbed: BTreeSet<Place>,
    /// The namespace after which the next verification goes on.
    cursor: Option<Place>,
    desired: Arc<Desired>,
    status: Status,
}

/// What a round leaves for the loop to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is as wanted.
    Settled,
    /// Something failed; try again soon.
    Again,
}

impl Reconciler {
    pub(crate) fn new(names: Names, pins: Pins, opening: Opening, node: Namespace) -> Result<Self> {
        let upstream = Upstream::new(node.clone());
        let wires = BTreeMap::from([(Place::Host, Wire::open(node)?)]);
        let desired = Arc::new(Desired::default());
        Ok(Self {
            planner: Planner::new(names.clone()),
            unread: Unread::new(pins.open_sandboxes()?),
            names,
            pins,
            opening,
            upstream,
            wires,
            believed: BTreeMap::new(),
            slots: Slots::new(),
            leases: Leases::new(desired.gateway),
            resolvers: BTreeMap::new(),
            book: watch::channel(Arc::default()).0,
            underlay: None,
            bridged: false,
            filters_frames: None,
            flushes: Vec::new(),
            watches: Watches::new(),
            read: 0,
            disturbed: BTreeSet::new(),
            cursor: None,
            desired,
            status: Status::default(),
        })
    }

    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    /// Returns when the kernel tells of changes; then [`Reconciler::hear`] is to be called.
    pub(crate) async fn told(&self) {
        self.watches.told().await;
    }

    /// Takes in what the kernel told.
    pub(crate) fn hear(&mut self) {
        let told = self.watches.collect();
        self.disturbed.extend(told);
    }

    /// How many entries the last round read from the kernel.
    pub(crate) fn entries_read(&self) -> usize {
        self.read
    }

    /// Whether there is a namespace to look at because of what was told.
    pub(crate) fn is_disturbed(&self) -> bool {
        !self.disturbed.is_empty()
    }

    /// One round.
    pub(crate) async fn round(&mut self, desired: Arc<Desired>, look: Look) -> Outcome {
        if desired.generation < self.desired.generation {
            let (older, newer) = (desired.generation, self.desired.generation);
            tracing::warn!(generation = older, current = newer, "older desired state refused");
        } else {
            self.desired = usable(desired);
        }
        match self.try_round(look).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(generation = self.desired.generation, %error, "round given up");
                self.status.last_error = Some(error.to_string());
                Outcome::Again
            }
        }
    }

    async fn try_round(&mut self, look: Look) -> Result<Outcome> {
        let mut failures = self.open_namespaces().await?;
        self.watches.follow(&self.wires);
        // Nothing is known yet, at the start: everything stays as it is.
        if self.desired.generation == 0 {
            self.report(&failures, &BTreeSet::new());
            return Ok(Outcome::Settled);
        }
        // Before anything is read: what is found is taken for a lease if it is of this subnet.
        self.leases.set_subnet(self.desired.gateway);
        // One that was only just made has nothing yet that could be as wanted.
        let new = Seen::default();
        let trusted: BTreeSet<Place> =
            self.believed.iter().filter(|(_, seen)| ***seen != new).map(|(place, _)| place.clone()).collect();
        let seen = self.look(look, &mut failures).await;
        let mtu = self.underlay_mtu(look == Look::Around).await?;
        // Also before the node's namespace is planned for the first time: ports that are isolated for a moment cut flows.
        if look == Look::Around || !self.believed.contains_key(&Place::Host) {
            self.bridged = self.is_bridged(seen.get(&Place::Host)).await?;
        }
        let desired = self.desired.clone();
        let (sandboxes, complete) = self.lease(&seen, &mut failures);
        let facts = Facts { mtu, sandboxes, slots: self.slots.clone(), bridged: self.bridged };
        let mut wanted = self.planner.next(&desired, &facts);
        // Namespaces that can't be read can't be worked on.
        wanted.spaces.retain(|place, _| seen.contains_key(place) && (complete || *place != Place::Host));
        let steps = diff(&seen, &self.believed, &wanted.spaces, &self.names);
        self.count_drift(look, &trusted, &steps);
        failures.extend(apply::apply(&mut self.wires, &steps, &wanted.spaces).await);
        self.ignore_echo(&steps);
        self.flush(&wanted, &steps).await;
        self.believe(&wanted, &failures);
        self.book.send_replace(Arc::new(Book { desired: self.desired.clone(), names: wanted.names }));
        self.keep_slots(wanted.slots, &failures);
        self.resolve(&mut failures);
        let attached = facts.sandboxes.into_keys().filter(|id| self.has_networks(id)).collect();
        self.report(&failures, &attached);
        Ok(if failures.is_empty() && self.flushes.is_empty() { Outcome::Settled } else { Outcome::Again })
    }

    /// Opens what is pinned and wanted, makes balancers that are missing, removes those that are no longer wanted, and
    /// forgets sandboxes that were closed.
    async fn open_namespaces(&mut self) -> Result<Vec<Failure>> {
        let mut failures = Vec::new();
        let pins = self.pins.clone();
        let (sandboxes, balancers) =
            blocking(move || Ok::<_, Error>((pins.open_sandboxes()?, pins.open_balancers()?))).await??;
        let known = self.desired.generation > 0;
        let desired = self.desired.clone();
        for id in balancers.iter().filter(|id| known && !desired.networks.contains_key(*id)) {
            let place = Place::Balancer(id.clone());
            let wire = self.wires.remove(&place);
            self.forget(&place);
            let removed = pins::remove(self.pins.balancer(id)?, wire).await;
            // It took the other ends of its pairs along.
            self.wires.values_mut().for_each(Wire::forget);
            tracing::info!(network.id = %id, "balancer removed");
            failures.extend(removed.err().map(|error| Failure { culprit: place.clone(), place, error }));
        }
        let open: BTreeSet<String> = sandboxes.into_iter().collect();
        let closed: Vec<_> =
            self.wires.keys().filter(|p| matches!(p, Place::Sandbox(id) if !open.contains(id))).cloned().collect();
        for place in closed {
            self.forget(&place);
        }
        self.resolvers.retain(|id, _| open.contains(id));
        self.leases.retain(|id| open.contains(id));
        self.unread.retain(|id| open.contains(id));
        let wanted = open
            .iter()
            .map(|id| (Place::Sandbox(id.clone()), self.pins.sandbox(id)))
            .chain(desired.networks.keys().map(|id| (Place::Balancer(id.clone()), self.pins.balancer(id))));
        for (place, path) in wanted.filter(|(place, _)| known || matches!(place, Place::Sandbox(_))).collect::<Vec<_>>()
        {
            if let Err(error) = self.open(&place, path).await {
                failures.push(Failure { culprit: place.clone(), place, error });
            }
        }
        Ok(failures)
    }

    async fn open(&mut self, place: &Place, path: Result<PathBuf>) -> Result<()> {
        let path = path?;
        if self.wires.contains_key(place) {
            return Ok(());
        }
        let wire = match place {
            // Only its opener makes a sandbox, and hands it over then.
            Place::Sandbox(id) if self.opening.contains(id) => return Ok(()),
            Place::Sandbox(id) => match blocking(move || Namespace::open(&path)).await? {
                Ok(namespace) => Wire::open(namespace)?,
                Err(ns::Error::NotFound { .. } | ns::Error::NotANamespace { .. }) => {
                    self.unread.forget(id);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            },
            _ => {
                let opened = pins::open_or_create(path).await?;
                self.hold(place, opened);
                return Ok(());
            }
        };
        self.wires.insert(place.clone(), wire);
        Ok(())
    }

    /// Takes a sandbox over from its opener.
    pub(crate) fn take(&mut self, id: &str, opened: Opened) {
        self.hold(&Place::Sandbox(id.to_owned()), opened);
    }

    fn hold(&mut self, place: &Place, opened: Opened) {
        if self.wires.contains_key(place) {
            return;
        }
        self.wires.insert(place.clone(), opened.wire);
        if opened.made {
            if let Place::Sandbox(id) = place {
                self.unread.forget(id);
            }
            self.believed.insert(place.clone(), Arc::new(Seen::default()));
        }
    }

    fn forget(&mut self, place: &Place) {
        self.wires.remove(place);
        self.believed.remove(place);
        self.watches.forget(place);
        self.disturbed.remove(place);
        match place {
            Place::Sandbox(id) => drop(self.resolvers.remove(id)),
            Place::Balancer(network) => self.slots = without(&self.slots, |key| key.network == *network),
            Place::Host => {}
        }
    }

    /// What the kernel told while steps were carried out is our own doing, where they were. If somebody else did something
    /// there in the same moment, it is found in turn.
    fn ignore_echo(&mut self, steps: &[Step]) {
        if steps.is_empty() {
            return;
        }
        let mut own: BTreeSet<&Place> = steps.iter().map(|step| &step.place).collect();
        for step in steps {
            match &step.op {
                Op::AddLink { link: Link { kind: LinkKind::Veth { peer }, .. }, .. } => drop(own.insert(&peer.place)),
                // Made in the node's namespace, and gone from there at once.
                Op::AddLink { link: Link { kind: LinkKind::Vxlan { .. }, .. }, .. } => drop(own.insert(&Place::Host)),
                _ => {}
            }
        }
        let told = self.watches.collect();
        self.disturbed.extend(told.into_iter().filter(|place| !own.contains(place)));
    }

    /// Steps in a namespace that was as wanted after the last round mend what somebody else broke.
    fn count_drift(&mut self, look: Look, trusted: &BTreeSet<Place>, steps: &[Step]) {
        if look == Look::Nowhere || self.status.applied != self.desired.generation {
            return;
        }
        let mut places: BTreeMap<&Place, u64> = BTreeMap::new();
        for step in steps.iter().filter(|s| trusted.contains(&s.place)) {
            *places.entry(&step.place).or_default() += 1;
        }
        for (place, repaired) in places {
            self.status.repaired += repaired;
            tracing::warn!(place = %place, steps = repaired, "drift repaired");
        }
    }

    async fn flush(&mut self, wanted: &NodePlan, steps: &[Step]) {
        let mut pending = std::mem::take(&mut self.flushes);
        pending.extend(flushes(&self.slots, &wanted.slots, steps));
        pending.sort();
        pending.dedup();
        for (flush, error) in apply::flush(&self.wires, pending).await {
            tracing::warn!(place = %flush.place, %error, "tracked connections not flushed; trying again");
            self.flushes.push(flush);
        }
        let excess = self.flushes.len().saturating_sub(MAX_FLUSHES);
        self.flushes.drain(..excess);
    }

    fn believe(&mut self, wanted: &NodePlan, failures: &[Failure]) {
        let doubtful: BTreeSet<&Place> = failures.iter().flat_map(|f| [&f.place, &f.culprit]).collect();
        self.believed = wanted
            .spaces
            .iter()
            .filter(|(place, _)| self.wires.contains_key(*place) && !doubtful.contains(*place))
            .map(|(place, space)| (place.clone(), space.image().clone()))
            .collect();
    }

    /// Goes on from these slots; where a balancer may still have the old ones, from those, so that its flushes come too.
    fn keep_slots(&mut self, new: Slots, failures: &[Failure]) {
        let doubtful = |key: &FrontKey| {
            failures.iter().any(|f| matches!(&f.place, Place::Balancer(network) if *network == key.network))
        };
        if !failures.iter().any(|f| matches!(f.place, Place::Balancer(_))) {
            self.slots = new;
            return;
        }
        let mut slots = without(&new, doubtful);
        slots.extend(without(&self.slots, |key| !doubtful(key)));
        self.slots = slots;
    }

    /// A resolver for every attached sandbox.
    fn resolve(&mut self, failures: &mut Vec<Failure>) {
        self.resolvers.retain(|id, resolver| resolver.alive() && self.desired.attachments.contains_key(id));
        for (place, wire) in &self.wires {
            let Place::Sandbox(id) = place else { continue };
            if self.resolvers.contains_key(id) || !self.desired.attachments.contains_key(id) {
                continue;
            }
            match Resolver::start(id, &wire.namespace, self.upstream.clone(), self.book.subscribe()) {
                Ok(resolver) => drop(self.resolvers.insert(id.clone(), resolver)),
                Err(error) => {
                    failures.push(Failure { culprit: place.clone(), place: place.clone(), error: error.into() });
                }
            }
        }
    }

    fn has_networks(&self, id: &str) -> bool {
        let sandbox = self.desired.attachments.get(id);
        sandbox.is_some_and(|s| s.networks.keys().all(|n| self.desired.networks.contains_key(n)))
    }

    fn report(&mut self, failures: &[Failure], attached: &BTreeSet<String>) {
        for failure in failures {
            tracing::error!(place = %failure.culprit, error = %failure.error, "step failed");
        }
        let why = |id: &String| {
            let own = failures.iter().find(|f| matches!(&f.culprit, Place::Sandbox(s) if s == id));
            own.map(|f| f.error.to_string())
        };
        let open = self.wires.keys().filter_map(|p| match p {
            Place::Sandbox(id) => Some(id),
            _ => None,
        });
        let ids: BTreeSet<_> = self.desired.attachments.keys().chain(open).cloned().collect();
        let state = |id: &String| match why(id) {
            Some(why) => SandboxState::Failed { why },
            None if attached.contains(id) && self.wires.contains_key(&Place::Sandbox(id.clone())) => {
                let address = self.believed.get(&Place::Sandbox(id.clone())).and_then(|seen| {
                    seen.addresses.iter().map(|(_, a)| a.addr).find(|a| self.desired.gateway.contains(*a))
                });
                SandboxState::Ready { gateway_address: address }
            }
            None => SandboxState::Pending,
        };
        self.status.sandboxes = ids.iter().map(|id| (id.clone(), state(id))).collect();
        self.status.last_error = failures.first().map(|f| f.error.to_string());
        // A sandbox's own trouble doesn't keep the others from being balanced right.
        if !failures.iter().any(|f| !matches!(f.culprit, Place::Sandbox(_))) {
            self.status.applied = self.desired.generation;
        }
    }

    /// Closes a sandbox: resolver, links and name are gone when this returns.
    pub(crate) async fn close(&mut self, id: &str) -> Result<()> {
        let path = self.pins.sandbox(id)?;
        let place = Place::Sandbox(id.to_owned());
        let wire = self.wires.remove(&place);
        self.forget(&place);
        // What was told until now is not of this.
        self.hear();
        let removed = pins::remove(path, wire).await;
        // It took the other ends of its pairs along, and that is no news, where they were.
        let ends = [self.names.gateway_link(id), Names::port_link(id)];
        self.wires.values_mut().for_each(|wire| ends.iter().for_each(|end| wire.forget_link(end)));
        let attached = self.desired.attachments.get(id);
        let own = |place: &Place| match place {
            Place::Host => true,
            Place::Balancer(network) => attached.is_some_and(|sandbox| sandbox.networks.contains_key(network)),
            Place::Sandbox(_) => false,
        };
        let told = self.watches.collect();
        self.disturbed.extend(told.into_iter().filter(|place| !own(place)));
        removed
    }

    /// Removes everything that drivers made on this node, whatever is wanted.
    pub(crate) async fn teardown(mut self) -> Result<()> {
        let mut first = None;
        let mut keep = |result: Result<()>| {
            if let Err(error) = result {
                tracing::error!(%error, "teardown step failed");
                first.get_or_insert(error);
            }
        };
        self.resolvers.clear();
        for id in self.pins.open_sandboxes()? {
            keep(self.close(&id).await);
        }
        for id in self.pins.open_balancers()? {
            self.forget(&Place::Balancer(id.clone()));
            keep(pins::remove(self.pins.balancer(&id)?, None).await);
        }
        keep(self.clear_node().await);
        self.pins.discard();
        first.map_or(Ok(()), Err)
    }

    /// Removes our links and our table from the node's namespace.
    async fn clear_node(&mut self) -> Result<()> {
        let Some(node) = self.wires.get_mut(&Place::Host) else { return Ok(()) };
        for link in node.links().await?.iter().filter(|l| self.names.owns(&l.name)) {
            skep_net_kernel::link::absent_is_fine(node.link.delete_link(link.index).await)?;
        }
        let tables = node.with_nft(|socket| socket.tables()).await?;
        for family in [Family::Ip, Family::Bridge] {
            let table = crate::firewall::table(&(family, "skep".to_owned()));
            if tables.iter().any(|found| found.table == table) {
                let mut batch = skep_net_kernel::nft::Batch::new();
                batch.remove_table(&table);
                node.commit(batch).await?;
            }
        }
        Ok(())
    }
}

/// Without the networks that this node has no address on yet.
fn usable(desired: Arc<Desired>) -> Arc<Desired> {
    if desired.networks.values().all(|n| !n.balancer.is_unspecified()) {
        return desired;
    }
    let mut less = Desired::clone(&desired);
    less.networks.retain(|_, n| !n.balancer.is_unspecified());
    Arc::new(less)
}

/// The slots of all fronts but these.
fn without(slots: &Slots, these: impl Fn(&FrontKey) -> bool) -> Slots {
    slots.iter().filter(|(key, _)| !these(key)).map(|(key, held)| (key.clone(), held.clone())).collect()
}
