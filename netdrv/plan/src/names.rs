//! What names mean, per network: services (their virtual address, or their ready endpoints), `tasks.<service>`,
//! containers, aliases, and the way back from an address to a name. The resolver asks; nothing here touches a socket.
//!
//! A name that is known but has no address at the moment is [`Answer::Addresses`] of nothing, not [`Answer::Unknown`]:
//! the resolver must not ask an upstream server about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::desired::Desired;

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The addresses, possibly none.
    Addresses(Vec<Ipv4Addr>),
    /// The name that an address has.
    Name(String),
    /// Not ours: ask upstream.
    Unknown,
}

/// The names of all networks of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameTable {
    zones: BTreeMap<String, Arc<Zone>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Zone {
    /// Lower-case name of the network.
    network: String,
    /// Lower-case names.
    forward: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    reverse: BTreeMap<Ipv4Addr, String>,
}

impl Zone {
    fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        if !name.is_empty() {
            self.forward.entry(name.to_ascii_lowercase()).or_default().extend(addresses);
        }
    }
}

impl NameTable {
    /// The names that `desired` gives. The ingress network has none: it only carries published ports.
    #[must_use]
    pub fn new(desired: &Desired) -> Self {
        let mut zones: BTreeMap<String, Zone> = desired
            .networks
            .values()
            .filter(|n| !n.ingress)
            .map(|n| (n.id.clone(), Zone { network: n.name.to_ascii_lowercase(), ..Zone::default() }))
            .collect();
        for service in desired.services.values() {
            for (network, on) in &service.networks {
                let Some(zone) = zones.get_mut(network) else { continue };
                let at = |ready_only: bool| {
                    let listed = service.endpoints.iter().filter(move |e| e.ready || !ready_only);
                    listed.filter_map(|e| e.addresses.get(network).map(|a| (e, *a)))
                };
                let ready: Vec<_> = at(true).map(|(_, a)| a).collect();
                let service_addresses = on.vip.map_or_else(|| ready.clone(), |vip| vec![vip]);
                for name in on.aliases.iter().chain([&service.name]) {
                    zone.add(name, service_addresses.iter().copied());
                    zone.add(&format!("tasks.{name}"), ready.iter().copied());
                }
                for (endpoint, address) in at(false) {
                    zone.add(&endpoint.name, [address]);
                    zone.reverse.insert(address, format!("{}.{}", endpoint.name, zone.network));
                }
                if let Some(vip) = on.vip {
                    zone.reverse.insert(vip, format!("{}.{}", service.name, zone.network));
                }
            }
        }
        for (network, attachment) in desired.attachments.values().flat_map(|s| &s.networks) {
            let Some(zone) = zones.get_mut(network) else { continue };
            for alias in &attachment.aliases {
                zone.add(alias, [attachment.address]);
            }
        }
        Self { zones: zones.into_iter().map(|(id, zone)| (id, Arc::new(zone))).collect() }
    }

    /// What `name` means to a container on `networks`: the first of them that knows it decides. Case and a final
    /// dot make no difference; `<name>.<network>` asks one network only.
    #[must_use]
    pub fn lookup<'a>(&self, networks: impl IntoIterator<Item = &'a String>, name: &str) -> Answer {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let zones: Vec<_> = networks.into_iter().filter_map(|id| self.zones.get(id)).collect();
        let plain = zones.iter().find_map(|z| z.forward.get(&name));
        let qualified = || {
            zones.iter().find_map(|z| {
                let bare = name.strip_suffix(z.network.as_str())?.strip_suffix('.')?;
                z.forward.get(bare)
            })
        };
        match plain.or_else(qualified) {
            Some(addresses) => Answer::Addresses(addresses.iter().copied().collect()),
            None => Answer::Unknown,
        }
    }

    /// The name of `address` to a container on `networks`.
    #[must_use]
    pub fn reverse<'a>(&self, networks: impl IntoIterator<Item = &'a String>, address: Ipv4Addr) -> Answer {
        let mut zones = networks.into_iter().filter_map(|id| self.zones.get(id));
        zones.find_map(|z| z.reverse.get(&address)).map_or(Answer::Unknown, |name| Answer::Name(name.clone()))
    }
}
