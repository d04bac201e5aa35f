//! What names mean, per network: services (their virtual address, or their ready endpoints), `tasks.<service>`,
//! containers, aliases, and the way back from an address to a name. The resolver asks; nothing here touches a socket.
//!
//! A name that is known but has no address at the moment is [`Answer::Addresses`] of nothing, not [`Answer::Unknown`]:
//! the resolver must not ask an upstream server about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdMap;

use crate::desired::{Desired, Network, Sandbox, Service};
use crate::ledger::Source;

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

/// One network. Who gives a name is kept with it, as several services may have one alias: each takes away its own only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Zone {
    /// Lower-case name of the network.
    network: String,
    /// Lower-case names.
    forward: OrdMap<String, BTreeMap<Source, BTreeSet<Ipv4Addr>>>,
    reverse: OrdMap<Ipv4Addr, BTreeMap<Source, String>>,
}

/// What one source says in one zone.
#[derive(Debug, Default)]
struct Entries {
    forward: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    reverse: BTreeMap<Ipv4Addr, String>,
}

impl Entries {
    fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        if !name.is_empty() {
            self.forward.entry(name.to_ascii_lowercase()).or_default().extend(addresses);
        }
    }

    fn of_service(service: &Service, network: &str, zone: &Zone) -> Self {
        let mut entries = Self::default();
        let Some(on) = service.networks.get(network) else { return entries };
        let at = |ready_only: bool| {
            let listed = service.endpoints.iter().filter(move |e| e.ready || !ready_only);
            listed.filter_map(|e| e.addresses.get(network).map(|a| (e, *a)))
        };
        let ready: Vec<_> = at(true).map(|(_, a)| a).collect();
        let service_addresses = on.vip.map_or_else(|| ready.clone(), |vip| vec![vip]);
        for name in on.aliases.iter().chain([&service.name]) {
            entries.add(name, service_addresses.iter().copied());
            entries.add(&format!("tasks.{name}"), ready.iter().copied());
        }
        for (endpoint, address) in at(false) {
            entries.add(&endpoint.name, [address]);
            entries.reverse.insert(address, format!("{}.{}", endpoint.name, zone.network));
        }
        if let Some(vip) = on.vip {
            entries.reverse.insert(vip, format!("{}.{}", service.name, zone.network));
        }
        entries
    }

    fn of_sandbox(sandbox: &Sandbox, network: &str) -> Self {
        let mut entries = Self::default();
        if let Some(attachment) = sandbox.networks.get(network) {
            attachment.aliases.iter().for_each(|alias| entries.add(alias, [attachment.address]));
        }
        entries
    }
}

impl Zone {
    /// `source` says `new` instead of `old`.
    fn replace(&mut self, source: &Source, old: Entries, new: Entries) {
        for name in old.forward.keys().filter(|name| !new.forward.contains_key(*name)) {
            withdraw(&mut self.forward, name, source);
        }
        for address in old.reverse.keys().filter(|address| !new.reverse.contains_key(*address)) {
            withdraw(&mut self.reverse, address, source);
        }
        for (name, addresses) in new.forward.into_iter().filter(|(name, a)| old.forward.get(name) != Some(a)) {
            self.forward.entry(name).or_default().insert(source.clone(), addresses);
        }
        for (address, name) in new.reverse.into_iter().filter(|(address, n)| old.reverse.get(address) != Some(n)) {
            self.reverse.entry(address).or_default().insert(source.clone(), name);
        }
    }
}

fn withdraw<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, BTreeMap<Source, V>>, key: &K, source: &Source) {
    let Some(holders) = map.get_mut(key) else { return };
    holders.remove(source);
    if holders.is_empty() {
        map.remove(key);
    }
}

impl NameTable {
    /// The names that `desired` gives. The ingress network has none: it only carries published ports.
    #[must_use]
    pub fn new(desired: &Desired) -> Self {
        let mut table = Self::on(desired.networks.values().map(Arc::as_ref));
        desired.services.values().for_each(|service| table.change_service(None, Some(service)));
        desired.attachments.iter().for_each(|(id, sandbox)| table.change_sandbox(id, None, Some(sandbox)));
        table
    }

    /// These networks, without any name yet.
    pub(crate) fn on<'a>(networks: impl Iterator<Item = &'a Network>) -> Self {
        let zone = |n: &Network| Arc::new(Zone { network: n.name.to_ascii_lowercase(), ..Zone::default() });
        Self { zones: networks.filter(|n| !n.ingress).map(|n| (n.id.clone(), zone(n))).collect() }
    }

    /// A service is `new` instead of `old`.
    pub(crate) fn change_service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        let Some(id) = new.or(old).map(|s| s.id.clone()) else { return };
        let networks: BTreeSet<_> = old.into_iter().chain(new).flat_map(|s| s.networks.keys()).collect();
        let source = Source::Service(id);
        for network in networks {
            self.change(network, &source, |zone| {
                let entries = |s: Option<&Service>| s.map(|s| Entries::of_service(s, network, zone));
                (entries(old).unwrap_or_default(), entries(new).unwrap_or_default())
            });
        }
    }

    /// A sandbox is `new` instead of `old`.
    pub(crate) fn change_sandbox(&mut self, id: &str, old: Option<&Sandbox>, new: Option<&Sandbox>) {
        let networks: BTreeSet<_> = old.into_iter().chain(new).flat_map(|s| s.networks.keys()).collect();
        let source = Source::Sandbox(id.to_owned());
        for network in networks {
            self.change(network, &source, |_| {
                let entries = |s: Option<&Sandbox>| s.map(|s| Entries::of_sandbox(s, network));
                (entries(old).unwrap_or_default(), entries(new).unwrap_or_default())
            });
        }
    }

    fn change(&mut self, network: &str, source: &Source, entries: impl FnOnce(&Zone) -> (Entries, Entries)) {
        let Some(zone) = self.zones.get_mut(network) else { return };
        let (old, new) = entries(zone);
        Arc::make_mut(zone).replace(source, old, new);
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
            Some(holders) => {
                let all: BTreeSet<_> = holders.values().flatten().copied().collect();
                Answer::Addresses(all.into_iter().collect())
            }
            None => Answer::Unknown,
        }
    }

    /// The name of `address` to a container on `networks`.
    #[must_use]
    pub fn reverse<'a>(&self, networks: impl IntoIterator<Item = &'a String>, address: Ipv4Addr) -> Answer {
        let mut zones = networks.into_iter().filter_map(|id| self.zones.get(id));
        let found = zones.find_map(|z| z.reverse.get(&address)?.values().next_back());
        found.map_or(Answer::Unknown, |name| Answer::Name(name.clone()))
    }
}
