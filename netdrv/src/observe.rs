//! What a namespace holds, read from the kernel into the plan's terms. Reads only what the place can differ in, and the
//! firewall only if its generation isn't the one that we left.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use skep_net_kernel::link::{self, FdbPlace, Kind, RouteKind};
use skep_net_kernel::nft::{self, Table};
use skep_net_plan::{
    Family, FdbKey, Mac, Place, PolicyRule, PortFlags, Route, RouteKey, Seen, SeenKind, SeenLink, SeenTable, Subnet,
};

use crate::error::Result;
use crate::firewall;
use crate::wire::{Wire, blocking};

/// Name of our tables.
const TABLE: &str = "skep";

/// Reads a namespace. `believed` names the sysctls to read, and is what the firewall holds while its generation stands.
pub(crate) async fn observe(place: &Place, wire: &mut Wire, believed: Option<&Seen>) -> Result<Seen> {
    // Asked for together: the kernel answers them in one go.
    let handle = wire.link.clone();
    let deep = *place != Place::Host;
    let (links, addresses, routes, rules, neighbours, fdb) = tokio::try_join!(
        wire.links(),
        async { Ok(handle.addresses().await?) },
        when(deep, || handle.routes(None)),
        when(deep, || handle.rules()),
        when(deep, || handle.neighbours()),
        // A container has no bridge of ours.
        when(matches!(place, Place::Balancer(_)), || handle.fdb()),
    )?;
    let names: BTreeMap<u32, String> = links.iter().map(|l| (l.index, l.name.clone())).collect();
    let mut seen = Seen { links: links.iter().filter_map(|l| seen_link(l, &names)).collect(), ..Seen::default() };
    for address in addresses {
        if let (Some(dev), IpAddr::V4(addr)) = (names.get(&address.device), address.net.address)
            && dev != "lo"
        {
            seen.addresses.insert((dev.clone(), Subnet::new(addr, address.net.prefix)));
        }
    }
    add_routes(&mut seen, routes, rules, &names);
    add_neighbours(&mut seen, neighbours, fdb, &names);
    seen.sysctls = sysctls(wire, believed).await?;
    seen.tables = tables(wire, believed).await?;
    Ok(seen)
}

fn seen_link(link: &link::Link, names: &BTreeMap<u32, String>) -> Option<(String, SeenLink)> {
    let kind = match &link.kind {
        Kind::Bridge => SeenKind::Bridge,
        Kind::Veth => SeenKind::Veth,
        Kind::Vxlan { vni, port, local, .. } => match local {
            Some(IpAddr::V4(local)) => SeenKind::Vxlan { vni: *vni, port: *port, local: *local },
            _ => SeenKind::Other,
        },
        Kind::Other(_) => SeenKind::Other,
    };
    let seen = SeenLink {
        kind,
        mac: link.mac.map(|m| Mac(m.0)),
        mtu: link.mtu,
        up: link.up,
        master: link.master.and_then(|m| names.get(&m).cloned()),
        port: link.port.map(flags).unwrap_or_default(),
    };
    (link.name != "lo").then(|| (link.name.clone(), seen))
}

fn flags(port: link::Port) -> PortFlags {
    PortFlags {
        neigh_suppress: port.neigh_suppress.unwrap_or(false),
        no_learning: port.learning == Some(false),
        isolated: port.isolated.unwrap_or(false),
        hairpin: port.hairpin.unwrap_or(false),
    }
}

/// Asks only if the place can have any of ours: the node's own namespace may have very many of others.
async fn when<T, F: Future<Output = link::Result<Vec<T>>>>(asked: bool, ask: impl FnOnce() -> F) -> Result<Vec<T>> {
    if asked { Ok(ask().await?) } else { Ok(Vec::new()) }
}

fn add_routes(seen: &mut Seen, routes: Vec<link::Route>, rules: Vec<link::Rule>, names: &BTreeMap<u32, String>) {
    for route in routes {
        let (IpAddr::V4(destination), Some(IpAddr::V4(via))) = (route.destination.address, route.via) else { continue };
        let Some(dev) = route.device.and_then(|d| names.get(&d)) else { continue };
        if route.kind != RouteKind::Unicast || route.metric.is_some_and(|m| m != 0) {
            continue;
        }
        let source = route.source.and_then(v4);
        let key = RouteKey { table: route.table, destination: Subnet::new(destination, route.destination.prefix) };
        seen.routes.insert(key, Route { via, dev: dev.clone(), onlink: route.onlink, source });
    }
    for rule in rules {
        if let (Some((mark, mask)), false, false) = (rule.mark, rule.v6, rule.invert) {
            seen.rules.insert(PolicyRule { mark, mask, table: rule.table });
        }
    }
}

fn add_neighbours(
    seen: &mut Seen,
    neighbours: Vec<link::Neighbour>,
    fdb: Vec<link::Fdb>,
    names: &BTreeMap<u32, String>,
) {
    for neighbour in neighbours {
        if let (Some(dev), Some(address)) = (names.get(&neighbour.device), v4(neighbour.address)) {
            seen.neighbours.insert((dev.clone(), address), Mac(neighbour.mac.0));
        }
    }
    for entry in fdb {
        let Some(dev) = names.get(&entry.device) else { continue };
        let (vtep, remote) = match entry.place {
            FdbPlace::Tunnel { remote } => (true, v4(remote)),
            FdbPlace::Bridge => (false, None),
        };
        seen.fdb.insert(FdbKey { dev: dev.clone(), mac: Mac(entry.mac.0), vtep }, remote);
    }
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(a) => Some(a),
        IpAddr::V6(_) => None,
    }
}

/// The sysctls that we set, as they are; one that can't be read counts as right if this kernel hasn't got it.
async fn sysctls(wire: &Wire, believed: Option<&Seen>) -> Result<BTreeMap<String, String>> {
    let Some(set) = believed.map(|b| b.sysctls.clone()).filter(|s| !s.is_empty()) else { return Ok(BTreeMap::new()) };
    let namespace = wire.namespace.clone();
    let read = move || {
        namespace.run(|| {
            let one = |(path, value): (&String, &String)| match fs::read_to_string(format!("/proc/sys/{path}")) {
                Ok(text) => Some((path.clone(), text.trim().to_owned())),
                Err(_) if path.starts_with("net/bridge/") || path.starts_with("net/ipv6/") => {
                    Some((path.clone(), value.clone()))
                }
                Err(_) => None,
            };
            set.iter().filter_map(one).collect()
        })
    };
    Ok(blocking(read).await??)
}

/// Our tables: those believed while the generation is the one that we left, else read back.
async fn tables(wire: &mut Wire, believed: Option<&Seen>) -> Result<BTreeMap<(Family, String), SeenTable>> {
    let known = wire.generation;
    let (generation, read) = wire
        .with_nft(move |socket| {
            let generation = socket.generation()?.id;
            if known == Some(generation) {
                return Ok((generation, None));
            }
            let read = read_tables(socket)?;
            Ok((generation, Some(read)))
        })
        .await?;
    wire.generation = Some(generation);
    match (read, believed) {
        (None, Some(believed)) => Ok(believed.tables.clone()),
        (None, None) => wire.with_nft(read_tables).await,
        (Some(read), _) => Ok(read),
    }
}

fn read_tables(socket: &mut nft::Socket) -> nft::Result<BTreeMap<(Family, String), SeenTable>> {
    let mut found = BTreeMap::new();
    for info in socket.tables()? {
        let family = match info.table.family {
            nft::Family::Ip => Family::Ip,
            nft::Family::Inet => Family::Inet,
            nft::Family::Netdev => Family::Netdev,
            nft::Family::Bridge => Family::Bridge,
            _ => continue,
        };
        if info.table.name == TABLE {
            found.insert((family, TABLE.to_owned()), read_table(socket, &info.table)?);
        }
    }
    Ok(found)
}

fn read_table(socket: &mut nft::Socket, table: &Table) -> nft::Result<SeenTable> {
    let mut seen = SeenTable::default();
    for chain in socket.chains(table)? {
        seen.chains.insert(chain.name, Vec::new());
    }
    for rule in socket.rules(table)? {
        // A rule without our comment is somebody else's in our chain: its empty tag makes the chain differ.
        seen.chains.entry(rule.chain).or_default().push(rule.comment.unwrap_or_default());
    }
    for set in socket.sets(table)? {
        let elements = socket.elements(table, &set.name)?;
        let elements = elements.into_iter().filter_map(|e| Some((e.key.bytes().to_vec(), firewall::value(e.data)?)));
        seen.sets.insert(set.name, elements.collect());
    }
    Ok(seen)
}
