//! Properties: whatever comes after whatever, the steps lead there, in an order that a kernel accepts, and then none
//! are left; what is broken is mended; what others own stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::*;
use proptest::prelude::*;
use skep_net_plan::*;

/// Each endpoint: absent, there, ready; then what else varies.
fn worlds() -> impl Strategy<Value = Desired> {
    (proptest::collection::vec(0..3_u8, 6), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(e, app, peer, port)| {
            let there = (0_u8..).zip(e).filter(|(_, s)| *s > 0).map(|(n, s)| endpoint(n, s == 2));
            let mut d = desired(there.collect());
            if !app {
                d.networks.remove("app");
            }
            if !peer {
                Arc::make_mut(d.networks.get_mut("ing").unwrap()).peers.clear();
            }
            for sandbox in d.attachments.values_mut().take(1).filter(|_| port) {
                Arc::make_mut(sandbox).host_ports.push(HostPort { protocol: Protocol::Udp, published: 99, target: 9 });
            }
            d
        },
    )
}

fn advance(kernel: &mut Kernel, believed: &mut Kernel, wanted: &NodePlan) {
    kernel.retain(|place, _| wanted.spaces.contains_key(place));
    believed.retain(|place, _| wanted.spaces.contains_key(place));
    // A namespace takes its ends of pairs with it.
    for (place, space) in &wanted.spaces {
        for (name, link) in &space.links {
            if let LinkKind::Veth { peer } = &link.kind
                && !kernel.get(&peer.place).is_some_and(|s| s.links.contains_key(&peer.name))
                && kernel.get(place).is_some_and(|s| s.links.contains_key(name))
            {
                del_link(kernel, place, name);
                believed.get_mut(place).unwrap().links.remove(name);
            }
        }
    }
    let steps = steps_from(kernel, believed, wanted);
    // Of a pair that is made anew or removed, the model has to take the other end away.
    for step in &steps {
        if let Op::DelLink { name } = &step.op
            && !matches!(step.place, Place::Sandbox(_))
        {
            let hash = name.get(name.len().saturating_sub(10)..).unwrap_or_default().to_owned();
            let ids: Vec<_> = kernel.keys().cloned().collect();
            for place in ids {
                let Place::Sandbox(id) = &place else { continue };
                if Config::port_link(id).ends_with(&hash) {
                    for end in kernel[&place].links.keys().cloned().collect::<Vec<_>>() {
                        if !wanted.spaces[&place].links.contains_key(&end) {
                            del_link(kernel, &place, &end);
                        }
                    }
                }
            }
        }
    }
    apply(kernel, &steps);
    for (place, space) in &wanted.spaces {
        let seen = kernel.entry(place.clone()).or_default();
        let expected = Seen::of(space);
        assert_eq!(seen.links.keys().collect::<BTreeSet<_>>(), expected.links.keys().collect(), "links of {place}");
        let ports = |seen: &Seen| seen.links.iter().map(|(n, l)| (n.clone(), l.port)).collect::<Vec<_>>();
        assert_eq!(ports(seen), ports(&expected), "flags of ports of {place}");
        assert_eq!(seen.addresses, expected.addresses, "addresses of {place}");
        assert_eq!(seen.neighbours, expected.neighbours, "neighbours of {place}");
        assert_eq!(seen.fdb, expected.fdb, "forwarding entries of {place}");
        assert_eq!(seen.routes, expected.routes, "routes of {place}");
        assert_eq!(seen.tables, expected.tables, "tables of {place}");
    }
    assert_eq!(steps_from(kernel, kernel, wanted), [], "a second round has nothing to do");
    *believed = kernel.clone();
}

/// A second service that shares names, ports and addresses with the first in every way that is possible for a moment.
fn other(which: u8) -> Option<Service> {
    let mut service = Service::clone(&desired(vec![endpoint(7, true), endpoint(2, which > 2)]).services["s1"]);
    service.id = "s2".into();
    service.endpoints[0].underlay = if which.is_multiple_of(2) { OWN } else { FAR };
    match which {
        0 => return None,
        1 => service.ports.clear(),
        2 => service.networks.clear(),
        3 => service.ports[0].target = 8080,
        4 => service.networks.get_mut("app").unwrap().vip = None,
        _ => service.name = "other".into(),
    }
    Some(service)
}

/// Values with facts that belong to them, further apart than those of one cluster's life.
fn lives() -> impl Strategy<Value = (Desired, Facts)> {
    (worlds(), 0..6_u8, 0..4_u8, any::<bool>(), any::<bool>()).prop_map(|(mut d, second, odd, thinner, alias)| {
        d.services.extend(other(second).map(|s| (s.id.clone(), Arc::new(s))));
        let mut facts = facts(&d, &Slots::new());
        for (id, lease) in facts.sandboxes.iter_mut().take(usize::from(odd)) {
            *lease = if id == "t0" { None } else { lease.map(|l| (u32::from(l) + 7).into()) };
        }
        if odd == 3 {
            facts.sandboxes.pop_first();
            facts.sandboxes.insert("stranger".into(), None);
        }
        facts.mtu = if thinner { 1400 } else { 1500 };
        facts.bridged = thinner && alias;
        for sandbox in d.attachments.values_mut().filter(|_| alias) {
            Arc::make_mut(sandbox).networks.values_mut().for_each(|at| at.aliases.push("web".into()));
        }
        (d, facts)
    })
}

/// The same sandboxes all along: their going is the caller's business, who removes the namespace.
fn fixed(mut d: Desired) -> Desired {
    for n in [0, 2, 4] {
        d.attachments.entry(format!("t{n}")).or_insert_with(|| sandbox(n).into());
    }
    d
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_change_converges(worlds in proptest::collection::vec(worlds(), 1..5)) {
        let (mut kernel, mut believed, mut slots) = (Kernel::new(), Kernel::new(), Slots::new());
        // The set of networks of a container is fixed while it lives.
        let app = worlds[0].networks.contains_key("app");
        for mut world in worlds.into_iter().map(fixed) {
            if world.networks.contains_key("app") != app {
                if app { world.networks.insert("app".into(), network("app", 1, false).into()); } else { world.networks.remove("app"); }
            }
            let wanted = plan(&world, &Config::default(), &facts(&world, &slots));
            slots = wanted.slots.clone();
            advance(&mut kernel, &mut believed, &wanted);
        }
    }

    #[test]
    fn whatever_came_before_the_plan_is_the_same(lives in proptest::collection::vec(lives(), 1..8), forgets in 0..8_usize) {
        let mut planner = Planner::new(Config::default());
        let (mut slots, mut last) = (Slots::new(), NodePlan::default());
        for (n, (desired, mut facts)) in lives.into_iter().enumerate() {
            // Slots that a failure kept from being taken over are those of before.
            facts.slots = if n == forgets { Slots::new() } else { slots.clone() };
            let desired = Arc::new(desired);
            let next = planner.next(&desired, &facts);
            let anew = plan(&desired, &Config::default(), &facts);
            prop_assert_eq!(&next, &anew, "step {}", n);
            prop_assert_eq!(&next.names, &NameTable::new(&desired));
            prop_assert_eq!(&planner.next(&desired, &Facts { slots: next.slots.clone(), ..facts.clone() }), &next);
            // What is shared with the last image is passed over, and nothing else is.
            let shared = last.spaces.iter().map(|(p, s)| (p.clone(), s.image().clone())).collect();
            let read = last.spaces.iter().map(|(p, s)| (p.clone(), reread(s.image()))).collect();
            prop_assert_eq!(diff(&shared, &shared, &next.spaces, &Config::default()), steps_from(&read, &read, &next));
            for (place, planned) in &next.spaces {
                prop_assert_eq!(&**planned.image(), &Seen::of(planned), "image of {}", place);
                let same = last.spaces.get(place).is_some_and(|before| **before == **planned);
                let shared = last.spaces.get(place).is_some_and(|before| Arc::ptr_eq(before.image(), planned.image()));
                prop_assert_eq!(same, shared, "{} is shared if it is the same", place);
            }
            slots = next.slots.clone();
            last = next;
        }
    }

    #[test]
    fn what_breaks_is_mended(world in worlds(), which in any::<prop::sample::Index>(), how in 0..7_u8) {
        let world = fixed(world);
        let wanted = plan(&world, &Config::default(), &facts(&world, &Slots::new()));
        let (mut kernel, mut believed) = (Kernel::new(), Kernel::new());
        advance(&mut kernel, &mut believed, &wanted);
        let places: Vec<_> = kernel.keys().cloned().collect();
        let place = which.get(&places).clone();
        match how {
            0 => kernel.get_mut(&place).unwrap().tables.clear(),
            1 => kernel.get_mut(&place).unwrap().neighbours.clear(),
            2 => kernel.get_mut(&place).unwrap().fdb.clear(),
            3 => kernel.get_mut(&place).unwrap().links.values_mut().for_each(|l| l.up = false),
            4 => kernel.get_mut(&place).unwrap().addresses.clear(),
            5 => kernel.get_mut(&place).unwrap().links.values_mut().for_each(|l| l.port = PortFlags::default()),
            _ => {
                let names: Vec<_> = kernel[&place].links.keys().cloned().collect();
                if !names.is_empty() {
                    let name = which.get(&names).clone();
                    let ends = peers(&wanted);
                    if let Some((other, end)) = ends.get(&(place.clone(), name.clone())) {
                        del_link(&mut kernel, other, end);
                    }
                    // Ports of a bridge outlive it.
                    for link in kernel.get_mut(&place).unwrap().links.values_mut() {
                        link.master = link.master.take().filter(|m| *m != name);
                        if link.master.is_none() {
                            link.port = PortFlags::default();
                        }
                    }
                    del_link(&mut kernel, &place, &name);
                }
            }
        }
        // Only the broken namespace is read, as after a notification; the others are believed to be as wanted.
        let images: BTreeMap<_, _> = wanted.spaces.iter().map(|(p, s)| (p.clone(), s.image().clone())).collect();
        let mut seen = images.clone();
        seen.insert(place.clone(), Arc::new(kernel[&place].clone()));
        let mut mended = kernel.clone();
        apply(&mut mended, &diff(&seen, &images, &wanted.spaces, &Config::default()));
        prop_assert_eq!(steps_from(&mended, &mended, &wanted), []);
        advance(&mut kernel, &mut believed, &wanted);
    }

    #[test]
    fn others_things_stay(world in worlds()) {
        let world = fixed(world);
        let wanted = plan(&world, &Config::default(), &facts(&world, &Slots::new()));
        let mut kernel: Kernel = wanted.spaces.iter().map(|(p, s)| (p.clone(), Seen::of(s))).collect();
        let believed = kernel.clone();
        let alien = SeenLink { kind: SeenKind::Bridge, mac: None, mtu: 1500, up: false, master: None, port: PortFlags::default() };
        let address: Subnet = "198.51.100.1/24".parse().unwrap();
        for (place, seen) in &mut kernel {
            let dev = match place {
                Place::Host => "docker0",
                Place::Sandbox(_) => "eth0",
                Place::Balancer(_) => continue,
            };
            seen.links.entry(dev.into()).or_insert_with(|| alien.clone());
            seen.addresses.insert((dev.into(), address));
            seen.rules.insert(PolicyRule { mark: 1, mask: 1, table: 7 });
            seen.neighbours.insert((dev.into(), address.addr), Mac::of(address.addr));
        }
        prop_assert_eq!(steps_from(&kernel, &believed, &wanted), []);
    }

    #[test]
    fn slots_move_little(previous in proptest::collection::btree_set(0..40_u8, 0..20), gone in 0..40_u8, joined in 0..40_u8) {
        let b = |n: &u8| Backend { address: ip(0, *n), port: 80 };
        let held: Vec<_> = previous.iter().map(b).collect();
        let less: BTreeSet<_> = previous.iter().filter(|n| **n != gone).map(b).collect();
        let after = place(&held, &less);
        prop_assert_eq!(after.iter().copied().collect::<BTreeSet<_>>(), less.clone());
        prop_assert!(after.iter().zip(&held).filter(|(a, b)| a != b).count() <= 1);
        let more: BTreeSet<_> = less.iter().copied().chain([b(&joined)]).collect();
        let grown = place(&after, &more);
        prop_assert_eq!(grown.len(), more.len());
        prop_assert_eq!(&grown[..after.len()], &after[..]);
    }
}
