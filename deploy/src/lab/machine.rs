//! One machine of a lab: a process id namespace whose first process holds the machine's network, mounts and host name.
//!
//! Kill that process and the kernel ends everything that ran on the machine, its namespaces, links and mounts with it:
//! that is pulling the plug, and it is also the whole clean-up. Entering a machine is joining those namespaces.
//!
//! [`init_main`] and [`enter_main`] are entry points of helper processes: the `skep` program runs itself with them
//! before it starts any thread, because namespaces belong to threads.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

/// First argument of the helper that becomes a machine.
pub const INIT: &str = "lab-init";
/// First argument of the helper that enters one.
pub const ENTER: &str = "lab-enter";

/// What shells exit with when there is no such program.
pub const NOT_FOUND: u8 = 127;

/// How long a machine may take to come up or to end.
const DEADLINE: Duration = Duration::from_secs(10);

/// The first process of a machine. A process id alone may have been given to somebody else meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Process id, as the host sees it.
    pub pid: i32,
    /// Start time in clock ticks since boot, from `/proc/PID/stat`.
    pub started: u64,
}

impl Init {
    /// Boots a machine and waits until it is up.
    pub fn boot(exe: &Path, file: &Path, hostname: &str) -> Result<Self> {
        let _ = std::fs::remove_file(file);
        let status = Command::new(exe)
            .args([INIT, hostname])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("{} could not be run", exe.display()))?;
        if !status.success() {
            bail!("machine {hostname} did not boot: {status}; are you root?");
        }
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(init) = Self::read(file)
                && std::fs::exists(ready_file(file)).unwrap_or(false)
            {
                return Ok(init);
            }
            if Instant::now() > until {
                bail!("machine {hostname} did not come up within 10 s");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The machine that a file names, if it still runs.
    pub fn read(file: &Path) -> Option<Self> {
        let init: Self = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        (started(init.pid) == Some(init.started)).then_some(init)
    }

    /// A machine that was started and not written down, because whoever did it was killed in between: found by its
    /// arguments, which name the file.
    pub fn unrecorded(file: &Path) -> Option<Self> {
        let file = file.to_str()?;
        find(|args| matches!(args, [_, INIT, _, of, "first"] if *of == file)).into_iter().next()
    }

    /// Pulls the plug and waits until everything on the machine has ended.
    pub fn kill(&self) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if started(self.pid) != Some(self.started) {
            return Ok(());
        }
        let _ = rustix::process::pidfd_send_signal(&fd, Signal::KILL);
        wait_for_end(fd.as_fd(), DEADLINE)
    }

    /// A command that runs on the machine, with the caller's standard streams.
    pub fn command(&self, exe: &Path, program: &str) -> Command {
        let mut command = Command::new(exe);
        command.args([ENTER, &self.pid.to_string(), program]);
        command
    }
}

/// Every running process whose arguments fit.
pub fn find(fits: impl Fn(&[&str]) -> bool) -> Vec<Init> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.filter_map(|pid| {
        let started = started(pid)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8(line).ok()?;
        let args: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
        fits(&args).then_some(Init { pid, started })
    });
    found.collect()
}

/// Waits until the process behind a pidfd has ended.
fn wait_for_end(fd: std::os::fd::BorrowedFd<'_>, deadline: Duration) -> Result<()> {
    let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: i64::try_from(deadline.as_secs())?, tv_nsec: 0 };
    if rustix::event::poll(&mut polled, Some(&timeout))? == 0 {
        bail!("a killed machine did not end within {} s", deadline.as_secs());
    }
    Ok(())
}

/// When a process was started, in clock ticks since boot; `None` if there is no such process, or only its remains.
pub fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the fields are counted after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn ready_file(file: &Path) -> PathBuf {
    file.with_extension("ready")
}

/// `lab-init HOSTNAME FILE`: makes the namespaces, leaves a first process in them, writes its id to FILE, and ends.
pub fn init_main(args: &[String]) -> Result<()> {
    match args {
        [hostname, file] => make_namespaces(hostname, Path::new(file)),
        [hostname, file, stage] if stage == "first" => first_process(hostname, Path::new(file)),
        _ => bail!("usage: skep {INIT} HOSTNAME FILE"),
    }
}

fn make_namespaces(hostname: &str, file: &Path) -> Result<()> {
    let _ = std::fs::remove_file(ready_file(file));
    nix::sched::unshare(
        CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWPID,
    )
    .context("namespaces can't be made; are you root?")?;
    let mut child = Command::new(std::env::current_exe()?)
        .args([INIT, hostname])
        .arg(file)
        .arg("first")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let recorded = record(child.id(), file);
    if recorded.is_err() {
        // What is written down nowhere, nobody could take down.
        let _ = child.kill();
        let _ = child.wait();
    }
    recorded
}

/// Writes down which process a machine begins with.
fn record(pid: u32, file: &Path) -> Result<()> {
    let pid = i32::try_from(pid)?;
    let started = started(pid).context("the machine's first process ended at once")?;
    write_atomically(file, &serde_json::to_vec(&Init { pid, started })?)
}

/// Process 1 of the machine: mounts `/proc`, then collects what ends, until it is killed.
fn first_process(hostname: &str, file: &Path) -> Result<()> {
    use rustix::mount::{mount, mount_change};
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGCHLD])?;
    // Only now: the process that started this one still has to read the host's `/proc`.
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    rustix::system::sethostname(hostname.as_bytes())?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").ok();
    write_atomically(&ready_file(file), b"ready\n")?;
    loop {
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        signals.wait().for_each(drop);
    }
}

/// `lab-enter PID PROGRAM [ARGS]`: runs a program on the machine whose first process is PID; its exit code is ours.
pub fn enter_main(args: &[String]) -> Result<u8> {
    let [pid, program, rest @ ..] = args else { bail!("usage: skep {ENTER} PID PROGRAM [ARGS]") };
    let pid = pid.parse().ok().and_then(Pid::from_raw).context("not a process id")?;
    let directory = std::env::current_dir().ok();
    let machine = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("the machine is not running")?;
    rustix::thread::move_into_thread_name_spaces(
        machine.as_fd(),
        ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::PROCESS_ID,
    )
    .context("the machine can't be entered")?;
    // Another mount namespace begins at its root; the caller's paths are meant from where the caller is.
    if let Some(directory) = directory {
        let _ = std::env::set_current_dir(directory);
    }
    let status = match Command::new(program).args(rest).status() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let _ = writeln!(std::io::stderr(), "{program}: there is no such program");
            return Ok(NOT_FOUND);
        }
        status => status.with_context(|| format!("{program} could not be run on the machine"))?,
    };
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Writes a file whole or not at all.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    // Two processes write beside each other here: neither may take the other's half for its own.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(name);
    let mut file = File::create(&temporary).with_context(|| format!("{} can't be written", temporary.display()))?;
    file.write_all(content)?;
    std::fs::rename(&temporary, path)?;
    Ok(())
}
