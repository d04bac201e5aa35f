//! Nodes that go: demoted, removed or leaving, and what becomes of their tasks and of those that come back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use skep_tests::{Cluster, eventually};

/// With one of three managers down, none of the others can go; with all of them up, one goes and comes back.
#[test]
fn a_demotion_that_would_cost_the_quorum_is_refused_and_changes_nothing() -> Result<()> {
    let cluster = Cluster::up("demote", 3, 3)?;
    let standing = |wanted: [&str; 3]| {
        eventually(&format!("managers that are {wanted:?}"), || {
            let list = cluster.skep("n1", &["node", "ls", "--format", "{{.Hostname}}={{.ManagerStatus}}"])?;
            let mut lines: Vec<&str> = list.lines().map(str::trim).collect();
            lines.sort_unstable();
            if lines == wanted { Ok(()) } else { bail!("{list}") }
        })
    };
    standing(["n1=Leader", "n2=Reachable", "n3=Reachable"])?;
    cluster.lab.kill_daemon("n3")?;
    standing(["n1=Leader", "n2=Reachable", "n3=Unreachable"])?;
    for node in ["n1", "n2"] {
        let refused = cluster.skep("n1", &["node", "demote", node]).expect_err("two of three are needed");
        let refused = format!("{refused:#}");
        assert!(refused.contains("can't be demoted now") && refused.contains("bring n3 back"), "{refused}");
    }
    standing(["n1=Leader", "n2=Reachable", "n3=Unreachable"])?;
    let empty = ["service", "create", "--detach", "--replicas", "0", "--name"];
    cluster.skep("n2", &[&empty[..], &["meanwhile", "whoami"]].concat())?;

    cluster.lab.restart("n3")?;
    standing(["n1=Leader", "n2=Reachable", "n3=Reachable"])?;
    cluster.skep("n2", &["node", "demote", "n3"])?;
    standing(["n1=Leader", "n2=Reachable", "n3="])?;
    eventually("a worker that says so", || {
        let answer = cluster.skep("n3", &["info", "--format", "{{.Swarm.ControlAvailable}}"])?;
        if answer.trim() == "false" { Ok(()) } else { bail!("{answer}") }
    })?;
    cluster.skep("n1", &["node", "promote", "n3"])?;
    standing(["n1=Leader", "n2=Reachable", "n3=Reachable"])?;
    // It has a voice again, and what was decided without it.
    cluster.lab.kill_daemon("n2")?;
    eventually("a write that needs it", || cluster.skep("n3", &[&empty[..], &["after", "whoami"]].concat()))?;
    let list = cluster.skep("n3", &["service", "ls", "--format", "{{.Name}}"])?;
    assert_eq!(list.lines().collect::<BTreeSet<_>>(), BTreeSet::from(["after", "meanwhile"]));
    // Who was demoted a moment ago leaves as a worker, without force.
    cluster.lab.restart("n2")?;
    standing(["n1=Leader", "n2=Reachable", "n3=Reachable"])?;
    cluster.skep("n1", &["node", "demote", "n2"])?;
    cluster.skep("n2", &["swarm", "leave"])?;
    cluster.down()
}

/// What it remembers would let it split the swarm: it must not be told to, nor be able to.
#[test]
fn a_manager_that_was_removed_while_it_was_away_is_told_so_and_can_not_force_a_cluster_of_its_own() -> Result<()> {
    let cluster = Cluster::up("removed", 3, 3)?;
    cluster.lab.kill("n3")?;
    cluster.skep("n1", &["node", "demote", "n3"])?;
    eventually("n3 removed", || cluster.skep("n1", &["node", "rm", "n3"]))?;
    cluster.lab.restart("n3")?;
    eventually("it hears that it was removed", || {
        let refused = cluster.skep("n3", &["node", "ls"]).expect_err("nobody leads it");
        let told = format!("{refused:#}");
        let right = told.contains("this node was removed from the swarm") && told.contains("skep swarm leave --force");
        ensure!(right && !told.contains("force-new-cluster"), "{told}");
        Ok(())
    })?;
    let refused = cluster.skep("n3", &["swarm", "init", "--force-new-cluster"]).expect_err("the swarm is well");
    assert!(format!("{refused:#}").contains("this node was removed from the swarm"), "{refused:#}");
    cluster.only("n1", 2)?;
    // What it is told to do works.
    cluster.skep("n3", &["swarm", "leave", "--force"])?;
    let token = cluster.skep("n1", &["swarm", "join-token", "--quiet", "worker"])?;
    let manager = format!("{}:2377", cluster.lab.address("n1")?);
    cluster.skep("n3", &["swarm", "join", "--token", token.trim(), &manager])?;
    cluster.only("n1", 3)?;
    cluster.down()
}

/// With a heartbeat a minute, silence would take three minutes to be noticed.
#[test]
fn a_node_that_leaves_says_goodbye_and_nobody_waits_for_it() -> Result<()> {
    let cluster = Cluster::up("goodbye", 2, 1)?;
    cluster.skep("n1", &["swarm", "update", "--dispatcher-heartbeat", "60s"])?;
    cluster.web(4)?;
    cluster.skep("n2", &["swarm", "leave"])?;
    eventually("n2 gone", || cluster.skep("n1", &["node", "rm", "n2"]))?;
    let tasks = cluster.running("n1", "web", 4)?;
    ensure!(tasks.values().all(|node| node == "n1"), "{tasks:?}");
    cluster.only("n1", 1)?;
    cluster.down()
}

/// Its addresses are given to others: what it runs has to end, and people have to be told why.
#[test]
fn a_worker_that_is_removed_while_it_runs_ends_its_tasks_and_says_so_until_it_leaves() -> Result<()> {
    let cluster = Cluster::up("expelled", 3, 1)?;
    cluster.web(6)?;
    let on_n3 = || containers(cluster.name(), "n3");
    ensure!(!on_n3()?.is_empty(), "no task of six is on n3");
    cluster.skep("n1", &["node", "rm", "--force", "n3"])?;
    let told = |by: &str| {
        eventually(by, || {
            let format = "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}";
            let said = cluster.skep("n3", &["info", "--format", format])?;
            ensure!(said.starts_with("error ") && said.contains("removed from the swarm"), "{said}");
            Ok(())
        })
    };
    told("n3 to say that it was removed")?;
    let ended = || {
        eventually("its containers to end", || {
            let left = on_n3()?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
    };
    ended()?;
    eventually("its wires to go", || {
        let listed = cluster.lab.exec("n3", "ip")?.args(["-brief", "link"]).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut links: Vec<&str> = listed.lines().filter_map(|line| line.split(['@', ' ']).next()).collect();
        links.sort_unstable();
        ensure!(links == ["eth0", "lo"], "{listed}");
        Ok(())
    })?;
    cluster.running("n1", "web", 6)?;
    // Whoever restarts the daemon is told as well.
    cluster.lab.restart("n3")?;
    told("a new daemon to say so too")?;
    cluster.skep("n3", &["swarm", "leave"])?;
    let token = cluster.skep("n1", &["swarm", "join-token", "--quiet", "worker"])?;
    let manager = format!("{}:2377", cluster.lab.address("n1")?);
    cluster.skep("n3", &["swarm", "join", "--token", token.trim(), &manager])?;
    cluster.skep("n1", &["service", "scale", "--detach", "web=12"])?;
    let tasks = cluster.running("n1", "web", 12)?;
    ensure!(tasks.values().any(|node| node == "n3"), "{tasks:?}");
    cluster.reachable(12)?;
    // Removed while its daemon was away, which comes back and knows nothing of what runs.
    cluster.lab.kill_daemon("n3")?;
    cluster.skep("n1", &["node", "rm", "--force", "n3"])?;
    ensure!(!on_n3()?.is_empty(), "they did not outlive the daemon");
    std::fs::remove_file(format!("/run/skep-lab/{}/n3/r/assignments", cluster.name()))?;
    cluster.lab.restart("n3")?;
    told("n3 to say that it was removed meanwhile")?;
    ended()?;
    cluster.down()
}

/// Process ids in the containers of a node.
fn containers(lab: &str, node: &str) -> Result<Vec<String>> {
    let (of_node, of_supervisors) = (format!("/skep-lab-{lab}/{node}/"), format!("/{node}/shims"));
    let in_container = |cgroup: &str| cgroup.contains(&of_node) && !cgroup.ends_with(&of_supervisors);
    let processes = std::fs::read_dir("/proc")?.flatten().map(|process| process.path());
    let inside = processes.filter(|process| {
        std::fs::read_to_string(process.join("cgroup")).is_ok_and(|cgroups| cgroups.lines().any(in_container))
    });
    Ok(inside.map(|process| process.display().to_string()).collect())
}
