//! What survives what: daemons, managers, machines and cables that fail while the cluster works.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skep_deploy::lab::layout::OUTSIDE;
use skep_net_kernel::ns::Namespace;
use skep_tests::{Cluster, REQUEST, api, eventually};

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

/// Five managers decide while three of them are there, and lose nothing while they can't.
#[test]
fn five_managers_go_on_without_two() -> Result<()> {
    let cluster = Cluster::up("five", 5, 5)?;
    let managers = cluster.skep("n3", &["node", "ls", "--format", "{{.ManagerStatus}}"])?;
    ensure!(managers.matches("Reachable").count() == 4 && managers.matches("Leader").count() == 1, "{managers}");
    let create = |asked: &str, name: &str| {
        let words = ["service", "create", "--detach", "--name", name, "--replicas", "0", "whoami"];
        match cluster.skep(asked, &words) {
            // The answer to an earlier try was lost.
            Err(error) if format!("{error:#}").contains("already exists") => Ok(()),
            done => done.map(|_| ()),
        }
    };
    let mut nodes = cluster.lab.nodes();
    let leader = cluster.leader("n1")?;
    nodes.retain(|node| *node != leader);
    let last = nodes.pop().context("five nodes")?;
    for (lost, name) in [(&leader, "one"), (&last, "two")] {
        cluster.lab.kill(lost)?;
        for asked in &nodes {
            let name = format!("{name}-{asked}");
            eventually("a write is accepted", || create(asked, &name))?;
        }
    }
    let third = nodes.pop().context("three nodes")?;
    cluster.lab.kill(&third)?;
    let error = eventually("no write without a quorum", || match create(&nodes[0], "none") {
        Ok(_) => {
            cluster.skep(&nodes[0], &["service", "rm", "none"])?;
            bail!("it was accepted")
        }
        Err(error) => Ok(format!("{error:#}")),
    })?;
    ensure!(error.contains("The swarm does not have a leader") && error.contains("5 managers"), "{error}");
    for back in [&third, &last, &leader] {
        cluster.lab.restart(back)?;
    }
    let made = ["one", "two"].map(|name| nodes.iter().chain([&third]).map(move |asked| format!("{name}-{asked}")));
    let made: BTreeSet<String> = made.into_iter().flatten().collect();
    for asked in cluster.lab.nodes() {
        eventually("all that was accepted is known everywhere", || {
            let list = cluster.skep(&asked, &["service", "ls", "--format", "{{.Name}}"])?;
            ensure!(list.lines().map(str::to_owned).collect::<BTreeSet<_>>() == made, "{list}");
            Ok(())
        })?;
    }
    cluster.down()
}

/// A node that is drained gives its tasks away; one that is paused keeps them and gets no more.
#[test]
fn drained_and_paused_nodes_get_no_tasks() -> Result<()> {
    let cluster = Cluster::up("drain", 3, 1)?;
    cluster.web(3)?;
    let on = |node: &str, tasks: usize| -> Result<usize> {
        Ok(cluster.running("n1", "web", tasks)?.values().filter(|n| *n == node).count())
    };
    let make = |node: &str, availability: &str| {
        cluster.skep("n1", &["node", "update", "--availability", availability, node]).map(|_| ())
    };
    let scale = |tasks: usize| cluster.skep("n1", &["service", "scale", "--detach", &format!("web={tasks}")]);
    ensure!(on("n2", 3)? == 1 && on("n3", 3)? == 1, "not spread");
    make("n2", "drain")?;
    eventually("no task on the drained node", || {
        ensure!(on("n2", 3)? == 0, "it has some");
        Ok(())
    })?;
    // Its ingress still leads to the tasks of others.
    cluster.reachable(3)?;
    let kept = on("n3", 3)?;
    make("n3", "pause")?;
    scale(6)?;
    ensure!(on("n3", 6)? == kept && on("n2", 6)? == 0, "kept {kept}: {:?}", cluster.tasks("n1", "web")?);
    make("n2", "active")?;
    make("n3", "active")?;
    scale(9)?;
    ensure!(on("n2", 9)? > 0, "nothing on a node that is active again");
    cluster.reachable(9)?;
    cluster.down()
}

/// The manager that a node has its session with, by the node's log, and how many sessions were opened so far.
fn session(cluster: &Cluster, node: &str) -> Result<(String, usize)> {
    let log = std::fs::read_to_string(cluster.lab.log(node))?;
    let opened: Vec<&str> = log.lines().filter(|line| line.contains("session open")).collect();
    let last = opened.last().context("no session yet")?;
    for manager in cluster.lab.nodes() {
        if last.contains(&format!("manager.address=\"{}:2377\"", cluster.lab.address(&manager)?)) {
            return Ok((manager, opened.len()));
        }
    }
    bail!("no manager in {last:?}")
}

#[test]
fn a_worker_whose_manager_dies_goes_to_another_one_and_nobody_takes_it_for_dead() -> Result<()> {
    let cluster = Cluster::up("orphan", 4, 3)?;
    let create = "service create --detach --name pinned --replicas 2 --constraint node.role==worker whoami";
    cluster.skep("n1", &create.split_whitespace().collect::<Vec<_>>())?;
    let mut tasks = cluster.running("n1", "pinned", 2)?;
    for replicas in 3..5 {
        assert!(tasks.values().all(|node| node == "n4"), "{tasks:?}");
        let containers = cluster.skep("n4", &["container", "ls", "--no-trunc", "--quiet"])?;
        let (lost, opened) = session(&cluster, "n4")?;
        let asked = if lost == "n1" { "n2" } else { "n1" };
        let led = cluster.leader(asked)?;
        let begun = Instant::now();
        cluster.lab.kill(&lost)?;

        // Until the dead one is known to be dead: for that long, a lost worker would be noticed too.
        let (mut seen, mut moved) = (BTreeSet::new(), None);
        eventually("the loss noticed, and another session", || {
            let (manager, now) = session(&cluster, "n4")?;
            if now > opened && manager != lost {
                moved.get_or_insert((manager, begun.elapsed()));
            }
            let list = cluster.skep(asked, &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
            seen.extend(
                list.lines().filter_map(|line| line.strip_prefix("n4 ")).map(|status| status.trim().to_owned()),
            );
            ensure!(list.lines().any(|line| line.trim() == format!("{lost} Down")), "{list}");
            ensure!(moved.is_some(), "still with {lost}");
            Ok(())
        })?;
        let dead = begun.elapsed();
        println!("n4's manager {lost} killed (leader {led}); session with, after: {moved:?}; down after {dead:?}");
        assert_eq!(seen, BTreeSet::from(["Ready".to_owned()]), "what n4 was listed as meanwhile");

        cluster.skep(asked, &["service", "scale", "--detach", &format!("pinned={replicas}")])?;
        let after = cluster.running(asked, "pinned", replicas)?;
        assert!(tasks.iter().all(|task| after.get(task.0) == Some(task.1)), "{tasks:?} became {after:?}");
        let running = cluster.skep("n4", &["container", "ls", "--no-trunc", "--quiet"])?;
        assert!(containers.lines().all(|id| running.lines().any(|r| r == id)), "{containers} became {running}");
        tasks = after;
        cluster.lab.restart(&lost)?;
        eventually("three managers again", || {
            let now = managers(&cluster, asked)?;
            if now == ["n1", "n2", "n3"] { Ok(()) } else { bail!("{now:?}") }
        })?;
    }
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
fn the_last_manager_goes_on_alone_when_it_is_told_to_and_the_others_join_it_again() -> Result<()> {
    let cluster = Cluster::up("force", 4, 3)?;
    cluster.web(4)?;
    cluster.skep("n1", &["service", "create", "--detach", "--replicas", "0", "--name", "kept", "whoami"])?;
    cluster.reachable(4)?;
    let force = ["swarm", "init", "--force-new-cluster"];
    let outside = cluster.skep("n4", &force).expect_err("a worker has no state");
    assert!(format!("{outside:#}").contains("not a swarm manager"), "{outside:#}");

    for lost in ["n1", "n2"] {
        cluster.lab.kill(lost)?;
    }
    no_leader(&cluster, "n3")?;
    let begun = Instant::now();
    cluster.skep("n3", &force)?;
    println!("force-new-cluster, s: {:.1}", begun.elapsed().as_secs_f32());
    assert_eq!(cluster.leader("n3")?, "n3");
    assert_eq!(managers(&cluster, "n3")?, ["n3"]);
    eventually("all tasks on the nodes that are left", || {
        let running = cluster.running("n3", "web", 4)?;
        if running.values().all(|n| n == "n3" || n == "n4") { Ok(()) } else { bail!("{running:?}") }
    })?;
    let services = cluster.skep("n3", &["service", "ls", "--format", "{{.Name}}"])?;
    assert!(services.lines().any(|l| l == "kept"), "{services}");
    for node in ["n3", "n4"] {
        let address = cluster.published(node)?;
        eventually("traffic", || cluster.lab.get(OUTSIDE, address, REQUEST).map(|_| ()))?;
    }
    cluster.skep("n3", &["service", "scale", "--detach", "web=6"])?;
    cluster.running("n3", "web", 6)?;

    // Back from the dead, and a quorum of what they remember: they are told, and become workers.
    for lost in ["n1", "n2"] {
        cluster.lab.restart(lost)?;
    }
    eventually("the old managers as workers", || {
        let list = cluster.skep("n3", &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"])?;
        let ready = list.lines().filter(|l| l.trim() == "n1 Ready" || l.trim() == "n2 Ready").count();
        let own = ["n1", "n2"].iter().filter(|n| {
            let control = cluster.skep(n, &["info", "--format", "{{.Swarm.ControlAvailable}}"]);
            control.is_ok_and(|text| text.trim() == "false")
        });
        if ready == 2 && own.count() == 2 { Ok(()) } else { bail!("{list}") }
    })?;
    cluster.running("n3", "web", 6)?;
    // Both ways of becoming a manager again.
    cluster.skep("n3", &["node", "promote", "n1"])?;
    cluster.skep("n2", &["swarm", "leave", "--force"])?;
    let token = cluster.skep("n3", &["swarm", "join-token", "--quiet", "manager"])?;
    let own = cluster.lab.address("n2")?;
    let remote = format!("{}:2377", cluster.lab.address("n3")?);
    cluster.skep("n2", &["swarm", "join", "--advertise-addr", &own, "--token", token.trim(), &remote])?;
    eventually("three managers", || {
        let now = managers(&cluster, "n3")?;
        if now == ["n1", "n2", "n3"] { Ok(()) } else { bail!("{now:?}") }
    })?;
    // What was forced is not forced again: the others stay when this one starts anew.
    cluster.lab.kill_daemon("n3")?;
    eventually("a write without the one that went on alone", || {
        cluster.skep("n1", &["service", "create", "--detach", "--replicas", "0", "--name", "late", "whoami"])
    })?;
    cluster.lab.restart("n3")?;
    eventually("three managers again", || {
        let now = managers(&cluster, "n1")?;
        if now == ["n1", "n2", "n3"] { Ok(()) } else { bail!("{now:?}") }
    })?;
    cluster.running("n1", "web", 6)?;
    cluster.reachable(6)?;
    cluster.down()
}

#[test]
fn a_forced_cluster_follows_its_manager_to_a_new_address() -> Result<()> {
    let cluster = Cluster::up("forceaddr", 2, 2)?;
    cluster.skep("n1", &["service", "create", "--detach", "--name", "one", "whoami"])?;
    cluster.running("n1", "one", 1)?;
    cluster.lab.kill("n1")?;
    no_leader(&cluster, "n2")?;
    let told = format!("{}:2399", cluster.lab.address("n2")?);
    let force = ["swarm", "init", "--force-new-cluster", "--listen-addr", "0.0.0.0:2399"];
    // A port that is taken is noticed before anything is done.
    let taken = Namespace::open(&PathBuf::from(format!("/proc/{}/ns/net", cluster.lab.init("n2")?.pid)))?
        .tcp_listener("0.0.0.0:2399".parse()?)?;
    let refused = cluster.skep("n2", &force).expect_err("the port is taken");
    assert!(format!("{refused:#}").contains("can't be listened on"), "{refused:#}");
    drop(taken);
    no_leader(&cluster, "n2")?;
    cluster.skep("n2", &force)?;
    let shown = cluster.skep("n2", &["node", "inspect", "--format", "{{.ManagerStatus.Addr}}", "self"])?;
    assert_eq!(shown.trim(), told);
    cluster.running("n2", "one", 1)?;
    // The way back, and once more: it is the same thing again.
    cluster.skep("n2", &["swarm", "init", "--force-new-cluster", "--listen-addr", "0.0.0.0:2377"])?;
    docker_forces(&cluster, "n2")?;
    let shown = cluster.skep("n2", &["node", "inspect", "--format", "{{.ManagerStatus.Addr}}", "self"])?;
    assert_eq!(shown.trim(), format!("{}:2377", cluster.lab.address("n2")?));
    cluster.running("n2", "one", 1)?;
    cluster.lab.restart("n1")?;
    eventually("the other one as a worker", || {
        let list = cluster.skep("n2", &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"])?;
        if list.lines().any(|l| l.trim() == "n1 Ready") { Ok(()) } else { bail!("{list}") }
    })?;
    cluster.down()
}

/// The same with the clients that people have.
fn docker_forces(cluster: &Cluster, node: &str) -> Result<()> {
    let clients = ["/usr/bin/docker", "/usr/local/bin/docker"].map(PathBuf::from);
    let mut clients = clients.iter().filter(|client| client.exists()).peekable();
    if clients.peek().is_none() {
        println!("UNTESTED: there is no docker client on this machine");
    }
    for client in clients {
        let output = std::process::Command::new("timeout")
            .arg("60")
            .arg(client)
            .args(["swarm", "init", "--force-new-cluster"])
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_HOST", format!("unix://{}", cluster.lab.socket(node).display()))
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("is now a manager"), "{}: {said}", client.display());
    }
    Ok(())
}

/// Waits until a manager says that nobody leads; then it has to say so at once, to readers and writers.
fn no_leader(cluster: &Cluster, node: &str) -> Result<()> {
    let said = |args: &[&str]| -> Result<Duration> {
        let begun = Instant::now();
        match cluster.skep(node, args) {
            Ok(text) => bail!("answered: {text}"),
            Err(error) if format!("{error:#}").contains("The swarm does not have a leader") => Ok(begun.elapsed()),
            Err(error) => Err(error),
        }
    };
    let first = eventually("no leader", || said(&["service", "ls"]))?;
    let read = said(&["service", "ls"])?;
    let write = said(&["network", "create", "--driver", "overlay", "never"])?;
    println!("no leader: told after {first:?}, then a reader after {read:?}, a writer after {write:?}");
    assert!(first < Duration::from_secs(8) && read < Duration::from_secs(2) && write < Duration::from_secs(2));
    Ok(())
}

/// Managers that are reachable, by name, as a node sees them.
fn managers(cluster: &Cluster, asked: &str) -> Result<Vec<String>> {
    let list = cluster.skep(asked, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
    let mut names: Vec<String> = list
        .lines()
        .filter_map(|l| l.trim().split_once(' '))
        .filter(|(_, status)| matches!(*status, "Leader" | "Reachable"))
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort();
    Ok(names)
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

/// Every task that is not known to have ended holds addresses of its own, by what the managers say and by what the
/// containers have in their namespaces.
fn no_address_twice(cluster: &Cluster) -> Result<()> {
    let mut owners = told_addresses(cluster)?;
    let told: BTreeSet<String> = owners.keys().cloned().collect();
    let mut agreed = 0;
    for (address, task) in held_addresses(cluster)? {
        agreed += usize::from(told.contains(&address));
        if let Some(other) = owners.insert(address.clone(), task.clone())
            && other != task
        {
            bail!("tasks {other} and {task} both hold {address}");
        }
    }
    // Three tasks, each on `net` and on `ingress`.
    assert!(agreed >= 6, "what containers hold is not what n1 tells: {owners:?}");
    Ok(())
}

/// Addresses on networks of the swarm that containers hold, and their tasks; n3 is asked too while it is cut off.
fn held_addresses(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let mut held = Vec::new();
    for node in cluster.lab.nodes() {
        for id in cluster.skep(&node, &["container", "ls", "--no-trunc", "--quiet"])?.lines() {
            let container = api(&cluster.lab.socket(&node), &format!("/containers/{id}/json"))?;
            let task = container["Config"]["Labels"]["com.docker.swarm.task.id"].as_str().context("no task's label")?;
            let pid = container["State"]["Pid"].as_i64().context("no process")?.to_string();
            let mut look = cluster.lab.exec(&node, "nsenter")?;
            let output = look.args(["-t", &pid, "-n", "busybox", "ip", "-4", "-o", "addr"]).output()?;
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{node}: {shown}{}", String::from_utf8_lossy(&output.stderr));
            // The gateway's addresses are the node's own affair, and virtual ones belong to the service.
            let addresses = shown.lines().filter(|line| line.contains(" inet 10.") && !line.contains(": lo "));
            for line in addresses {
                let address =
                    line.split_whitespace().skip_while(|word| *word != "inet").nth(1).context("an address")?;
                held.push((address.to_owned(), task.to_owned()));
            }
        }
    }
    Ok(held)
}

/// Addresses of tasks that are not known to have ended, as n1 tells them.
fn told_addresses(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let ids = cluster.skep("n1", &["service", "ps", "--no-trunc", "--quiet", "web"])?;
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for id in ids.lines() {
        let socket = cluster.lab.socket("n1");
        let task = api(&socket, &format!("/tasks/{id}"))?;
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
    Ok(owners)
}
