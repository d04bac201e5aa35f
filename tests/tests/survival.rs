//! What survives what: daemons, managers, machines and cables that fail while the cluster works.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skep_deploy::lab::layout::OUTSIDE;
use skep_net_kernel::ns::Namespace;
use skep_tests::{Cluster, REQUEST, eventually};

#[test]
fn a_stream_outlives_the_daemons_of_every_node() -> Result<()> {
    let cluster = Cluster::up("stream", 2, 1)?;
    cluster.web(2)?;
    cluster.reachable(2)?;
    let machine = PathBuf::from(format!("/proc/{}/ns/net", cluster.lab.init(OUTSIDE)?.pid));
    let mut stream = Namespace::open(&machine)?.tcp_connect(cluster.published("n1")?, REQUEST)?;
    stream.set_read_timeout(Some(REQUEST))?;
    write!(stream, "GET /stream HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let mut flowing = |what: &str| -> Result<()> {
        // A tenth of a second apart: each read is new data that came through.
        for _ in 0..10 {
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).with_context(|| format!("{what}: the stream stopped"))? == 0 {
                bail!("{what}: the stream ended");
            }
        }
        Ok(())
    };
    flowing("before")?;
    for node in cluster.lab.nodes() {
        let before = cluster.running("n1", "web", 2)?;
        cluster.lab.kill_daemon(&node)?;
        flowing(&format!("daemon of {node} dead"))?;
        cluster.lab.restart(&node)?;
        flowing(&format!("daemon of {node} back"))?;
        let after = eventually("the same tasks", || {
            let after = cluster.running("n1", "web", 2)?;
            if after == before { Ok(after) } else { bail!("{before:?} became {after:?}") }
        })?;
        assert_eq!(before, after, "no task was replaced");
    }
    cluster.reachable(2)?;
    cluster.down()
}

#[test]
fn nothing_acknowledged_is_lost_when_all_managers_die() -> Result<()> {
    let cluster = Cluster::up("allmgr", 3, 3)?;
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        for i in 0..5 {
            let name = format!("s{round}x{i}");
            let created =
                cluster.skep("n1", &["service", "create", "--detach", "--replicas", "0", "--name", &name, "whoami"]);
            if created.is_ok() {
                acknowledged.insert(name);
            }
        }
        for node in cluster.lab.nodes() {
            cluster.lab.kill_daemon(&node)?;
        }
        for node in cluster.lab.nodes() {
            cluster.lab.restart(&node)?;
        }
        eventually("every acknowledged service", || {
            let list = cluster.skep("n2", &["service", "ls", "--format", "{{.Name}}"])?;
            let there: BTreeSet<String> = list.lines().map(str::to_owned).collect();
            let lost: Vec<_> = acknowledged.difference(&there).collect();
            if lost.is_empty() { Ok(()) } else { bail!("lost: {lost:?}") }
        })?;
    }
    assert!(acknowledged.len() >= 10, "too few were acknowledged to prove anything: {acknowledged:?}");
    cluster.down()
}

#[test]
fn writes_go_on_after_each_of_twenty_dead_leaders() -> Result<()> {
    let cluster = Cluster::up("leader", 3, 3)?;
    let mut times = Vec::new();
    for round in 0..20 {
        let leader = eventually("a leader", || cluster.leader("n1").or_else(|_| cluster.leader("n2")))?;
        let others: Vec<String> = cluster.lab.nodes().into_iter().filter(|n| *n != leader).collect();
        let begun = Instant::now();
        cluster.lab.kill_daemon(&leader)?;
        let name = format!("r{round}");
        eventually("the next write", || {
            cluster.skep(
                &others[round % 2],
                &["service", "create", "--detach", "--replicas", "0", "--name", &name, "whoami"],
            )
        })?;
        times.push(begun.elapsed());
        cluster.lab.restart(&leader)?;
        eventually("all managers back", || {
            let list = cluster.skep(&others[0], &["node", "ls", "--format", "{{.ManagerStatus}}"])?;
            let good = list.lines().filter(|l| matches!(l.trim(), "Leader" | "Reachable")).count();
            if good == 3 { Ok(()) } else { bail!("{list}") }
        })?;
    }
    times.sort();
    let shown: Vec<u128> = times.iter().map(Duration::as_millis).collect();
    println!("leader killed -> next write accepted, ms: {shown:?}");
    let list = cluster.skep("n3", &["service", "ls", "--format", "{{.Name}}"])?;
    assert_eq!(list.lines().count(), 20, "{list}");
    cluster.down()
}

#[test]
fn a_partitioned_worker_comes_back_and_no_address_is_doubled() -> Result<()> {
    let cluster = Cluster::up("part", 3, 1)?;
    cluster.web(3)?;
    cluster.reachable(3)?;
    cluster.lab.partition(&["n1,n2".to_owned(), "n3".to_owned()])?;
    eventually("n3 down", || {
        let list = cluster.skep("n1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        if list.lines().any(|l| l == "n3 Down") { Ok(()) } else { bail!("{list}") }
    })?;
    let running = cluster.running("n1", "web", 3)?;
    assert!(running.values().all(|n| n != "n3"), "{running:?}");
    no_address_twice(&cluster)?;
    cluster.lab.heal()?;
    eventually("n3 ready", || {
        let list = cluster.skep("n1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        if list.lines().any(|l| l == "n3 Ready") { Ok(()) } else { bail!("{list}") }
    })?;
    // The tasks that n3 kept running are ended now that it hears of it.
    eventually("n3's old tasks gone", || {
        let list = cluster.skep("n3", &["container", "ls", "--quiet"])?;
        if list.trim().is_empty() { Ok(()) } else { bail!("{list}") }
    })?;
    no_address_twice(&cluster)?;
    cluster.reachable(3)?;
    cluster.down()
}

/// Every task that is not known to have ended holds addresses of its own.
fn no_address_twice(cluster: &Cluster) -> Result<()> {
    let ids = cluster.skep("n1", &["service", "ps", "--no-trunc", "--quiet", "web"])?;
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for id in ids.lines() {
        let socket = cluster.lab.socket("n1");
        let task = get(&socket, &format!("/tasks/{id}"))?;
        if matches!(
            task["Status"]["State"].as_str(),
            Some("complete" | "failed" | "shutdown" | "rejected" | "orphaned")
        ) {
            continue;
        }
        for network in task["NetworksAttachments"].as_array().into_iter().flatten() {
            for address in network["Addresses"].as_array().into_iter().flatten().filter_map(|a| a.as_str()) {
                if let Some(other) = owners.insert(address.to_owned(), id.to_owned()) {
                    bail!("tasks {other} and {id} both hold {address}");
                }
            }
        }
    }
    Ok(())
}

/// One call of the Engine API.
fn get(socket: &std::path::Path, path: &str) -> Result<serde_json::Value> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(REQUEST))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: skep\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
}
