//! The lab itself: side by side, after a crash, and gone without a trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use skep_deploy::lab::layout::{OUTSIDE, SWITCH};
use skep_deploy::lab::{Lab, Plan, Stage, leftovers, machine};
use skep_net_kernel::nft;
use skep_tests::{Cluster, Turn, eventually, lab_name, program};

/// What the host has that a lab could leave something in: links and nft tables.
#[derive(Debug)]
struct Host {
    links: BTreeSet<String>,
    tables: BTreeSet<nft::Table>,
}

impl Host {
    fn now() -> Result<Self> {
        let links = std::fs::read_dir("/sys/class/net")?.flatten();
        let links = links.map(|link| link.file_name().to_string_lossy().into_owned()).collect();
        let tables = nft::Socket::here()?.tables()?.into_iter().map(|info| info.table).collect();
        Ok(Self { links, tables })
    }
}

/// The kinds of namespaces that are looked at.
const KINDS: [&str; 6] = ["net", "mnt", "pid", "uts", "ipc", "cgroup"];

/// Namespaces of a process, such as `net:[4026532001]`.
fn spaces(process: &Path) -> BTreeSet<String> {
    let links = KINDS.iter().filter_map(|kind| std::fs::read_link(process.join("ns").join(kind)).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

fn processes() -> Result<impl Iterator<Item = std::path::PathBuf>> {
    let numbered = |name: &std::ffi::OsStr| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit());
    Ok(std::fs::read_dir("/proc")?.flatten().filter(move |e| numbered(&e.file_name())).map(|e| e.path()))
}

/// The namespaces of a lab's machines and of what runs in its cgroups, that is in containers, without the host's.
fn spaces_of(lab: &Lab, name: &str) -> Result<BTreeSet<String>> {
    let own = spaces(Path::new("/proc/self"));
    let mut of_lab = BTreeSet::new();
    for machine in machines(lab)? {
        let found = spaces(&machine);
        let new = ["net:", "mnt:", "pid:"].iter().all(|kind| found.difference(&own).any(|s| s.starts_with(kind)));
        ensure!(new, "{} has no namespaces of its own: {found:?}", machine.display());
        of_lab.extend(found);
    }
    let machines = of_lab.len();
    for process in processes()? {
        let cgroups = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        if cgroups.contains(&format!("/skep-lab-{name}/")) {
            of_lab.extend(spaces(&process));
        }
    }
    ensure!(of_lab.len() > machines, "no container has namespaces of its own");
    Ok(of_lab.difference(&own).cloned().collect())
}

/// Where namespaces of these are still held: by processes that began before that moment, and by mounts. The kernel gives a
/// number again, so later processes may rightly have one of them.
fn holders(spaces_of_lab: &BTreeSet<String>, before: u64) -> Result<Vec<String>> {
    let mut holders = Vec::new();
    for process in processes()? {
        let pid = process.file_name().context("a name")?.to_string_lossy().parse()?;
        if machine::started(pid).is_some_and(|started| started <= before) {
            let held: Vec<String> = spaces(&process).intersection(spaces_of_lab).cloned().collect();
            if !held.is_empty() {
                let command = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ");
                holders.push(format!("process {pid} ({command}): {held:?}"));
            }
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let held = |line: &&str| spaces_of_lab.iter().any(|space| line.split(' ').any(|word| word == space));
    holders.extend(mounts.lines().filter(held).map(|line| format!("mount {line}")));
    Ok(holders)
}

/// This moment, as start times of processes are written: hundredths of a second since boot.
fn ticks() -> Result<u64> {
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    Ok(uptime.split_whitespace().next().context("no uptime")?.replace('.', "").parse()?)
}

/// What a lab that is down may leave behind: nothing at all. The kernel may take a moment.
fn gone(name: &str, spaces_of_lab: &BTreeSet<String>, host: &Host) -> Result<()> {
    assert_eq!(leftovers(name), Vec::<String>::new());
    let down = ticks()?;
    eventually("namespaces, links and tables gone", || {
        let holders = holders(spaces_of_lab, down)?;
        ensure!(holders.is_empty(), "{holders:#?}");
        // Tests beside this one may make links and tables, and what they had at first may be gone.
        let now = Host::now()?;
        let links: Vec<_> = now.links.difference(&host.links).collect();
        let tables: Vec<_> = now.tables.difference(&host.tables).collect();
        ensure!(links.is_empty() && tables.is_empty(), "links {links:?} and tables {tables:?} are new");
        Ok(())
    })
}

#[test]
fn no_namespace_link_or_table_outlives_a_lab() -> Result<()> {
    let host = Host::now()?;
    ensure!(host.links.contains("lo"), "these are not the host's links: {host:?}");
    let cluster = Cluster::up("traces", 2, 1)?;
    cluster.web(2)?;
    cluster.reachable(2)?;
    let name = cluster.name().to_owned();
    let of_lab = spaces_of(&cluster.lab, &name)?;
    let holders = holders(&of_lab, ticks()?)?;
    ensure!(holders.len() >= 8, "four machines, two daemons and two containers hold some: {holders:#?}");
    cluster.down()?;
    gone(&name, &of_lab, &host)
}

/// Runs `skep lab VERB --name NAME ARGS`, bounded.
fn lab(name: &str, verb: &str, args: &[&str]) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.arg("120").arg(program("skep")?).args(["lab", verb, "--name", name]).args(args);
    Ok(command.stdin(Stdio::null()).output()?)
}

/// The same, which is to succeed.
fn lab_ok(name: &str, verb: &str, args: &[&str]) -> Result<String> {
    let output = lab(name, verb, args)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "lab {verb} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// Name, address, role and state of every node, as `lab status` tells them; their sockets are looked at.
fn status(name: &str) -> Result<Vec<String>> {
    let told: serde_json::Value = serde_json::from_str(&lab_ok(name, "status", &["--format", "json"])?)?;
    let nodes = told.as_array().context("no list of nodes")?.iter().map(|node| {
        let field = |name: &str| node[name].as_str().with_context(|| format!("no {name} in {node}"));
        let of_node = Lab::open(name)?.socket(field("name")?);
        ensure!(Path::new(field("socket")?) == of_node, "{node} has its socket at {}", of_node.display());
        Ok([field("name")?, field("address")?, field("role")?, field("state")?].join(" "))
    });
    nodes.collect()
}

/// Whether one machine reaches another one.
fn reaches(name: &str, from: &str, to: &str) -> Result<bool> {
    let address = Lab::open(name)?.address(to)?;
    let ping = lab(name, "exec", &[from, "--", "busybox", "ping", "-c", "1", "-W", "1", &address])?;
    let said = String::from_utf8_lossy(&ping.stdout).into_owned();
    ensure!(said.contains("packets transmitted"), "no ping: {said}{}", String::from_utf8_lossy(&ping.stderr));
    Ok(ping.status.success())
}

/// Waits until each of these pairs of machines reaches each other, or does not.
fn pairs(name: &str, pairs: &[(&str, &str, bool)]) -> Result<()> {
    for (one, other, wanted) in pairs {
        for (from, to) in [(one, other), (other, one)] {
            eventually(&format!("{from} reaches {to}: {wanted}"), || {
                ensure!(reaches(name, from, to)? == *wanted, "it is not so");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn labs_are_made_used_and_taken_down_by_command() -> Result<()> {
    let _turn = Turn::wait();
    let host = Host::now()?;
    let name = lab_name("words");
    let _ends = Ends(name.clone());
    let absent = lab(&name, "status", &[])?;
    assert!(!absent.status.success());
    let said = String::from_utf8_lossy(&absent.stderr).into_owned();
    assert!(said.contains(&format!("there is no lab {name:?}")) && said.contains("skep lab up"), "{said}");

    let shown = lab_ok(&name, "up", &["--nodes", "3", "--managers", "2"])?;
    let whole = ["n1 192.168.77.1 manager up", "n2 192.168.77.2 manager up", "n3 192.168.77.3 worker up"];
    assert_eq!(status(&name)?, whole);
    for words in whole {
        let listed = |line: &str| words.split(' ').all(|word| line.split_whitespace().any(|shown| shown == word));
        assert!(shown.lines().any(listed), "{words} is not in {shown}");
    }

    let socket = format!("unix://{}", Lab::open(&name)?.socket("n1").display());
    let told = lab_ok(&name, "exec", &["n1", "--", "sh", "-c", "echo $SKEP_HOST $DOCKER_HOST; hostname"])?;
    assert_eq!(told, format!("{socket} {socket}\nn1\n"));
    // `skep` is this very program, and finds the node's daemon.
    let first =
        lab_ok(&name, "exec", &["n3", "--", "skep", "info", "--format", "{{.Name}} {{.Swarm.ControlAvailable}}"])?;
    assert_eq!(first.trim(), "n3 false");
    let second = lab_ok(&name, "exec", &["n3", "--", "timeout", "30", "skep", "info", "--format", "{{.Name}}"])?;
    assert_eq!(second.trim(), "n3");
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)] {
        assert_eq!(lab(&name, "exec", &["n2", "--", "sh", "-c", script])?.status.code(), Some(code), "{script}");
    }
    assert_eq!(lab(&name, "exec", &["n2", "--", "no-such-program"])?.status.code(), Some(127));
    // Of the size that it has, whatever that is.
    assert_eq!(status(&name)?, whole);
    let again = lab(&name, "up", &[])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success() && said.contains("is up already"), "{said}");
    let other = lab(&lab_name("other"), "status", &[])?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains("(there is ") && said.contains(&name), "{said}");
    // A reader that goes, or a full disk, is an error like any other.
    let full = Command::new(program("skep")?)
        .args(["lab", "status", "--name", &name])
        .stdout(File::options().write(true).open("/dev/full")?)
        .output()?;
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(full.status.code() == Some(1) && said.contains("standard output"), "{said}");

    let nobody = lab(&name, "exec", &["n4", "--", "true"])?;
    assert!(!nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("no machine \"n4\""));

    // One name that is wrong spares all.
    assert!(!lab(&name, "kill", &["n3", "n4"])?.status.success());
    assert!(!lab(&name, "kill", &["--daemon", "n3", "outside"])?.status.success());
    assert_eq!(status(&name)?, whole);
    let before = Lab::open(&name)?.init("n3")?;
    lab_ok(&name, "kill", &["n3", "outside"])?;
    assert!(!lab(&name, "exec", &["outside", "--", "true"])?.status.success(), "it is off");
    assert_eq!(status(&name)?[2], "n3 192.168.77.3 - off");
    assert!(!lab(&name, "exec", &["n3", "--", "true"])?.status.success(), "it is off");
    lab_ok(&name, "restart", &["n3", "outside"])?;
    lab_ok(&name, "exec", &["outside", "--", "true"])?;
    assert!(Lab::open(&name)?.init("n3")? != before, "the machine was not off");
    lab_ok(&name, "kill", &["--daemon", "n3"])?;
    assert_eq!(status(&name)?[2], "n3 192.168.77.3 - daemon down");
    lab_ok(&name, "restart", &["n3"])?;
    eventually("n3 to be what it was", || {
        let now = status(&name)?;
        ensure!(now == whole, "{now:?}");
        Ok(())
    })?;

    pairs(&name, &[("n1", "n2", true), ("n1", "n3", true)])?;
    let parted = lab_ok(&name, "partition", &["n1,n2", "n3"])?;
    assert!(parted.contains("n1, n2, outside  |  n3"), "{parted}");
    pairs(&name, &[("n1", "n3", false), ("n2", "n3", false), ("n1", "n2", true)])?;
    lab_ok(&name, "heal", &[])?;
    pairs(&name, &[("n1", "n3", true), ("n2", "n3", true), ("n1", "n2", true)])?;

    // A crash: every machine dies, and the next command is `down`.
    let crashed = Lab::open(&name)?;
    let of_lab: BTreeSet<String> = machines(&crashed)?.iter().flat_map(|m| spaces(m)).collect();
    let of_lab = of_lab.difference(&spaces(Path::new("/proc/self"))).cloned().collect();
    for machine in machines(&crashed)? {
        let pid = machine.file_name().context("a pid")?;
        ensure!(Command::new("kill").arg("-KILL").arg(pid).status()?.success(), "not killed");
    }
    eventually("all machines off", || {
        let now = status(&name)?;
        ensure!(now.iter().all(|node| node.ends_with(" - off")), "{now:?}");
        Ok(())
    })?;
    assert!(!leftovers(&name).is_empty(), "there is nothing to take down");
    lab_ok(&name, "down", &[])?;
    gone(&name, &of_lab, &host)?;
    // Once more is no error, and says so.
    let again = lab(&name, "down", &[])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success() && said.contains(&format!("there is no lab {name}")), "{said}");
    Ok(())
}

/// First processes of all machines of a lab.
fn machines(lab: &Lab) -> Result<Vec<std::path::PathBuf>> {
    let names = lab.nodes().into_iter().chain([OUTSIDE.to_owned(), SWITCH.to_owned()]);
    names.map(|name| Ok(Path::new("/proc").join(lab.init(&name)?.pid.to_string()))).collect()
}

#[test]
fn labs_stand_side_by_side_and_leave_nothing() -> Result<()> {
    let one = Cluster::up("side1", 1, 1)?;
    let two = one.beside("side2", 1, 1)?;
    for cluster in [&one, &two] {
        cluster.web(1)?;
        cluster.reachable(1)?;
    }
    one.down()?;
    two.reachable(1)?;
    two.down()
}

#[test]
fn a_lab_that_crashed_is_found_and_taken_down() -> Result<()> {
    let _turn = Turn::wait();
    let name = lab_name("crash");
    let _ends = Ends(name.clone());
    let plan = Plan { name: name.clone(), nodes: 2, managers: 1, stage: Stage::Swarm };
    let lab = Lab::up(&plan, &program("skep")?, &mut |_| {})?;
    // What a crash may leave: a machine dead, a record half written.
    lab.kill("n2")?;
    lab.kill("n2")?;
    lab.kill_daemon("n2")?;
    std::fs::write(format!("/run/skep-lab/{name}/lab.json"), "{")?;
    assert!(Lab::open(&name).is_err());
    let again = Lab::up(&plan, &program("skep")?, &mut |_| {})?;
    assert_eq!(again.status()?.iter().filter(|n| n.state == "up").count(), 2);
    Lab::down(&name)?;
    Lab::down(&name)?;
    assert_eq!(leftovers(&name), Vec::<String>::new());
    Ok(())
}

/// Begins `skep lab VERB --name NAME ARGS`, bounded.
fn begin(name: &str, verb: &str, args: &[&str]) -> Result<Child> {
    let mut command = Command::new("timeout");
    command.arg("120").arg(program("skep")?).args(["lab", verb, "--name", name]).args(args);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

#[test]
fn commands_on_one_lab_at_the_same_moment_take_turns() -> Result<()> {
    let _turn = Turn::wait();
    let name = lab_name("twice");
    let _ends = Ends(name.clone());
    let size = ["--nodes", "2", "--managers", "1"];
    let ups = [begin(&name, "up", &size)?, begin(&name, "up", &size)?, begin(&name, "up", &size)?];
    let mut said = String::new();
    for up in ups {
        let output = up.wait_with_output()?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{words}");
        said.push_str(&words);
    }
    // One made it, the others found it whole.
    assert_eq!(said.matches("is up already").count(), 2, "{said}");
    assert_eq!(lacks(&Lab::open(&name)?), Vec::<String>::new());
    let run = format!("/run/skep-lab/{name}/");
    let of_lab = machine::find(|args| matches!(args, [_, machine::INIT, _, file, "first"] if file.starts_with(&run)));
    assert_eq!(of_lab.len(), machines(&Lab::open(&name)?)?.len(), "{of_lab:?}");

    // Whichever comes first, the lab is whole or gone.
    for child in [begin(&name, "down", &[])?, begin(&name, "up", &size)?] {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    if let Ok(lab) = Lab::open(&name) {
        assert_eq!(lacks(&lab), Vec::<String>::new());
        Lab::down(&name)?;
    }
    assert_eq!(leftovers(&name), Vec::<String>::new());
    Ok(())
}

/// The lab's own words about what it lacks, none when it is whole.
fn lacks(lab: &Lab) -> Vec<String> {
    lab.lacks().iter().map(ToString::to_string).collect()
}

/// Takes a lab down with its test.
struct Ends(String);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = Lab::down(&self.0);
    }
}

/// Waits until the first node sees so many nodes ready.
fn ready(lab: &Lab, nodes: usize) -> Result<()> {
    eventually(&format!("{nodes} nodes ready"), || {
        let seen = lab.skep_ok("n1", &["node", "ls", "--format", "{{.Status}}"])?;
        ensure!(seen.matches("Ready").count() == nodes, "{seen}");
        Ok(())
    })
}

#[test]
fn an_interrupted_up_and_a_dead_switch_are_put_right_and_said() -> Result<()> {
    let _turn = Turn::wait();
    let name = lab_name("half");
    let _ends = Ends(name.clone());
    let run = std::path::PathBuf::from(format!("/run/skep-lab/{name}"));
    let program = program("skep")?;
    let mut up = std::process::Command::new(&program);
    up.args(["lab", "up", "--name", &name, "--nodes", "2", "--managers", "1"]);
    let mut killed = up.stdout(std::process::Stdio::null()).spawn()?;
    // Half way: the first node has a daemon, the second not yet everything.
    eventually("a lab half made", || Ok(std::fs::metadata(run.join("n1/daemon")).map(drop)?))?;
    killed.kill()?;
    killed.wait()?;
    let half = Lab::open(&name)?;
    assert!(!lacks(&half).is_empty(), "the lab was whole before it was interrupted");

    let plan = Plan { name: name.clone(), nodes: 2, managers: 1, stage: Stage::Swarm };
    let mut said = Vec::new();
    let lab = Lab::up(&plan, &program, &mut |line| said.push(line.to_owned()))?;
    let told = said.join("; ");
    assert!(told.contains("not whole") && told.contains("the swarm is not complete"), "{told}");
    assert_eq!(lacks(&lab), Vec::<String>::new());
    let roles: Vec<String> = lab.status()?.iter().map(|n| format!("{} {}", n.state, n.role)).collect();
    assert_eq!(roles, ["up manager", "up worker"]);

    // Nothing is done to a whole lab, and a switch that died is replaced without losing what the nodes run.
    let daemons: Vec<_> = lab.nodes().iter().map(|n| lab.daemon_pid(n)).collect();
    lab.kill("switch").expect_err("the switch is no machine of the user's");
    lab.init("switch")?.kill()?;
    assert!(lab.status()?.iter().all(|n| n.state == "no network"), "{:?}", lab.status());
    // Without its cable, the first node does not reach its own address either.
    ready(&lab, 0)?;
    let mut said = Vec::new();
    let lab = Lab::up(&plan, &program, &mut |line| said.push(line.to_owned()))?;
    assert!(said.join("; ").contains("the switch is off"), "{said:?}");
    assert_eq!(daemons, lab.nodes().iter().map(|n| lab.daemon_pid(n)).collect::<Vec<_>>());
    ready(&lab, 2)?;
    let mut said = Vec::new();
    Lab::up(&plan, &program, &mut |line| said.push(line.to_owned()))?;
    assert!(said.join("; ").contains("up already"), "{said:?}");
    Lab::down(&name)?;
    assert_eq!(leftovers(&name), Vec::<String>::new());
    Ok(())
}
