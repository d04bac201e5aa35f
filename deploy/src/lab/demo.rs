//! The demonstration: what Skep is for, each step tried for real and timed. Fails at the first thing that did not
//! happen; takes the lab down whatever happens.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::layout::OUTSIDE;
use super::{Lab, Plan, Stage, leftovers};

/// How long one step may take before it counts as failed.
const STEP: Duration = Duration::from_secs(60);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(2);
/// Requests per node: enough for every task to answer.
const REQUESTS: usize = 12;

/// Runs the demonstration. `say` gets one line a step.
pub fn run(exe: &Path, image: &Path, name: &str, nodes: usize, say: &mut dyn FnMut(&str)) -> Result<()> {
    let left = leftovers(name);
    if !left.is_empty() {
        bail!("a lab named {name} is here already, and this would end it: skep lab down --name {name}");
    }
    let plan = Plan { name: name.to_owned(), nodes, managers: nodes.min(3), stage: Stage::Swarm };
    let begun = Instant::now();
    let shown = Lab::up(&plan, exe, say).and_then(|lab| {
        say(&line(begun, &format!("lab up: {nodes} nodes in namespaces, swarm initialised and joined")));
        steps(&lab, image, say)
    });
    let begun = Instant::now();
    let down = Lab::down(name);
    shown?;
    down?;
    let left = leftovers(name);
    if !left.is_empty() {
        bail!("lab down left something behind: {}", left.join(", "));
    }
    say(&line(begun, "lab down: no process, namespace, mount, cgroup or file is left"));
    Ok(())
}

fn line(begun: Instant, what: &str) -> String {
    format!("{:>8.0} ms  {what}", begun.elapsed().as_secs_f64() * 1000.0)
}

fn steps(lab: &Lab, image: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let first = "n1";
    let begun = Instant::now();
    for node in lab.nodes() {
        lab.skep_ok(&node, &["image", "load", "--input", &image.to_string_lossy()])?;
    }
    say(&line(begun, "image whoami loaded on every node"));

    let begun = Instant::now();
    lab.skep_ok(first, &["network", "create", "--driver", "overlay", "demo"])?;
    lab.skep_ok(
        first,
        &[
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "3",
            "--publish",
            "8080:80",
            "--network",
            "demo",
            "--restart-delay",
            "100ms",
            "--detach",
            "whoami",
        ],
    )?;
    wait(lab, first, "web", 3)?;
    say(&line(begun, "service web: 3 tasks on an overlay network, port 8080 published on every node"));

    let begun = Instant::now();
    lab.skep_ok(
        first,
        &["service", "create", "--name", "client", "--network", "demo", "--detach", "whoami", "client", "http://web/"],
    )?;
    wait(lab, first, "client", 1)?;
    say(&line(begun, "service client: 1 task on the same network"));

    published(lab, say)?;
    by_name(lab, first, say)?;
    node_lost(lab, first, say)?;
    leader_lost(lab, say)
}

/// Every node answers on the published port, by different tasks, which see the outside client's own address.
fn published(lab: &Lab, say: &mut dyn FnMut(&str)) -> Result<()> {
    let own = lab.address(OUTSIDE)?;
    for node in lab.nodes() {
        let begun = Instant::now();
        let address: SocketAddr = format!("{}:8080", lab.address(&node)?).parse()?;
        let mut tasks = BTreeSet::new();
        for _ in 0..REQUESTS {
            let answer = lab.ask(OUTSIDE, address, REQUEST).with_context(|| format!("through {node}"))?;
            if answer.client != own {
                bail!(
                    "through {node}: task {} saw {} and not the client's address {own}",
                    answer.hostname,
                    answer.client
                );
            }
            tasks.insert(answer.hostname);
        }
        if tasks.len() < 2 {
            bail!("through {node}: {REQUESTS} requests were all answered by one task");
        }
        let mut what = format!("{REQUESTS} requests to {address}: answered by {} tasks (", tasks.len());
        write!(what, "{}), all saw {own}", tasks.into_iter().collect::<Vec<_>>().join(", "))?;
        say(&line(begun, &what));
    }
    Ok(())
}

/// The client service reaches web by its name, and calls its virtual address.
fn by_name(lab: &Lab, node: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let begun = Instant::now();
    let virtual_addresses = virtual_addresses(lab, node, "web")?;
    let seen = until("an answer in the client's log that came through a virtual address of web", || {
        let log = lab.skep_ok(node, &["service", "logs", "--raw", "client"]).ok()?;
        let through = |line: &str| virtual_addresses.iter().any(|address| line.contains(&format!(" {address}:80 ")));
        log.lines().rev().find(|line| line.contains(" 200 ") && through(line)).map(str::to_owned)
    })?;
    let what =
        format!("client reaches http://web/ by name through {}: {}", virtual_addresses.join(" or "), seen.trim());
    say(&line(begun, &what));
    Ok(())
}

/// Where a service is called on its networks.
fn virtual_addresses(lab: &Lab, node: &str, service: &str) -> Result<Vec<String>> {
    let inspected: serde_json::Value = serde_json::from_str(&lab.skep_ok(node, &["service", "inspect", service])?)?;
    let all = inspected[0]["Endpoint"]["VirtualIPs"].as_array().context("the service has no virtual address")?;
    let address = |one: &serde_json::Value| one["Addr"].as_str()?.split('/').next().map(str::to_owned);
    Ok(all.iter().filter_map(address).collect())
}

/// A node loses its power; its tasks run elsewhere.
fn node_lost(lab: &Lab, asked: &str, say: &mut dyn FnMut(&str)) -> Result<()> {
    let victim = lab.nodes().pop().context("a lab has nodes")?;
    let lost = running(lab, asked, "web")?.into_iter().filter(|n| *n == victim).count();
    if lost == 0 {
        bail!("{victim} runs no task of web whose move could be seen: tasks are not spread");
    }
    let begun = Instant::now();
    lab.kill(&victim)?;
    until("the lost tasks elsewhere", || {
        let now = running(lab, asked, "web").ok()?;
        (now.len() >= 3 && now.iter().all(|n| *n != victim)).then_some(())
    })?;
    say(&line(begun, &format!("{victim} killed with everything on it: its {lost} task(s) of web run elsewhere")));
    let begun = Instant::now();
    lab.restart(&victim)?;
    until("the node's return", || {
        let list =
            lab.skep_ok(asked, &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"]).ok()?;
        list.lines().find(|l| l.starts_with(&format!("{victim} Ready")) && !l.contains("Unreachable")).map(drop)
    })?;
    say(&line(begun, &format!("{victim} started again: ready")));
    Ok(())
}

/// The leader loses its power; the next one accepts a service.
fn leader_lost(lab: &Lab, say: &mut dyn FnMut(&str)) -> Result<()> {
    let list = lab.skep_ok("n1", &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
    let leader = list.lines().find_map(|l| l.strip_suffix(" Leader")).context("no leader is listed")?.trim().to_owned();
    let managers: Vec<String> = list
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, s)| !s.trim().is_empty())
        .map(|(n, _)| n.to_owned())
        .collect();
    let Some(other) = managers.iter().find(|n| **n != leader) else {
        say("             (a single manager has no successor: that step is left out)");
        return Ok(());
    };
    let begun = Instant::now();
    lab.kill(&leader)?;
    let service = ["service", "create", "--name", "after", "--detach", "whoami"];
    until("a new service's acceptance", || lab.skep_ok(other, &service).ok().map(drop))?;
    say(&line(begun, &format!("leader {leader} killed: service accepted through {other} by the next leader")));
    wait(lab, other, "after", 1)?;
    say(&line(begun, "and it runs"));
    Ok(())
}

/// Nodes on which a service's tasks run.
fn running(lab: &Lab, node: &str, service: &str) -> Result<Vec<String>> {
    let list = lab.skep_ok(
        node,
        &["service", "ps", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}", service],
    )?;
    Ok(list
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter(|(_, s)| s.starts_with("Running"))
        .map(|(n, _)| n.to_owned())
        .collect())
}

fn wait(lab: &Lab, node: &str, service: &str, tasks: usize) -> Result<()> {
    until(&format!("{tasks} running task(s) of {service}"), || {
        (running(lab, node, service).ok()?.len() >= tasks).then_some(())
    })
    .with_context(|| lab.skep_ok(node, &["service", "ps", "--no-trunc", service]).unwrap_or_default())
}

fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> Result<T> {
    super::until(STEP, what, condition)
}
