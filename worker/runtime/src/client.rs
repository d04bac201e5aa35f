//! The daemon's side: making, watching and removing containers through their supervisors.
//!
//! Decides what is true about a container from what is left of it (socket, else exit note, else nothing), and puts an
//! end to what has lost its supervisor. Holds no state besides the containers it is just making and their zygote, so a
//! restarted daemon, or a second one reading, sees the same. Called by the worker; every wait but [`Runtime::wait`] has
//! a deadline.

mod wire;
mod work;
mod zygote;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cgroup::{self, Cgroups, Usage};
use crate::exec::{Exec, ExecSpec};
use crate::log_reader::LogReader;
use crate::rootfs::make_skeleton;
use crate::seccomp;
use crate::shim::exec::ExecOrder;
use crate::shim::protocol::{Answer, Request, line};
use crate::spec::{self, ContainerSpec, valid_id};
use crate::state::{Exit, Record, read};
use wire::{ask, connect};
use work::{Inner, Look, bounding_set, names, read_only_binary};

/// The longest that making or starting a container may take.
const SLOW: Duration = Duration::from_secs(30);
/// The longest that a supervisor may take to answer.
const QUICK: Duration = Duration::from_secs(5);
/// The longest that killed processes may take to be gone.
const DYING: Duration = Duration::from_secs(10);
/// Prefix of what is being removed in the state directory.
const REMOVING: &str = ".removing-";

/// Where things are.
#[derive(Debug, Clone)]
pub struct Config {
    /// In memory (tmpfs): sockets, process ids. Made when absent.
    pub run_dir: PathBuf,
    /// On disk: records, writable layers, logs, exits. Made when absent; not itself on an overlay.
    pub state_dir: PathBuf,
    /// The binary that calls [`crate::shim_main`].
    pub shim_exe: PathBuf,
    /// Name of the group within every cgroup hierarchy below which everything happens, for example `skep`.
    pub cgroup_parent: String,
}

impl Config {
    /// The layer below every image.
    fn skeleton(&self) -> PathBuf {
        self.state_dir.join(".skeleton")
    }
}

/// Why a container could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The wish can't be a container.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// No such container.
    #[error("container {0} doesn't exist")]
    NotFound(String),
    /// The id is taken.
    #[error("container {0} exists already; remove it first")]
    Exists(String),
    /// Being made by another call.
    #[error("container {0} is being made or removed; try again when that is done")]
    Busy(String),
    /// The program doesn't run (any more).
    #[error("container {0} is not running")]
    NotRunning(String),
    /// Making or starting it failed.
    #[error("container {id}: {reason}")]
    Failed {
        /// Which.
        id: String,
        /// Why, in the supervisor's words.
        reason: String,
    },
    /// The supervisor doesn't answer.
    #[error("container {0}: its supervisor doesn't answer; look for a stopped `skep shim`, or remove the container")]
    Unresponsive(String),
    /// Something killed does not go away.
    #[error("container {0} was killed but is still there after 10 s; look for processes in state D")]
    Stuck(String),
    /// The seccomp filter.
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// A call that failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, Error>;

fn io_error<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source: source.into() }
}

/// A container whose program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its process 1, as the host numbers it.
    pub pid: i32,
    /// Since when; `None` from a supervisor of an older version.
    pub started_at: Option<Timestamp>,
}

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Made, its program not started.
    Created,
    /// Its program runs.
    Running {
        /// Its process 1, as the host numbers it.
        pid: i32,
        /// Since when; `None` from a supervisor of an older version.
        started_at: Option<Timestamp>,
    },
    /// It has ended; its record, writable layer and logs are there until it is removed.
    Exited(Exit),
    /// There is none of this id.
    Missing,
}

/// All containers below one pair of directories. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

/// Keeps two calls from making or removing the same container at once.
struct Busy {
    inner: Arc<Inner>,
    id: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.inner.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Runtime {
    /// Opens the directories and finishes removals that a crash interrupted.
    pub fn new(config: Config) -> Result<Self> {
        for directory in [&config.run_dir, &config.state_dir] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error("make", directory))?;
        }
        let skeleton = config.skeleton();
        make_skeleton(&skeleton).map_err(io_error("make the lowest layer in", &skeleton))?;
        for name in names(&config.state_dir)?.iter().filter(|name| name.starts_with(REMOVING)) {
            let path = config.state_dir.join(name);
            // What can't be removed is in nobody's way.
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), error = %error, "a removed container's files can't be removed");
            }
        }
        let exe = read_only_binary(&config.shim_exe).map_err(io_error("mount read-only", &config.shim_exe))?;
        let cgroup_parent = Path::new("/").join(config.cgroup_parent.trim_matches('/'));
        let cgroups = Cgroups::detect()?;
        let inner = Arc::new(Inner {
            config,
            cgroup_parent,
            cgroups,
            exe,
            zygote: Mutex::default(),
            busy: Mutex::default(),
            filters: Mutex::default(),
            bounding: bounding_set(),
        });
        // What the first container would wait for. What is wrong with it is said to that one.
        let early = Arc::clone(&inner);
        let _ = std::thread::Builder::new().name("containers".into()).spawn(move || {
            let _ = early.zygote(|_| Ok(()));
            // Takes some 20 ms to compile.
            let _ = early.rights(&ContainerSpec::default());
            early.sweep(work::LOST);
        });
        Ok(Runtime { inner })
    }

    /// Makes a container: file systems, namespaces, limits, and a process 1 that waits for [`Runtime::start`].
    ///
    /// All or nothing: after an error nothing of it is left. When the returned future is dropped, the making goes on,
    /// and the container can be removed afterwards.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<()> {
        spec.validate()?;
        let busy = self.reserve(&spec.id)?;
        let spec = spec.clone();
        self.blocking(move |inner| {
            let _busy = busy;
            inner.create(spec)
        })
        .await
    }

    /// Makes an ended container anew: its writable layer begins empty, its log goes on, and its record counts one restart
    /// more. Like one of [`Runtime::create`] it then waits for [`Runtime::start`].
    ///
    /// After an error the container has exited with 255, and the same reason; its log stays.
    pub async fn renew(&self, spec: &ContainerSpec) -> Result<()> {
        spec.validate()?;
        let busy = self.reserve(&spec.id)?;
        let spec = spec.clone();
        self.blocking(move |inner| {
            let _busy = busy;
            inner.renew(spec)
        })
        .await
    }

    /// Starts the program of a created container; running already is fine.
    ///
    /// An error says that the program can't be run (not found, not executable, wrong architecture); the container has
    /// then exited with 127 or 126, and the same reason.
    pub async fn start(&self, id: &str) -> Result<Started> {
        match self.request(id, Request::Start, SLOW).await {
            Ok(Answer::Running { pid, started_at }) => Ok(Started { pid, started_at }),
            Ok(Answer::Failed { reason }) => Err(Error::Failed { id: id.into(), reason }),
            Ok(_) => Err(Error::Unresponsive(id.into())),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal (1 to 64) to process 1.
    ///
    /// As the kernel has it, process 1 ignores signals for which it has no handler, except SIGKILL and SIGSTOP.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<()> {
        match self.request(id, Request::Signal(signal), QUICK).await? {
            Answer::Failed { reason } => Err(Error::Failed { id: id.into(), reason }),
            _ => Ok(()),
        }
    }

    /// Asks the program to end by its stop signal and kills it after `grace`; its exit. From then on, for any daemon,
    /// [`Runtime::asked_to_stop`].
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<Exit> {
        let asked = match self.state(id).await? {
            State::Missing => return Err(Error::NotFound(id.into())),
            State::Exited(exit) => return Ok(exit),
            State::Created => false,
            State::Running { .. } => {
                // Without a record nobody knows which signal it would heed: it is killed.
                let signal = self.inspect(id).await.map_or(libc::SIGKILL, |record| record.stop_signal);
                if let Err(error) = fs::File::create(self.inner.dirs(id).stopped()) {
                    tracing::warn!(container.id = id, error = %error, "that it was asked to stop can't be noted");
                }
                match self.signal(id, signal).await {
                    Ok(()) => true,
                    Err(Error::NotRunning(_)) => true,
                    Err(error) => return Err(error),
                }
            }
        };
        if asked && let Ok(exit) = tokio::time::timeout(grace, self.wait(id)).await {
            return exit;
        }
        match self.signal(id, libc::SIGKILL).await {
            Ok(()) | Err(Error::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
        tokio::time::timeout(DYING, self.wait(id)).await.unwrap_or_else(|_| Err(Error::Stuck(id.into())))
    }

    /// Waits for the end of a container, however long that takes; afterwards it answers at once, from any daemon.
    pub async fn wait(&self, id: &str) -> Result<Exit> {
        let mut again = false;
        loop {
            match self.look(id).await {
                // It will be clear in a moment what that comes to.
                Err(Error::Busy(_)) => {}
                Err(error) => return Err(error),
                Ok(Look::Missing) => return Err(Error::NotFound(id.into())),
                Ok(Look::Exited(exit)) => return Ok(exit),
                Ok(Look::Alive) => {}
            }
            // Just being born, just ending, or with so many clients that it hangs up.
            if std::mem::replace(&mut again, true) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Ok(mut stream) = connect(&self.inner.dirs(id)).await
                && stream.write_all(&line(&Request::Wait)).await.is_ok()
            {
                // Ends when the supervisor does.
                let mut byte = [0u8; 1];
                let _ = stream.read(&mut byte).await;
            }
        }
    }

    /// How a container is. One whose supervisor was killed is killed and reported as exited, with an error;
    /// [`Error::Busy`] while it is being made or removed.
    pub async fn state(&self, id: &str) -> Result<State> {
        match self.look(id).await? {
            Look::Missing => return Ok(State::Missing),
            Look::Exited(exit) => return Ok(State::Exited(exit)),
            Look::Alive => {}
        }
        match self.request(id, Request::State, QUICK).await {
            Ok(Answer::Running { pid, started_at }) => Ok(State::Running { pid, started_at }),
            Ok(Answer::Created) => Ok(State::Created),
            // It failed to start and will be gone in a moment.
            Ok(_) => Ok(State::Exited(self.wait(id).await?)),
            Err(Error::NotRunning(_)) => Ok(State::Exited(self.wait(id).await?)),
            Err(Error::NotFound(_)) => Ok(State::Missing),
            Err(error) => Err(error),
        }
    }

    /// Whether [`Runtime::stop`] was called for a container that was running.
    pub fn asked_to_stop(&self, id: &str) -> bool {
        self.inner.checked_dirs(id).is_ok_and(|dirs| dirs.stopped().exists())
    }

    /// What is written down about a container.
    pub async fn inspect(&self, id: &str) -> Result<Record> {
        let dirs = self.inner.checked_dirs(id)?;
        let path = dirs.record();
        read(&path).map_err(io_error("read", &path))?.ok_or_else(|| Error::NotFound(id.into()))
    }

    /// The ids of all containers there are, in whatever state, sorted.
    pub async fn list(&self) -> Result<Vec<String>> {
        self.blocking(|inner| {
            let mut ids = names(&inner.config.state_dir)?;
            ids.extend(names(&inner.config.run_dir)?);
            ids.retain(|id| valid_id(id));
            ids.sort_unstable();
            ids.dedup();
            Ok(ids)
        })
        .await
    }

    /// Kills the container if it lives, and removes every trace: processes, cgroups, mounts, files. Idempotent.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.inner.checked_dirs(id)?;
        let busy = self.reserve(id)?;
        let id = id.to_owned();
        self.blocking(move |inner| {
            let _busy = busy;
            inner.remove(&id)
        })
        .await
    }

    /// What a running container uses now.
    pub async fn stats(&self, id: &str) -> Result<Usage> {
        match self.look(id).await? {
            Look::Missing => Err(Error::NotFound(id.into())),
            Look::Exited(_) => Err(Error::NotRunning(id.into())),
            Look::Alive => {
                let path = self.inner.cgroup_parent.join(id);
                self.blocking(move |inner| Ok(inner.cgroups.usage(&path))).await
            }
        }
    }

    /// Runs a further program in a running container, under the same limits, filter and capabilities.
    pub async fn exec(&self, id: &str, wish: &ExecSpec) -> Result<Exec> {
        if !matches!(self.state(id).await?, State::Running { .. }) {
            return Err(Error::NotRunning(id.into()));
        }
        let mut spec = self.inspect(id).await?.spec;
        wish.apply(&mut spec);
        spec.validate()?;
        let dirs = self.inner.dirs(id);
        let init = read(&dirs.init_pid()).map_err(io_error("read", &dirs.init_pid()))?;
        let init = init.ok_or_else(|| Error::NotRunning(id.into()))?;
        let wished = spec.clone();
        let rights = self.blocking(move |inner| inner.rights(&wished)).await?;
        let order = ExecOrder { init, cgroup: self.inner.cgroup_parent.join(id), spec, rights };
        Exec::start(&self.inner.exe, &order).await.map_err(io_error("run a program in", &dirs.run))
    }

    /// The output of a container, as long as it isn't removed.
    pub fn logs(&self, id: &str) -> LogReader {
        LogReader::new(self.inner.dirs(id))
    }

    fn reserve(&self, id: &str) -> Result<Busy> {
        let mut busy = self.inner.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(id.to_owned()) {
            return Err(Error::Busy(id.into()));
        }
        Ok(Busy { inner: Arc::clone(&self.inner), id: id.into() })
    }

    /// Runs what waits for files and processes off the async threads.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let run_dir = self.inner.config.run_dir.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => Err(io_error("work on", &run_dir)(io::Error::other(error))),
        }
    }

    /// What the files say.
    async fn look(&self, id: &str) -> Result<Look> {
        let dirs = self.inner.checked_dirs(id)?;
        if self.inner.busy.lock().unwrap_or_else(PoisonError::into_inner).contains(id) {
            return Err(Error::Busy(id.into()));
        }
        let id = id.to_owned();
        self.blocking(move |inner| inner.look(&id, &dirs)).await
    }

    /// One question to the supervisor.
    async fn request(&self, id: &str, request: Request, limit: Duration) -> Result<Answer> {
        let dirs = self.inner.checked_dirs(id)?;
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            match self.look(id).await? {
                Look::Missing => return Err(Error::NotFound(id.into())),
                Look::Exited(exit) => {
                    return match (request, exit.error) {
                        (Request::Start, Some(reason)) => Err(Error::Failed { id: id.into(), reason }),
                        _ => Err(Error::NotRunning(id.into())),
                    };
                }
                Look::Alive => {}
            }
            match tokio::time::timeout_at(deadline, ask(&dirs, request)).await {
                Ok(Ok(answer)) => return Ok(answer),
                // It ended in between: what it left says how.
                Ok(Err(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await
                }
                _ => return Err(Error::Unresponsive(id.into())),
            }
        }
    }
}
