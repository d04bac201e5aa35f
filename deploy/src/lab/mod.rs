//! A cluster of many nodes on one machine: every node is a [`machine`] on a virtual switch, with a `skep daemon` in it.
//!
//! Decides nothing about the cluster: swarms are made with the `skep` command, as a person would. Safe to call again
//! after a crash at any point: `up` finishes what stands there half made and `down` finds all of it by name.

pub mod demo;
pub mod layout;
pub mod machine;
pub mod probe;
mod repair;
mod switch;
mod teardown;
mod turn;

pub use repair::Lack;
pub use teardown::leftovers;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use layout::{Layout, OUTSIDE, SWITCH};
use machine::Init;
use turn::Turn;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// How far it shall be built.
    stage: Stage,
    /// The swarm was made; who is in it since then is the user's business.
    swarm_made: bool,
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
    /// `up`, `no network` (its cable leads nowhere), `daemon down` or `off`.
    pub state: String,
    /// Engine API.
    pub socket: PathBuf,
}

impl Lab {
    /// Brings a lab up. One that stands keeps what it has and is given what it lacks, whether an interrupted `up`, a
    /// dead switch or a killed node left it so; of another size, it is an error. `say` hears what was found and done
    /// where that is not plain making. `exe` is the `skep` program that its machines run.
    pub fn up(plan: &Plan, exe: &Path, say: &mut dyn FnMut(&str)) -> Result<Self> {
        layout::check_size(plan.nodes, plan.managers)?;
        let layout = Layout::new(&plan.name)?;
        let exe = exe.canonicalize().with_context(|| format!("{} is not there", exe.display()))?;
        let _turn = Turn::wait(&layout, say)?;
        match Self::open(&plan.name) {
            Ok(lab) => return lab.finish(plan, exe, say),
            Err(_) if teardown::remains(&layout).is_empty() => {}
            Err(error) => {
                let why = if layout.file().exists() { format!("{error:#}") } else { "its record is gone".to_owned() };
                say(&format!("remains of an earlier lab {} can't be used and are taken down: {why}", plan.name));
                teardown::remove(&layout)?;
            }
        }
        let (nodes, managers) = (plan.nodes, plan.managers);
        let record = Record { nodes, managers, exe, stage: plan.stage, swarm_made: false };
        let mut lab = Self { layout, record };
        fs::create_dir_all(lab.layout.run_dir())?;
        lab.remember()?;
        let built = lab.complete();
        if built.is_err()
            && let Err(error) = teardown::remove(&lab.layout)
        {
            tracing::warn!(lab = plan.name, error = %error, "what was built could not be taken down");
        }
        built.map(|()| lab)
    }

    /// Gives a lab that is there what it lacks of what is asked for now and was before.
    fn finish(mut self, plan: &Plan, exe: PathBuf, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let (name, nodes, managers) = (&plan.name, self.record.nodes, self.record.managers);
        if (nodes, managers) != (plan.nodes, plan.managers) {
            bail!(
                "lab {name} is there with {nodes} nodes, {managers} of them managers; take it down first: skep lab down \
                 --name {name}"
            );
        }
        self.record.stage = self.record.stage.max(plan.stage);
        self.record.exe = exe;
        self.remember()?;
        let lacks: Vec<String> = self.lacks().iter().map(Lack::to_string).collect();
        if lacks.is_empty() {
            say(&format!("lab {name} is up already, nothing is changed"));
            return Ok(self);
        }
        say(&format!("lab {name} is there and not whole: {}; putting that right", lacks.join(", ")));
        self.complete().with_context(|| {
            format!("lab {name} could not be made whole; take it down and make it anew: skep lab down --name {name}")
        })?;
        say(&format!("lab {name} is whole again"));
        Ok(self)
    }

    /// The lab with this name, as `up` left it.
    pub fn open(name: &str) -> Result<Self> {
        let layout = Layout::new(name)?;
        let file = layout.file();
        let content = match fs::read(&file) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let others = others();
                let there =
                    if others.is_empty() { String::new() } else { format!(" (there is {})", others.join(", ")) };
                bail!("there is no lab {name:?}{there}; make one with: skep lab up --name {name}");
            }
            Err(error) => return Err(error).with_context(|| format!("lab {name}: {} can't be read", file.display())),
        };
        let record = serde_json::from_slice(&content).with_context(|| format!("{} is damaged", file.display()))?;
        Ok(Self { layout, record })
    }

    /// Takes the lab with this name down and leaves nothing: no process, namespace, link, mount, cgroup or file.
    pub fn down(name: &str) -> Result<()> {
        let layout = Layout::new(name)?;
        let _turn = Turn::wait(&layout, &mut |_| {})?;
        teardown::remove(&layout)
    }

    /// The first process of a machine that runs.
    pub fn init(&self, name: &str) -> Result<Init> {
        let file = self.layout.init_file(name);
        Init::read(&file).or_else(|| Init::unrecorded(&file)).with_context(|| {
            let lab = self.layout.name();
            format!("machine {name} of lab {lab} is off; start it with: skep lab restart --name {lab} {name}")
        })
    }

    /// How many nodes it has, and how many of them it began with as managers.
    pub fn size(&self) -> (usize, usize) {
        (self.record.nodes, self.record.managers)
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

    /// An error for what is no machine of this lab.
    pub fn known(&self, machine: &str) -> Result<()> {
        layout::address(machine, self.record.nodes)?;
        Ok(())
    }

    /// An error for what is no node of this lab.
    pub fn known_node(&self, node: &str) -> Result<()> {
        self.known(node)?;
        if node == OUTSIDE {
            bail!("outside is no node; it runs no daemon");
        }
        Ok(())
    }

    // ---- daemons ------------------------------------------------------------------------------------------------

    /// Process id of a node's daemon, as the host sees it, if it runs.
    pub fn daemon_pid(&self, node: &str) -> Option<i32> {
        self.daemon(node).map(|d| d.pid)
    }

    /// A node's daemon. One that was started and not written down, because `up` was killed in between, counts.
    fn daemon(&self, node: &str) -> Option<Init> {
        let data_dir = self.layout.node_data_dir(node).display().to_string();
        let is_it = |args: &[&str]| args.get(1) == Some(&"daemon") && args.contains(&data_dir.as_str());
        Init::read(&self.layout.daemon_file(node)).or_else(|| machine::find(is_it).into_iter().next())
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
        let mut child = child.spawn().with_context(|| format!("the daemon of {node} could not be started"))?;
        // The helper waits for the daemon inside the machine; its child is the daemon itself.
        let helper = i32::try_from(child.id())?;
        let pid = until(DAEMON_DEADLINE, "the daemon's process", || {
            let ended = || child.try_wait().ok().flatten().map(|_| None);
            first_child(helper).map(Some).or_else(ended)
        });
        let pid = pid.transpose().unwrap_or_else(|| bail!("it ended at once"));
        let pid = pid.with_context(|| self.last_words(node))?;
        let started = machine::started(pid).context("the daemon ended at once; see its log")?;
        machine::write_atomically(&layout.daemon_file(node), &serde_json::to_vec(&Init { pid, started })?)
    }

    fn wait_for_daemon(&self, node: &str) -> Result<()> {
        let socket = self.layout.socket(node);
        let answered = until(DAEMON_DEADLINE, "the daemon's answer", || {
            std::os::unix::net::UnixStream::connect(&socket).ok().map(drop)
        });
        answered.with_context(|| self.last_words(node))
    }

    fn last_words(&self, node: &str) -> String {
        let log = fs::read_to_string(self.layout.log(node)).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        format!("daemon of {node}; its last words:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
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

    /// A command that will run on a machine, told where the node's daemon is. It finds this program as `skep`.
    pub fn exec(&self, machine: &str, program: &str) -> Result<Command> {
        self.known(machine)?;
        let mut command = self.init(machine)?.command(&self.record.exe, program);
        let known = std::env::var_os("PATH").unwrap_or_default();
        let own = self.record.exe.parent().map(Path::to_owned);
        if let Ok(path) = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&known))) {
            command.env("PATH", path);
        }
        if machine != OUTSIDE {
            let host = format!("unix://{}", self.socket(machine).display());
            command.env("SKEP_HOST", &host).env("DOCKER_HOST", &host);
        }
        Ok(command)
    }

    /// Pulls the plug of a machine: everything on it ends at once. One that is off stays off.
    pub fn kill(&self, machine: &str) -> Result<()> {
        self.known(machine)?;
        self.init(machine).map_or(Ok(()), |init| init.kill())
    }

    /// Kills a node's daemon, if it runs, and nothing else, with SIGKILL.
    pub fn kill_daemon(&self, node: &str) -> Result<()> {
        self.known_node(node)?;
        self.daemon(node).map_or(Ok(()), |daemon| daemon.kill())
    }

    /// Turns a machine on that is off; one that is on loses its daemon to SIGKILL and gets a new one, as after a crash.
    pub fn restart(&self, machine: &str) -> Result<()> {
        self.known(machine)?;
        let _turn = Turn::wait(&self.layout, &mut |_| {})?;
        self.init(SWITCH).with_context(|| format!("first: skep lab up --name {}", self.layout.name()))?;
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

    /// Cuts the network between groups of machines, each written `n1,n2`, and says which sides that makes.
    pub fn partition(&self, groups: &[String]) -> Result<Vec<BTreeSet<String>>> {
        let sides = layout::partition(groups, self.record.nodes)?;
        switch::partition(&self.init(SWITCH)?, &sides)?;
        Ok(sides)
    }

    /// Undoes every partition, and says who is together again.
    pub fn heal(&self) -> Result<BTreeSet<String>> {
        let all: BTreeSet<String> = layout::nodes(self.record.nodes).chain([OUTSIDE.to_owned()]).collect();
        switch::partition(&self.init(SWITCH)?, std::slice::from_ref(&all))?;
        Ok(all)
    }

    /// Every node as it is now.
    pub fn status(&self) -> Result<Vec<NodeStatus>> {
        self.nodes()
            .into_iter()
            .map(|name| {
                let state = match (self.init(&name).is_ok(), self.cable(&name), self.daemon_pid(&name)) {
                    (false, _, _) => "off",
                    (true, _, None) => "daemon down",
                    (true, false, Some(_)) => "no network",
                    (true, true, Some(_)) => "up",
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

/// Names of the labs that are here.
fn others() -> Vec<String> {
    let found = fs::read_dir("/run/skep-lab").into_iter().flatten().flatten();
    let names = found.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| Layout::new(name).is_ok_and(|lab| lab.file().exists())).collect();
    names.sort();
    names
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
