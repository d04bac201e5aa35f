//! Ports that a process of a node listens on already.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use skep_tests::{Cluster, DEADLINE, eventually};

/// A process of a node that listens on a port, until its first connection or the end of the lab.
struct Listener(Child);

impl Listener {
    fn start(cluster: &Cluster, node: &str, port: &str) -> Result<Self> {
        let mut command = cluster.lab.exec(node, "busybox")?;
        let listener = Self(command.args(["nc", "-l", "-p", port]).stdin(Stdio::null()).spawn()?);
        eventually("somebody listens", || {
            let listed = cluster.lab.exec(node, "busybox")?.args(["netstat", "-ltn"]).output()?;
            ensure!(String::from_utf8_lossy(&listed.stdout).contains(&format!(":{port} ")), "nobody on {port}");
            Ok(())
        })?;
        Ok(listener)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn create(cluster: &Cluster, words: &str) -> Result<()> {
    let words: Vec<&str> = "service create --detach".split(' ').chain(words.split_whitespace()).collect();
    cluster.skep("n1", &words).map(|_| ())
}

/// Takes a node out of the swarm and its list; the token with which it may join again, as a manager.
fn outsider(cluster: &Cluster, node: &str) -> Result<String> {
    cluster.skep(node, &["swarm", "leave"])?;
    cluster.skep("n1", &["node", "rm", "--force", node])?;
    Ok(cluster.skep("n1", &["swarm", "join-token", "--quiet", "manager"])?.trim().to_owned())
}

/// What the mesh publishes never reaches the node itself, so no manager could be reached there.
#[test]
fn no_manager_joins_on_a_published_port() -> Result<()> {
    let cluster = Cluster::up("portjoin", 2, 1)?;
    create(&cluster, "--name web --publish 2399:80 whoami")?;
    cluster.running("n1", "web", 1)?;
    let token = outsider(&cluster, "n2")?;
    let listen = format!("{}:2399", cluster.lab.address("n2")?);
    let remote = format!("{}:2377", cluster.lab.address("n1")?);
    let refused = cluster.skep("n2", &["swarm", "join", "--token", &token, "--listen-addr", &listen, &remote]);
    let error = format!("{:#}", refused.unwrap_err());
    ensure!(error.contains("port 2399/tcp is published by service web"), "{error}");
    cluster.only("n1", 1)?;
    let info = cluster.skep("n2", &["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
    ensure!(info.trim() == "inactive", "{info}");
    cluster.skep("n2", &["swarm", "join", "--token", &token, &remote])?;
    cluster.down()
}

/// Who can't be reached is not taken in, and told so; nothing of the try is left on either side.
#[test]
fn a_manager_that_nobody_reaches_does_not_join() -> Result<()> {
    let cluster = Cluster::up("unreached", 2, 1)?;
    let token = outsider(&cluster, "n2")?;
    let join = ["swarm", "join", "--token", &token];
    let own = cluster.lab.address("n2")?;
    let remote = format!("{}:2377", cluster.lab.address("n1")?);
    // Nobody listens there; nobody has that address.
    for advertise in [format!("{own}:2444"), format!("{}:2377", own.rsplit_once('.').unwrap().0.to_owned() + ".99")] {
        let begun = Instant::now();
        let words = ["--advertise-addr", &advertise, "--listen-addr", &own, &remote];
        let refused = cluster.skep("n2", &[&join[..], &words[..]].concat());
        let error = format!("{:#}", refused.unwrap_err());
        ensure!(error.contains(&format!("does not answer at {advertise}")), "{error}");
        ensure!(error.contains("--advertise-addr") && !error.contains("node rm"), "{error}");
        ensure!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
        cluster.only("n1", 1)?;
    }
    // The managers can't be reached at all: packets are dropped on the way.
    cluster.lab.partition(&["n1".to_owned(), "n2".to_owned()])?;
    let begun = Instant::now();
    let error = format!("{:#}", cluster.skep("n2", &[&join[..], &[&remote]].concat()).unwrap_err());
    ensure!(error.contains(&remote), "{error}");
    ensure!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    cluster.lab.heal()?;
    cluster.skep("n2", &[&join[..], &[&remote]].concat())?;
    cluster.only("n1", 2)?;
    cluster.down()
}

/// Any manager may be asked; the leader is found. One that claims the address of another is told whose it is.
#[test]
fn a_manager_joins_through_one_that_does_not_lead() -> Result<()> {
    let cluster = Cluster::up("through", 4, 3)?;
    let token = outsider(&cluster, "n4")?;
    let leader = cluster.leader("n1")?;
    let follower = cluster.lab.nodes().into_iter().find(|node| *node != leader && node != "n4").unwrap();
    let join = ["swarm", "join", "--token", &token];
    for (remote, taken) in [(&follower, &follower), (&follower, &leader), (&leader, &leader)] {
        let (remote, address) = (cluster.lab.address(remote)?, format!("{}:2377", cluster.lab.address(taken)?));
        let refused = cluster.skep("n4", &[&join[..], &["--advertise-addr", &address, &remote]].concat());
        let error = format!("{:#}", refused.unwrap_err());
        ensure!(error.contains(&format!("address {address} belongs to manager {taken}")), "{error}");
        cluster.only("n1", 3)?;
    }
    cluster.skep("n4", &[&join[..], &[&cluster.lab.address(&follower)?]].concat())?;
    let managers = cluster.skep("n4", &["node", "ls", "--format", "{{.ManagerStatus}}"])?;
    ensure!(managers.matches("Reachable").count() == 3, "{managers}");
    cluster.down()
}

#[test]
fn in_host_mode_a_port_in_use_is_refused_and_for_the_mesh_it_is_a_warning() -> Result<()> {
    let cluster = Cluster::up("ports", 2, 1)?;
    let _listener = Listener::start(&cluster, "n2", "8081")?;
    let _other = Listener::start(&cluster, "n2", "8082")?;
    create(
        &cluster,
        "--name own --publish published=8081,target=80,mode=host --constraint node.role==worker \
         --restart-delay 500ms whoami",
    )?;
    eventually("a refusal that names port and process", || {
        let tasks = cluster.skep("n1", &["service", "ps", "--no-trunc", "--format", "{{.Error}}", "own"])?;
        ensure!(tasks.contains("address already in use: port 8081/tcp is in use on this node by busybox"), "{tasks}");
        Ok(())
    })?;
    create(&cluster, "--name mesh --publish published=8082,target=80 whoami")?;
    eventually("a warning on that node", || {
        let info = cluster.skep("n2", &["info", "--format", "{{json .Warnings}}"])?;
        ensure!(info.contains("port 8082/tcp is in use on this node by busybox"), "{info}");
        Ok(())
    })?;
    let elsewhere = cluster.skep("n1", &["info", "--format", "{{json .Warnings}}"])?;
    ensure!(!elsewhere.contains("8082"), "{elsewhere}");
    // It ends with its first connection. Killing what started it would leave it there.
    let asked = cluster.lab.exec("n2", "busybox")?.args(["nc", "127.0.0.1", "8081"]).stdin(Stdio::null()).status()?;
    ensure!(asked.success(), "nobody listened");
    eventually("the port free, the task there", || cluster.running("n1", "own", 1))?;
    cluster.down()
}
