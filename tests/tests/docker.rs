//! The `docker` command, unchanged, against a cluster of Skep nodes: Debian's and, where there is one, a newer client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use skep_deploy::lab::layout::OUTSIDE;
use skep_deploy::lab::{Lab, Plan, Stage, leftovers};
use skep_tests::{REQUEST, eventually, program};

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

/// The clients on this machine, each program once.
fn clients() -> Vec<PathBuf> {
    let found: BTreeSet<PathBuf> =
        ["/usr/bin/docker", "/usr/local/bin/docker"].iter().filter_map(|p| Path::new(p).canonicalize().ok()).collect();
    found.into_iter().collect()
}

#[test]
fn docker_makes_a_swarm_and_runs_services() -> Result<()> {
    let clients = clients();
    if clients.is_empty() {
        println!("UNTESTED: there is no docker client on this machine");
        return Ok(());
    }
    for (i, client) in clients.iter().enumerate() {
        let name = format!("docker{i}-{}", std::process::id());
        let plan = Plan { name: name.clone(), nodes: 3, managers: 3, stage: Stage::Daemons };
        let lab = Lab::up(&plan, &program("skep")?, &mut |_| {})?;
        let tried = walk(&Docker { client, lab: &lab });
        Lab::down(&name)?;
        tried.with_context(|| format!("with {}", client.display()))?;
        assert_eq!(leftovers(&name), Vec::<String>::new());
    }
    Ok(())
}

/// The worker remembers what happened to its containers and images.
fn told(docker: &Docker<'_>) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
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
    docker.run("n1", &["service", "logs", "--tail", "5", "web"])?;
    assert!(docker.run("n1", &["network", "ls"])?.contains("ingress"));
    let used = docker.run("n1", &["network", "rm", "net"]).expect_err("a network in use");
    assert!(used.to_string().contains("in use"), "{used}");
    let port = docker.run("n1", &["service", "create", "-d", "--name", "other", "-p", "8080:80", "whoami"]);
    assert!(port.expect_err("a port in use").to_string().contains("8080"));
    docker.run("n1", &["service", "rm", "web"])?;
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
