//! What a daemon's end and start must not disturb.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use skep_net_kernel::link::Handle;
use skep_net_kernel::nft;
use skep_net_kernel::ns::Namespace;
use skep_net_plan::Config as Names;
use skep_net_testkit::{eventually, http_get};
use skep_netdrv::{SandboxState, Subnet};

use crate::common::*;

fn generation(namespace: &Namespace) -> Result<u32> {
    Ok(nft::Socket::open(namespace)?.generation()?.id)
}

/// Waits until the node filters frames on its bridge, where this kernel translates them there.
async fn frames_filtered(c: &Cluster) -> Result<()> {
    let node = &c.machines[0].node.namespace;
    if !node.sysctl("net/bridge/bridge-nf-call-iptables").is_ok_and(|value| value == "1") {
        println!("UNTESTED: ports of bridges whose packets are translated (this kernel translates none)");
        return Ok(());
    }
    eventually("frames filtered", || async {
        let tables = nft::Socket::open(node)?.tables()?;
        ensure!(tables.iter().any(|t| t.table == nft::Table::new(nft::Family::Bridge, "skep")), "{tables:?}");
        Ok(())
    })
    .await
}

/// An open connection, the rulesets and the addresses of containers stay as they are.
async fn undisturbed(gateway: Option<Subnet>) -> Result<()> {
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    if let Some(gateway) = gateway {
        c.gateway = gateway;
        c.apply().await?;
    }
    // The second comes first by name, so that its address is not the one that it would be given anew.
    c.add("a1", 0).await?;
    frames_filtered(&c).await?;
    let addresses = |c: &Cluster| anyhow::Ok([c.gateway_address("t1")?, c.gateway_address("a1")?]);
    let before = addresses(&c)?;
    let client = c.topology.client.namespace.clone();
    // An open connection through the mesh.
    let mut stream = client.tcp_connect((c.address(0), PORT).into(), Duration::from_secs(2))?;
    let places = [c.balancer(0, "id-ing")?, c.machines[0].node.namespace.clone(), c.inside("t1")?];
    let rulesets = || places.iter().map(generation).collect::<Result<Vec<_>>>();
    let held = rulesets()?;

    c.restart(0).await?;
    for _ in 0..3 {
        http_get(&client, (c.address(0), PORT).into(), Duration::from_secs(2)).await.context("nothing known yet")?;
    }
    c.machines[0].desired.send_replace(Arc::new(c.desired(0)));
    c.settled().await?;
    ensure!(addresses(&c)? == before, "other gateway addresses: {before:?} -> {:?}", addresses(&c)?);
    let now = rulesets()?;
    ensure!(held == now, "rulesets changed: {held:?} -> {now:?}");
    ensure!(c.status(0).repaired == 0, "{:?}", c.status(0));

    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_disturbs_nothing() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    undisturbed(None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_with_another_gateway_subnet() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    undisturbed(Some("172.31.7.0/24".parse().unwrap())).await
}

/// A sandbox that can't be entered keeps its address and its links while others come; one that never can be loses its
/// link, and only then may others have its address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_cant_be_read_for_a_while_keeps_its_address() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(1, &[("t1", 0)]).await?;
    let (node, pin) = (c.machines[0].node.clone(), c.machines[0].config.run_dir.join("netns/t1"));
    let link = Names::default().gateway_link("t1");
    let (held, index) = (c.gateway_address("t1")?, node.link.index(&link).await?);

    let hidden = || mount_bind("/proc/self/ns/uts", &pin);
    let shown = || unmount(&pin, UnmountFlags::DETACH);
    let failed = |c: &Cluster| matches!(c.status(0).sandboxes.get("t1"), Some(SandboxState::Failed { .. }));
    for (newcomer, for_ever) in [("n1", false), ("n2", true)] {
        hidden()?;
        c.restart(0).await?;
        let number = 11 + u8::try_from(c.tasks.len())?;
        let task = Task { id: newcomer.into(), host: 0, number, ready: true, ingress: true };
        c.serve(&task).await?;
        c.tasks.push(task);
        c.generation += 1;
        c.machines[0].desired.send_replace(Arc::new(c.desired(0)));
        eventually("the newcomer was tried", || async {
            ensure!(failed(&c) && c.status(0).sandboxes.contains_key(newcomer), "{:?}", c.status(0));
            if for_ever {
                c.gateway_address(newcomer)?;
            }
            Ok(())
        })
        .await?;
        let there = node.link.index(&link).await;
        ensure!(there.is_ok_and(|i| i == index) != for_ever, "the link of t1, for ever: {for_ever}");
        shown()?;
        c.settled().await?;
        let all = c.tasks.iter().map(|t| c.gateway_address(&t.id)).collect::<Result<BTreeSet<_>>>()?;
        ensure!(all.len() == c.tasks.len(), "an address twice: {:?}", c.status(0));
        if !for_ever {
            ensure!(c.gateway_address("t1")? == held, "{held} -> {}", c.gateway_address("t1")?);
            ensure!(node.link.index(&link).await? == index, "the link was made anew");
        }
        let inside = Handle::open(&c.inside("t1")?)?.addresses().await?;
        let subnet =
            inside.iter().filter(|a| matches!(a.net.address, std::net::IpAddr::V4(a) if c.gateway.contains(a)));
        ensure!(subnet.count() == 1, "{inside:?}");
    }
    Ok(())
}
