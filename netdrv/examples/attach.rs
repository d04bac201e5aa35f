//! What one container's wires cost: sandboxes are opened, attached to an ingress and another network and to the gateway,
//! and closed again, one after the other, with the kernel. Everything happens in namespaces of its own.
//!
//! Arguments: sandboxes (10), what is done (`all`; `none` only starts and stops, for `strace -c -f` to be compared with).
//! Needs root. The processor time is that of the whole process, the kernel's for it included.
#![allow(clippy::print_stdout, reason = "a program that prints figures")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use skep_net_testkit::Topology;
use skep_netdrv::{Attachment, Config, Desired, DnsConfig, Driver, Network, Sandbox, SandboxState, Subnet, Underlay};
use tokio::sync::watch;

/// The two networks.
const NETWORKS: [&str; 2] = ["app", "ingress"];

fn network(number: u8) -> Option<Network> {
    let id = *NETWORKS.get(usize::from(number))?;
    Some(Network {
        id: id.to_owned(),
        name: id.to_owned(),
        vni: 4096 + u32::from(number),
        subnet: Subnet::new(Ipv4Addr::new(10, number, 0, 0), 16),
        balancer: Ipv4Addr::new(10, number, 0, 2),
        ingress: id == "ingress",
        internal: false,
        peers: BTreeMap::new(),
    })
}

fn sandbox(number: u8) -> Sandbox {
    let at = |third: u8| Attachment { address: Ipv4Addr::new(10, third, 1, number), aliases: Vec::new() };
    Sandbox {
        hostname: format!("c{number}"),
        networks: (0_u8..).zip(NETWORKS).map(|(third, id)| (id.to_owned(), at(third))).collect(),
        host_ports: Vec::new(),
        gateway: true,
        dns: DnsConfig::default(),
    }
}

/// Processor time of this process, of the user and of the kernel.
fn spent() -> Result<[Duration; 2]> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // In hundredths of a second.
    let one = |at: usize| -> Result<Duration> {
        Ok(Duration::from_millis(10 * fields.get(at).context("a short line")?.parse::<u64>()?))
    };
    Ok([one(11)?, one(12)?])
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count: u8 = arguments.next().map_or(Ok(10), |n| n.parse())?;
    let idle = arguments.next().is_some_and(|what| what == "none");
    let topology = Topology::new(1).await?;
    let node = topology.hosts.first().context("a host")?;
    let dir = tempfile::tempdir()?;
    let mut config = Config::new(dir.path());
    config.node_ns = Some(node.namespace.clone());
    // Only what is asked for is measured.
    config.verify = Duration::from_secs(3600);
    let underlay = Underlay { address: node.address, port: 4789, mtu: 0 };
    let networks = (0..2).filter_map(network).map(|n| (n.id.clone(), Arc::new(n))).collect();
    let mut wanted = Desired { generation: 1, underlay, networks, ..Desired::default() };
    let (desired, receiver) = watch::channel(Arc::new(wanted.clone()));
    let driver = Driver::start(config.clone(), receiver)?;
    let mut status = driver.status();
    status.wait_for(|s| s.applied == 1).await?;
    let (start, before) = (Instant::now(), spent()?);
    let report = |what: &str, count: u8, since: Instant, before: [Duration; 2]| -> Result<()> {
        let [user, system] = spent()?;
        let each = |time: Duration| time / u32::from(count.max(1));
        println!(
            "{what}: {:?} each, user {:?} and system {:?} each",
            each(since.elapsed()),
            each(user.saturating_sub(before[0])),
            each(system.saturating_sub(before[1]))
        );
        Ok(())
    };
    if !idle {
        for number in 0..count {
            let id = format!("c{number}");
            driver.open_sandbox(&id).await?;
            wanted.generation += 1;
            wanted.attachments.insert(id.clone(), Arc::new(sandbox(number)));
            desired.send_replace(Arc::new(wanted.clone()));
            let ready = status.wait_for(|s| matches!(s.sandboxes.get(&id), Some(SandboxState::Ready { .. })));
            tokio::time::timeout(Duration::from_secs(10), ready).await.context("attached")??;
        }
        report("open and attach", count, start, before)?;
        let (start, before) = (Instant::now(), spent()?);
        for number in 0..count {
            let id = format!("c{number}");
            driver.close_sandbox(&id).await?;
            wanted.generation += 1;
            wanted.attachments.remove(&id);
            desired.send_replace(Arc::new(wanted.clone()));
            status.wait_for(|s| s.applied == wanted.generation).await?;
        }
        report("close", count, start, before)?;
    }
    driver.stop().await;
    Driver::teardown(&config).await?;
    Ok(())
}
