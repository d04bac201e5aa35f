//! The blocking half of the client: files, processes, cgroups.
//!
//! Decides what a container is from what is left of it. Called by the client's async half, off the async threads.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::mount::{UnmountFlags, unmount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::zygote::{Zygote, readable};
use super::{Config, DYING, Error, REMOVING, Result, SLOW, io_error};
use crate::cgroup::Cgroups;
use crate::shim::protocol::{Answer, Order};
use crate::shim::rights::Rights;
use crate::spec::{self, ContainerSpec, Seccomp, valid_id};
use crate::state::{Dirs, EXIT, Exit, ProcessId, Record, read, write_atomic};
use crate::{caps, seccomp};

/// Age at which an empty group of no container is nobody's: longer than a supervisor may take to be born.
pub(super) const LOST: Duration = Duration::from_secs(60);
/// The most bytes of a supervisor's last words.
const MAX_WORDS: u64 = 8 << 10;
/// The most compiled filters that are kept, of some 8 KB each.
const MAX_FILTERS: usize = 32;

/// What all clones of a [`super::Runtime`] share.
pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) cgroup_parent: PathBuf,
    pub(super) cgroups: Cgroups,
    /// The supervisor's binary on a read-only mount that no path leads to.
    pub(super) exe: OwnedFd,
    /// What supervisors are forked from; `None` until the first of them, or when it died.
    pub(super) zygote: Mutex<Option<Zygote>>,
    pub(super) busy: Mutex<HashSet<String>>,
    /// Compiled filters by the capabilities that they are for.
    pub(super) filters: Mutex<HashMap<Vec<&'static str>, Vec<u64>>>,
    /// Capabilities that there are to give, as a bit mask.
    pub(super) bounding: u64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Its zygote removes the groups as well; one that had to be killed could not.
        *self.zygote.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        self.cgroups.remove_parent_if_empty(&self.cgroup_parent);
    }
}

/// What the files say about a container.
pub(super) enum Look {
    Missing,
    Exited(Exit),
    Alive,
}

impl Inner {
    pub(super) fn dirs(&self, id: &str) -> Dirs {
        Dirs { run: self.config.run_dir.join(id), state: self.config.state_dir.join(id) }
    }

    /// An id from outside never becomes a path unchecked.
    pub(super) fn checked_dirs(&self, id: &str) -> Result<Dirs> {
        if valid_id(id) { Ok(self.dirs(id)) } else { Err(Error::Spec(spec::Error::Id(id.into()))) }
    }

    pub(super) fn create(&self, spec: ContainerSpec) -> Result<()> {
        let id = spec.id.clone();
        let dirs = self.dirs(&id);
        if dirs.run.exists() || dirs.state.exists() {
            return Err(Error::Exists(id));
        }
        let made = self.prepare(&spec, &dirs).and_then(|()| self.give_birth(spec, &dirs));
        if made.is_err() {
            self.remove(&id)?;
            self.sweep(LOST);
        }
        made
    }

    /// Takes away the groups, made longer than `age` ago, of containers that there are none of: on a machine under great
    /// load a supervisor may have made its own after it was given up.
    pub(super) fn sweep(&self, age: Duration) {
        for id in self.cgroups.below(&self.cgroup_parent, age) {
            let dirs = self.dirs(&id);
            if valid_id(&id) && !dirs.run.exists() && !dirs.state.exists() {
                self.cgroups.remove_if_empty(&self.cgroup_parent.join(&id));
            }
        }
    }

    fn prepare(&self, spec: &ContainerSpec, dirs: &Dirs) -> Result<()> {
        for directory in [&dirs.run, &dirs.state] {
            fs::DirBuilder::new().mode(0o700).create(directory).map_err(io_error("make", directory))?;
        }
        make_layer(dirs)?;
        self.record(spec, dirs, Timestamp::now(), 0)
    }

    fn record(&self, spec: &ContainerSpec, dirs: &Dirs, created_at: Timestamp, restarts: u64) -> Result<()> {
        let record = Record {
            id: spec.id.clone(),
            created_at,
            restarts,
            labels: spec.labels.clone(),
            stop_signal: spec.stop_signal(),
            cgroup: self.cgroup_parent.join(&spec.id),
            spec: spec.clone(),
        };
        write_atomic(&dirs.record(), &record).map_err(io_error("write", &dirs.record()))
    }

    /// Every step can be cut short by a crash: until the last one the container counts as the ended one that it was, and
    /// then as one that was lost while it was made.
    pub(super) fn renew(&self, spec: ContainerSpec) -> Result<()> {
        let id = spec.id.clone();
        let dirs = self.dirs(&id);
        let exit = match self.look(&id, &dirs)? {
            Look::Missing => return Err(Error::NotFound(id)),
            Look::Alive => return Err(Error::Exists(id)),
            Look::Exited(exit) => exit,
        };
        let Some(record) = read::<Record>(&dirs.record()).map_err(io_error("read", &dirs.record()))? else {
            return Err(Error::NotFound(id));
        };
        // Its supervisor may have found the disk full and left the note in the other directory, which goes now.
        if !dirs.exit().exists() {
            write_atomic(&dirs.exit(), &exit).map_err(io_error("write", &dirs.exit()))?;
        }
        self.end(&id, &dirs)?;
        for path in [dirs.run.clone(), dirs.state.join("upper"), dirs.state.join("work")] {
            remove_all(&path)?;
        }
        let _ = fs::remove_file(dirs.stopped());
        fs::DirBuilder::new().mode(0o700).create(&dirs.run).map_err(io_error("make", &dirs.run))?;
        make_layer(&dirs)?;
        self.record(&spec, &dirs, record.created_at, record.restarts.saturating_add(1))?;
        fs::remove_file(dirs.exit()).map_err(io_error("remove", &dirs.exit()))?;
        self.give_birth(spec, &dirs).inspect_err(|error| {
            if let Err(error) = self.stillborn(&id, &dirs, &error.to_string()) {
                tracing::warn!(container.id = id, error = %error, "what is left of it could not be taken down");
            }
        })
    }

    /// Takes down what a failed birth left, and says so where its logs are.
    fn stillborn(&self, id: &str, dirs: &Dirs, why: &str) -> Result<()> {
        self.end(id, dirs)?;
        let exit = Exit {
            code: 255,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Timestamp::now(),
            error: Some(why.to_owned()),
        };
        write_atomic(&dirs.exit(), &exit).map_err(io_error("write", &dirs.exit()))
    }

    /// What a container's programs may do.
    pub(super) fn rights(&self, spec: &ContainerSpec) -> Result<Rights> {
        let wished = caps::resolve(&spec.cap_add, &spec.cap_drop).map_err(spec::Error::from)?;
        let caps = caps::effective(wished, self.bounding, !self.cgroups.is_unified());
        let filter = match spec.seccomp {
            Seccomp::Unconfined => None,
            Seccomp::Default => {
                let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
                if filters.len() >= MAX_FILTERS {
                    filters.clear();
                }
                let known = match filters.entry(caps.clone()) {
                    Entry::Occupied(known) => known.get().clone(),
                    Entry::Vacant(place) => place.insert(seccomp::compile(&caps)?).clone(),
                };
                Some(known)
            }
        };
        Ok(Rights { caps: caps.into_iter().map(str::to_owned).collect(), filter })
    }

    /// Starts the supervisor and waits for its first answer.
    fn give_birth(&self, mut spec: ContainerSpec, dirs: &Dirs) -> Result<()> {
        let id = spec.id.clone();
        spec.layers.insert(0, self.config.skeleton());
        let started = Instant::now();
        let rights = self.rights(&spec)?;
        let order = Order::new(dirs.run.clone(), dirs.state.clone(), self.cgroup_parent.clone(), spec, rights);
        let order = order.to_memfd().map_err(io_error("write the order of", &dirs.run))?;
        let words = dirs.run.join("stderr");
        let stderr = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&words)
            .map_err(io_error("open", &words))?;
        let (answers, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io_error("make a pipe for", &dirs.run))?;
        let born = self
            .zygote(|zygote| zygote.fork(&dirs.run, [order.as_fd(), writer.as_fd(), stderr.as_fd()]))
            .map_err(io_error("start a supervisor from", &self.config.shim_exe))?;
        drop(writer);
        let reason = match born {
            Answer::Failed { reason } => reason,
            _ => match first_line(File::from(answers), started + SLOW) {
                Ok(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(Answer::Created) => return Ok(()),
                    Ok(Answer::Failed { reason }) => reason,
                    _ => format!("its supervisor died while making it: {}", last_words(&words)),
                },
                Err(error) => format!("its supervisor gave no answer: {error}: {}", last_words(&words)),
            },
        };
        Err(Error::Failed { id, reason })
    }

    /// Asks the process that supervisors are forked from; another one when that has died. Once only: nobody knows how far
    /// it came with what it didn't answer.
    pub(super) fn zygote<T>(&self, ask: impl FnOnce(&Zygote) -> io::Result<T>) -> io::Result<T> {
        let mut zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match zygote.take().filter(|known| !known.has_gone()) {
            Some(known) => known,
            None => Zygote::start(&self.exe, &self.cgroup_parent, &self.config.run_dir)?,
        };
        let answer = ask(&known)?;
        *zygote = Some(known);
        Ok(answer)
    }

    pub(super) fn look(&self, id: &str, dirs: &Dirs) -> Result<Look> {
        if let Some(exit) = read_exit(dirs)? {
            return Ok(Look::Exited(exit));
        }
        if !dirs.run.exists() && !dirs.state.exists() {
            return Ok(Look::Missing);
        }
        let shim: Option<ProcessId> = read(&dirs.shim_pid()).map_err(io_error("read", &dirs.shim_pid()))?;
        if shim.as_ref().is_some_and(ProcessId::alive) {
            return Ok(Look::Alive);
        }
        // It may have written its last note between the two looks.
        if let Some(exit) = read_exit(dirs)? {
            return Ok(Look::Exited(exit));
        }
        if !dirs.run.exists() && !dirs.state.exists() {
            return Ok(Look::Missing);
        }
        self.bury(id, dirs, shim.is_some()).map(Look::Exited)
    }

    /// Puts an end to a container without a supervisor, and says so.
    fn bury(&self, id: &str, dirs: &Dirs, had_supervisor: bool) -> Result<Exit> {
        tracing::warn!(container.id = id, "supervisor lost, killing its container");
        let cgroup = self.cgroup_parent.join(id);
        kill_process(&dirs.init_pid());
        self.cgroups.kill(&cgroup)?;
        let oom_killed = self.cgroups.oom_kills(&cgroup) > 0;
        self.cgroups.remove(&cgroup)?;
        let reason = if had_supervisor {
            "its supervisor was killed, or the machine was restarted; the container was killed with it"
        } else {
            "the daemon ended while the container was being made, or the machine was restarted"
        };
        let exit = Exit {
            code: 255,
            signal: None,
            oom_killed,
            started_at: None,
            finished_at: Timestamp::now(),
            error: Some(reason.into()),
        };
        write_atomic(&dirs.exit(), &exit).map_err(io_error("write", &dirs.exit()))?;
        Ok(exit)
    }

    pub(super) fn remove(&self, id: &str) -> Result<()> {
        let dirs = self.dirs(id);
        self.end(id, &dirs)?;
        // Out of the list at one stroke, before the slow part.
        let doomed = self.config.state_dir.join(format!("{REMOVING}{id}"));
        match fs::rename(&dirs.state, &doomed) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove", &dirs.state)(error)),
        }
        for path in [&dirs.run, &doomed] {
            remove_all(path)?;
        }
        self.cgroups.remove_parent_if_empty(&self.cgroup_parent);
        Ok(())
    }

    /// Kills what lives of a container, and takes away its cgroups and mounts.
    fn end(&self, id: &str, dirs: &Dirs) -> Result<()> {
        let cgroup = self.cgroup_parent.join(id);
        let deadline = Instant::now() + DYING;
        // Process 1 first: its end ends everything in its namespace, and the supervisor, which then tidies up itself.
        kill_process(&dirs.init_pid());
        kill_process(&dirs.shim_pid());
        self.cgroups.kill(&cgroup)?;
        for file in [dirs.shim_pid(), dirs.init_pid()] {
            while read::<ProcessId>(&file).ok().flatten().is_some_and(|process| process.alive()) {
                if Instant::now() > deadline {
                    return Err(Error::Stuck(id.into()));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.cgroups.remove(&cgroup)?;
        // Mounts live in the container's namespace; these are only there if somebody made them by hand.
        for name in ["rootfs", "files"] {
            let _ = unmount(dirs.run.join(name), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        Ok(())
    }
}

/// The directories of a container's own layer.
fn make_layer(dirs: &Dirs) -> Result<()> {
    // "upper" is the root directory of the container.
    for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
        let directory = dirs.state.join(name);
        fs::DirBuilder::new().mode(mode).create(&directory).map_err(io_error("make", &directory))?;
    }
    Ok(())
}

/// A directory with everything in it; fine when it isn't there.
fn remove_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A read-only mount of the binary that no path leads to. All supervisors share its pages with the file itself, and
/// it lives as long as any of them, whatever becomes of this process.
pub(super) fn read_only_binary(path: &Path) -> io::Result<OwnedFd> {
    Ok(crate::rootfs::detached(path, libc::MOUNT_ATTR_RDONLY)?)
}

/// The capabilities of this process's bounding set, which its supervisors inherit.
pub(super) fn bounding_set() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// The exit, wherever the supervisor could write it.
fn read_exit(dirs: &Dirs) -> Result<Option<Exit>> {
    for path in [dirs.exit(), dirs.run.join(EXIT)] {
        if let Some(exit) = read(&path).map_err(io_error("read", &path))? {
            return Ok(Some(exit));
        }
    }
    Ok(None)
}

/// Kills the process that a file names, if it is still that one.
fn kill_process(file: &Path) {
    if let Ok(Some(process)) = read::<ProcessId>(file)
        && let Some(pid) = Pid::from_raw(process.pid)
        && let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
        // After the handle is taken, so that it can't be another's.
        && process.alive()
    {
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}

/// One line from a pipe, before the deadline.
fn first_line(mut input: impl Read + AsFd, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        if !readable(input.as_fd(), deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut buffer = [0u8; 4096];
        let count = match input.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        out.extend_from_slice(&buffer[..count]);
        if count == 0 || out.contains(&b'\n') || out.len() as u64 > MAX_WORDS {
            return Ok(out);
        }
    }
}

/// What a supervisor complained about before it died.
fn last_words(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_WORDS).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).map_err(io_error("list", directory))?;
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("list", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            out.extend(entry.file_name().into_string());
        }
    }
    Ok(out)
}
