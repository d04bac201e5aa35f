//! What one change costs on a node that knows many services: from the new desired value to its generation in force, with
//! the kernel. Everything happens in namespaces of its own.
//!
//! Arguments: services (1000), endpoints of each (10), nodes driven at once (1), changes (200), seconds between
//! verifications (2). Needs root. The processor time is that of the whole process, the kernel's included.
#![allow(clippy::print_stdout, clippy::indexing_slicing, reason = "a program that prints figures")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use skep_net_testkit::Topology;
use skep_netdrv::{
    Config, Desired, Driver, Endpoint, Network, Peer, Protocol, PublishedPort, Service, ServiceNetwork, Subnet,
    Underlay,
};
use tokio::sync::watch;

/// Overlay networks beside the ingress network.
const NETWORKS: usize = 10;
/// Other nodes that the endpoints are on.
const PEERS: usize = 100;

/// One driven node.
struct Machine {
    driver: Driver,
    desired: watch::Sender<Arc<Desired>>,
}

/// The `n`th address of network `network`.
fn at(network: usize, n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + (u32::try_from(network).unwrap_or(0) << 16) + u32::try_from(n).unwrap_or(0))
}

fn network(number: usize) -> Network {
    let peer = |n: usize| {
        let underlay = Ipv4Addr::from(0x0a63_3d00 + u32::try_from(n).unwrap_or(0));
        (format!("node-{n}"), Peer { underlay, balancer: at(number, 2 + n) })
    };
    Network {
        id: format!("network-{number}"),
        name: format!("net{number}"),
        vni: 4096 + u32::try_from(number).unwrap_or(0),
        subnet: Subnet::new(at(number, 0), 16),
        balancer: at(number, 1),
        ingress: number == 0,
        internal: false,
        peers: (0..PEERS).map(peer).collect(),
    }
}

fn endpoint(service: usize, n: usize, own: usize, each: usize) -> Endpoint {
    let number = 1000 + service * (each + 1) + n;
    Endpoint {
        task_id: format!("task-{service}-{n}"),
        name: format!("service{service}.{n}"),
        node_id: format!("node-{}", n % PEERS),
        underlay: Ipv4Addr::from(0x0a63_3d00 + u32::try_from(n % PEERS).unwrap_or(0)),
        ready: true,
        addresses: BTreeMap::from([
            ("network-0".to_owned(), at(0, number)),
            (format!("network-{own}"), at(own, number)),
        ]),
    }
}

fn service(number: usize, endpoints: usize) -> Service {
    let own = 1 + number % NETWORKS;
    let on = ServiceNetwork { vip: Some(at(own, 32_768 + number)), aliases: vec![format!("alias{number}")] };
    Service {
        id: format!("service-{number}"),
        name: format!("service{number}"),
        networks: BTreeMap::from([(format!("network-{own}"), on)]),
        ports: vec![PublishedPort {
            protocol: Protocol::Tcp,
            published: 10_000 + u16::try_from(number).unwrap_or(0),
            target: 80,
        }],
        endpoints: (0..endpoints).map(|n| endpoint(number, n, own, endpoints)).collect(),
    }
}

/// Sends a value to every node; how long until all have it in force.
async fn publish(machines: &[Machine], desired: &Arc<Desired>) -> Result<Duration> {
    let begun = Instant::now();
    for machine in machines {
        machine.desired.send_replace(desired.clone());
    }
    for machine in machines {
        let mut status = machine.driver.status();
        let wait = status.wait_for(|s| s.applied == desired.generation);
        tokio::time::timeout(Duration::from_secs(120), wait).await.context("not in force within 120 s")??;
    }
    Ok(begun.elapsed())
}

/// What this process has used of the processors.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

fn show(what: &str, mut times: Vec<Duration>, used: Duration) {
    let used = used.as_secs_f64() * 1000.0 / f64::from(u32::try_from(times.len()).unwrap_or(1));
    times.sort();
    let ms = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
    let (p50, p90, p99) = (ms(50), ms(90), ms(99));
    println!(
        "{what}: p50 {p50:.1} ms, p90 {p90:.1}, p99 {p99:.1} of {} changes, {used:.1} ms of processor each",
        times.len()
    );
}

fn edit(desired: &mut Desired, number: usize, change: impl FnOnce(&mut Service)) {
    desired.generation += 1;
    if let Some(service) = desired.services.get_mut(&format!("service-{number}")) {
        change(Arc::make_mut(service));
    }
}

async fn measure(machines: &[Machine], services: usize, endpoints: usize, changes: usize) -> Result<()> {
    let mut desired = Desired {
        generation: 1,
        underlay: Underlay { address: Ipv4Addr::new(10, 99, 60, 1), port: 4789, mtu: 1500 },
        networks: (0..=NETWORKS).map(|n| (format!("network-{n}"), network(n).into())).collect(),
        services: (0..services).map(|n| (format!("service-{n}"), service(n, endpoints).into())).collect(),
        ..Desired::default()
    };
    println!("everything anew: {:.0} ms", publish(machines, &Arc::new(desired.clone())).await?.as_secs_f64() * 1000.0);
    let (mut times, begun) = (Vec::new(), cpu());
    for n in 0..changes {
        edit(&mut desired, n * 7 % services, |s| s.endpoints[0].ready ^= true);
        times.push(publish(machines, &Arc::new(desired.clone())).await?);
    }
    show("readiness of one endpoint", times, cpu() - begun);
    let (mut times, begun) = (Vec::new(), cpu());
    for n in 0..changes {
        let number = n / 2 * 7 % services;
        edit(&mut desired, number, |s| match n % 2 {
            0 => s.endpoints.push(endpoint(number, endpoints, 1 + number % NETWORKS, endpoints)),
            _ => drop(s.endpoints.pop()),
        });
        times.push(publish(machines, &Arc::new(desired.clone())).await?);
    }
    show("one endpoint comes or goes", times, cpu() - begun);
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let given: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let argument = |i: usize, usual: usize| given.get(i).copied().unwrap_or(usual);
    let (services, endpoints, nodes, changes) = (argument(0, 1000), argument(1, 10), argument(2, 1), argument(3, 200));
    let directory = tempfile::tempdir()?;
    let mut machines = Vec::new();
    let mut configs = Vec::new();
    let mut places = Vec::new();
    for n in 0..nodes {
        let place = Topology::new(1).await?;
        let mut config = Config::new(directory.path().join(format!("n{n}")));
        config.node_ns = Some(place.hosts[0].namespace.clone());
        config.verify = Duration::from_secs(u64::try_from(argument(4, 2))?);
        let desired = watch::channel(Arc::new(Desired::default())).0;
        let driver = Driver::start(config.clone(), desired.subscribe())?;
        machines.push(Machine { driver, desired });
        configs.push(config);
        places.push(place);
    }
    println!("{nodes} node(s), {services} services x {endpoints} endpoints, {NETWORKS} overlay networks and ingress");
    let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let measured = tokio::select! {
        measured = measure(&machines, services, endpoints, changes) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = ended.recv() => Err(anyhow::anyhow!("ended")),
    };
    for machine in machines {
        machine.driver.stop().await;
    }
    for config in &configs {
        Driver::teardown(config).await?;
    }
    measured
}
