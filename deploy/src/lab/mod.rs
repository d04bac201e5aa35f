//! A cluster of many nodes on one machine: every node is a [`machine`] on a virtual switch, with a `skep daemon` in it.
//!
//! Decides nothing about the cluster: swarms are made with the `skep` command, as a person would. Safe to call again
//! after a crash at any point: `up` takes down what is left and `down` finds it by name.

pub mod demo;
pub mod layout;
pub mod machine;
pub mod probe;
mod switch;
mod teardown;

pub use teardown::leftovers;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use layout::{Layout, OUTSIDE, SWITCH};
use machine::Init;

/// How long a daemon may take to answer after its start.
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);
/// How long a daemon may take to tell its role.
const STATUS_WITHIN: Duration = Duration::from_secs(2);
/// How long one command of the cluster's making may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// What is asked of a new lab.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the lab.
    pub name: String,
    /// Nodes in it.
    pub nodes: usize,
    /// How many of them are managers.
    pub managers: usize,
    /// How far it is built.
    pub stage: Stage,
}

/// How far a lab is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Machines on a switch.
    Machines,
    /// With a daemon in each.
    Daemons,
    /// And these in one swarm.
    Swarm,
}

/// What the lab knows of itself between commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    nodes: usize,
    managers: usize,
    exe: PathBuf,
}

/// A lab that exists.
#[derive(Debug, Clone)]
pub struct Lab {
    layout: Layout,
    record: Record,
}

/// One line of `lab status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// `n1` …
    pub name: String,
    /// Address on the lab's network.
    pub address: String,
    /// `manager`, `worker`, or `-` outside a swarm.
    pub role: String,
    /// `up`, `daemon down` or `off`.
    pub state: String,
    /// Engine API.
    pub socket: PathBuf,
}

impl Lab {
    /// Brings a lab up. One that is up already and has the same size stays as it is, its machines that are off are turned
    /// on; one of another size is an error; what a crash left is taken down first. `exe` is the `skep` program that its
    /// machines run.
    pub fn up(plan: &Plan, exe: &Path) -> Result<Self> {
        layout::check_size(plan.nodes, plan.managers)?;
        let layout = Layout::new(&plan.name)?;
        let exe = exe.canonicalize().with_context(|| format!("{} is not there", exe.display()))?;
        if let Some(lab) = Self::standing(plan)? {
            return Ok(lab);
        }
        teardown::remove(&layout)?;
        let lab = Self { layout, record: Record { nodes: plan.nodes, managers: plan.managers, exe } };
        fs::create_dir_all(lab.layout.run_dir())?;
        machine::write_atomically(&lab.layout.file(), &serde_json::to_vec_pretty(&lab.record)?)?;
        let built = lab.build(plan.stage);
        if built.is_err()
            && let Err(error) = teardown::remove(&lab.layout)
        {
            tracing::warn!(lab = plan.name, error = %error, "what was built could not be taken down");
        }
        built.map(|()| lab)
    }

    /// The lab that is asked for, if it stands.
    fn standing(plan: &Plan) -> Result<Option<Self>> {
        let Ok(lab) = Self::open(&plan.name) else { return Ok(None) };
        if lab.init(SWITCH).is_err() {
            return Ok(None);
        }
        let Record { nodes, managers, .. } = lab.record;
        if (nodes, managers) != (plan.nodes, plan.managers) {
            bail!(
                "lab {} is up with {nodes} nodes, {managers} of them managers; take it down first: skep lab down --name {}",
                plan.name,
                plan.name
            );
        }
        for machine in lab.nodes().into_iter().chain([OUTSIDE.to_owned()]) {
            if lab.init(&machine).is_err() {
                lab.restart(&machine)?;
            }
        }
        Ok(Some(lab))
    }

    /// The lab with this name, as `up` left it.
    pub fn open(name: &str) -> Result<Self> {
        let layout = Layout::new(name)?;
        let file = layout.file();
        let content = fs::read(&file)
            .with_context(|| format!("there is no lab {name:?}; make one with: skep lab up --name {name}"))?;
        let record = serde_json::from_slice(&content).with_context(|| format!("{} is damaged", file.display()))?;
        Ok(Self { layout, record })
    }

    /// Takes the lab with this name down and leaves nothing: no process, namespace, link, mount, cgroup or file.
    pub fn down(name: &str) -> Result<()> {
        teardown::remove(&Layout::new(name)?)
    }

    /// Names of all labs on this machine.
    pub fn names() -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir("/run/skep-lab")
            .map(|entries| entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    fn build(&self, stage: Stage) -> Result<()> {
        self.boot(SWITCH)?;
        switch::make(&self.init(SWITCH)?)?;
        self.boot(OUTSIDE)?;
        self.plug_in(OUTSIDE)?;
        for node in self.nodes() {
            self.boot(&node)?;
            self.plug_in(&node)?;
            if stage >= Stage::Daemons {
                self.start_daemon(&node)?;
            }
        }
        if stage >= Stage::Daemons {
            for node in self.nodes() {
                self.wait_for_daemon(&node)?;
            }
        }
        if stage >= Stage::Swarm { self.make_swarm() } else { Ok(()) }
    }

    fn boot(&self, name: &str) -> Result<()> {
        let file = self.layout.init_file(name);
        fs::create_dir_all(self.layout.run_dir().join(name))?;
        Init::boot(&self.record.exe, &file, name).map(|_| ())
    }

    fn plug_in(&self, name: &str) -> Result<()> {
        let address = layout::address(name, self.record.nodes)?;
        switch::plug_in(&self.init(SWITCH)?, &self.init(name)?, name, address)
    }

    /// The first process of a machine that runs.
    pub fn init(&self, name: &str) -> Result<Init> {
        Init::read(&self.layout.init_file(name)).with_context(|| {
            format!("machine {name} of lab {} is off; start it with: skep lab restart {name}", self.layout.name())
        })
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        layout::nodes(self.record.nodes).collect()
    }

    /// The Engine API of a node.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.layout.socket(node)
    }

    /// What a node's daemon has logged.
    pub fn log(&self, node: &str) -> PathBuf {
        self.layout.log(node)
    }

    /// A machine's address on the lab's network.
    pub fn address(&self, machine: &str) -> Result<String> {
        Ok(layout::address(machine, self.record.nodes)?.to_string())
    }

    fn known_node(&self, node: &str) -> Result<()> {
        layout::address(node, self.record.nodes)?;
        if node == OUTSIDE {
            bail!("outside is no node; it runs no daemon");
        }
        Ok(())
    }

    // ---- daemons ------------------------------------------------------------------------------------------------

    /// Process id of a node's daemon, as the host sees it, if it runs.
    pub fn daemon_pid(&self, node: &str) -> Option<i32> {
        Init::read(&self.layout.run_dir().join(node).join("daemon")).map(|d| d.pid)
    }

    fn start_daemon(&self, node: &str) -> Result<()> {
        let init = self.init(node)?;
        let layout = &self.layout;
        let dir = layout.run_dir().join(node);
        let config = dir.join("skep.toml");
        if !config.exists() {
            fs::write(&config, "# Settings of this node's daemon; flags win over them.\n")?;
        }
        fs::create_dir_all(layout.node_data_dir(node))?;
        let log = File::options().create(true).append(true).open(layout.log(node))?;
        let mut child = init.command(&self.record.exe, &self.record.exe.to_string_lossy());
        child
            .arg("daemon")
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--data-dir".as_ref(), layout.node_data_dir(node).as_os_str()])
            .args(["--run-dir".as_ref(), layout.node_run_dir(node).as_os_str()])
            .args(["--host", &format!("unix://{}", layout.socket(node).display())])
            .args(["--advertise-addr", &self.address(node)?])
            .args(["--cgroup-parent", &layout.node_cgroup(node)])
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = child.spawn().with_context(|| format!("the daemon of {node} could not be started"))?;
        // The helper waits for the daemon inside the machine; its child is the daemon itself.
        let helper = i32::try_from(child.id())?;
        let pid = until(DAEMON_DEADLINE, "the daemon's process", || first_child(helper))?;
        let started = machine::started(pid).context("the daemon ended at once; see its log")?;
        machine::write_atomically(&dir.join("daemon"), &serde_json::to_vec(&Init { pid, started })?)
    }

    fn wait_for_daemon(&self, node: &str) -> Result<()> {
        let socket = self.layout.socket(node);
        let answered = until(DAEMON_DEADLINE, "the daemon's answer", || {
            std::os::unix::net::UnixStream::connect(&socket).ok().map(drop)
        });
        answered.with_context(|| {
            let log = fs::read_to_string(self.layout.log(node)).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            format!("daemon of {node}; its last words:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
        })
    }

    fn make_swarm(&self) -> Result<()> {
        let (managers, all) = (self.record.managers, self.nodes());
        let Some((first, others)) = all.split_first() else { return Ok(()) };
        let address = self.address(first)?;
        self.skep_ok(first, &["swarm", "init", "--advertise-addr", &address])?;
        let token = |role: &str| -> Result<String> {
            Ok(self.skep_ok(first, &["swarm", "join-token", "--quiet", role])?.trim().to_owned())
        };
        let (manager, worker) = (token("manager")?, token("worker")?);
        for (i, node) in others.iter().enumerate() {
            let token = if i + 1 < managers { &manager } else { &worker };
            let own = self.address(node)?;
            self.skep_ok(
                node,
                &["swarm", "join", "--advertise-addr", &own, "--token", token, &format!("{address}:2377")],
            )?;
        }
        Ok(())
    }

    // ---- what people do to a lab --------------------------------------------------------------------------------

    /// Runs `skep` against a node's daemon, from the host.
    pub fn skep(&self, node: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.record.exe);
        command.args(args).env("SKEP_HOST", format!("unix://{}", self.socket(node).display()));
        output(command, COMMAND_DEADLINE)
    }

    /// Like [`Lab::skep`]; an exit code other than 0 is an error with the command's own words.
    pub fn skep_ok(&self, node: &str, args: &[&str]) -> Result<String> {
        let output = self.skep(node, args)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        bail!("on {node}: skep {}: {}{text}", args.join(" "), String::from_utf8_lossy(&output.stderr))
    }

    /// A command that will run on a machine, told where the node's daemon is.
    pub fn exec(&self, machine: &str, program: &str) -> Result<Command> {
        layout::address(machine, self.record.nodes)?;
        let mut command = self.init(machine)?.command(&self.record.exe, program);
        if machine != OUTSIDE {
            let host = format!("unix://{}", self.socket(machine).display());
            command.env("SKEP_HOST", &host).env("DOCKER_HOST", &host);
        }
        Ok(command)
    }

    /// Pulls the plug of a machine: everything on it ends at once.
    pub fn kill(&self, machine: &str) -> Result<()> {
        layout::address(machine, self.record.nodes)?;
        self.init(machine)?.kill()
    }

    /// Kills a node's daemon, and nothing else, with SIGKILL.
    pub fn kill_daemon(&self, node: &str) -> Result<()> {
        self.known_node(node)?;
        let file = self.layout.run_dir().join(node).join("daemon");
        Init::read(&file).with_context(|| format!("the daemon of {node} is not running"))?.kill()
    }

    /// Turns a machine on that is off; one that is on loses its daemon to SIGKILL and gets a new one, as after a crash.
    pub fn restart(&self, machine: &str) -> Result<()> {
        layout::address(machine, self.record.nodes)?;
        if self.init(machine).is_err() {
            self.boot(machine)?;
            self.plug_in(machine)?;
        } else if machine != OUTSIDE && self.daemon_pid(machine).is_some() {
            self.kill_daemon(machine)?;
        }
        if machine == OUTSIDE {
            return Ok(());
        }
        self.start_daemon(machine)?;
        self.wait_for_daemon(machine)
    }

    /// Cuts the network between groups of machines, each written `n1,n2`.
    pub fn partition(&self, groups: &[String]) -> Result<()> {
        switch::partition(&self.init(SWITCH)?, &layout::partition(groups, self.record.nodes)?)
    }

    /// Undoes every partition.
    pub fn heal(&self) -> Result<()> {
        let all = layout::nodes(self.record.nodes).chain([OUTSIDE.to_owned()]).collect();
        switch::partition(&self.init(SWITCH)?, &[all])
    }

    /// Every node as it is now.
    pub fn status(&self) -> Result<Vec<NodeStatus>> {
        self.nodes()
            .into_iter()
            .map(|name| {
                let state = match (self.init(&name).is_ok(), self.daemon_pid(&name)) {
                    (false, _) => "off",
                    (true, None) => "daemon down",
                    (true, Some(_)) => "up",
                };
                Ok(NodeStatus {
                    address: self.address(&name)?,
                    role: if state == "up" { self.role(&name) } else { "-".to_owned() },
                    state: state.to_owned(),
                    socket: self.socket(&name),
                    name,
                })
            })
            .collect()
    }

    /// The node's role in its swarm. `?`: its daemon did not say in time, as when the managers have no quorum.
    fn role(&self, node: &str) -> String {
        let mut command = Command::new(&self.record.exe);
        command.args(["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"]);
        command.env("SKEP_HOST", format!("unix://{}", self.socket(node).display()));
        let answer = output(command, STATUS_WITHIN).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        match answer.as_deref() {
            Ok("active true") => "manager",
            Ok("active false") => "worker",
            Ok("") | Err(_) => "?",
            Ok(_) => "-",
        }
        .to_owned()
    }
}

/// The first child of a process.
fn first_child(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

/// Waits for a condition.
fn until<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = condition() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("{what} did not come within {} s", deadline.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end, or kills it at the deadline.
fn output(mut command: Command, deadline: Duration) -> Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let (done, waited) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if waited.recv_timeout(deadline).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
            && let Some(pid) = pid
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let output = child.wait_with_output();
    drop(done);
    let _ = watchdog.join();
    Ok(output?)
}
