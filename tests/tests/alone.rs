//! A node without managers: what runs goes on, and what ends is started again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use skep_deploy::lab::layout::OUTSIDE;
use skep_tests::{Cluster, Load, REQUEST, eventually};

/// Process 1 of the only container of a node.
fn process(cluster: &Cluster, node: &str) -> Result<u32> {
    let id = cluster.skep(node, &["container", "ls", "--quiet"])?;
    ensure!(!id.trim().is_empty(), "no container runs on {node}");
    Ok(cluster.skep(node, &["container", "inspect", "--format", "{{.State.Pid}}", id.trim()])?.trim().parse()?)
}

/// A published service with one task, on the only worker: its task, and where it runs.
fn web(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let create = "service create --detach --name web --publish 8080:80 --constraint node.role==worker \
                  --restart-delay 100ms whoami";
    cluster.skep("n1", &create.split_whitespace().collect::<Vec<_>>())?;
    cluster.running("n1", "web", 1)
}

/// For so long a manager without a leader may still open sessions.
const STILL_TALKS: Duration = Duration::from_secs(3);

/// The worker has noticed that no manager is of any use: its last session has ended, and no other one began for a while.
fn session_ends(cluster: &Cluster, node: &str) -> Result<()> {
    let mut ended = None;
    eventually("the session to end", || {
        let log = std::fs::read_to_string(cluster.lab.log(node))?;
        let sessions: Vec<_> = log.lines().filter(|line| line.contains("session ")).collect();
        let last = sessions.last().filter(|line| line.contains("session ended"));
        ensure!(last.is_some(), "it goes on");
        let (count, since) = *ended.get_or_insert((sessions.len(), Instant::now()));
        if count != sessions.len() {
            ended = None;
        }
        ensure!(ended.is_some() && since.elapsed() >= STILL_TALKS, "another one may begin");
        Ok(())
    })
}

/// Kills process 1 of the only container of a node, and waits for another one.
fn killed_and_back(cluster: &Cluster, node: &str, first: u32) -> Result<()> {
    // The machine numbers its processes itself.
    let killed = cluster.lab.exec(node, "kill")?.args(["-KILL", &first.to_string()]).status()?;
    ensure!(killed.success(), "process 1 was not killed");
    eventually("another process", || match process(cluster, node)? {
        0 => bail!("none yet"),
        pid if pid == first => bail!("the old one"),
        _ => Ok(()),
    })
}

#[test]
fn a_container_that_ends_while_no_manager_is_there_is_started_again_as_the_same_task() -> Result<()> {
    let cluster = Cluster::up("alone", 2, 1)?;
    let before = web(&cluster)?;
    assert_eq!(before.values().collect::<Vec<_>>(), ["n2"]);
    let first = process(&cluster, "n2")?;

    cluster.lab.kill_daemon("n1")?;
    session_ends(&cluster, "n2")?;
    // From now on the image's name means another one, in which nothing can be run.
    let other = tempfile::tempdir()?;
    std::fs::write(other.path().join("note"), "nothing to run\n")?;
    let archive = other.path().join("other.tar");
    let mut tar = std::process::Command::new("tar");
    let packed = tar.arg("-cf").arg(&archive).arg("-C").arg(other.path()).arg("note").status()?;
    ensure!(packed.success(), "no archive was made");
    cluster.skep("n2", &["image", "import", &archive.to_string_lossy(), "whoami:latest"])?;
    killed_and_back(&cluster, "n2", first)?;
    let address = cluster.published("n2")?;
    eventually("an answer without managers", || cluster.lab.ask(OUTSIDE, address, REQUEST))?;
    let actions = cluster.skep("n2", &["events", "--since", "0", "--until", &now()?, "--format", "{{.Action}}"])?;
    assert_eq!(actions.lines().filter(|action| *action == "start").count(), 2, "{actions}");
    let id = cluster.skep("n2", &["container", "ls", "--quiet"])?;
    let count = cluster.skep("n2", &["container", "inspect", "--format", "{{.RestartCount}}", id.trim()])?;
    assert_eq!(count.trim(), "1");
    let log = cluster.skep("n2", &["container", "logs", id.trim()])?;
    assert_eq!(log.lines().filter(|line| line.starts_with("listening on")).count(), 2, "a run's log is lost: {log}");

    cluster.lab.restart("n1")?;
    eventually("the same task, and what happened to it", || {
        let after = cluster.running("n1", "web", 1)?;
        ensure!(after == before, "{before:?} became {after:?}");
        Ok(())
    })?;
    cluster.down()
}

#[test]
fn managers_without_a_quorum_are_as_good_as_none() -> Result<()> {
    let cluster = Cluster::up("noquorum", 4, 3)?;
    let before = web(&cluster)?;
    let first = process(&cluster, "n4")?;
    for manager in ["n2", "n3"] {
        cluster.lab.kill_daemon(manager)?;
    }
    // The one that is left may have the session, or get it.
    session_ends(&cluster, "n4")?;
    killed_and_back(&cluster, "n4", first)?;
    let address = cluster.published("n1")?;
    eventually("an answer through the manager that is left", || cluster.lab.ask(OUTSIDE, address, REQUEST))?;
    cluster.lab.restart("n2")?;
    eventually("the same task", || {
        let after = cluster.running("n1", "web", 1)?;
        ensure!(after == before, "{before:?} became {after:?}");
        Ok(())
    })?;
    cluster.down()
}

fn now() -> Result<String> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok((since.as_secs() + 1).to_string())
}

/// As after a crash in the moment between a manager's word and its writing down.
#[test]
fn a_daemon_that_remembers_too_little_takes_down_nothing_that_runs() -> Result<()> {
    let cluster = Cluster::up("oldfile", 2, 1)?;
    let create = |words: &str| {
        let line = format!("service create --detach --constraint node.role==worker {words} whoami");
        cluster.skep("n1", &line.split_whitespace().collect::<Vec<_>>())
    };
    create("--name first")?;
    let first = cluster.running("n1", "first", 1)?;
    let file = cluster.lab.socket("n2").with_file_name("r").join("assignments");
    let remembered = eventually("the first task to be written down", || {
        let bytes = std::fs::read(&file)?;
        let id = first.keys().next().map(String::as_bytes).unwrap_or_default();
        ensure!(bytes.windows(id.len()).any(|window| window == id), "not yet");
        Ok(bytes)
    })?;
    create("--name web --publish 8080:80")?;
    let web = cluster.running("n1", "web", 1)?;
    let containers = || {
        let ids = cluster.skep("n2", &["container", "ls", "--no-trunc", "--quiet"])?;
        let all = ["container", "inspect", "--format", "{{.ID}} {{.State.StartedAt}}"].into_iter().chain(ids.lines());
        let described = cluster.skep("n2", &all.collect::<Vec<_>>())?;
        Ok::<_, anyhow::Error>(described.lines().map(str::to_owned).collect::<BTreeSet<_>>())
    };
    let before = containers()?;
    assert_eq!(before.len(), 2);
    let address = cluster.published("n2")?;
    eventually("an answer", || cluster.lab.ask(OUTSIDE, address, REQUEST))?;

    // Nobody can tell it of the second task.
    cluster.lab.kill_daemon("n1")?;
    cluster.lab.kill_daemon("n2")?;
    std::fs::write(&file, remembered)?;
    // And a pin that got no namespace.
    let stale = file.with_file_name("net").join("netns/neverbegan");
    std::fs::write(&stale, "")?;
    let load = Load::start(&cluster.lab, &[address]);
    cluster.lab.restart("n2")?;
    load.more(200)?;
    cluster.lab.restart("n1")?;
    eventually("the same tasks", || {
        ensure!(cluster.running("n1", "web", 1)? == web && cluster.running("n1", "first", 1)? == first, "others");
        let log = std::fs::read_to_string(cluster.lab.log("n2"))?;
        ensure!(log.matches("session open").count() >= 2, "no manager has spoken yet");
        ensure!(!stale.exists(), "the pin is still there");
        Ok(())
    })?;
    load.more(200)?;
    let (sent, failed) = load.stop();
    assert_eq!(failed, Vec::<String>::new(), "of {sent} requests");
    assert_eq!(containers()?, before, "the same containers");
    cluster.down()
}
