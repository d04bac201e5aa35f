//! Links, addresses, routes, rules, neighbours and forwarding entries: written, read back equal, removed.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use skep_net_kernel::link::{
    Address, Bridge, Change, Error, Fdb, FdbPlace, Handle, IpNet, Kind, Mac, Neighbour, Port, Route, Rule, Scope,
    VethEnd, Vxlan, absent_is_fine, present_is_fine,
};
use skep_net_kernel::ns::Namespace;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 12);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 99, 60, 2);

async fn bridge(handle: &Handle) -> Result<u32> {
    let bridge = Bridge { name: "br0", mac: Some(Mac::of(OWN)), mtu: Some(1450), up: true, ..Bridge::default() };
    handle.add_bridge(&bridge).await?;
    Ok(handle.index("br0").await?)
}

#[tokio::test]
async fn a_bridge_is_read_back_as_it_was_made() -> Result<()> {
    let handle = Handle::open(&Namespace::create_unnamed()?)?;
    let index = bridge(&handle).await?;
    let link = handle.link("br0").await?;
    assert_eq!((link.index, link.mac, link.mtu, link.up), (index, Some(Mac::of(OWN)), 1450, true));
    assert_eq!(link.kind, Kind::Bridge);
    assert!(matches!(bridge(&handle).await.unwrap_err().downcast_ref(), Some(Error::AlreadyExists { .. })));
    let change = Change {
        name: Some("br1"),
        mtu: Some(1400),
        mac: Some(Mac::of(FAR)),
        alias: Some("skep"),
        ..Change::default()
    };
    handle.change(index, &change).await?;
    let link = handle.link("br1").await?;
    assert_eq!((link.mac, link.mtu, link.alias.as_deref()), (Some(Mac::of(FAR)), 1400, Some("skep")));
    handle.set_down(index).await?;
    assert!(!handle.link("br1").await?.up);
    handle.delete_link(index).await?;
    assert!(matches!(handle.link("br1").await, Err(Error::NotFound { .. })));
    assert!(matches!(handle.delete_link_named("br1").await, Err(Error::NotFound { .. })));
    absent_is_fine(handle.delete_link_named("br1").await)?;
    Ok(())
}

#[tokio::test]
async fn names_that_the_kernel_would_cut_or_refuse_are_refused() -> Result<()> {
    let handle = Handle::open(&Namespace::create_unnamed()?)?;
    for name in ["", "0123456789abcdef", "a/b", "a b", "..", "a%d"] {
        let made = handle.add_bridge(&Bridge { name, ..Bridge::default() }).await;
        assert!(matches!(made, Err(Error::Invalid { .. })), "{name:?}: {made:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_vxlan_appears_in_the_balancers_namespace_and_in_its_bridge() -> Result<()> {
    let (host, balancer) = (Namespace::create_unnamed()?, Namespace::create_unnamed()?);
    let (outside, inside) = (Handle::open(&host)?, Handle::open(&balancer)?);
    let vxlan = Vxlan {
        name: "vx0",
        vni: 4096,
        port: 4789,
        local: REMOTE,
        learning: false,
        mac: None,
        mtu: Some(1450),
        namespace: Some(&balancer),
    };
    outside.add_vxlan(&vxlan).await?;
    assert!(matches!(outside.link("vx0").await, Err(Error::NotFound { .. })));
    let bridge = bridge(&inside).await?;
    let index = inside.index("vx0").await?;
    inside.change(index, &Change { master: Some(bridge), up: Some(true), ..Change::default() }).await?;
    let flags = Port { learning: Some(false), neigh_suppress: Some(true), flood: Some(false), ..Port::default() };
    inside.set_port(index, &flags).await?;
    let link = inside.link("vx0").await?;
    assert_eq!(link.kind, Kind::Vxlan { vni: 4096, port: 4789, local: Some(REMOTE.into()), learning: false });
    assert_eq!((link.master, link.mtu, link.up), (Some(bridge), 1450, true));
    let port = link.port.expect("it is a bridge port");
    assert_eq!(
        (port.learning, port.neigh_suppress, port.flood, port.hairpin),
        (Some(false), Some(true), Some(false), Some(false))
    );
    inside.set_master(index, None).await?;
    assert_eq!(inside.link("vx0").await?.master, None);
    let too_big = Vxlan { vni: 1 << 24, name: "vx1", ..vxlan };
    assert!(matches!(outside.add_vxlan(&too_big).await, Err(Error::Invalid { .. })));
    Ok(())
}

#[tokio::test]
async fn a_veth_pair_is_whole_or_not_there() -> Result<()> {
    let (one, other) = (Namespace::create_unnamed()?, Namespace::create_unnamed()?);
    let (left, right) = (Handle::open(&one)?, Handle::open(&other)?);
    let bridge = bridge(&left).await?;
    let port = VethEnd { name: "port", mtu: Some(1450), master: Some(bridge), up: true, ..VethEnd::default() };
    let end = VethEnd {
        name: "eth0",
        mac: Some(Mac::of(FAR)),
        mtu: Some(1450),
        up: true,
        namespace: Some(&other),
        ..VethEnd::default()
    };
    left.add_veth(&port, &end).await?;
    let (a, b) = (left.link("port").await?, right.link("eth0").await?);
    assert_eq!((a.kind, a.master, a.mtu, a.up), (Kind::Veth, Some(bridge), 1450, true));
    assert_eq!((b.kind, b.mac, b.mtu, b.up), (Kind::Veth, Some(Mac::of(FAR)), 1450, true));
    assert_eq!(a.peer, Some(b.index));
    // Half of it can't be made: the name is taken over there.
    let port2 = VethEnd { name: "port2", ..port.clone() };
    assert!(matches!(left.add_veth(&port2, &end).await, Err(Error::AlreadyExists { .. })));
    assert!(matches!(left.link("port2").await, Err(Error::NotFound { .. })));
    // Nor finished: there is no such bridge over there.
    let lost = VethEnd { name: "eth1", master: Some(9999), namespace: Some(&other), ..VethEnd::default() };
    assert!(left.add_veth(&port2, &lost).await.is_err());
    assert!(matches!(left.link("port2").await, Err(Error::NotFound { .. })));
    // Moved, it keeps its name, and its end goes with the other.
    left.move_to(a.index, &other).await?;
    assert!(matches!(left.link("port").await, Err(Error::NotFound { .. })));
    right.delete_link_named("port").await?;
    assert!(matches!(right.link("eth0").await, Err(Error::NotFound { .. })));
    Ok(())
}

#[tokio::test]
async fn addresses_and_routes_are_read_back_as_they_were_written() -> Result<()> {
    let handle = Handle::open(&Namespace::create_unnamed()?)?;
    let device = bridge(&handle).await?;
    let net = IpNet::new(OWN, 24);
    handle.add_address(device, net).await?;
    assert!(matches!(handle.add_address(device, net).await, Err(Error::AlreadyExists { .. })));
    assert!(handle.addresses().await?.contains(&Address { device, net }));
    assert!(matches!(handle.add_address(9999, net).await, Err(Error::NotFound { .. })));

    let gateway = Some(IpAddr::from([10, 0, 0, 1]));
    let routes = [
        Route { via: gateway, device: Some(device), ..Route::to(IpNet::ALL_V4) },
        Route {
            via: Some([10, 9, 9, 9].into()),
            device: Some(device),
            onlink: true,
            table: 100,
            ..Route::to(IpNet::ALL_V4)
        },
        Route {
            device: Some(device),
            scope: Scope::Link,
            table: 300,
            source: Some(OWN.into()),
            ..Route::to("10.7.0.0/16".parse()?)
        },
        Route { via: gateway, device: Some(device), metric: Some(7), ..Route::to(IpNet::host(FAR)) },
    ];
    for route in &routes {
        handle.add_route(route).await?;
        assert!(matches!(handle.add_route(route).await, Err(Error::AlreadyExists { .. })), "{route:?}");
        let found = handle.routes(Some(route.table)).await?;
        assert!(found.contains(route), "{route:?} is not among {found:?}");
    }
    let better = Route { source: Some(OWN.into()), ..routes[0] };
    handle.replace_route(&better).await?;
    let defaults = handle.routes(Some(254)).await?.into_iter().filter(|r| r.destination == IpNet::ALL_V4);
    assert_eq!(defaults.collect::<Vec<_>>(), [better]);
    for route in &routes {
        handle.delete_route(route).await?;
        assert!(matches!(handle.delete_route(route).await, Err(Error::NotFound { .. })));
    }
    handle.delete_address(device, net).await?;
    assert!(matches!(handle.delete_address(device, net).await, Err(Error::NotFound { .. })));
    Ok(())
}

#[tokio::test]
async fn rules_are_read_back_as_they_were_written() -> Result<()> {
    let handle = Handle::open(&Namespace::create_unnamed()?)?;
    let rules = [
        Rule { invert: true, mark: Some((0, u32::MAX)), priority: Some(100), ..Rule::to(100) },
        Rule {
            mark: Some((0x0a00_0002, 0xffff_ffff)),
            input: Some("gw0".into()),
            priority: Some(101),
            ..Rule::to(1000)
        },
        Rule { source: Some("10.1.0.0/16".parse()?), priority: Some(102), ..Rule::to(101) },
    ];
    for rule in &rules {
        handle.add_rule(rule).await?;
        assert!(matches!(handle.add_rule(rule).await, Err(Error::AlreadyExists { .. })), "{rule:?}");
        present_is_fine(handle.add_rule(rule).await)?;
        let found = handle.rules().await?;
        assert!(found.contains(rule), "{rule:?} is not among {found:?}");
    }
    for rule in &rules {
        handle.delete_rule(rule).await?;
        assert!(matches!(handle.delete_rule(rule).await, Err(Error::NotFound { .. })));
    }
    Ok(())
}

#[tokio::test]
async fn neighbours_and_forwarding_entries_are_read_back_as_they_were_written() -> Result<()> {
    let (host, balancer) = (Namespace::create_unnamed()?, Namespace::create_unnamed()?);
    let handle = Handle::open(&balancer)?;
    let bridge = bridge(&handle).await?;
    let vxlan = Vxlan {
        name: "vx0",
        vni: 1,
        port: 4789,
        local: OWN,
        learning: false,
        mac: None,
        mtu: None,
        namespace: Some(&balancer),
    };
    Handle::open(&host)?.add_vxlan(&vxlan).await?;
    let vxlan = handle.index("vx0").await?;
    handle.set_master(vxlan, Some(bridge)).await?;

    let entry = Neighbour { device: bridge, address: FAR.into(), mac: Mac::of(FAR) };
    handle.add_neighbour(&entry).await?;
    assert!(matches!(handle.add_neighbour(&entry).await, Err(Error::AlreadyExists { .. })));
    let moved = Neighbour { mac: Mac::of(OWN), ..entry };
    handle.replace_neighbour(&moved).await?;
    assert_eq!(handle.neighbours().await?, [moved]);
    handle.delete_neighbour(bridge, FAR.into()).await?;
    assert_eq!(handle.neighbours().await?, []);
    assert!(matches!(handle.delete_neighbour(bridge, FAR.into()).await, Err(Error::NotFound { .. })));

    let mac = Mac::of(FAR);
    let mut entries = [
        Fdb { device: vxlan, mac, place: FdbPlace::Tunnel { remote: REMOTE.into() } },
        Fdb { device: vxlan, mac, place: FdbPlace::Bridge },
    ];
    for entry in &entries {
        handle.add_fdb(entry).await?;
        assert!(matches!(handle.add_fdb(entry).await, Err(Error::AlreadyExists { .. })), "{entry:?}");
    }
    entries[0].place = FdbPlace::Tunnel { remote: [10, 99, 60, 3].into() };
    handle.replace_fdb(&entries[0]).await?;
    let mut found = handle.fdb().await?;
    found.sort();
    entries.sort();
    assert_eq!(found, entries);
    for entry in &entries {
        handle.delete_fdb(entry).await?;
        assert!(matches!(handle.delete_fdb(entry).await, Err(Error::NotFound { .. })), "{entry:?}");
    }
    assert_eq!(handle.fdb().await?, []);
    Ok(())
}

#[tokio::test]
async fn calls_on_one_handle_are_pipelined_in_order() -> Result<()> {
    let handle = Handle::open(&Namespace::create_unnamed()?)?;
    let device = bridge(&handle).await?;
    let net = IpNet::new(OWN, 24);
    let route = Route { via: Some([10, 0, 0, 1].into()), device: Some(device), ..Route::to(IpNet::ALL_V4) };
    // The route is only valid once the address is there.
    let (address, route) = tokio::join!(biased; handle.add_address(device, net), handle.add_route(&route));
    address?;
    route?;
    Ok(())
}

/// Only the last request of several is acknowledged, and every one is told how it ended.
#[tokio::test]
async fn each_of_many_calls_at_once_is_told_its_own_outcome() -> Result<()> {
    let handle = Handle::open(&Namespace::create_unnamed()?)?;
    let device = bridge(&handle).await?;
    let net = |n: u8| IpNet::new([10, 0, n, 1], 24);
    handle.add_address(device, net(7)).await?;
    let outcomes = futures::future::join_all((0..100).map(|n| handle.add_address(device, net(n)))).await;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(matches!(outcome, Err(Error::AlreadyExists { .. })), n == 7, "{n}");
        assert_eq!(outcome.is_ok(), n != 7, "{n}");
    }
    let found = handle.addresses().await?.into_iter().filter(|a| a.net.address.is_ipv4() && a.device == device);
    assert_eq!(found.count(), 100);
    // One that was given up before it was sent leaves nothing behind that the next ones could be taken for.
    {
        let given_up = handle.delete_address(device, net(200));
        let mut given_up = std::pin::pin!(given_up);
        assert!(futures::poll!(given_up.as_mut()).is_pending());
    }
    handle.delete_address(device, net(7)).await?;
    assert!(matches!(handle.delete_address(device, net(7)).await, Err(Error::NotFound { .. })));
    Ok(())
}
