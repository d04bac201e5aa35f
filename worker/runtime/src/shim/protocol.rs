//! What the client and a supervisor say to each other.
//!
//! Three channels. The *order*, handed over once at birth in a sealed memory file: who, where, and the whole wish with
//! the secrets (so that they touch neither a disk nor a command line). The *answer* to it: one line of JSON on the
//! supervisor's standard output. And the *socket*: one line of JSON each way per request, as long as it lives.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use jiff::Timestamp;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use super::rights::Rights;
use crate::spec::{ContainerSpec, MAX_FILES_BYTES};

/// The longest line on the socket, in bytes.
pub(crate) const MAX_LINE: usize = 4096;
/// The largest order.
const MAX_ORDER: u64 = MAX_FILES_BYTES as u64 + (16 << 20);

/// What a supervisor is born to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// In-memory directory of the container.
    pub(crate) run: PathBuf,
    /// On-disk directory of the container.
    pub(crate) state: PathBuf,
    /// Absolute path of the daemon's group within the cgroup hierarchies.
    pub(crate) cgroup_parent: PathBuf,
    /// The wish.
    pub(crate) spec: ContainerSpec,
    /// What its program may do.
    pub(crate) rights: Rights,
    /// Lengths of the files' contents, which follow the JSON.
    files: Vec<u64>,
}

impl Order {
    /// A new order.
    pub(crate) fn new(
        run: PathBuf,
        state: PathBuf,
        cgroup_parent: PathBuf,
        spec: ContainerSpec,
        rights: Rights,
    ) -> Self {
        let files = spec.files.iter().map(|file| file.bytes.len() as u64).collect();
        Order { run, state, cgroup_parent, spec, rights, files }
    }

    /// The container's own group within the cgroup hierarchies: the whole id, since all in it will be killed.
    pub(crate) fn cgroup(&self) -> PathBuf {
        self.cgroup_parent.join(&self.spec.id)
    }

    /// As a sealed memory file, read from its start.
    pub(crate) fn to_memfd(&self) -> io::Result<OwnedFd> {
        let fd = memfd_create("skep-order", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let json = serde_json::to_vec(self)?;
        let mut file = File::from(fd);
        file.write_all(&(json.len() as u64).to_le_bytes())?;
        file.write_all(&json)?;
        for injected in &self.spec.files {
            file.write_all(&injected.bytes)?;
        }
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
        rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Start(0))?;
        Ok(file.into())
    }

    /// Reads what [`Order::to_memfd`] wrote.
    pub(crate) fn read(input: impl Read) -> io::Result<Self> {
        let mut input = input.take(MAX_ORDER);
        let mut len = [0u8; 8];
        input.read_exact(&mut len)?;
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "the order to the supervisor is malformed");
        let len = u64::from_le_bytes(len);
        if len > MAX_ORDER {
            return Err(broken());
        }
        let mut json = vec![0; usize::try_from(len).map_err(|_| broken())?];
        input.read_exact(&mut json)?;
        let mut order: Order = serde_json::from_slice(&json)?;
        if order.files.len() != order.spec.files.len() || order.files.iter().sum::<u64>() > MAX_FILES_BYTES as u64 {
            return Err(broken());
        }
        for (file, len) in order.spec.files.iter_mut().zip(&order.files) {
            file.bytes = vec![0; usize::try_from(*len).map_err(|_| broken())?];
            input.read_exact(&mut file.bytes)?;
        }
        Ok(order)
    }
}

/// A request on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Start the program; answered when it runs or can't.
    Start,
    /// Send a signal to process 1.
    Signal(i32),
    /// How is it?
    State,
    /// Answered by the end of the connection, once the exit is on disk.
    Wait,
}

/// An answer, on the socket or to the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Made, not started.
    Created,
    /// Its program runs.
    Running {
        /// Process 1 of the container, as the host numbers it.
        pid: i32,
        /// Since when; a supervisor of an older version doesn't say.
        #[serde(default, with = "crate::state::time_option")]
        started_at: Option<Timestamp>,
    },
    /// Done.
    Done,
    /// It could not be done.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One line.
pub(crate) fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = serde_json::to_vec(value).unwrap_or_default();
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::spec::InjectedFile;

    #[test]
    fn an_order_arrives_with_its_secrets() {
        let spec = ContainerSpec {
            id: "a".into(),
            files: vec![
                InjectedFile { path: "/s".into(), bytes: vec![0, 255, b'\n'], uid: 1, gid: 2, mode: 0o400 },
                InjectedFile { path: "/e".into(), bytes: vec![], uid: 0, gid: 0, mode: 0o444 },
            ],
            ..Default::default()
        };
        let order = Order::new(
            "/r".into(),
            "/s".into(),
            "/skep".into(),
            spec,
            Rights { caps: vec![], filter: Some(vec![1, u64::MAX]) },
        );
        let file = File::from(order.to_memfd().unwrap());
        assert_eq!(Order::read(file).unwrap(), order);
    }

    #[test]
    fn a_supervisor_of_an_older_version_is_understood() {
        let answer = |text: &str| serde_json::from_str::<Answer>(text).unwrap();
        assert_eq!(answer(r#"{"running":{"pid":7}}"#), Answer::Running { pid: 7, started_at: None });
        let now = Answer::Running { pid: 7, started_at: Some(Timestamp::now()) };
        assert_eq!(answer(&String::from_utf8(line(&now)).unwrap()), now);
    }

    #[test]
    fn a_malformed_order_is_an_error() {
        for bytes in [&b""[..], &[0; 8], &[255; 64], b"\x02\0\0\0\0\0\0\0{}"] {
            assert!(Order::read(bytes).is_err());
        }
    }
}
