//! Hosts and a client on one switch: the underlay of a cluster.

use std::net::Ipv4Addr;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use skep_net_kernel::link::{Bridge, Handle, IpNet, VethEnd};
use skep_net_kernel::ns::Namespace;

/// Length of the underlay's network prefix.
pub const UNDERLAY_PREFIX: u8 = 24;

/// A namespace that plays a machine, with its netlink connection.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is called in messages.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// Links, addresses and routes in it.
    pub link: Handle,
    /// Its address on the underlay; unspecified for one that is not on it.
    pub address: Ipv4Addr,
}

impl Node {
    /// A new namespace with its loopback up, connected to nothing.
    pub async fn alone(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let namespace =
            tokio::task::spawn_blocking(Namespace::create_unnamed).await?.with_context(|| format!("make {name}"))?;
        let link = Handle::open(&namespace)?;
        link.set_up(link.index("lo").await?).await?;
        Ok(Self { name, namespace, link, address: Ipv4Addr::UNSPECIFIED })
    }

    /// Runs a closure inside; see [`Namespace::run`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.namespace.run(work)?)
    }

    /// Runs a program inside to its end and returns what it printed; a program that fails is an error with its words.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let run = || Command::new(program).args(arguments).output();
        let Output { status, stdout, stderr } =
            self.run(run)?.with_context(|| format!("{}: start {program}", self.name))?;
        if !status.success() {
            bail!(
                "{}: {program} {}: {status}: {}",
                self.name,
                arguments.join(" "),
                String::from_utf8_lossy(&stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// Sets kernel parameters.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.namespace.set_sysctls(settings).with_context(|| self.name.clone())
    }
}

/// A switch, hosts `10.99.60.1` and following, and a client `10.99.60.100` that is no host. All of it ends with the value.
#[derive(Debug)]
pub struct Topology {
    /// Holds the switch.
    pub switch: Node,
    /// The hosts, `h1` and following.
    pub hosts: Vec<Node>,
    /// The client.
    pub client: Node,
}

impl Topology {
    /// Builds a topology with that many hosts, 1 to 90.
    pub async fn new(hosts: u8) -> Result<Self> {
        ensure!((1..=90).contains(&hosts), "1 to 90 hosts");
        let switch = Node::alone("switch").await?;
        switch.link.add_bridge(&Bridge { name: "br0", up: true, ..Bridge::default() }).await?;
        let mut made = Vec::new();
        for number in 1..=hosts {
            made.push(Self::plug(&switch, format!("h{number}"), number).await?);
        }
        let client = Self::plug(&switch, "client".to_owned(), 100).await?;
        Ok(Self { switch, hosts: made, client })
    }

    /// A node on the switch: its link is `eth0`.
    async fn plug(switch: &Node, name: String, number: u8) -> Result<Node> {
        let mut node = Node::alone(name).await?;
        node.address = Ipv4Addr::new(10, 99, 60, number);
        let port = format!("p{number}");
        let master = Some(switch.link.index("br0").await?);
        let end = VethEnd { name: &port, master, up: true, ..VethEnd::default() };
        let peer = VethEnd { name: "eth0", up: true, namespace: Some(&node.namespace), ..VethEnd::default() };
        switch.link.add_veth(&end, &peer).await?;
        let device = node.link.index("eth0").await?;
        node.link.add_address(device, IpNet::new(node.address, UNDERLAY_PREFIX)).await?;
        Ok(node)
    }

    /// Pulls the plug of host `number` (from 1), or puts it back.
    pub async fn plugged(&self, number: u8, plugged: bool) -> Result<()> {
        let port = self.switch.link.index(&format!("p{number}")).await?;
        if plugged {
            self.switch.link.set_up(port).await?
        } else {
            self.switch.link.set_down(port).await?
        };
        Ok(())
    }
}
