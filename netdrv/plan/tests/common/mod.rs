//! A small cluster as one node sees it, and a model of the kernel that carries steps out.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use skep_net_plan::*;

pub const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub fn ip(a: u8, b: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, a, b)
}

pub fn network(id: &str, third: u8, ingress: bool) -> Network {
    Network {
        id: id.into(),
        name: id.into(),
        vni: 4096 + u32::from(third),
        subnet: Subnet::new(ip(third, 0), 24),
        balancer: ip(third, 2),
        ingress,
        internal: false,
        peers: BTreeMap::from([("n2".into(), Peer { underlay: FAR, balancer: ip(third, 3) })]),
    }
}

/// Endpoint `n` of the service: even ones are on this node.
pub fn endpoint(n: u8, ready: bool) -> Endpoint {
    let here = n.is_multiple_of(2);
    Endpoint {
        task_id: format!("t{n}"),
        name: format!("web.{n}"),
        node_id: if here { "n1" } else { "n2" }.into(),
        underlay: if here { OWN } else { FAR },
        ready,
        addresses: BTreeMap::from([("ing".into(), ip(0, 10 + n)), ("app".into(), ip(1, 10 + n))]),
    }
}

pub fn sandbox(n: u8) -> Sandbox {
    let at = |third| Attachment { address: ip(third, 10 + n), aliases: vec![] };
    Sandbox {
        hostname: format!("t{n}"),
        networks: BTreeMap::from([("ing".into(), at(0)), ("app".into(), at(1))]),
        host_ports: vec![],
        gateway: true,
        dns: DnsConfig::default(),
    }
}

/// Two networks and one service `web` with these endpoints; sandboxes for those that are here.
pub fn desired(endpoints: Vec<Endpoint>) -> Desired {
    let here = endpoints.iter().filter(|e| e.underlay == OWN);
    let attachments = here.map(|e| (e.task_id.clone(), Arc::new(sandbox(e.task_id[1..].parse().unwrap())))).collect();
    let on = |vip| ServiceNetwork { vip: Some(vip), aliases: vec!["www".into()] };
    let service = Service {
        id: "s1".into(),
        name: "web".into(),
        networks: BTreeMap::from([("app".into(), on(ip(1, 250))), ("ing".into(), ServiceNetwork::default())]),
        ports: vec![
            PublishedPort { protocol: Protocol::Tcp, published: 8080, target: 80 },
            PublishedPort { protocol: Protocol::Udp, published: 53, target: 5353 },
        ],
        endpoints,
    };
    Desired {
        generation: 1,
        underlay: Underlay { address: OWN, port: 4789, mtu: 1500 },
        networks: [network("ing", 0, true), network("app", 1, false)].map(|n| (n.id.clone(), Arc::new(n))).into(),
        services: BTreeMap::from([("s1".into(), Arc::new(service))]),
        attachments,
        ..Desired::default()
    }
}

pub fn facts(desired: &Desired, slots: &Slots) -> Facts {
    let lease = |i: usize| Ipv4Addr::new(172, 19, 0, 2 + u8::try_from(i).unwrap());
    Facts {
        mtu: 1500,
        sandboxes: desired.attachments.keys().enumerate().map(|(i, id)| (id.clone(), Some(lease(i)))).collect(),
        slots: slots.clone(),
        bridged: false,
    }
}

pub type Kernel = BTreeMap<Place, Seen>;

/// The steps from a kernel that was read.
pub fn steps_from(kernel: &Kernel, believed: &Kernel, wanted: &NodePlan) -> Vec<Step> {
    let shared = |k: &Kernel| k.iter().map(|(place, seen)| (place.clone(), Arc::new(seen.clone()))).collect();
    diff(&shared(kernel), &shared(believed), &wanted.spaces, &Config::default())
}

/// The same values in allocations of their own, as a reading of the kernel has them.
pub fn reread(seen: &Seen) -> Seen {
    let table = |t: &SeenTable| SeenTable {
        sets: t
            .sets
            .iter()
            .map(|(n, e)| (n.clone(), e.iter().map(|(k, v)| (k.clone(), v.clone())).collect()))
            .collect(),
        chains: t.chains.iter().map(|(n, tags)| (n.clone(), tags.clone())).collect(),
    };
    Seen {
        addresses: seen.addresses.iter().cloned().collect(),
        neighbours: seen.neighbours.iter().map(|(k, v)| (k.clone(), *v)).collect(),
        fdb: seen.fdb.iter().map(|(k, v)| (k.clone(), *v)).collect(),
        tables: seen.tables.iter().map(|(id, t)| (id.clone(), table(t))).collect(),
        ..seen.clone()
    }
}

/// Carries the steps out as the kernel would; panics where it would refuse.
pub fn apply(kernel: &mut Kernel, steps: &[Step]) {
    for step in steps {
        one(kernel, &step.place, &step.op);
    }
}

pub fn del_link(kernel: &mut Kernel, place: &Place, name: &str) {
    let seen = kernel.get_mut(place).unwrap();
    seen.links.remove(name);
    seen.addresses = seen.addresses.iter().filter(|(dev, _)| dev != name).cloned().collect();
    seen.routes.retain(|_, r| r.dev != name);
    seen.neighbours =
        seen.neighbours.iter().filter(|((dev, _), _)| dev != name).map(|(k, v)| (k.clone(), *v)).collect();
    seen.fdb = seen.fdb.iter().filter(|(key, _)| key.dev != name).map(|(k, v)| (k.clone(), *v)).collect();
    seen.sysctls.retain(|path, _| !path.split('/').any(|p| p == name));
    for table in seen.tables.values_mut() {
        table.chains.remove(&format!("egress-{name}"));
    }
}

/// The other ends of all pairs that a plan makes.
pub fn peers(plan: &NodePlan) -> BTreeMap<(Place, String), (Place, String)> {
    let mut ends = BTreeMap::new();
    for (place, space) in &plan.spaces {
        for (name, link) in &space.links {
            if let LinkKind::Veth { peer } = &link.kind {
                ends.insert((place.clone(), name.clone()), (peer.place.clone(), peer.name.clone()));
                ends.insert((peer.place.clone(), peer.name.clone()), (place.clone(), name.clone()));
            }
        }
    }
    ends
}

fn one(kernel: &mut Kernel, place: &Place, op: &Op) {
    if let Op::AddLink { name, link } = op {
        let down = |mac, mtu, kind| SeenLink { kind, mac, mtu, up: false, master: None, port: PortFlags::default() };
        if let LinkKind::Veth { peer } = &link.kind {
            let end = down(Some(peer.mac), link.mtu, SeenKind::Veth);
            let other = kernel.entry(peer.place.clone()).or_default();
            assert!(other.links.insert(peer.name.clone(), end).is_none(), "{} exists", peer.name);
        }
        let seen = kernel.entry(place.clone()).or_default();
        assert!(seen.links.insert(name.clone(), down(link.mac, link.mtu, link.kind.seen())).is_none(), "{name} exists");
        return;
    }
    if let Op::DelLink { name } = op {
        return del_link(kernel, place, name);
    }
    let seen = kernel.entry(place.clone()).or_default();
    let has = |seen: &Seen, dev: &str| assert!(seen.links.contains_key(dev), "no link {dev} in {place}");
    match op.clone() {
        Op::AddLink { .. } | Op::DelLink { .. } => {}
        Op::SetMac { name, mac } => seen.links.get_mut(&name).unwrap().mac = Some(mac),
        Op::SetMtu { name, mtu } => seen.links.get_mut(&name).unwrap().mtu = mtu,
        Op::SetMaster { name, master } => {
            master.iter().for_each(|m| has(seen, m));
            let link = seen.links.get_mut(&name).unwrap();
            (link.master, link.port) = (master, PortFlags::default());
        }
        Op::SetPort { name, flags } => {
            assert!(seen.links[&name].master.is_some(), "{name} is no port");
            seen.links.get_mut(&name).unwrap().port = flags;
        }
        Op::SetUp { name } => seen.links.get_mut(&name).unwrap().up = true,
        Op::AddAddress { dev, address } => {
            has(seen, &dev);
            assert!(seen.addresses.insert((dev, address)).is_none(), "address exists");
        }
        Op::DelAddress { dev, address } => assert!(seen.addresses.remove(&(dev, address)).is_some()),
        Op::SetRoute { key, route } => {
            assert!(seen.links.get(&route.dev).is_some_and(|l| l.up), "route through a link that is down");
            seen.routes.insert(key, route);
        }
        Op::DelRoute { key, .. } => assert!(seen.routes.remove(&key).is_some()),
        Op::AddRule { rule } => assert!(seen.rules.insert(rule)),
        Op::DelRule { rule } => assert!(seen.rules.remove(&rule)),
        Op::SetNeighbour { dev, address, mac } => {
            has(seen, &dev);
            seen.neighbours.insert((dev, address), mac);
        }
        Op::DelNeighbour { dev, address } => assert!(seen.neighbours.remove(&(dev, address)).is_some()),
        Op::SetFdb { key, vtep } => {
            has(seen, &key.dev);
            seen.fdb.insert(key, vtep);
        }
        Op::DelFdb { key, .. } => assert!(seen.fdb.remove(&key).is_some()),
        Op::SetSysctl { path, value } => {
            seen.sysctls.insert(path, value);
        }
        Op::Nft { ops } => ops.iter().for_each(|op| nft(&mut seen.tables, op)),
    }
}

fn nft(tables: &mut BTreeMap<(Family, String), SeenTable>, op: &NftOp) {
    match op.clone() {
        NftOp::AddTable { table } => assert!(tables.insert(table, SeenTable::default()).is_none()),
        NftOp::DelTable { table } => assert!(tables.remove(&table).is_some()),
        NftOp::AddChain { table, chain, .. } => {
            tables.get_mut(&table).unwrap().chains.entry(chain).or_default();
        }
        NftOp::AddSet { table, set, .. } => {
            assert!(tables.get_mut(&table).unwrap().sets.insert(set, Elements::new()).is_none());
        }
        NftOp::DelElements { table, set, elements } => {
            let set = tables.get_mut(&table).unwrap().sets.get_mut(&set).unwrap();
            elements.iter().for_each(|(k, v)| assert_eq!(set.remove(k).as_ref(), Some(v), "no such element"));
        }
        NftOp::AddElements { table, set, elements } => {
            let table = tables.get_mut(&table).unwrap();
            for (key, value) in elements {
                if let Value::Goto(chain) = &value {
                    assert!(table.chains.contains_key(chain), "no chain {chain}");
                }
                assert!(table.sets.get_mut(&set).unwrap().insert(key, value).is_none(), "element exists");
            }
        }
        NftOp::FlushChain { table, chain } => tables.get_mut(&table).unwrap().chains.get_mut(&chain).unwrap().clear(),
        NftOp::AddRule { table, chain, rule } => {
            tables.get_mut(&table).unwrap().chains.get_mut(&chain).unwrap().push(rule.tag());
        }
        NftOp::DelSet { table, set } => assert!(tables.get_mut(&table).unwrap().sets.remove(&set).is_some()),
        NftOp::DelChain { table, chain } => {
            let table = tables.get_mut(&table).unwrap();
            let gone = Value::Goto(chain.clone());
            assert!(!table.sets.values().any(|s| s.values().any(|v| *v == gone)), "chain in use");
            assert!(table.chains.remove(&chain).unwrap().is_empty(), "chain has rules");
        }
    }
}
