//! What an admin breaks is mended; what a daemon's end and start must not disturb isn't.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::*;
use skep_net_kernel::link::Handle;
use skep_net_kernel::nft;
use skep_net_kernel::ns::Namespace;
use skep_net_testkit::eventually;
use skep_netdrv::{Desired, Driver};

/// Everything works again, from everywhere.
async fn healed(c: &Cluster, what: &str) -> Result<()> {
    let (client, t1) = (&c.topology.client, c.inside("t1")?);
    eventually(what, || async {
        for host in 0..2 {
            let answers = ask(&client.namespace, (c.address(host), PORT), false, 4).await?;
            ensure!(answers.len() == 2, "h{host}: {answers:?}");
        }
        ensure!(ask(&t1, (VIP, 80), false, 4).await?.len() == 2);
        Ok(())
    })
    .await
}

async fn delete_tables(namespace: &Namespace) -> Result<()> {
    let mut socket = nft::Socket::open(namespace)?;
    let mut batch = nft::Batch::new();
    for table in socket.tables()? {
        batch.delete_table(&table.table);
    }
    Ok(batch.commit(&mut socket)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_is_mended_and_counted() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    let places = [
        ("node", c.machines[0].node.namespace.clone()),
        ("ingress balancer", c.balancer(0, "id-ing")?),
        ("app balancer", c.balancer(0, "id-app")?),
        ("container", c.inside("t1")?),
    ];
    let repaired = |before: u64, what: String| {
        let c = &c;
        async move {
            eventually(&what, || async {
                ensure!(c.status(0).repaired > before, "{:?}", c.status(0));
                Ok(())
            })
            .await?;
            healed(c, &what).await
        }
    };
    for (name, namespace) in &places {
        let before = c.status(0).repaired;
        delete_tables(namespace).await?;
        repaired(before, format!("ruleset of {name} flushed")).await?;
    }
    for (name, namespace, link) in [
        ("VXLAN", &places[1].1, "vx0"),
        ("bridge", &places[2].1, "br0"),
        ("container's link", &places[3].1, "eth0"),
        ("gateway bridge", &places[0].1, "skep-gw"),
        ("uplink", &places[1].1, "gw0"),
    ] {
        let before = c.status(0).repaired;
        Handle::open(namespace)?.delete_link_named(link).await.with_context(|| name.to_owned())?;
        repaired(before, format!("{name} deleted")).await?;
    }
    let before = c.status(0).repaired;
    let balancer = Handle::open(&places[1].1)?;
    for neighbour in balancer.neighbours().await? {
        balancer.delete_neighbour(neighbour.device, neighbour.address).await?;
    }
    for entry in balancer.fdb().await? {
        balancer.delete_fdb(&entry).await?;
    }
    repaired(before, "neighbours and forwarding entries deleted".into()).await?;
    let before = c.status(0).repaired;
    places[0].1.set_sysctl("net/ipv4/ip_forward", "0")?;
    repaired(before, "forwarding switched off".into()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_links_and_tables_are_left_alone() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(1, &[("t1", 0)]).await?;
    let node = &c.machines[0].node;
    let bridge = skep_net_kernel::link::Bridge { name: "skepfoo", ..Default::default() };
    node.link.add_bridge(&bridge).await?;
    let table = nft::Table::new(nft::Family::Ip, "others");
    let mut socket = nft::Socket::open(&node.namespace)?;
    let mut batch = nft::Batch::new();
    batch.add_table(&table);
    batch.commit(&mut socket)?;
    let before = c.status(0).repaired;
    // Something of ours, so that a whole verification is seen to have happened.
    node.link.delete_link_named("skep-gw").await?;
    eventually("repaired", || async {
        ensure!(c.status(0).repaired > before);
        Ok(())
    })
    .await?;
    node.link.index("skepfoo").await?;
    ensure!(socket.tables()?.iter().any(|t| t.table == table), "a table of others is gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_disturbs_nothing() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    let gateway = c.gateway_address("t1")?;
    let client = c.topology.client.namespace.clone();
    // An open connection through the mesh.
    let mut stream = client.tcp_connect((c.address(0), PORT).into(), Duration::from_secs(2))?;
    let generation = |ns: &Namespace| anyhow::Ok(nft::Socket::open(ns)?.generation()?.id);
    let balancer = c.balancer(0, "id-ing")?;
    let before = (generation(&balancer)?, generation(&c.machines[0].node.namespace)?, generation(&c.inside("t1")?)?);

    c.machines[0].driver.take().unwrap().stop().await;
    expect(
        "without a driver",
        &client,
        (c.address(0), PORT),
        false,
        &[format!("t1 {}", c.topology.client.address), format!("t2 {}", c.topology.client.address)],
    )
    .await?;
    let known = Arc::new(c.desired(0));
    c.machines[0].desired.send_replace(Arc::new(Desired::default()));
    let driver = Driver::start(c.machines[0].config.clone(), c.machines[0].desired.subscribe()).await?;
    c.machines[0].driver = Some(driver);
    healed(&c, "nothing known yet").await?;
    c.machines[0].desired.send_replace(known);
    c.settled().await?;
    let after = (generation(&balancer)?, generation(&c.machines[0].node.namespace)?, generation(&c.inside("t1")?)?);
    ensure!(before == after, "rulesets changed: {before:?} -> {after:?}");
    ensure!(c.gateway_address("t1")? == gateway, "another gateway address");
    ensure!(c.status(0).repaired == 0, "{:?}", c.status(0));

    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
