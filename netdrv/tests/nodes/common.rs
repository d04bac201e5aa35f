//! A cluster of drivers on the testkit's underlay: two networks, one service `web`, tasks as real servers in sandboxes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use skep_net_kernel::ns::{self, Namespace};
use skep_net_testkit::{Answer, Node, Server, Topology, eventually};
use skep_netdrv::{
    Attachment, Config, Desired, DnsConfig, Driver, Endpoint, HostPort, Network, Peer, Protocol, PublishedPort,
    Sandbox, SandboxState, Service, ServiceNetwork, Status, Subnet, Underlay,
};
use tempfile::TempDir;
use tokio::sync::watch;

/// The virtual address of `web` on network `app`.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 250);
/// The published TCP port (to 80) and UDP port (to 5353).
pub const PORT: u16 = 8080;
pub const UDP_PORT: u16 = 5300;

/// One task of `web`.
#[derive(Clone)]
pub struct Task {
    pub id: String,
    /// Which host, from 0.
    pub host: usize,
    /// Last byte of its addresses.
    pub number: u8,
    pub ready: bool,
    /// Whether it is on the ingress network too.
    pub ingress: bool,
}

pub struct Machine {
    pub node: Node,
    pub driver: Option<Driver>,
    pub desired: watch::Sender<Arc<Desired>>,
    pub config: Config,
}

pub struct Cluster {
    pub machines: Vec<Machine>,
    pub tasks: Vec<Task>,
    /// Those of the first task on each host.
    pub host_ports: Vec<HostPort>,
    pub upstream: Vec<SocketAddr>,
    /// Subnet of the gateway bridges.
    pub gateway: Subnet,
    pub servers: BTreeMap<String, [Server; 2]>,
    pub generation: u64,
    pub topology: Topology,
    /// Goes when the cluster does.
    _dir: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for machine in &self.machines {
            for sub in ["netns", "balancers"] {
                let dir = machine.config.run_dir.join(sub);
                for name in ns::list(&dir).unwrap_or_default() {
                    let _ = ns::delete(&dir.join(name));
                }
            }
        }
    }
}

/// Whether tests that need namespaces can run here; says so if not.
pub fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("UNTESTED: network driver in namespaces (needs root)");
    }
    root
}

pub fn app(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, n)
}

impl Cluster {
    /// Hosts with a driver each, and these tasks `(name, host)`, all ready and serving.
    pub async fn new(hosts: u8, tasks: &[(&str, usize)]) -> Result<Self> {
        Self::verified_every(hosts, tasks, Duration::from_secs(2)).await
    }

    /// The same, with the drivers' timer at that.
    pub async fn verified_every(hosts: u8, tasks: &[(&str, usize)], verify: Duration) -> Result<Self> {
        let topology = Topology::new(hosts).await?;
        let dir = TempDir::new()?;
        let mut machines = Vec::new();
        for (i, node) in topology.hosts.iter().enumerate() {
            let mut config = Config::new(dir.path().join(format!("h{i}")));
            config.node_ns = Some(node.namespace.clone());
            config.verify = verify;
            let desired = watch::channel(Arc::new(Desired::default())).0;
            let driver = Driver::start(config.clone(), desired.subscribe())?;
            machines.push(Machine { node: node.clone(), driver: Some(driver), desired, config });
        }
        let tasks = (11_u8..).zip(tasks).map(|(number, (id, host))| Task {
            id: (*id).to_owned(),
            host: *host,
            number,
            ready: true,
            ingress: true,
        });
        let mut cluster = Self {
            machines,
            tasks: tasks.collect(),
            host_ports: Vec::new(),
            upstream: Vec::new(),
            gateway: Desired::default().gateway,
            servers: BTreeMap::new(),
            generation: 0,
            topology,
            _dir: dir,
        };
        for task in cluster.tasks.clone() {
            cluster.serve(&task).await?;
        }
        cluster.apply().await?;
        Ok(cluster)
    }

    /// One more task, once it is in force.
    pub async fn add(&mut self, id: &str, host: usize) -> Result<()> {
        let number = 11 + u8::try_from(self.tasks.len())?;
        let task = Task { id: id.to_owned(), host, number, ready: true, ingress: true };
        self.serve(&task).await?;
        self.tasks.push(task);
        self.apply().await
    }

    /// The driver of a host ends, and another begins that knows nothing yet.
    pub async fn restart(&mut self, host: usize) -> Result<()> {
        let machine = &mut self.machines[host];
        if let Some(driver) = machine.driver.take() {
            driver.stop().await;
        }
        machine.desired.send_replace(Arc::new(Desired::default()));
        machine.driver = Some(Driver::start(machine.config.clone(), machine.desired.subscribe())?);
        Ok(())
    }

    pub async fn serve(&mut self, task: &Task) -> Result<()> {
        let path = self.driver(task.host).open_sandbox(&task.id).await?;
        let inside = Namespace::open(&path)?;
        let servers = [Server::http(&inside, 80, &task.id)?, Server::udp(&inside, 5353, &task.id)?];
        self.servers.insert(task.id.clone(), servers);
        Ok(())
    }

    pub fn driver(&self, host: usize) -> &Driver {
        self.machines[host].driver.as_ref().unwrap()
    }

    pub fn inside(&self, id: &str) -> Result<Namespace> {
        let task = self.tasks.iter().find(|t| t.id == id).context("no such task")?;
        Ok(Namespace::open(&self.machines[task.host].config.run_dir.join("netns").join(id))?)
    }

    pub fn balancer(&self, host: usize, network: &str) -> Result<Namespace> {
        Ok(Namespace::open(&self.machines[host].config.run_dir.join("balancers").join(network))?)
    }

    pub fn status(&self, host: usize) -> Arc<Status> {
        self.driver(host).status().borrow().clone()
    }

    /// The next generation to all hosts; returns once it is in force.
    pub async fn apply(&mut self) -> Result<()> {
        self.generation += 1;
        for host in 0..self.machines.len() {
            self.machines[host].desired.send_replace(Arc::new(self.desired(host)));
        }
        self.settled().await
    }

    /// Every host has applied the current generation, and all sandboxes are ready.
    pub async fn settled(&self) -> Result<()> {
        for host in 0..self.machines.len() {
            eventually("generation in force", || async {
                let status = self.status(host);
                ensure!(status.applied == self.generation, "h{host}: {status:?}");
                for task in self.tasks.iter().filter(|t| t.host == host) {
                    let state = status.sandboxes.get(&task.id);
                    ensure!(matches!(state, Some(SandboxState::Ready { .. })), "h{host}: {}: {status:?}", task.id);
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    pub fn gateway_address(&self, id: &str) -> Result<Ipv4Addr> {
        let host = self.tasks.iter().find(|t| t.id == id).context("no such task")?.host;
        match self.status(host).sandboxes.get(id) {
            Some(SandboxState::Ready { gateway_address: Some(address) }) => Ok(*address),
            other => bail!("{id}: {other:?}"),
        }
    }

    fn network(&self, host: usize, id: &str, third: u8) -> Network {
        let at = |i: usize| Ipv4Addr::new(10, 0, third, 2 + u8::try_from(i).unwrap());
        let peers = self.machines.iter().enumerate().filter(|(i, _)| *i != host);
        Network {
            id: format!("id-{id}"),
            name: id.into(),
            vni: 4096 + u32::from(third),
            subnet: Subnet::new(Ipv4Addr::new(10, 0, third, 0), 24),
            balancer: at(host),
            ingress: third == 0,
            internal: false,
            peers: peers.map(|(i, m)| (format!("n{i}"), Peer { underlay: m.node.address, balancer: at(i) })).collect(),
        }
    }

    /// What host `host` is told.
    pub fn desired(&self, host: usize) -> Desired {
        let addresses = |t: &Task| {
            let ingress = t.ingress.then(|| ("id-ing".to_owned(), Ipv4Addr::new(10, 0, 0, t.number)));
            BTreeMap::from_iter(ingress.into_iter().chain([("id-app".to_owned(), app(t.number))]))
        };
        let endpoints = self.tasks.iter().map(|t| Endpoint {
            task_id: t.id.clone(),
            name: format!("web.{}", t.id),
            node_id: format!("n{}", t.host),
            underlay: self.machines[t.host].node.address,
            ready: t.ready,
            addresses: addresses(t),
        });
        let service = Service {
            id: "s".into(),
            name: "web".into(),
            networks: BTreeMap::from([(
                "id-app".into(),
                ServiceNetwork { vip: Some(VIP), aliases: vec!["www".into()] },
            )]),
            ports: vec![
                PublishedPort { protocol: Protocol::Tcp, published: PORT, target: 80 },
                PublishedPort { protocol: Protocol::Udp, published: UDP_PORT, target: 5353 },
            ],
            endpoints: endpoints.collect(),
        };
        let sandbox = |t: &Task| Sandbox {
            hostname: t.id.clone(),
            networks: addresses(t)
                .into_iter()
                .map(|(network, address)| (network, Attachment { address, aliases: vec![] }))
                .collect(),
            host_ports: if self.tasks.iter().find(|o| o.host == t.host).is_some_and(|o| o.id == t.id) {
                self.host_ports.clone()
            } else {
                Vec::new()
            },
            gateway: true,
            dns: DnsConfig { upstream: self.upstream.clone(), ..DnsConfig::default() },
        };
        Desired {
            generation: self.generation,
            underlay: Underlay { address: self.machines[host].node.address, port: 4789, mtu: 0 },
            gateway: self.gateway,
            networks: [self.network(host, "ing", 0), self.network(host, "app", 1)]
                .map(|n| (n.id.clone(), n.into()))
                .into(),
            services: BTreeMap::from([("s".into(), service.into())]),
            attachments: self
                .tasks
                .iter()
                .filter(|t| t.host == host)
                .map(|t| (t.id.clone(), sandbox(t).into()))
                .collect(),
        }
    }

    pub fn address(&self, host: usize) -> Ipv4Addr {
        self.machines[host].node.address
    }
}

/// The answers of several requests over TCP or UDP, all of which must succeed, each `server client`.
pub async fn ask(from: &Namespace, to: impl Into<SocketAddr>, udp: bool, count: usize) -> Result<Vec<String>> {
    let (to, patience) = (to.into(), Duration::from_secs(2));
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..count {
        let answer: Answer = if udp {
            skep_net_testkit::udp_ask(from, to, patience).await?
        } else {
            skep_net_testkit::http_get(from, to, patience).await?
        };
        answers.insert(answer.to_string());
    }
    Ok(answers.into_iter().collect())
}

pub async fn expect(
    what: &str,
    from: &Namespace,
    to: impl Into<SocketAddr>,
    udp: bool,
    wanted: &[String],
) -> Result<()> {
    let answers = ask(from, to, udp, 6).await.with_context(|| what.to_owned())?;
    ensure!(answers == wanted, "{what}: {answers:?}, wanted {wanted:?}");
    Ok(())
}
