//! Tables of the plan: what a node shows for a small cluster, what one change costs, what names mean.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::*;
use skep_net_plan::*;

fn made(desired: &Desired, slots: &Slots) -> NodePlan {
    plan(desired, &Config::default(), &facts(desired, slots))
}

fn settled(plan: &NodePlan) -> Kernel {
    plan.spaces.iter().map(|(place, space)| (place.clone(), Seen::of(space))).collect()
}

fn steps(from: &NodePlan, to: &NodePlan) -> Vec<Step> {
    let kernel = settled(from);
    steps_from(&kernel, &kernel, to)
}

fn balancer(id: &str) -> Place {
    Place::Balancer(id.into())
}

#[test]
fn far_endpoints_have_two_forwarding_entries_and_near_ones_a_port() {
    let p = made(&desired(vec![endpoint(1, true), endpoint(2, true)]), &Slots::new());
    let app = &p.spaces[&balancer("app")];
    let far = |vtep| FdbKey { dev: "vx0".into(), mac: Mac::of(ip(1, 11)), vtep };
    assert_eq!((app.fdb[&far(true)], app.fdb[&far(false)]), (Some(FAR), None));
    let near = FdbKey { dev: Config::port_link("t2"), mac: Mac::of(ip(1, 12)), vtep: false };
    assert_eq!(app.fdb[&near], None);
    assert!(!app.fdb.keys().any(|k| k.dev == "vx0" && k.mac == near.mac));
    let neighbours: Vec<_> = app.neighbours.keys().map(|(_, a)| *a).collect();
    assert_eq!(neighbours, [ip(1, 3), ip(1, 11), ip(1, 12)]);
    assert!(
        app.addresses.contains(&("br0".into(), Subnet::new(ip(1, 250), 32))),
        "the virtual address is the bridge's"
    );
}

#[test]
fn mtu_is_the_underlays_less_the_outer_headers_on_all_four_ends() {
    let p = made(&desired(vec![endpoint(2, true)]), &Slots::new());
    let app = &p.spaces[&balancer("app")];
    for link in ["br0", "vx0", &Config::port_link("t2")] {
        assert_eq!(app.links[link].mtu, 1450, "{link}");
    }
    let sandbox = &p.spaces[&Place::Sandbox("t2".into())];
    assert_eq!(
        sandbox.links.iter().map(|(n, l)| (n.as_str(), l.mtu)).collect::<Vec<_>>(),
        [("eth0", 1450), ("eth1", 1450), ("eth2", 1500)]
    );
}

#[test]
fn a_published_port_is_taken_only_while_somebody_is_ready() {
    let mesh = |ready| {
        let p = made(&desired(vec![endpoint(1, ready)]), &Slots::new());
        let table = p.spaces[&Place::Host].tables[&(Family::Ip, "skep".into())].clone();
        let balancing = p.spaces[&balancer("ing")].tables[&(Family::Ip, "skep".into())].clone();
        (table.sets["mesh"].elements.len(), balancing.sets["port-slots"].elements.len())
    };
    assert_eq!((mesh(true), mesh(false)), ((2, 2), (0, 0)));
}

#[test]
fn one_endpoint_changes_one_element_of_a_map() {
    let before = made(&desired((1..=5).map(|n| endpoint(n, true)).collect()), &Slots::new());
    let less = (1..=5).map(|n| endpoint(n, n != 1)).collect();
    let after = made(&desired(less), &before.slots);
    let steps = steps(&before, &after);
    assert!(steps.iter().all(|s| s.phase == Phase::Firewall), "{steps:?}");
    let mut changed = BTreeMap::new();
    for step in &steps {
        let Op::Nft { ops } = &step.op else { panic!("{step:?}") };
        for op in ops {
            match op {
                NftOp::AddElements { set, elements, .. } => *changed.entry(set.clone()).or_insert(0) += elements.len(),
                NftOp::DelElements { set, elements, .. } => *changed.entry(set.clone()).or_insert(0) += elements.len(),
                NftOp::FlushChain { .. } | NftOp::AddRule { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    // The hole and its new holder are written, the last slot goes; two ports share a map.
    assert_eq!(changed, BTreeMap::from([("port-slots".into(), 6), ("vip-slots".into(), 3)]));
}

#[test]
fn slots_are_read_back_from_the_tables() {
    let p = made(&desired((1..=3).map(|n| endpoint(n, true)).collect()), &Slots::new());
    let mut read = Slots::new();
    for (place, space) in &p.spaces {
        let Place::Balancer(network) = place else { continue };
        let table = SeenTable::of(&space.tables[&(Family::Ip, "skep".into())]);
        read.extend(slots_of(&table).into_iter().map(|(front, b)| (FrontKey { network: network.clone(), front }, b)));
    }
    assert_eq!(read, p.slots);
    assert_eq!(p.slots.len(), 3);
}

#[test]
fn what_leaves_a_container_with_a_published_udp_port_has_its_gateway_address() {
    let p = made(&desired(vec![endpoint(2, true)]), &Slots::new());
    let sandbox = &p.spaces[&Place::Sandbox("t2".into())];
    let default = RouteKey { table: 254, destination: "0.0.0.0/0".parse().unwrap() };
    assert_eq!(sandbox.routes[&default].source, Some(ip(0, 12)));
    assert!(sandbox.tables[&(Family::Ip, "skep".into())].chains.get("source").is_some());
}

#[test]
fn a_dead_endpoint_is_flushed_and_a_draining_one_only_for_udp() {
    let before = made(&desired(vec![endpoint(1, true), endpoint(3, true)]), &Slots::new());
    let draining = made(&desired(vec![endpoint(1, true), endpoint(3, false)]), &before.slots);
    let found = flushes(&before.slots, &draining.slots, &steps(&before, &draining));
    assert!(!found.is_empty() && found.iter().all(|f| f.protocol == Some(Protocol::Udp)), "{found:?}");
    assert!(found.iter().all(|f| f.endpoint == Some(ip(0, 13)) || f.endpoint == Some(ip(1, 13))));
    let dead = made(&desired(vec![endpoint(1, true)]), &draining.slots);
    let found = flushes(&draining.slots, &dead.slots, &steps(&draining, &dead));
    assert_eq!(
        found.iter().filter(|f| f.protocol.is_none()).filter_map(|f| f.endpoint).collect::<Vec<_>>(),
        [ip(1, 13), ip(0, 13)]
    );
}

#[test]
fn the_nodes_own_udp_flows_are_flushed_and_those_of_others_to_the_same_port_are_not() {
    let nobody = made(&desired(vec![endpoint(1, false)]), &Slots::new());
    let first = made(&desired(vec![endpoint(1, true)]), &nobody.slots);
    let on_host = |before: &NodePlan, after: &NodePlan| -> Vec<_> {
        let found = flushes(&before.slots, &after.slots, &steps(before, after));
        let found = found.into_iter().filter(|f| f.place == Place::Host);
        found.map(|f| (f.protocol, f.destination, f.port, f.endpoint)).collect()
    };
    let udp = Some(Protocol::Udp);
    let balancer = Config::default().ingress_link.nth(2);
    assert_eq!(on_host(&nobody, &first), [(udp, Some(Called::Own), Some(53), None)]);
    assert_eq!(on_host(&first, &nobody), [(udp, None, Some(53), balancer)]);
}

#[test]
fn names() {
    let mut d = desired(vec![endpoint(1, true), endpoint(2, false)]);
    let dnsrr = ServiceNetwork { vip: None, aliases: vec![] };
    let mut rr = Service::clone(&d.services["s1"]);
    (rr.id, rr.name, rr.networks) = ("s2".into(), "rr".into(), BTreeMap::from([("app".into(), dnsrr)]));
    rr.endpoints[0].name = "rr.1".into();
    rr.endpoints.truncate(1);
    d.services.insert("s2".into(), rr.into());
    Arc::make_mut(d.attachments.get_mut("t2").unwrap()).networks.get_mut("app").unwrap().aliases.push("Mine".into());
    let table = NameTable::new(&d);
    let (all, none) = (["app".to_owned(), "ing".to_owned()], [] as [String; 0]);
    let a = |addresses: &[u8]| Answer::Addresses(addresses.iter().map(|n| ip(1, *n)).collect());
    for (name, expected) in [
        ("web", a(&[250])),
        ("WEB.", a(&[250])),
        ("web.app", a(&[250])),
        ("www", a(&[250])),
        ("tasks.web", a(&[11])),
        ("tasks.www.app", a(&[11])),
        ("rr", a(&[11])),
        ("web.2", a(&[12])),
        ("mine", a(&[12])),
        ("nobody", Answer::Unknown),
        ("web.ing", Answer::Unknown),
        ("", Answer::Unknown),
    ] {
        assert_eq!(table.lookup(&all, name), expected, "{name}");
        assert_eq!(table.lookup(&none, name), Answer::Unknown, "{name} from elsewhere");
    }
    assert_eq!(table.reverse(&all, ip(1, 250)), Answer::Name("web.app".into()));
    assert_eq!(table.reverse(&all, ip(1, 99)), Answer::Unknown);
    Arc::make_mut(d.services.get_mut("s2").unwrap()).endpoints[0].ready = false;
    assert_eq!(NameTable::new(&d).lookup(&all, "rr"), a(&[]), "known, and nobody there");
}

#[test]
fn only_our_links_are_ours() {
    let config = Config::default();
    for (name, ours) in [
        ("skep-gw".to_owned(), true),
        (config.gateway_link("t1"), true),
        (config.ingress_link("ing"), true),
        ("skepg".into(), false),
        ("skepg012345678".into(), false),
        ("skepper0".into(), false),
        ("docker0".into(), false),
        ("eth0".into(), false),
    ] {
        assert_eq!(config.owns(&name), ours, "{name}");
        assert!(name.len() <= 15);
    }
}

/// A namespace that can't be read is left out of what is wanted.
#[test]
fn links_into_a_namespace_that_cant_be_read_stay_as_they_are() {
    let mut p = made(&desired(vec![endpoint(2, true), endpoint(4, true)]), &Slots::new());
    let unread = Place::Sandbox("t2".into());
    let mut kernel = settled(&p);
    p.spaces.remove(&unread);
    kernel.remove(&unread);
    // All others are read, as allocations of their own.
    let found = steps_from(&kernel, &Kernel::new(), &p);
    assert!(found.is_empty(), "{found:?}");
    let port = Config::port_link("t2");
    for (place, link) in [(Place::Host, Config::default().gateway_link("t2")), (balancer("app"), port)] {
        kernel.get_mut(&place).unwrap().links.remove(&link);
        let found = steps_from(&kernel, &Kernel::new(), &p);
        assert!(!found.iter().any(|s| matches!(&s.op, Op::AddLink { .. } | Op::SetUp { .. })), "{found:?}");
    }
}
