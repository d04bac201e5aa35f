//! Published ports and virtual addresses of a whole cluster: who is answered, by whom, and whose address is seen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::UdpSocket;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use skep_deploy::lab::layout::OUTSIDE;
use skep_net_kernel::ns::Namespace;
use skep_tests::{Cluster, Load, REQUEST, eventually};

#[test]
fn the_mesh_keeps_the_clients_address() -> Result<()> {
    let cluster = Cluster::up("mesh", 3, 1)?;
    cluster.web(3)?;
    cluster.reachable(3)?;
    let outside = cluster.lab.address(OUTSIDE)?;
    for node in cluster.lab.nodes() {
        let (own, address) = (cluster.lab.address(&node)?, cluster.published(&node)?);
        for _ in 0..6 {
            assert_eq!(cluster.lab.ask(OUTSIDE, address, REQUEST)?.client, outside, "from outside through {node}");
            assert_eq!(cluster.lab.ask(&node, address, REQUEST)?.client, own, "from {node} to its own address");
            // Only 127.0.0.0/8 can't be answered from elsewhere: there the node's own end of the way stands in.
            cluster
                .lab
                .ask(&node, "127.0.0.1:8080".parse()?, REQUEST)
                .with_context(|| format!("localhost of {node}"))?;
        }
    }
    cluster.skep(
        "n1",
        &["service", "create", "--detach", "--name", "client", "--network", "net", "whoami", "client", "http://web/"],
    )?;
    eventually("an answer by name", || {
        let log = cluster.skep("n1", &["service", "logs", "--raw", "client"])?;
        if log.lines().any(|l| l.contains(" 200 ")) { Ok(()) } else { bail!("{log}") }
    })?;
    udp(&cluster)?;
    cluster.down()
}

/// UDP through every node: the answer comes from the address that was asked, and names the client.
fn udp(cluster: &Cluster) -> Result<()> {
    cluster.skep(
        "n1",
        &["service", "create", "--detach", "--name", "echo", "--replicas", "2", "--publish", "9090:80/udp", "whoami"],
    )?;
    cluster.running("n1", "echo", 2)?;
    let outside = cluster.lab.address(OUTSIDE)?;
    let machine = PathBuf::from(format!("/proc/{}/ns/net", cluster.lab.init(OUTSIDE)?.pid));
    for node in cluster.lab.nodes() {
        let target = format!("{}:9090", cluster.lab.address(&node)?);
        eventually(&format!("udp through {node}"), || {
            let (target, own) = (target.clone(), format!("{outside}:0"));
            let answer = Namespace::open(&machine)?.run(move || -> std::io::Result<String> {
                let socket = UdpSocket::bind(own)?;
                socket.set_read_timeout(Some(REQUEST))?;
                // Connected: an answer from any other address would not be taken.
                socket.connect(target)?;
                socket.send(b"hello")?;
                let mut buffer = [0; 512];
                let n = socket.recv(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
            })??;
            if answer.contains(&outside) && answer.contains("hello") { Ok(()) } else { bail!("answer {answer:?}") }
        })?;
    }
    Ok(())
}

#[test]
fn scaling_under_load_loses_no_request() -> Result<()> {
    let cluster = Cluster::up("scale", 3, 1)?;
    cluster.web(3)?;
    cluster.reachable(3)?;
    let addresses: Vec<_> = cluster.lab.nodes().iter().map(|n| cluster.published(n)).collect::<Result<_>>()?;
    let load = Load::start(&cluster.lab, &addresses);
    load.more(200)?;
    for replicas in [6, 2] {
        cluster.skep("n1", &["service", "scale", "--detach", &format!("web={replicas}")])?;
        cluster.running("n1", "web", replicas)?;
        load.more(200)?;
    }
    let (sent, failed) = load.stop();
    assert!(failed.is_empty(), "{} of {sent} requests failed: {failed:?}", failed.len());
    cluster.down()
}
