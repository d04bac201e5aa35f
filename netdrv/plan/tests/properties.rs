//! Properties: whatever comes after whatever, the steps lead there, in an order that a kernel accepts, and then none
//! are left; what is broken is mended; what others own stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

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
                d.networks.get_mut("ing").unwrap().peers.clear();
            }
            for sandbox in d.attachments.values_mut().take(1).filter(|_| port) {
                sandbox.host_ports.push(HostPort { protocol: Protocol::Udp, published: 99, target: 9 });
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
    let steps = diff(kernel, believed, &wanted.spaces, &Config::default());
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
        assert_eq!(seen.addresses, expected.addresses, "addresses of {place}");
        assert_eq!(seen.neighbours, expected.neighbours, "neighbours of {place}");
        assert_eq!(seen.fdb, expected.fdb, "forwarding entries of {place}");
        assert_eq!(seen.routes, expected.routes, "routes of {place}");
        assert_eq!(seen.tables, expected.tables, "tables of {place}");
    }
    assert_eq!(diff(kernel, kernel, &wanted.spaces, &Config::default()), [], "a second round has nothing to do");
    *believed = kernel.clone();
}

/// The same sandboxes all along: their going is the caller's business, who removes the namespace.
fn fixed(mut d: Desired) -> Desired {
    for n in [0, 2, 4] {
        d.attachments.entry(format!("t{n}")).or_insert_with(|| sandbox(n));
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
                if app { world.networks.insert("app".into(), network("app", 1, false)); } else { world.networks.remove("app"); }
            }
            let wanted = plan(&world, &Config::default(), &facts(&world, &slots));
            slots = wanted.slots.clone();
            advance(&mut kernel, &mut believed, &wanted);
        }
    }

    #[test]
    fn what_breaks_is_mended(world in worlds(), which in any::<prop::sample::Index>(), how in 0..6_u8) {
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
                    }
                    del_link(&mut kernel, &place, &name);
                }
            }
        }
        advance(&mut kernel, &mut believed, &wanted);
    }

    #[test]
    fn others_things_stay(world in worlds()) {
        let world = fixed(world);
        let wanted = plan(&world, &Config::default(), &facts(&world, &Slots::new()));
        let mut kernel: Kernel = wanted.spaces.iter().map(|(p, s)| (p.clone(), Seen::of(s))).collect();
        let believed = kernel.clone();
        let alien = SeenLink { kind: SeenKind::Bridge, mac: None, mtu: 1500, up: false, master: None };
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
        prop_assert_eq!(diff(&kernel, &believed, &wanted.spaces, &Config::default()), []);
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
