//! The `docker` command, unchanged, against a cluster of Skep nodes: Debian's and, where there is one, a newer client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use skep_deploy::lab::layout::OUTSIDE;
use skep_deploy::lab::{Lab, Stage};
use skep_tests::{Cluster, REQUEST, eventually, program};

/// One client program against the nodes of one lab.
struct Docker<'a> {
    client: &'a Path,
    lab: &'a Lab,
}

impl Docker<'_> {
    fn run(&self, node: &str, args: &[&str]) -> Result<String> {
        let host = format!("unix://{}", self.lab.socket(node).display());
        let output = Command::new("timeout")
            .arg("60")
            .arg(self.client)
            .args(args)
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_HOST", host)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        bail!("docker {}: {text}{}", args.join(" "), String::from_utf8_lossy(&output.stderr))
    }
}

/// The clients that people have: where they are looked for, and how their version begins.
const CLIENTS: [(&str, &str, &str); 2] =
    [("/usr/bin/docker", "20.10.", "Debian's docker 20.10"), ("/usr/local/bin/docker", "28.", "docker 28")];

/// The clients on this machine, each program once, with its version.
fn clients() -> BTreeMap<PathBuf, String> {
    let found = CLIENTS.iter().filter_map(|(path, ..)| {
        let client = Path::new(path).canonicalize().ok()?;
        // "Docker version 28.2.2, build ..."
        let said = Command::new(&client).arg("--version").output().ok()?.stdout;
        let said = String::from_utf8(said).ok()?;
        let version = said.trim().strip_prefix("Docker version ")?.split(',').next()?.to_owned();
        Some((client, version))
    });
    found.collect()
}

#[test]
fn docker_makes_a_swarm_and_runs_services() -> Result<()> {
    let clients = clients();
    for (client, version) in &clients {
        println!("docker client {version}: {}", client.display());
    }
    for (path, wanted, name) in CLIENTS {
        if !clients.values().any(|version| version.starts_with(wanted)) {
            println!("UNTESTED: {name} ({path}) is not on this machine");
        }
    }
    for (i, (client, version)) in clients.iter().enumerate() {
        let cluster = Cluster::staged(&format!("docker{i}"), 3, 3, Stage::Daemons)?;
        walk(&Docker { client, lab: &cluster.lab }).with_context(|| format!("with docker {version}"))?;
        cluster.down()?;
    }
    Ok(())
}

/// `docker events` of the swarm, as one manager tells them while things happen.
struct Events {
    client: Child,
    file: tempfile::NamedTempFile,
}

impl Events {
    fn follow(docker: &Docker<'_>, node: &str) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        // From a moment ago: nothing is lost until it is connected.
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
        let client = Command::new(docker.client)
            .args(["events", "--since", &since, "--filter", "scope=swarm", "--format"])
            .arg("{{.Scope}} {{.Type}} {{.Action}} {{.Actor.Attributes.name}}")
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_HOST", format!("unix://{}", docker.lab.socket(node).display()))
            .stdin(Stdio::null())
            .stdout(File::create(file.path())?)
            .spawn()?;
        Ok(Self { client, file })
    }

    /// Waits until it has told of all that happened to the service, in its order.
    fn tell(&self, service: &str) -> Result<()> {
        eventually("the service's events", || {
            let told = std::fs::read_to_string(self.file.path())?;
            ensure!(told.lines().all(|line| line.starts_with("swarm ")), "of another scope: {told}");
            let of_service = told.lines().filter_map(|line| line.strip_prefix("swarm service "));
            let mut actions: Vec<&str> =
                of_service.filter_map(|line| line.strip_suffix(service)).map(str::trim_end).collect();
            actions.dedup();
            ensure!(actions == ["create", "update", "remove"], "{told}");
            Ok(())
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Every task's output is there, and each line says of which task on which node it is.
fn logs(docker: &Docker<'_>, tasks: usize) -> Result<()> {
    let format = "{{.Name}}.{{.ID}}@{{.Node}}";
    let running =
        docker.run("n1", &["service", "ps", "--filter", "desired-state=running", "--format", format, "web"])?;
    let running: BTreeSet<&str> = running.lines().collect();
    assert_eq!(running.len(), tasks, "{running:?}");
    eventually("a line of every task", || {
        let log = docker.run("n2", &["service", "logs", "--tail", "5", "web"])?;
        let mut listening = BTreeSet::new();
        for line in log.lines() {
            let (task, text) = line.split_once('|').with_context(|| format!("whose line is this? {line:?}"))?;
            if text.starts_with(" listening on ") {
                listening.insert(task.trim_end());
            }
        }
        ensure!(running.is_subset(&listening), "{running:?} are not all in {log}");
        let raw = docker.run("n2", &["service", "logs", "--raw", "web"])?;
        ensure!(raw.lines().filter(|line| line.starts_with("listening on ")).count() >= tasks, "raw: {raw}");
        ensure!(!raw.contains('|'), "raw, and yet with names: {raw}");
        Ok(())
    })
}

/// What a container of a node uses and runs.
fn looked_into(docker: &Docker<'_>, node: &str) -> Result<()> {
    let ids = docker.run(node, &["ps", "-q", "--filter", "name=web."])?;
    let id = ids.lines().next().context("no container of web here")?;
    let used = docker.run(node, &["stats", "--no-stream", "--format", "{{.MemUsage}}", id])?;
    // No limit was set: what the machine has.
    assert!(used.contains("iB / ") && used.trim().ends_with("GiB"), "{used}");
    let processes = docker.run(node, &["top", id])?;
    assert!(processes.lines().nth(1).is_some_and(|line| line.starts_with("root ")), "{processes}");
    Ok(())
}

/// A stack's volume has a label of the client's own: the error is about the volume.
fn stack_with_a_volume(docker: &Docker<'_>) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    let stack = r#"{"version": "3.8", "services": {"kept": {"image": "whoami", "volumes": ["data:/v"]}}, "volumes": {"data": {}}}"#;
    file.write_all(stack.as_bytes())?;
    let path = file.path().to_string_lossy().into_owned();
    let refused = docker.run("n1", &["stack", "deploy", "-c", &path, "kept"]).expect_err("a volume");
    assert!(refused.to_string().contains("volumes are not supported yet; use a bind mount"), "{refused}");
    docker.run("n1", &["stack", "rm", "kept"])?;
    Ok(())
}

/// The worker remembers what happened to its containers and images.
fn told(docker: &Docker<'_>) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    // Whole seconds: the one that has begun is to be over.
    let now = (now + 1).to_string();
    let events = |filter: &str| {
        docker.run("n3", &["events", "--since", "0", "--until", &now, "--filter", filter, "--format", "{{.Action}}"])
    };
    let actions = events("type=container")?;
    for action in ["create", "start", "kill", "die", "stop", "destroy"] {
        assert!(actions.lines().any(|line| line == action), "no {action} in {actions}");
    }
    assert!(events("image=whoami:latest")?.lines().any(|line| line == "load"));
    Ok(())
}

/// What people do first, in the order in which they do it.
fn walk(docker: &Docker<'_>) -> Result<()> {
    let lab = docker.lab;
    let first = lab.address("n1")?;
    docker.run("n1", &["swarm", "init", "--advertise-addr", &first])?;
    let again = docker.run("n1", &["swarm", "init"]).expect_err("a second init");
    assert!(again.to_string().contains("already part of a swarm"), "{again}");
    for (node, role) in [("n2", "manager"), ("n3", "worker")] {
        let token = docker.run("n1", &["swarm", "join-token", "-q", role])?;
        let own = lab.address(node)?;
        docker.run(
            node,
            &["swarm", "join", "--advertise-addr", &own, "--token", token.trim(), &format!("{first}:2377")],
        )?;
    }
    let nodes = eventually("three ready nodes", || {
        let nodes = docker.run("n1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"])?;
        if nodes.lines().filter(|l| l.contains("Ready")).count() == 3 { Ok(nodes) } else { bail!("{nodes}") }
    })?;
    assert!(nodes.contains("n1 Ready Leader"), "{nodes}");
    let events = Events::follow(docker, "n1")?;
    let image = program("whoami.tar")?;
    for node in lab.nodes() {
        docker.run(&node, &["image", "load", "-i", &image.to_string_lossy()])?;
        assert!(docker.run(&node, &["image", "ls"])?.contains("whoami"));
    }
    docker.run("n1", &["network", "create", "-d", "overlay", "net"])?;
    // Waits until the service has converged, as people are used to.
    docker.run(
        "n2",
        &["service", "create", "--name", "web", "--replicas", "3", "-p", "8080:80", "--network", "net", "whoami"],
    )?;
    let tasks = docker.run("n1", &["service", "ps", "--format", "{{.Name}} {{.CurrentState}}", "web"])?;
    assert_eq!(tasks.lines().filter(|l| l.contains("Running")).count(), 3, "{tasks}");
    for node in lab.nodes() {
        let address = format!("{}:8080", lab.address(&node)?).parse()?;
        eventually("an answer", || lab.ask(OUTSIDE, address, REQUEST))?;
    }
    docker.run("n1", &["service", "scale", "web=5"])?;
    let listed = docker.run("n1", &["service", "ls", "--format", "{{.Name}} {{.Replicas}} {{.Ports}}"])?;
    assert_eq!(listed.trim(), "web 5/5 *:8080->80/tcp");
    docker.run("n1", &["service", "update", "--env-add", "COLOUR=blue", "--update-parallelism", "0", "web"])?;
    let spec =
        docker.run("n1", &["service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "web"])?;
    assert!(spec.contains("COLOUR=blue"), "{spec}");
    logs(docker, 5)?;
    looked_into(docker, "n1")?;
    stack_with_a_volume(docker)?;
    assert!(docker.run("n1", &["network", "ls"])?.contains("ingress"));
    let used = docker.run("n1", &["network", "rm", "net"]).expect_err("a network in use");
    assert!(used.to_string().contains("in use"), "{used}");
    let port = docker.run("n1", &["service", "create", "-d", "--name", "other", "-p", "8080:80", "whoami"]);
    assert!(port.expect_err("a port in use").to_string().contains("8080"));
    docker.run("n1", &["service", "rm", "web"])?;
    events.tell("web")?;
    drop(events);
    eventually("no container", || {
        let left: Vec<String> = lab.nodes().iter().map(|n| docker.run(n, &["ps", "-aq"])).collect::<Result<_>>()?;
        if left.concat().trim().is_empty() { Ok(()) } else { bail!("{left:?}") }
    })?;
    told(docker)?;
    docker.run("n1", &["network", "rm", "net"])?;
    docker.run("n3", &["swarm", "leave"])?;
    eventually("n3 down", || {
        let nodes = docker.run("n1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        if nodes.contains("n3 Down") { Ok(()) } else { bail!("{nodes}") }
    })?;
    docker.run("n1", &["node", "rm", "n3"])?;
    Ok(())
}
