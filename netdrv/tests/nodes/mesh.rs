//! The mesh between nodes: who is reached, and whose address they see.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use skep_net_kernel::link::{Handle, IpNet, Route};
use skep_net_testkit::{eventually, http_get, udp_ask};

use crate::common::*;

fn both(client: Ipv4Addr) -> Vec<String> {
    vec![format!("t1 {client}"), format!("t2 {client}")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_reaches_every_task_and_the_client_keeps_its_address() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(3, &[("t1", 0), ("t2", 1)]).await?;
    // A node that is strict about where packets may come from is served as well.
    for machine in &c.machines {
        machine.node.sysctls(&[("net/ipv4/conf/all/rp_filter", "1")])?;
    }
    let client = &c.topology.client;
    for host in 0..3 {
        let at = c.address(host);
        for (udp, port) in [(false, PORT), (true, UDP_PORT)] {
            expect("from outside", &client.namespace, (at, port), udp, &both(client.address)).await?;
            let node = &c.machines[host].node.namespace;
            expect("from the node", node, (at, port), udp, &both(at)).await?;
            expect("from localhost", node, (Ipv4Addr::LOCALHOST, port), udp, &both(at)).await?;
        }
        ensure!(
            http_get(&client.namespace, (at, 81).into(), Duration::from_secs(1)).await.is_err(),
            "an unpublished port"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_reach_each_other_directly_and_by_the_virtual_address() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    let (t1, t2) = (c.inside("t1")?, c.inside("t2")?);
    let text = |s: &str, a| format!("{s} {a}");
    expect("direct", &t1, (app(12), 80), false, &[text("t2", app(11))]).await?;
    for (udp, port) in [(false, 80), (true, 5353)] {
        // A task that reaches itself sees its balancer; the other one sees the task.
        expect("t1 to the service", &t1, (VIP, port), udp, &[text("t1", app(2)), text("t2", app(11))]).await?;
        expect("t2 to the service", &t2, (VIP, port), udp, &[text("t1", app(12)), text("t2", app(3))]).await?;
    }
    Ok(())
}

/// Every combination of the node that a container is on, the node whose port it calls, and the task that answers: the
/// container's own one among them. It is seen as its node, as from anywhere outside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_reach_published_ports_of_every_node() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(3, &[("t1", 0), ("t2", 1)]).await?;
    for (from, own) in [("t1", 0), ("t2", 1)] {
        let inside = c.inside(from)?;
        for host in 0..3 {
            for (udp, port) in [(false, PORT), (true, UDP_PORT)] {
                let what = format!("{from} through h{host}, udp={udp}");
                expect(&what, &inside, (c.address(host), port), udp, &both(c.address(own))).await?;
            }
        }
    }
    Ok(())
}

/// A host that runs Docker too shows bridged packets to the IP hooks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_reach_host_ports_of_their_own_node_whatever_its_bridges_do() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(1, &[("t1", 0), ("t2", 0)]).await?;
    let port = |protocol, published, target| skep_netdrv::HostPort { protocol, published, target };
    c.host_ports = vec![port(skep_netdrv::Protocol::Tcp, 9000, 80), port(skep_netdrv::Protocol::Udp, 9001, 5353)];
    c.apply().await?;
    let (at, node) = (c.address(0), c.machines[0].node.namespace.clone());
    let gateway = Ipv4Addr::new(172, 19, 0, 1);
    let addresses = [("t1", "t2"), ("t2", "t1")].map(|(from, to)| (from, c.gateway_address(to)));
    for setting in ["1", "0", "1"] {
        match node.set_sysctl("net/bridge/bridge-nf-call-iptables", setting) {
            Ok(()) => {}
            Err(skep_net_kernel::ns::Error::Sysctl { .. }) => {
                println!("UNTESTED: bridge-nf-call-iptables={setting} (the kernel has no bridge netfilter)");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        for (from, other) in &addresses {
            let (inside, other) = (c.inside(from)?, *other.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?);
            for (udp, port) in [(false, 9000), (true, 9001)] {
                let what = format!("{from} to a host port, udp={udp}, bridge-nf-call-iptables={setting}");
                let wanted = [format!("t1 {gateway}")];
                eventually(&what, || expect(&what, &inside, (at, port), udp, &wanted)).await?;
            }
            let direct = http_get(&inside, (other, 80).into(), Duration::from_millis(300)).await;
            ensure!(direct.is_err(), "{from} reaches a neighbour on the gateway bridge, setting {setting}: {direct:?}");
        }
        expect("from the node", &node, (at, 9000), false, &[format!("t1 {at}")]).await?;
        expect(
            "from outside",
            &c.topology.client.namespace,
            (at, 9000),
            false,
            &[format!("t1 {}", c.topology.client.address)],
        )
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_have_no_address_of_ipv6_but_their_own_loopback() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(1, &[("t1", 0)]).await?;
    let listed = c.inside("t1")?.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"))?;
    let Ok(listed) = listed else {
        println!("UNTESTED: IPv6 in containers (the kernel has none)");
        return Ok(());
    };
    let links: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    ensure!(links.iter().all(|link| *link == "lo"), "{listed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_ready_is_refused_at_once() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(1, &[("t1", 0)]).await?;
    c.tasks[0].ready = false;
    c.apply().await?;
    let t1 = c.inside("t1")?;
    for (from, to) in [(&c.topology.client.namespace, (c.address(0), PORT)), (&t1, (VIP, 80))] {
        let start = std::time::Instant::now();
        let answer = http_get(from, to.into(), Duration::from_secs(5)).await;
        ensure!(answer.is_err() && start.elapsed() < Duration::from_secs(1), "{answer:?} after {:?}", start.elapsed());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_leaves_and_comes_back_without_a_failed_connection() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1), ("t3", 0)]).await?;
    let load: Vec<_> = (0..2)
        .map(|host| {
            let (from, to) = (c.topology.client.namespace.clone(), (c.address(host), PORT));
            tokio::spawn(async move {
                let mut done = 0;
                let end = tokio::time::Instant::now() + Duration::from_secs(3);
                while tokio::time::Instant::now() < end {
                    http_get(&from, to.into(), Duration::from_secs(2)).await?;
                    done += 1;
                }
                anyhow::Ok(done)
            })
        })
        .collect();
    // At least one is ready all the time, and not always the same.
    for flipped in [0, 1, 0, 2, 1, 0, 0, 2] {
        c.tasks[flipped].ready ^= true;
        c.apply().await?;
        let answers = ask(&c.topology.client.namespace, (c.address(1), PORT), false, 6).await?;
        let ready: Vec<_> =
            c.tasks.iter().filter(|t| t.ready).map(|t| format!("{} {}", t.id, c.topology.client.address)).collect();
        ensure!(answers.iter().all(|a| ready.contains(a)), "{answers:?}, ready {ready:?}");
    }
    for load in load {
        ensure!(load.await?? > 20, "too little load to tell");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_flow_moves_when_its_endpoint_leaves() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    let client = c.topology.client.namespace.clone();
    let socket = client.udp_socket("0.0.0.0:0".parse()?)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    socket.connect((c.address(1), UDP_PORT)).await?;
    let who = || async {
        socket.send(b"who").await?;
        let mut buffer = [0; 64];
        let length = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut buffer)).await??;
        anyhow::Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap_or_default().to_owned())
    };
    let first = who().await?;
    ensure!(who().await? == first, "the flow stays while its endpoint does");
    c.tasks.iter_mut().find(|t| t.id == first).unwrap().ready = false;
    c.apply().await?;
    ensure!(who().await? != first, "the flow moves");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_get_out_and_host_ports_lead_in() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    let client = c.topology.client.clone();
    let _outside = skep_net_testkit::Server::http(&client.namespace, 80, "outside")?;
    let t1 = c.inside("t1")?;
    expect("out", &t1, (client.address, 80), false, &[format!("outside {}", c.address(0))]).await?;

    let port = |protocol, published, target| skep_netdrv::HostPort { protocol, published, target };
    c.host_ports = vec![port(skep_netdrv::Protocol::Tcp, 9000, 80), port(skep_netdrv::Protocol::Udp, 9001, 5353)];
    c.apply().await?;
    let at = c.address(0);
    expect("host port", &client.namespace, (at, 9000), false, &[format!("t1 {}", client.address)]).await?;
    expect("host port, own address", &c.machines[0].node.namespace, (at, 9000), false, &[format!("t1 {at}")]).await?;
    let gateway = Ipv4Addr::new(172, 19, 0, 1);
    let node = &c.machines[0].node.namespace;
    expect("host port, localhost", node, (Ipv4Addr::LOCALHOST, 9000), false, &[format!("t1 {gateway}")]).await?;
    // The node's own loopback stays its own.
    let _own = skep_net_testkit::Server::http(node, 7000, "node")?;
    ensure!(udp_ask(&t1, (gateway, 7000).into(), Duration::from_millis(200)).await.is_err());
    Ok(())
}

/// A neighbour may send to a container's own address by way of its node. Only published ports answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_leads_to_what_is_not_published() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(1, &[("t1", 0)]).await?;
    let (client, t1) = (c.topology.client.clone(), c.inside("t1")?);
    let own = c.gateway_address("t1")?;
    let mut route = Route::to(IpNet::new(c.gateway.addr, c.gateway.prefix));
    route.via = Some(c.address(0).into());
    Handle::open(&client.namespace)?.add_route(&route).await?;
    for port in [80, PORT] {
        let answer = http_get(&client.namespace, (own, port).into(), Duration::from_millis(500)).await;
        ensure!(answer.is_err(), "{own}:{port} answered {answer:?}");
    }
    ensure!(udp_ask(&client.namespace, (own, 5353).into(), Duration::from_millis(500)).await.is_err(), "UDP answered");
    // The way that is meant leads there, by the same route.
    c.host_ports = vec![skep_netdrv::HostPort { protocol: skep_netdrv::Protocol::Tcp, published: 9000, target: 80 }];
    c.apply().await?;
    expect("host port", &client.namespace, (c.address(0), 9000), false, &[format!("t1 {}", client.address)]).await?;
    // What the container asks is answered.
    let _outside = skep_net_testkit::Server::http(&client.namespace, 80, "outside")?;
    expect("out", &t1, (client.address, 80), false, &[format!("outside {}", c.address(0))]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_endpoint_and_its_sandbox_leave_nothing_behind() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    c.servers.remove("t1");
    let gone = c.tasks.remove(0);
    c.apply().await?;
    c.driver(0).close_sandbox(&gone.id).await?;
    c.driver(0).close_sandbox(&gone.id).await?;
    ensure!(!c.status(0).sandboxes.contains_key("t1"), "{:?}", c.status(0));
    for host in 0..2 {
        expect(
            "the other one answers",
            &c.topology.client.namespace,
            (c.address(host), PORT),
            false,
            &[format!("t2 {}", c.topology.client.address)],
        )
        .await?;
    }
    let links: Vec<_> = skep_net_kernel::link::Handle::open(&c.balancer(0, "id-app")?)?.links().await?;
    ensure!(!links.iter().any(|l| l.name.starts_with('p')), "{links:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_waits_for_its_namespace_and_a_network_goes_with_its_balancer() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(1, &[("t1", 0)]).await?;
    let mut desired = c.desired(0);
    let sandbox = desired.attachments["t1"].clone();
    desired.generation += 1;
    desired.attachments.insert("later".into(), sandbox);
    desired.networks.remove("id-app");
    let mut status = c.driver(0).status();
    c.machines[0].desired.send_replace(std::sync::Arc::new(desired.clone()));
    let seen = status.wait_for(|s| s.applied == desired.generation).await?.clone();
    ensure!(seen.sandboxes.values().all(|s| *s == skep_netdrv::SandboxState::Pending), "{seen:?}");
    ensure!(c.balancer(0, "id-app").is_err(), "the balancer is left");
    let answers = ask(&c.topology.client.namespace, (c.address(0), PORT), false, 2).await?;
    ensure!(answers == [format!("t1 {}", c.topology.client.address)], "{answers:?}");
    // The network comes back under another number.
    c.generation = desired.generation;
    c.apply().await?;
    let itself = [format!("t1 {}", app(2))];
    expect("the service is back", &c.inside("t1")?, (VIP, 80), false, &itself).await?;
    for bad in ["", "../x", "a/b"] {
        ensure!(c.driver(0).open_sandbox(bad).await.is_err(), "{bad}");
    }
    Ok(())
}

/// Flows of others to a port that is published here too pass through the node, or lead from it to somewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_flows_of_others_to_a_published_port_stay_and_the_nodes_own_move() -> Result<()> {
    use skep_net_kernel::conntrack::{Filter, Socket, Tuple};
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(1, &[("t1", 0)]).await?;
    let (node, client) = (c.machines[0].node.namespace.clone(), c.topology.client.clone());
    let tracked = |to: Ipv4Addr| {
        let original = Tuple { destination: Some(to.into()), destination_port: Some(UDP_PORT), ..Tuple::default() };
        let filter = Filter { protocol: Some(17), original, ..Filter::default() };
        anyhow::Ok(Socket::open(&node)?.list(&filter, 10)?.into_iter().map(|e| e.id).collect::<Vec<_>>())
    };
    let foreign = node.udp_socket((c.address(0), 0).into())?;
    foreign.send_to(b"x", (client.address, UDP_PORT))?;
    let held = tracked(client.address)?;
    ensure!(held.len() == 1, "{held:?}");
    for ready in [false, true] {
        let own = client.namespace.udp_socket((client.address, 0).into())?;
        own.set_nonblocking(false)?;
        own.set_read_timeout(Some(Duration::from_millis(200)))?;
        own.connect((c.address(0), UDP_PORT))?;
        // It is tracked to whom it leads now.
        own.send(b"who")?;
        eventually("tracked", || async {
            ensure!(!tracked(c.address(0))?.is_empty());
            Ok(())
        })
        .await?;
        c.tasks[0].ready = ready;
        c.apply().await?;
        eventually("its own flow moved", || async {
            let mut buffer = [0; 64];
            // Where nobody answers, that is told.
            let _ = own.send(b"who");
            ensure!(own.recv(&mut buffer).is_ok() == ready);
            Ok(())
        })
        .await?;
        ensure!(tracked(client.address)? == held, "ready: {ready}: {:?}", tracked(client.address)?);
    }
    Ok(())
}

/// A connection from a port of one's choice.
fn connect_from(port: u16, to: (Ipv4Addr, u16)) -> Result<std::net::TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(Duration::from_secs(2)))?;
    bind(&fd, &std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    connect(&fd, &std::net::SocketAddr::from(to))?;
    Ok(fd.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_of_a_client_reaches_one_task_through_several_nodes_at_once() -> Result<()> {
    use std::io::{Read, Write};
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(3, &[("t1", 0)]).await?;
    let client = &c.topology.client;
    let wanted = format!("t1 {}", client.address);
    // Twice, as the second time every node has the first connection's remains.
    for _ in 0..2 {
        let mut streams = Vec::new();
        for host in 0..3 {
            let to = (c.address(host), PORT);
            let connected = client.run(|| connect_from(45_000, to))?;
            let stream = connected.map_err(|e| e.context(format!("through h{host}")))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            streams.push(stream);
        }
        for stream in &mut streams {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.ends_with(&wanted), "{answer:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_of_full_size_pass_the_overlay() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    // 20 bytes of IP and 8 of UDP below the overlay's 1450.
    let (t1, t2) = (c.inside("t1")?, c.inside("t2")?);
    let to = tokio::net::UdpSocket::from_std(t2.udp_socket((app(12), 9).into())?)?;
    let from = t1.udp_socket((app(11), 0).into())?;
    // One that fits, and one that has to be cut in two before it leaves the container.
    for size in [1422, 1423] {
        ensure!(from.send_to(&vec![0; size], (app(12), 9))? == size);
        let mut buffer = vec![0; 2000];
        let received = tokio::time::timeout(Duration::from_secs(2), to.recv(&mut buffer)).await??;
        ensure!(received == size, "{received} of {size}");
    }
    for name in ["eth0", "eth1"] {
        let link = skep_net_kernel::link::Handle::open(&t1)?.link(name).await?;
        ensure!(link.mtu == 1450, "{link:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teardown_leaves_nothing() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut c = Cluster::new(2, &[("t1", 0), ("t2", 1)]).await?;
    c.servers.clear();
    for machine in &mut c.machines {
        machine.driver.take().unwrap().stop().await;
        skep_netdrv::Driver::teardown(&machine.config).await?;
        skep_netdrv::Driver::teardown(&machine.config).await?;
        let links = machine.node.link.links().await?;
        let names: Vec<_> = links.iter().map(|l| l.name.as_str()).collect();
        ensure!(names.iter().all(|n| ["lo", "eth0"].contains(n)), "{names:?}");
        let tables = skep_net_kernel::nft::Socket::open(&machine.node.namespace)?.tables()?;
        ensure!(tables.is_empty(), "{tables:?}");
        for dir in ["netns", "balancers"] {
            ensure!(!machine.config.run_dir.join(dir).exists(), "{dir} is left");
        }
    }
    eventually("ports refuse", || async {
        let answer = http_get(&c.topology.client.namespace, (c.address(0), PORT).into(), Duration::from_secs(1)).await;
        ensure!(answer.is_err());
        Ok(())
    })
    .await
}
