//! What an admin breaks is mended.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_net_kernel::link::Handle;
use skep_net_kernel::nft;
use skep_net_kernel::ns::Namespace;
use skep_net_testkit::eventually;

use crate::common::*;

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

/// The timer is out of the way: what is mended here was told by the kernel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_tells_is_mended_without_the_timer() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::verified_every(2, &[("t1", 0), ("t2", 1)], Duration::from_secs(3600)).await?;
    // Its own changes, many of them, are no news to the driver.
    for flipped in [1, 1, 1, 1] {
        c.tasks[flipped].ready ^= true;
        c.apply().await?;
    }
    let gone = c.tasks.pop().context("t2")?;
    c.apply().await?;
    c.tasks.push(gone);
    c.apply().await?;
    c.machines[0].node.link.add_bridge(&skep_net_kernel::link::Bridge { name: "others", ..Default::default() }).await?;
    ensure!(c.status(0).woken == 0, "woken by its own changes: {:?}", c.status(0));

    let node = c.machines[0].node.namespace.clone();
    let (ingress, app) = (c.balancer(0, "id-ing")?, c.balancer(0, "id-app")?);
    let t1 = c.inside("t1")?;
    let mended = |before: Arc<skep_netdrv::Status>, what: &'static str| {
        let c = &c;
        async move {
            let start = std::time::Instant::now();
            eventually(what, || async {
                let now = c.status(0);
                ensure!(now.repaired > before.repaired && now.woken > before.woken, "{now:?}");
                Ok(())
            })
            .await?;
            println!("{what}: mended after {:?}", start.elapsed());
            healed(c, what).await
        }
    };
    for (what, namespace) in [("node's ruleset", &node), ("ingress ruleset", &ingress), ("app ruleset", &app)] {
        let before = c.status(0);
        delete_tables(namespace).await?;
        mended(before, what).await?;
    }
    for (what, namespace, link) in [
        ("bridge", &app, "br0"),
        ("VXLAN", &ingress, "vx0"),
        ("gateway", &node, "skep-gw"),
        ("container's link", &t1, "eth0"),
    ] {
        let before = c.status(0);
        Handle::open(namespace)?.delete_link_named(link).await.with_context(|| what.to_owned())?;
        mended(before, what).await?;
    }
    let handle = Handle::open(&app)?;
    let before = c.status(0);
    let bridge = handle.index("br0").await?;
    handle.set_down(bridge).await?;
    mended(before, "bridge set down").await?;
    let before = c.status(0);
    for neighbour in handle.neighbours().await? {
        handle.delete_neighbour(neighbour.device, neighbour.address).await?;
    }
    mended(before, "neighbours").await?;
    let before = c.status(0);
    for entry in handle.fdb().await? {
        handle.delete_fdb(&entry).await?;
    }
    mended(before, "forwarding entries").await
}

/// Whoever keeps changing things must not keep the driver busy; and where nobody does, it sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_changes_is_looked_at_now_and_then_and_silence_not_at_all() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::verified_every(1, &[("t1", 0)], Duration::from_secs(3600)).await?;
    let node = &c.machines[0].node.namespace;
    let mut socket = nft::Socket::open(node)?;
    let table = nft::Table::new(nft::Family::Ip, "others");
    // Making the cluster was noticed too.
    let earlier = c.status(0).woken;
    let (start, mut changes) = (std::time::Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(3) {
        let mut batch = nft::Batch::new();
        batch.remove_table(&table);
        batch.commit(&mut socket)?;
        changes += 1;
        tokio::task::yield_now().await;
    }
    eventually("a look", || async {
        ensure!(c.status(0).woken > earlier);
        Ok(())
    })
    .await?;
    let woken = c.status(0).woken - earlier;
    // One each half second, and one more for the rest.
    let most = 2 + u64::try_from(start.elapsed().as_millis() / 500)?;
    ensure!(woken <= most, "woken {woken} times by {changes} changes in {:?}", start.elapsed());
    ensure!(c.status(0).repaired == 0 && changes > 20, "{changes}: {:?}", c.status(0));
    // What was still queued is looked at; then nothing is, and nobody turns in circles.
    eventually("silence", || async {
        let mut status = c.driver(0).status();
        status.borrow_and_update();
        let before = cpu();
        let change = tokio::time::timeout(Duration::from_secs(2), status.changed()).await;
        let spent = cpu() - before;
        ensure!(change.is_err() && spent < Duration::from_millis(100), "still busy: {change:?}, {spent:?} of 2 s");
        Ok(())
    })
    .await
}

/// What this process has used of the processors.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap(), u32::try_from(now.tv_nsec).unwrap())
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

/// A container that ends takes no news along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_just_before_a_container_closes_is_mended_without_the_timer() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::verified_every(2, &[("t1", 0), ("t2", 1), ("t3", 0)], Duration::from_secs(3600)).await?;
    // A closing alone is no news.
    let t3 = c.tasks.pop().context("t3")?;
    let (woken, driver) = (c.status(0).woken, c.driver(0).clone());
    driver.close_sandbox("t3").await?;
    c.apply().await?;
    ensure!(c.status(0).woken == woken, "woken by its own doing: {:?}", c.status(0));
    // Attached and not balanced to: when it ends, no ruleset changes, which would show what is broken.
    c.serve(&t3).await?;
    c.tasks.push(Task { ready: false, ingress: false, ..t3 });
    c.apply().await?;

    let (node, ingress) = (c.machines[0].node.namespace.clone(), c.balancer(0, "id-ing")?);
    let before = c.status(0).repaired;
    delete_tables(&node).await?;
    eventually("node's ruleset", || async {
        ensure!(c.status(0).repaired > before);
        Ok(())
    })
    .await?;
    // The next look comes half a second after that one; what is told until then waits in the sockets.
    let before = c.status(0).repaired;
    Handle::open(&node)?.delete_link_named("skep-gw").await?;
    tokio::task::yield_now().await;
    delete_tables(&ingress).await?;
    delete_tables(&node).await?;
    driver.close_sandbox("t3").await?;
    eventually("node and balancer", || async {
        ensure!(c.status(0).repaired > before);
        for (what, namespace) in [("node", &node), ("ingress", &ingress)] {
            ensure!(!nft::Socket::open(namespace)?.tables()?.is_empty(), "{what}: {:?}", c.status(0));
        }
        Ok(())
    })
    .await?;
    healed(&c, "after a container closed").await
}
