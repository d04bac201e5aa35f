//! Skep beside Docker Swarm, in one run, on the same machines: three nodes in namespaces on one switch.
//!
//! `make bench` runs it, in a mount namespace of its own, and writes `docs/benchmarks.md`. It measures and asserts nothing
//! about time. Each contestant gets a disk of its own that is made for it, and its runtime files in memory, as /run is
//! everywhere; whoever comes second must not find what the first has left. Both are watched in the same way and as
//! cheaply as can be: one request for the tasks every 20 ms.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints what it measures")]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skep_deploy::lab::{Lab, Plan, Stage};
use skep_tests::released;

/// Longest wait for anything of the peer: it is known to need a minute and more.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where a lab keeps its data, and where it has its sockets.
const DATA: &str = "/var/lib/skep-lab";
const RUN: &str = "/run/skep-lab";

/// Where the hand-written part of the document begins.
const KEPT: &str = "## Against the budgets";

/// What is measured, in this order.
const ROWS: [&str; 6] = [
    "`service create` of 30 tasks on an overlay network, until all run (s)",
    "scaled from 30 to 60, until all run (s)",
    "leader killed, until the next service is accepted (s)",
    "node killed, until its tasks run elsewhere (s)",
    "memory of the daemon(s) of one node, proportional (MB)",
    "memory of one container's supervisor, proportional (MB)",
];

/// One contestant: how its commands are called and its processes found.
struct Contestant {
    lab: Lab,
    client: PathBuf,
    docker: bool,
    /// The identifier of node n1.
    first: String,
}

fn main() -> Result<()> {
    ensure!(
        fs::read_link("/proc/self/ns/mnt")?
            != fs::read_link(format!("/proc/{}/ns/mnt", std::os::unix::process::parent_id()))?,
        "start it with `make bench`: it mounts file systems, which belong into a mount namespace of their own"
    );
    let peer = run("peer", true).context("Docker Swarm")?;
    let ours = run("skep", false).context("Skep")?;
    let leaders = leaders().context("leaders killed one after the other")?;
    let text = format!("{}\n{}\n", table(&ours, &peer)?, in_a_row(&leaders));
    println!("{text}");
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    fs::create_dir_all(file.parent().context("a parent")?)?;
    // What people have written below the table stays.
    let written = fs::read_to_string(&file).unwrap_or_default();
    let kept = written.find(KEPT).map_or("", |at| &written[at..]);
    fs::write(&file, format!("{text}\n{kept}"))?;
    Ok(())
}

fn table(ours: &[f64], peer: &[f64]) -> Result<String> {
    let version = String::from_utf8(Command::new("/usr/bin/docker").arg("--version").output()?.stdout)?;
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut text = format!(
        "# Benchmarks\n\nMade by `make bench` in one run: first the peer, then Skep, each with three managers in network \
         namespaces on one machine ({cores} cores, kernel {}), data on a fresh ext4 and runtime files in memory. \
         Peer: {}. Read ratios; the machine is shared and noisy.\n\n\
         | what | Skep | Docker Swarm | ratio |\n|---|---|---|---|\n",
        kernel.trim(),
        version.trim()
    );
    for ((what, ours), peer) in ROWS.iter().zip(ours).zip(peer) {
        writeln!(text, "| {what} | {ours:.2} | {peer:.2} | {:.1} |", peer / ours)?;
    }
    Ok(text)
}

/// What twenty leaders in a row came to, in words.
fn in_a_row(times: &[f64]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (middle, worst) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    format!(
        "Skep's daemon on the leader killed with `kill -9`, {} times in a row, each time until the next service is accepted \
         through another manager: median {middle:.2} s, worst {worst:.2} s.",
        times.len()
    )
}

fn run(name: &str, docker: bool) -> Result<Vec<f64>> {
    on_stage(name, docker, Contestant::measure)
}

/// Measures Skep alone: each leader is killed once it is known, and started again.
fn leaders() -> Result<Vec<f64>> {
    on_stage("leaders", false, |contestant| contestant.leaders())
}

/// A contestant on machines and disks of its own, for as long as it takes.
fn on_stage<T>(name: &str, docker: bool, measure: impl FnOnce(&mut Contestant) -> Result<T>) -> Result<T> {
    let name = format!("bench-{name}");
    let _fresh = [Fresh::disk()?, Fresh::memory()?];
    let stage = if docker { Stage::Machines } else { Stage::Swarm };
    let lab = Lab::up(&Plan { name: name.clone(), nodes: 3, managers: 3, stage }, &released("skep")?, &mut |_| {})?;
    let client = if docker { PathBuf::from("/usr/bin/docker") } else { released("skep")? };
    let measured = measure(&mut Contestant { lab, client, docker, first: String::new() });
    Lab::down(&name)?;
    measured
}

impl Contestant {
    fn measure(&mut self) -> Result<Vec<f64>> {
        if self.docker {
            self.start_peer()?;
        }
        let info = self.get("n1", "/info")?;
        self.first = info["Swarm"]["NodeID"].as_str().context("n1 has no identifier")?.to_owned();
        let image = released("whoami.tar")?;
        for node in self.lab.nodes() {
            self.ok(&node, &["image", "load", "--input", &image.to_string_lossy()])?;
        }
        self.ok("n1", &["network", "create", "--driver", "overlay", "net"])?;
        let begun = Instant::now();
        self.ok(
            "n1",
            &[
                "service",
                "create",
                "--detach",
                "--no-resolve-image",
                "--name",
                "web",
                "--replicas",
                "30",
                "--network",
                "net",
                "whoami",
            ][..],
        )?;
        self.wait("n1", 30, false)?;
        let mut rows = vec![begun.elapsed().as_secs_f64()];
        eprintln!("{}: 30 tasks in {:.2} s", self.client.display(), rows[0]);
        let (daemons, supervisor) = self.memory()?;
        let begun = Instant::now();
        self.ok("n1", &["service", "scale", "--detach", "web=60"])?;
        self.wait("n1", 60, false)?;
        rows.push(begun.elapsed().as_secs_f64());
        eprintln!("{}: 60 tasks in {:.2} s", self.client.display(), rows[1]);
        rows.extend(self.losses()?);
        rows.extend([daemons, supervisor]);
        Ok(rows)
    }

    /// The leader, then a node, lose their power.
    fn losses(&self) -> Result<[f64; 2]> {
        let (first, second) = ("n1", "n2");
        let begun = Instant::now();
        self.lab.kill(first)?;
        self.accepted(second, "after")?;
        let leader = begun.elapsed().as_secs_f64();
        // The same kill took a node: its tasks are to be replaced too.
        self.wait(second, 60, true)?;
        let node = begun.elapsed().as_secs_f64();
        eprintln!("{}: leader {leader:.2} s, node {node:.2} s", self.client.display());
        Ok([leader, node])
    }

    /// The leader's daemon killed, time and again, until the next write is accepted (s).
    fn leaders(&mut self) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for round in 0..20 {
            let standing = |asked: &str| -> Result<Vec<(String, String)>> {
                let list = self.ok(asked, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
                Ok(list.lines().filter_map(|l| l.split_once(' ')).map(|(n, s)| (n.into(), s.trim().into())).collect())
            };
            let mut leader = String::new();
            self.until("all managers in place", || {
                let all = standing(["n1", "n2", "n3"][round % 3])?;
                let known = all.iter().find(|(_, s)| s == "Leader").context("no leader")?;
                ensure!(all.iter().all(|(_, s)| s == "Leader" || s == "Reachable"), "{all:?}");
                leader.clone_from(&known.0);
                Ok(())
            })?;
            let other = self.lab.nodes().into_iter().find(|n| *n != leader).context("another manager")?;
            let begun = Instant::now();
            self.lab.kill_daemon(&leader)?;
            self.accepted(&other, &format!("round{round}x"))?;
            times.push(begun.elapsed().as_secs_f64());
            self.lab.restart(&leader)?;
        }
        eprintln!("leader killed, next write accepted (s): {times:.3?}");
        Ok(times)
    }

    /// Until a service is accepted; a refused attempt may have been carried out all the same, its name is taken then.
    fn accepted(&self, asked: &str, name: &str) -> Result<()> {
        let mut attempts = 0;
        self.until("a service accepted", || {
            attempts += 1;
            let name = format!("{name}{attempts}");
            let create = ["service", "create", "--detach", "--no-resolve-image", "--name", &name, "--replicas", "0"];
            self.ok(asked, &[&create[..], &["whoami"]].concat()).map(|_| ())
        })
    }

    /// Until so many tasks of the service run, those on n1 not counted if it is `dead`.
    fn wait(&self, asked: &str, wanted: usize, dead: bool) -> Result<()> {
        // {"service":["web"],"desired-state":["running"]}
        let path = "/tasks?filters=%7B%22service%22%3A%5B%22web%22%5D%2C%22desired-state%22%3A%5B%22running%22%5D%7D";
        self.until(&format!("{wanted} running tasks"), || {
            let tasks = self.get(asked, path)?;
            let counts = |task: &&serde_json::Value| {
                task["Status"]["State"] == "running" && !(dead && task["NodeID"] == self.first.as_str())
            };
            let running = tasks.as_array().context("no list of tasks")?.iter().filter(counts).count();
            if running == wanted { Ok(()) } else { bail!("{running} running") }
        })
    }

    /// One request to the Engine API of a node.
    fn get(&self, node: &str, path: &str) -> Result<serde_json::Value> {
        let mut stream = UnixStream::connect(self.socket(node))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        // In version 1.0 the answer ends with the connection.
        write!(stream, "GET /v1.41{path} HTTP/1.0\r\nHost: bench\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let body = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no answer")?;
        ensure!(answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200"), "{path} was refused");
        Ok(serde_json::from_slice(&answer[body + 4..])?)
    }

    fn until(&self, what: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error.context(what.to_owned())),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn socket(&self, node: &str) -> PathBuf {
        if self.docker { self.lab.socket(node).with_file_name("docker.sock") } else { self.lab.socket(node) }
    }

    fn ok(&self, node: &str, args: &[&str]) -> Result<String> {
        // Ours always resolves on the node; only the peer knows the flag.
        let args = args.iter().filter(|a| self.docker || **a != "--no-resolve-image");
        let host = format!("unix://{}", self.socket(node).display());
        let output = Command::new("timeout").arg("30").arg(&self.client).arg("-H").arg(host).args(args).output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        bail!("{}", String::from_utf8_lossy(&output.stderr))
    }

    /// Starts three Docker daemons on the lab's machines and makes a swarm of them.
    fn start_peer(&self) -> Result<()> {
        for node in self.lab.nodes() {
            let socket = self.socket(&node);
            let dir = socket.with_file_name("docker");
            let data = PathBuf::from("/var/lib/skep-lab/bench-peer").join(&node);
            fs::create_dir_all(&dir)?;
            let log = fs::File::create(dir.join("log"))?;
            // Not this machine's settings.
            let config = dir.join("config.json");
            fs::write(&config, "{}")?;
            self.lab
                .exec(&node, "dockerd")?
                .arg("--data-root")
                .arg(data)
                .arg("--exec-root")
                .arg(dir.join("exec"))
                .arg("--pidfile")
                .arg(dir.join("pid"))
                .arg("--config-file")
                .arg(&config)
                .arg("--cgroup-parent")
                .arg(format!("/skep-lab-bench-peer/{node}"))
                .arg("-H")
                .arg(format!("unix://{}", socket.display()))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
        }
        for node in self.lab.nodes() {
            self.until("the peer's daemon", || self.ok(&node, &["version"]).map(|_| ()))?;
        }
        let address = self.lab.address("n1")?;
        self.ok("n1", &["swarm", "init", "--advertise-addr", &address])?;
        let token = self.ok("n1", &["swarm", "join-token", "-q", "manager"])?;
        for node in ["n2", "n3"] {
            let own = self.lab.address(node)?;
            self.ok(
                node,
                &["swarm", "join", "--advertise-addr", &own, "--token", token.trim(), &format!("{address}:2377")],
            )?;
        }
        Ok(())
    }

    /// Proportional memory of node n2's daemons, and of one container's supervisor there.
    fn memory(&self) -> Result<(f64, f64)> {
        let space = fs::read_link(format!("/proc/{}/ns/pid", self.lab.init("n2")?.pid))?;
        let (mut daemons, mut supervisors) = (0.0, Vec::new());
        for entry in fs::read_dir("/proc")?.flatten() {
            let path = entry.path();
            if fs::read_link(path.join("ns/pid")).ok().as_ref() != Some(&space) {
                continue;
            }
            let command = fs::read_to_string(path.join("cmdline")).unwrap_or_default().replace('\0', " ");
            let Some(bytes) = pss(&path) else { continue };
            // What supervisors are forked from is there once a node, as a daemon is.
            if command.contains("shim") && !command.contains("zygote") {
                supervisors.push(bytes);
            } else if ["dockerd", "containerd", "skep daemon", "zygote"].iter().any(|w| command.contains(w)) {
                daemons += bytes;
            }
        }
        let count = supervisors.len().max(1) as f64;
        Ok((daemons / 1e6, supervisors.iter().sum::<f64>() / count / 1e6))
    }
}

/// A file system that is made for one contestant and gone with it.
struct Fresh {
    at: &'static str,
}

impl Fresh {
    /// An ext4 with a journal, as most machines have it.
    fn disk() -> Result<Self> {
        let file = std::env::temp_dir().join(format!("skep-bench-{}.img", std::process::id()));
        fs::File::create(&file)?.set_len(4 << 30)?;
        let name = file.to_string_lossy().into_owned();
        let made = command(&["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", &name])
            .and_then(|()| fs::create_dir_all(DATA).map_err(Into::into))
            .and_then(|()| command(&["mount", "-o", "loop", &name, DATA]));
        // The mount keeps it.
        fs::remove_file(&file)?;
        made.map(|()| Fresh { at: DATA })
    }

    fn memory() -> Result<Self> {
        fs::create_dir_all(RUN)?;
        command(&["mount", "-t", "tmpfs", "tmpfs", RUN])?;
        Ok(Fresh { at: RUN })
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Err(error) = command(&["umount", "--lazy", self.at]) {
            eprintln!("{error}");
        }
    }
}

fn command(words: &[&str]) -> Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).output().context(words[0].to_owned())?;
    ensure!(output.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Proportional set size of a process in bytes.
fn pss(process: &std::path::Path) -> Option<f64> {
    let rollup = fs::read_to_string(process.join("smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}
