//! The mesh's return path, end to end on the real kernel: two hosts on an underlay, one overlay network, one task on each
//! host, a client outside. The client's address is kept on both hosts, from localhost, from the host itself, east-west and
//! for UDP; a task that reaches itself through its own virtual address is masqueraded. Afterwards nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skep_net_kernel::conntrack;
use skep_net_kernel::link::{
    Bridge, Change, Fdb, FdbPlace, IpNet, Mac, Neighbour, Port, Route, Rule as RoutingRule, VethEnd, Vxlan,
};
use skep_net_kernel::nft::{
    Base, Batch, Chain, ChainType, CmpOp, CtKey, Element, Expr, Family, Field, Hook, Meta, Numgen, Reg, Rule, Set,
    Socket, Table, Type, ct_state,
};
use skep_net_testkit::{Answer, Canary, Node, Server, Topology, answers, eventually, http_get, udp_ask};

const TCP: u8 = 6;
const UDP: u8 = 17;
const PUBLISHED: u16 = 8080;
const TARGET: u16 = 80;
/// A server beyond the gateway.
const OUTSIDE: u16 = 9000;
const VNI: u32 = 4096;
const OVERLAY_MTU: u32 = 1450;
/// The host's and the balancer's ends of the link between them.
const HOST_SIDE: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 1);
const BALANCER_SIDE: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 254, 1);
const TASK_ON_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 254, 9);
/// A next hop that nobody has: the frame's destination is written by the egress hook.
const ANY_BALANCER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
const TASKS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 12)];
const BALANCERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)];

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

fn table(family: Family) -> Table {
    Table::new(family, "skep")
}

/// The mesh on a topology of two hosts.
struct Mesh {
    underlay: Topology,
    balancers: Vec<Node>,
    tasks: Vec<Node>,
    _servers: Vec<Server>,
}

impl Mesh {
    async fn build() -> Result<Self> {
        let underlay = Topology::new(2).await?;
        let (mut balancers, mut tasks, mut servers) = (Vec::new(), Vec::new(), Vec::new());
        for (index, host) in underlay.hosts.iter().enumerate() {
            let balancer =
                balancer(host, BALANCERS[index]).await.with_context(|| format!("balancer of {}", host.name))?;
            let task = task(host, &balancer, index).await.with_context(|| format!("task on {}", host.name))?;
            servers.push(Server::http(&task.namespace, TARGET, &task.name)?);
            servers.push(Server::udp(&task.namespace, TARGET, &task.name)?);
            balancers.push(balancer);
            tasks.push(task);
        }
        for index in [0, 1] {
            let far = 1 - index;
            know_far(&balancers[index], underlay.hosts[far].address, &[TASKS[far], BALANCERS[far]]).await?;
        }
        Ok(Self { underlay, balancers, tasks, _servers: servers })
    }

    /// Six requests in a row are answered by exactly these.
    async fn expect(&self, what: &str, from: &Node, to: SocketAddr, expected: &[Answer]) -> Result<()> {
        let seen = answers(from, to, 6).await.with_context(|| what.to_owned())?;
        let expected: BTreeSet<Answer> = expected.iter().cloned().collect();
        ensure!(seen == expected, "{what}: saw {seen:?}, expected {expected:?}");
        Ok(())
    }

    async fn expect_udp(&self, what: &str, from: &Node, to: SocketAddr, expected: &[Answer]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for _ in 0..6 {
            seen.insert(udp_ask(&from.namespace, to, Duration::from_secs(2)).await.with_context(|| what.to_owned())?);
        }
        let expected: BTreeSet<Answer> = expected.iter().cloned().collect();
        ensure!(seen == expected, "{what}: saw {seen:?}, expected {expected:?}");
        Ok(())
    }
}

/// The node's balancer for the network: VXLAN and bridge in a namespace of their own, a link to the host, the maps.
async fn balancer(host: &Node, own: Ipv4Addr) -> Result<Node> {
    let balancer = Node::alone(format!("b-{}", host.name)).await?;
    // Its UDP socket belongs to the host, the link to the balancer.
    let vxlan = Vxlan {
        name: "vx0",
        vni: VNI,
        port: 4789,
        local: host.address,
        learning: false,
        mac: None,
        mtu: Some(OVERLAY_MTU),
        namespace: Some(&balancer.namespace),
    };
    host.link.add_vxlan(&vxlan).await?;
    let bridge = Bridge { name: "br0", mac: Some(Mac::of(own)), mtu: Some(OVERLAY_MTU), up: true, ..Bridge::default() };
    balancer.link.add_bridge(&bridge).await?;
    let bridge = balancer.link.index("br0").await?;
    balancer.link.add_address(bridge, IpNet::new(own, 24)).await?;
    let vxlan = balancer.link.index("vx0").await?;
    balancer.link.change(vxlan, &Change { master: Some(bridge), up: Some(true), ..Change::default() }).await?;
    let quiet = Port { neigh_suppress: Some(true), learning: Some(false), ..Port::default() };
    balancer.link.set_port(vxlan, &quiet).await?;

    let outer = VethEnd { name: "skgw", up: true, ..VethEnd::default() };
    let inner = VethEnd { name: "gw0", up: true, namespace: Some(&balancer.namespace), ..VethEnd::default() };
    host.link.add_veth(&outer, &inner).await?;
    host.link.add_address(host.link.index("skgw").await?, IpNet::new(HOST_SIDE, 24)).await?;
    let inner = balancer.link.index("gw0").await?;
    balancer.link.add_address(inner, IpNet::new(BALANCER_SIDE, 24)).await?;
    balancer.link.add_route(&Route { via: Some(HOST_SIDE.into()), ..Route::to(IpNet::ALL_V4) }).await?;

    let forward =
        [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/default/rp_filter", "0")];
    host.sysctls(&forward)?;
    host.sysctls(&[("net/ipv4/conf/all/route_localnet", "1")])?;
    balancer.sysctls(&forward)?;
    balancer.sysctls(&[
        ("net/ipv4/conf/gw0/rp_filter", "0"),
        ("net/ipv4/conf/br0/rp_filter", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/br0/send_redirects", "0"),
    ])?;
    // Only where the kernel can track bridged packets at all.
    let _ = balancer.sysctls(&[("net/bridge/bridge-nf-call-iptables", "0")]);

    host_rules().commit(&mut Socket::open(&host.namespace)?)?;
    balancer_rules().commit(&mut Socket::open(&balancer.namespace)?)?;
    Ok(balancer)
}

/// On the host: published ports go to the balancer, from outside and from the host itself.
fn host_rules() -> Batch {
    let table = table(Family::Ip);
    let mut batch = Batch::new();
    batch.add_table(&table).add_set(&table, &Set::keys("ports", &[Type::Proto, Type::Port]));
    let ports = [TCP, UDP].map(|p| Element::key(&[Field::Proto(p), Field::Port(PUBLISHED)]));
    batch.add_elements(&table, "ports", &ports);
    for (chain, hook) in [("pre", Hook::Prerouting), ("out", Hook::Output)] {
        let published = Rule::new()
            .comment("published port to the balancer")
            .to_local_address()
            .load_l4proto(Reg(0))
            .load_destination_port(Reg(1))
            .in_set("ports", Reg(0))
            .load(Reg(4), BALANCER_SIDE.octets())
            .dnat(Reg(4), None);
        batch.add_chain(&table, &Chain::base(chain, ChainType::Nat, hook, -100)).add_rule(&table, chain, &published);
    }
    // A source of 127.0.0.0/8 must not leave the host.
    let localhost = Rule::new().oif_name("skgw").ip_source(Ipv4Addr::LOCALHOST, 8).masquerade();
    batch
        .add_chain(&table, &Chain::base("post", ChainType::Nat, Hook::Postrouting, 100))
        .add_rule(&table, "post", &localhost);
    batch
}

/// In the balancer: one map lookup per connection, address . protocol . port . slot -> endpoint. The source stays.
fn balancer_rules() -> Batch {
    let table = table(Family::Ip);
    let mut batch = Batch::new();
    let key = [Type::Ipv4, Type::Proto, Type::Port, Type::Mark];
    batch.add_table(&table);
    batch.add_set(&table, &Set::map("endpoints", &key, &[Type::Ipv4, Type::Port]));
    batch.add_set(&table, &Set::keys("hairpin", &[Type::Ipv4, Type::Ipv4]));
    batch.add_elements(&table, "endpoints", &endpoints());
    batch.add_elements(&table, "hairpin", &TASKS.map(|t| Element::key(&[Field::Ipv4(t), Field::Ipv4(t)])));

    batch.add_chain(&table, &Chain::base("pre", ChainType::Nat, Hook::Prerouting, -100));
    let next_endpoint = |rule: Rule| {
        rule.load_ip_destination(Reg(4))
            .load_l4proto(Reg(5))
            .load_destination_port(Reg(6))
            .expr(Expr::Numgen { to: Reg(7), kind: Numgen::Incremental, modulus: 2, offset: 0 })
            .map("endpoints", Reg(4), Reg(8))
            .dnat(Reg(8), Some(Reg(9)))
    };
    batch.add_rule(&table, "pre", &next_endpoint(Rule::new().iif_name("gw0").comment("published ports")));
    batch.add_rule(&table, "pre", &next_endpoint(Rule::new().iif_name("br0").comment("virtual addresses")));

    batch.add_chain(&table, &Chain::base("post", ChainType::Nat, Hook::Postrouting, 100));
    let hairpin = Rule::new()
        .oif_name("br0")
        .load_ip_source(Reg(0))
        .load_ip_destination(Reg(1))
        .in_set("hairpin", Reg(0))
        .masquerade();
    batch.add_rule(&table, "post", &hairpin);
    batch
}

fn endpoints() -> Vec<Element> {
    let mut elements = Vec::new();
    for (address, port) in [(BALANCER_SIDE, PUBLISHED), (VIRTUAL, TARGET)] {
        for protocol in [TCP, UDP] {
            for (slot, task) in (0..).zip(TASKS) {
                let key = [Field::Ipv4(address), Field::Proto(protocol), Field::Port(port), Field::Mark(slot)];
                elements.push(Element::map(&key, &[Field::Ipv4(task), Field::Port(TARGET)]));
            }
        }
    }
    elements
}

/// A task: attached to the overlay and to a gateway, with the constant rules that bring replies back.
async fn task(host: &Node, balancer: &Node, index: usize) -> Result<Node> {
    let own = TASKS[index];
    let task = Node::alone(format!("t{}", index + 1)).await?;
    let bridge = balancer.link.index("br0").await?;
    let port = VethEnd { name: "pt", mtu: Some(OVERLAY_MTU), master: Some(bridge), up: true, ..VethEnd::default() };
    let end = VethEnd {
        name: "eth0",
        mac: Some(Mac::of(own)),
        mtu: Some(OVERLAY_MTU),
        up: true,
        namespace: Some(&task.namespace),
        ..VethEnd::default()
    };
    balancer.link.add_veth(&port, &end).await?;
    let eth0 = task.link.index("eth0").await?;
    task.link.add_address(eth0, IpNet::new(own, 24)).await?;
    // The way out, whose default route must not catch the replies; the host's end stands for the gateway bridge.
    let inner = VethEnd { name: "gw", up: true, ..VethEnd::default() };
    let outer = VethEnd { name: "gwt", up: true, namespace: Some(&host.namespace), ..VethEnd::default() };
    task.link.add_veth(&inner, &outer).await?;
    task.link.add_address(task.link.index("gw").await?, IpNet::new(TASK_ON_GATEWAY, 24)).await?;
    host.link.add_address(host.link.index("gwt").await?, IpNet::new(GATEWAY, 24)).await?;
    // The source is the overlay's: a UDP server that is bound to no address answers from it, or its answer would belong to no
    // tracked connection. What really leaves by the gateway is masqueraded on its way.
    task.link
        .add_route(&Route { via: Some(GATEWAY.into()), source: Some(own.into()), ..Route::to(IpNet::ALL_V4) })
        .await?;

    constant_rules().commit(&mut Socket::open(&task.namespace)?)?;
    let reply = Route {
        via: Some(ANY_BALANCER.into()),
        device: Some(eth0),
        onlink: true,
        table: 100,
        ..Route::to(IpNet::ALL_V4)
    };
    task.link.add_route(&reply).await?;
    let nobody = Neighbour { device: eth0, address: ANY_BALANCER.into(), mac: Mac::of(Ipv4Addr::UNSPECIFIED) };
    task.link.add_neighbour(&nobody).await?;
    task.link.add_rule(&RoutingRule { invert: true, mark: Some((0, u32::MAX)), ..RoutingRule::to(100) }).await?;
    task.sysctls(&[("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/eth0/rp_filter", "0")])?;

    // Virtual addresses are at the node's own balancer; the endpoints themselves at their own MACs.
    let own_balancer = Neighbour { device: eth0, address: VIRTUAL.into(), mac: Mac::of(BALANCERS[index]) };
    task.link.replace_neighbour(&own_balancer).await?;
    for address in TASKS {
        balancer
            .link
            .replace_neighbour(&Neighbour { device: bridge, address: address.into(), mac: Mac::of(address) })
            .await?;
    }
    Ok(task)
}

/// The three rules of an endpoint, and the masquerade on its way out: the same for every container and never updated.
fn constant_rules() -> Batch {
    let mut batch = Batch::new();
    let inet = table(Family::Inet);
    batch.add_table(&inet);
    batch.add_chain(&inet, &Chain::base("in", ChainType::Filter, Hook::Prerouting, -150));
    let remember = Rule::new()
        .comment("remember the balancer")
        .iif_name("eth0")
        .ct_direction(false)
        .ct_bits(CtKey::State, ct_state::NEW)
        .expr(Expr::Payload { base: Base::Link, offset: 6, len: 2, to: Reg(0) })
        .expr(Expr::Cmp { reg: Reg(0), op: CmpOp::Eq, value: vec![0x02, 0x42] })
        .expr(Expr::Payload { base: Base::Link, offset: 8, len: 4, to: Reg(0) })
        .expr(Expr::CtSet { key: CtKey::Mark, from: Reg(0) });
    batch.add_rule(&inet, "in", &remember);
    batch.add_chain(&inet, &Chain::base("out", ChainType::Route, Hook::Output, -150));
    let mark = Rule::new()
        .comment("mark replies")
        .ct_direction(true)
        .expr(Expr::Ct { key: CtKey::Mark, direction: None, to: Reg(0) })
        .expr(Expr::Cmp { reg: Reg(0), op: CmpOp::Ne, value: vec![0; 4] })
        .expr(Expr::MetaSet { key: Meta::Mark, from: Reg(0) });
    batch.add_rule(&inet, "out", &mark);

    let ip = table(Family::Ip);
    batch.add_table(&ip);
    batch.add_chain(&ip, &Chain::base("post", ChainType::Nat, Hook::Postrouting, 100));
    batch.add_rule(&ip, "post", &Rule::new().oif_name("gw").masquerade());

    let netdev = table(Family::Netdev);
    batch.add_table(&netdev);
    batch.add_chain(&netdev, &Chain::base("eg", ChainType::Filter, Hook::Egress("eth0".into()), 0));
    let address = Rule::new()
        .comment("address replies to their balancer")
        .expr(Expr::Meta { key: Meta::Mark, to: Reg(0) })
        .expr(Expr::Cmp { reg: Reg(0), op: CmpOp::Ne, value: vec![0; 4] })
        .expr(Expr::PayloadSet { base: Base::Link, offset: 2, len: 4, from: Reg(0), checksum: None });
    batch.add_rule(&netdev, "eg", &address);
    batch
}

/// What the balancer knows about another node: which addresses are behind it.
async fn know_far(balancer: &Node, remote: Ipv4Addr, behind: &[Ipv4Addr]) -> Result<()> {
    let vxlan = balancer.link.index("vx0").await?;
    for address in behind {
        let remote = IpAddr::V4(remote);
        for place in [FdbPlace::Tunnel { remote }, FdbPlace::Bridge] {
            balancer.link.add_fdb(&Fdb { device: vxlan, mac: Mac::of(*address), place }).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_address_is_kept_everywhere() -> Result<()> {
    let mesh = Mesh::build().await?;
    let mut canary = Canary::new().await?;
    let nodes = [&mesh.underlay.switch, &mesh.underlay.client].into_iter().chain(&mesh.underlay.hosts);
    for node in nodes.chain(&mesh.balancers).chain(&mesh.tasks) {
        canary.watch(node).await?;
    }
    let client = &mesh.underlay.client;
    let [h1, h2] = [&mesh.underlay.hosts[0], &mesh.underlay.hosts[1]];
    let t1 = &mesh.tasks[0];
    let both = |client: Ipv4Addr| [Answer::new("t1", client), Answer::new("t2", client)];

    mesh.expect("task 1 to task 2", t1, at(TASKS[1], TARGET), &[Answer::new("t2", TASKS[0])]).await?;
    mesh.expect("client to host 1", client, at(h1.address, PUBLISHED), &both(client.address)).await?;
    mesh.expect("client to host 2", client, at(h2.address, PUBLISHED), &both(client.address)).await?;
    mesh.expect("host 1 to its own address", h1, at(h1.address, PUBLISHED), &both(h1.address)).await?;
    mesh.expect("host 1 to localhost", h1, at(Ipv4Addr::LOCALHOST, PUBLISHED), &both(HOST_SIDE)).await?;
    let hairpin = [Answer::new("t1", BALANCERS[0]), Answer::new("t2", TASKS[0])];
    mesh.expect("task 1 to the virtual address", t1, at(VIRTUAL, TARGET), &hairpin).await?;

    mesh.expect_udp("client to host 1, UDP", client, at(h1.address, PUBLISHED), &both(client.address)).await?;
    mesh.expect_udp("client to host 2, UDP", client, at(h2.address, PUBLISHED), &both(client.address)).await?;
    mesh.expect_udp("task 1 to the virtual address, UDP", t1, at(VIRTUAL, TARGET), &hairpin).await?;

    let outside = Server::http(&h1.namespace, OUTSIDE, "outside")?;
    let egress = [Answer::new("outside", TASK_ON_GATEWAY)];
    mesh.expect("task 1 to the world outside", t1, at(h1.address, OUTSIDE), &egress).await?;

    // Everything was made inside these namespaces (sockets hold theirs too), so their end is the end of it all.
    drop((mesh, outside));
    canary.all_gone().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_element_moves_new_connections_and_conntrack_the_old() -> Result<()> {
    let mesh = Mesh::build().await?;
    let client = &mesh.underlay.client;
    let published = at(mesh.underlay.hosts[0].address, PUBLISHED);

    // A UDP flow from one port sticks to its endpoint, as its entry does.
    let socket = client.namespace.udp_socket(at(Ipv4Addr::UNSPECIFIED, 0))?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    socket.connect(published).await?;
    let first = ask(&socket).await?;
    ensure!(ask(&socket).await? == first, "a flow changed its endpoint by itself");

    // Both slots to the other endpoint, in one batch that leaves no instant without.
    let (gone, stays) = if first.server == "t1" { (TASKS[0], TASKS[1]) } else { (TASKS[1], TASKS[0]) };
    let moved: Vec<Element> = [TCP, UDP]
        .iter()
        .flat_map(|p| {
            [0, 1].map(|slot| [Field::Ipv4(BALANCER_SIDE), Field::Proto(*p), Field::Port(PUBLISHED), Field::Mark(slot)])
        })
        .map(|key| Element::map(&key, &[Field::Ipv4(stays), Field::Port(TARGET)]))
        .collect();
    let mut nft = Socket::open(&mesh.balancers[0].namespace)?;
    let mut batch = Batch::new();
    batch.replace_elements(&table(Family::Ip), "endpoints", &moved).commit(&mut nft)?;

    for _ in 0..4 {
        let answer = http_get(&client.namespace, published, Duration::from_secs(2)).await?;
        ensure!(answer.server != first.server, "a new connection went to the endpoint that was removed");
    }
    ensure!(ask(&socket).await? == first, "an open flow moved without being told: that is draining broken");

    let mut conntrack = conntrack::Socket::open(&mesh.balancers[0].namespace)?;
    let to_gone = conntrack::Filter {
        protocol: Some(UDP),
        reply: conntrack::Tuple { source: Some(gone.into()), ..conntrack::Tuple::default() },
        ..conntrack::Filter::default()
    };
    let deleted = conntrack.delete(&to_gone, 1000)?;
    ensure!(deleted.count == 1 && !deleted.more, "deleted {deleted:?}");
    let after = eventually("the flow moves", || ask(&socket)).await?;
    ensure!(after.server != first.server, "the flow stayed with the dead endpoint");
    ensure!(after.client == first.client, "the client's address was lost: {after:?}");
    Ok(())
}

async fn ask(socket: &tokio::net::UdpSocket) -> Result<Answer> {
    socket.send(b"who").await?;
    let mut buffer = [0; 256];
    let length =
        tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await.context("no answer")??;
    std::str::from_utf8(&buffer[..length])?.parse()
}
