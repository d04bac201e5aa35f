//! What people follow and ask for at the same time: logs and events that go on whatever happens to nodes and tasks, and
//! networks that are made at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use skep_tests::{Cluster, eventually, program};

/// A `skep` command whose output goes to a file while it runs.
struct Followed {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Followed {
    fn start(cluster: &Cluster, node: &str, args: &[&str]) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        let child = Command::new(program("skep")?)
            .args(args)
            .env("SKEP_HOST", format!("unix://{}", cluster.lab.socket(node).display()))
            .stdin(Stdio::null())
            .stdout(File::create(file.path())?)
            .spawn()?;
        Ok(Self { child, file })
    }

    fn lines(&self) -> Result<Vec<String>> {
        Ok(std::fs::read_to_string(self.file.path())?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tasks that lines of `service logs` are of: `talk.1` …
fn tasks(lines: &[String]) -> BTreeSet<String> {
    let origins = lines.iter().filter_map(|line| line.split_once("    | ").map(|(origin, _)| origin.trim()));
    origins.filter_map(|origin| origin.splitn(3, '.').take(2).collect::<Vec<_>>().join(".").into()).collect()
}

#[test]
fn whoever_follows_logs_hears_tasks_that_come_and_nodes_that_come_back() -> Result<()> {
    let cluster = Cluster::up("followed", 3, 2)?;
    let talk = ["whoami", "client", "http://127.0.0.1:9/", "--interval", "50ms"];
    cluster.skep("n1", &[&["service", "create", "--name", "talk"], &talk[..]].concat())?;
    let logs = Followed::start(&cluster, "n2", &["service", "logs", "--follow", "talk"])?;
    let heard = |wanted: &[&str]| {
        eventually(&format!("lines of {wanted:?}"), || {
            let found = tasks(&logs.lines()?);
            ensure!(wanted.iter().all(|task| found.contains(*task)), "{found:?}");
            Ok(())
        })
    };
    heard(&["talk.1"])?;
    cluster.skep("n1", &["service", "scale", "talk=3"])?;
    heard(&["talk.1", "talk.2", "talk.3"])?;
    // The daemons of all nodes die and come back, the reader's own not.
    for node in ["n1", "n3"] {
        cluster.lab.kill_daemon(node)?;
        cluster.lab.restart(node)?;
    }
    let placed = cluster.running("n2", "talk", 3)?;
    ensure!(placed.values().any(|node| node != "n2"), "{placed:?}");
    let of = |lines: &[String], task: &str| lines.iter().filter(|line| line.starts_with(task)).count();
    for task in ["talk.1.", "talk.2.", "talk.3."] {
        let before = of(&logs.lines()?, task);
        eventually(&format!("more of {task}"), || {
            let now = of(&logs.lines()?, task);
            ensure!(now > before + 10, "{now} lines, {before} before");
            Ok(())
        })?;
    }
    // No line twice: each has its own time.
    drop(logs);
    let timed = Followed::start(&cluster, "n2", &["service", "logs", "--follow", "--timestamps", "talk"])?;
    eventually("lines with their times", || {
        ensure!(timed.lines()?.len() > 200, "too few");
        Ok(())
    })?;
    let lines = timed.lines()?;
    ensure!(lines.iter().collect::<BTreeSet<_>>().len() == lines.len(), "a line came twice");
    cluster.down()
}

#[test]
fn a_node_that_is_a_manager_again_tells_what_happens_in_the_swarm() -> Result<()> {
    let cluster = Cluster::up("events", 3, 3)?;
    let manager = |wanted: &str| {
        eventually(&format!("n3 a manager: {wanted}"), || {
            let said = cluster.skep("n3", &["info", "--format", "{{.Swarm.ControlAvailable}}"])?;
            ensure!(said.trim() == wanted, "{said}");
            Ok(())
        })
    };
    for (verb, is_manager) in [("demote", "false"), ("promote", "true")] {
        cluster.skep("n1", &["node", verb, "n3"])?;
        manager(is_manager)?;
    }
    let events = Followed::start(&cluster, "n3", &["events", "--format", "{{.Type}} {{.Action}}"])?;
    let mut made = 0;
    eventually("an event of the swarm", || {
        made += 1;
        cluster.skep("n1", &["network", "create", "--driver", "overlay", &format!("net{made}")])?;
        let told = events.lines()?;
        ensure!(told.iter().any(|line| line == "network create"), "{told:?}");
        Ok(())
    })?;
    cluster.down()
}

/// Each is planned against what is there, and what is planned at the same time is the same.
#[test]
fn networks_that_are_made_at_once_all_get_a_subnet() -> Result<()> {
    let cluster = Cluster::up("at-once", 1, 1)?;
    let names: Vec<String> = (0..8).map(|n| format!("net{n}")).collect();
    let children: Vec<Followed> = names
        .iter()
        .map(|name| Followed::start(&cluster, "n1", &["network", "create", "--driver", "overlay", name]))
        .collect::<Result<_>>()?;
    for mut followed in children {
        ensure!(followed.child.wait()?.success(), "a network was refused");
    }
    let format = "{{range .IPAM.Config}}{{.Subnet}}{{end}}";
    let inspect =
        [&["network", "inspect", "--format", format][..], &names.iter().map(String::as_str).collect::<Vec<_>>()];
    let subnets = cluster.skep("n1", &inspect.concat())?;
    ensure!(subnets.lines().collect::<BTreeSet<_>>().len() == names.len(), "{subnets}");
    let refused = cluster.skep("n1", &["network", "create", "--driver", "overlay", "net0"]).expect_err("a name in use");
    ensure!(refused.to_string().contains("net0"), "{refused}");
    cluster.down()
}

/// A founding that was cut short was never acknowledged: the node is free, whatever is on its disk.
#[test]
fn a_swarm_whose_founding_was_cut_short_was_never_there() -> Result<()> {
    let cluster = Cluster::staged("founding", 1, 1, skep_deploy::lab::Stage::Daemons)?;
    let address = cluster.lab.address("n1")?;
    let state = || cluster.skep("n1", &["info", "--format", "{{.Swarm.LocalNodeState}}"]);
    cluster.skep("n1", &["swarm", "init", "--advertise-addr", &address])?;
    cluster.lab.kill_daemon("n1")?;
    let file = PathBuf::from(format!("/var/lib/skep-lab/{}/n1/swarm.json", cluster.name()));
    let mut note: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    ensure!(note.get("founding").is_none(), "it counts as not founded: {note}");
    cluster.lab.restart("n1")?;
    eventually("the swarm again", || {
        ensure!(state()?.trim() == "active", "{}", state()?);
        Ok(())
    })?;
    cluster.lab.kill_daemon("n1")?;
    // As it is between the first write and the answer.
    note["founding"] = true.into();
    std::fs::write(&file, serde_json::to_vec(&note)?)?;
    cluster.lab.restart("n1")?;
    eventually("no swarm", || {
        ensure!(state()?.trim() == "inactive", "{}", state()?);
        Ok(())
    })?;
    cluster.skep("n1", &["swarm", "init", "--advertise-addr", &address])?;
    cluster.only("n1", 1)?;
    cluster.down()
}
