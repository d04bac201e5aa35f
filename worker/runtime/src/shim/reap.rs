//! The end of a container: its exit status, what it still printed, and the note that is left of it.
//!
//! Decides what the exit was from what the kernel says, with the count of out-of-memory kills kept apart from the
//! code. Called by the supervisor once process 1 is gone; by then every process of the container is (it was process 1
//! of their namespace).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use jiff::Timestamp;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::cgroup::Cgroups;
use crate::state::{Dirs, Exit, write_atomic};

/// Code and signal of the ended process.
pub(super) fn status(pidfd: BorrowedFd<'_>) -> (i32, Option<i32>, Option<String>) {
    match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => (code, None, None),
            (None, Some(signal)) => (128 + signal, Some(signal), None),
            (None, None) => (255, None, Some("the kernel gave no exit status".into())),
        },
        Ok(None) => (255, None, Some("the kernel gave no exit status".into())),
        Err(errno) => (255, None, Some(format!("the exit status could not be read: {errno}"))),
    }
}

/// Ends what is left of the container and writes down how it ended.
pub(super) fn finish(
    dirs: &Dirs,
    cgroups: &Cgroups,
    cgroup: &Path,
    pidfd: impl AsFd,
    started_at: Option<Timestamp>,
    exec_error: Option<String>,
) {
    let (code, signal, problem) = status(pidfd.as_fd());
    // An exec'd process that was still on its way in.
    let killed = cgroups.kill(cgroup);
    let exit = Exit {
        code,
        signal,
        oom_killed: cgroups.oom_kills(cgroup) > 0,
        started_at,
        finished_at: Timestamp::now(),
        error: exec_error.or(problem).or(killed.err().map(|error| error.to_string())),
    };
    let _ = cgroups.remove(cgroup);
    // A full disk must not turn an exit into a riddle: the run directory is in memory.
    if write_atomic(&dirs.exit(), &exit).is_err() {
        let _ = write_atomic(&dirs.run.join(crate::state::EXIT), &exit);
    }
    let _ = std::fs::remove_file(dirs.socket());
}
