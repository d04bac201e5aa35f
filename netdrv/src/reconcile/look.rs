//! What a round reads of the kernel: the namespaces that aren't believed, those in which something was disturbed, those
//! whose turn it is; and the few facts of the node that the plan needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_net_kernel::link::IpNet;
use skep_net_plan::{Family, FrontKey, Place, Seen, Slots, slots_of};

use super::Reconciler;
use crate::apply::Failure;
use crate::error::{Error, Result};
use crate::gateway::Leases;
use crate::observe::observe;
use crate::wire::blocking;

/// Namespaces that one verification reads at least, and the share of all that it reads (one in four): a full node is
/// verified within four times, and its idle cost stays small.
const VERIFIED: (usize, usize) = (8, 4);
/// Entries (neighbours, forwarding entries, elements) after which a verification leaves the rest to the next: reading
/// them takes the kernel some microseconds each, and changes wait meanwhile.
const ENTRIES: usize = 2000;
/// What a round reads of the kernel, beside namespaces that it doesn't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing: what the last round left is believed.
    Nowhere,
    /// The namespaces in which something was disturbed.
    Disturbed,
    /// Those too, and all whose turn it is.
    Around,
}

impl Reconciler {
    /// The namespaces to read for verification: the node's own, and those whose turn it is.
    fn due(&mut self) -> BTreeSet<Place> {
        let others: Vec<&Place> = self.wires.keys().filter(|place| **place != Place::Host).collect();
        let most = VERIFIED.0.max(others.len().div_ceil(VERIFIED.1)).min(others.len());
        let from = self.cursor.as_ref().map_or(0, |after| others.partition_point(|place| *place <= after));
        let (mut due, mut entries) = (BTreeSet::from([Place::Host]), 0);
        for place in others.iter().cycle().skip(from).take(most) {
            let size = self.believed.get(*place).map_or(0, |seen| size(seen));
            // The first one is read however large it is.
            if due.len() > 1 && entries + size > ENTRIES {
                break;
            }
            entries += size;
            due.insert((*place).clone());
            self.cursor = Some((*place).clone());
        }
        due
    }

    /// What every open namespace holds: read if it is due or not believed, else as believed. One that can't be read is
    /// left out of this round.
    pub(super) async fn look(&mut self, look: Look, failures: &mut Vec<Failure>) -> BTreeMap<Place, Arc<Seen>> {
        let mut seen = BTreeMap::new();
        let mut due = if look == Look::Around { self.due() } else { BTreeSet::new() };
        if look != Look::Nowhere {
            self.hear();
            self.status.woken += u64::from(!self.disturbed.is_empty());
            due.append(&mut self.disturbed);
        }
        self.read = 0;
        for (place, wire) in &mut self.wires {
            let believed = self.believed.get(place);
            if let Some(believed) = believed.filter(|_| !due.contains(place)) {
                seen.insert(place.clone(), believed.clone());
                continue;
            }
            match observe(place, wire, believed.map(Arc::as_ref)).await {
                Ok(found) => {
                    self.read += size(&found);
                    if believed.is_none() {
                        adopt(place, &found, &mut self.slots, &mut self.leases);
                    }
                    if let Place::Sandbox(id) = place {
                        self.unread.forget(id);
                    }
                    seen.insert(place.clone(), Arc::new(found));
                }
                Err(error) => failures.push(Failure { culprit: place.clone(), place: place.clone(), error }),
            }
        }
        seen
    }

    /// The MTU of the underlay: as given, or that of the link with the data-path address. An address that is gone for a
    /// moment leaves the last one.
    pub(super) async fn underlay_mtu(&mut self, verify: bool) -> Result<u32> {
        let underlay = self.desired.underlay.clone();
        if underlay.mtu != 0 {
            return Ok(underlay.mtu);
        }
        let last = self.underlay.filter(|(address, _)| *address == underlay.address).map(|(_, mtu)| mtu);
        if let Some(mtu) = last.filter(|_| !verify) {
            return Ok(mtu);
        }
        let Some(node) = self.wires.get(&Place::Host) else { return Err(Error::Stopped) };
        let address = IpNet::new(underlay.address, 0).address;
        let device = node.link.addresses().await?.into_iter().find(|a| a.net.address == address).map(|a| a.device);
        let links = node.link.links().await?;
        let found = links.iter().find(|l| Some(l.index) == device).map(|l| l.mtu).or(last);
        let mtu = found.ok_or(Error::NoUnderlay { address: underlay.address })?;
        self.underlay = Some((underlay.address, mtu));
        Ok(mtu)
    }

    /// Whether packets that cross the node's bridges are translated on the way, and we can do our part.
    pub(super) async fn is_bridged(&mut self, seen: Option<&Arc<Seen>>) -> Result<bool> {
        let Some(node) = self.wires.get_mut(&Place::Host) else { return Err(Error::Stopped) };
        let namespace = node.namespace.clone();
        // Where there is no such setting, there is no such thing.
        let setting = blocking(move || namespace.sysctl("net/bridge/bridge-nf-call-iptables")).await?;
        if !setting.is_ok_and(|value| value == "1") {
            return Ok(false);
        }
        // An earlier daemon's table shows as well what this kernel can.
        let shown = || seen.filter(|s| s.tables.keys().any(|(family, _)| *family == Family::Bridge)).map(|_| true);
        self.filters_frames = self.filters_frames.or_else(shown);
        if let Some(known) = self.filters_frames {
            return Ok(known);
        }
        let probed = node.commit(crate::firewall::probe_bridge_filter()).await;
        if let Err(error) = &probed {
            tracing::warn!(%error, "containers can't reach ports of this node that lead to containers of this node; \
                set net.bridge.bridge-nf-call-iptables to 0, or load nf_tables_bridge");
        }
        self.filters_frames = Some(probed.is_ok());
        Ok(probed.is_ok())
    }
}

/// How much there is to read in a namespace.
fn size(seen: &Seen) -> usize {
    let elements = seen.tables.values().flat_map(|table| table.sets.values()).map(|set| set.len());
    seen.neighbours.len() + seen.fdb.len() + elements.sum::<usize>()
}

/// Takes over what an earlier daemon left: the slots of its maps, the gateway addresses of its sandboxes.
fn adopt(place: &Place, found: &Seen, slots: &mut Slots, leases: &mut Leases) {
    match place {
        Place::Balancer(network) => {
            for (front, held) in found.tables.values().flat_map(slots_of) {
                slots.entry(FrontKey { network: network.clone(), front }).or_insert(held);
            }
        }
        Place::Sandbox(id) => {
            for (_, address) in &found.addresses {
                leases.adopt(id, address.addr);
            }
        }
        Place::Host => {}
    }
}
