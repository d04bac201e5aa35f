//! The daemon's side of exec: what a further program in a container is to be, and the running of it.
//!
//! Decides what it takes over from its container. The entering is done by a helper process (see `shim::exec`), so that
//! a container that hangs, hangs nobody else. Called by the client.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::shim::exec::ExecOrder;
use crate::spec::ContainerSpec;

/// The longest that a helper may take to accept its order.
const HAND_OVER: Duration = Duration::from_secs(10);

/// A further program for a running container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to the container's environment; wins over it.
    pub env: Vec<String>,
    /// Working directory; the container's own by default. Must exist.
    pub cwd: Option<String>,
    /// As [`ContainerSpec::user`]; the container's own by default.
    pub user: Option<String>,
}

impl ExecSpec {
    pub(crate) fn apply(&self, spec: &mut ContainerSpec) {
        spec.args.clone_from(&self.args);
        spec.env.extend(self.env.iter().cloned());
        if let Some(cwd) = &self.cwd {
            spec.cwd.clone_from(cwd);
        }
        if let Some(user) = &self.user {
            spec.user.clone_from(user);
            spec.groups.clear();
        }
        // What is about the container as a whole is done already.
        spec.mounts.clear();
        spec.files.clear();
    }
}

/// A program running in a container. Dropping it kills the program.
#[derive(Debug)]
pub struct Exec {
    /// What is written here the program reads; drop it to end its input.
    pub stdin: Option<ChildStdin>,
    /// What the program prints.
    pub stdout: Option<ChildStdout>,
    /// What it complains; also why it could not be run.
    pub stderr: Option<ChildStderr>,
    helper: Child,
}

impl Exec {
    pub(crate) async fn start(exe: &OwnedFd, order: &ExecOrder) -> io::Result<Self> {
        let order = order.to_bytes()?;
        let mut helper = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
            .arg0("skep")
            .args(["shim", "exec"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = helper.stdin.take();
        if let Some(stdin) = &mut stdin {
            match tokio::time::timeout(HAND_OVER, stdin.write_all(&order)).await {
                Ok(Ok(())) => {}
                // It died at once: its exit code and complaint say why.
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(Exec { stdin, stdout: helper.stdout.take(), stderr: helper.stderr.take(), helper })
    }

    /// Waits for the end; the exit code, 128 + signal, 126 or 127 when the program can't be run, or 125 when the
    /// container could not be entered. Can be dropped and called again.
    pub async fn wait(&mut self) -> io::Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.helper.wait().await?;
        Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255))
    }
}
