//! What is written down about a container, and how a process is told apart from a later one with the same number.
//!
//! Decides the files' forms and names; they are written atomically and read by whichever side comes later: the client
//! reads what a supervisor left, after any crash of either. Two directories belong to a container: the *run* directory
//! (in memory: socket, process ids) and the *state* directory (on disk: record, writable layer, logs, exit).

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::spec::ContainerSpec;

/// The most bytes of a file of ours that are read back.
const MAX_FILE: u64 = 16 << 20;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it; 255 when it is not known (see `error`).
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The kernel killed at least one of its processes for want of memory (not necessarily the main one).
    pub oom_killed: bool,
    /// When its program was started; `None` when it never was.
    #[serde(with = "time_option")]
    pub started_at: Option<Timestamp>,
    /// When it ended, or when it was found to have ended.
    #[serde(with = "time")]
    pub finished_at: Timestamp,
    /// What went wrong, if the program didn't simply end.
    pub error: Option<String>,
}

/// What is known of a container for as long as it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// When it was made.
    #[serde(with = "time")]
    pub created_at: Timestamp,
    /// How often it was made anew after it had ended.
    #[serde(default)]
    pub restarts: u64,
    /// The caller's labels.
    pub labels: Vec<(String, String)>,
    /// What asks its program to end.
    pub stop_signal: i32,
    /// Its group within the cgroup hierarchies.
    pub cgroup: PathBuf,
    /// The wish that it was made from, without the content of injected files.
    pub spec: ContainerSpec,
}

/// A process, beyond doubt: numbers are reused, the pair with the start time is not (within one boot).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Number, as the host sees it.
    pub(crate) pid: i32,
    /// Field 22 of its stat file, in clock ticks since boot.
    pub(crate) start_time: u64,
    /// The boot in which that was.
    pub(crate) boot: String,
}

impl ProcessId {
    /// Of a running process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        Ok(ProcessId { pid, start_time: start_time(pid)?, boot: boot_id() })
    }

    /// Whether this very process still exists and is more than a zombie.
    pub(crate) fn alive(&self) -> bool {
        self.boot == boot_id() && start_time(self.pid).is_ok_and(|time| time == self.start_time)
    }
}

/// The start time of a process that isn't a zombie.
fn start_time(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such process, or a zombie"))
}

/// The name (second field) may contain spaces and parentheses, so count from its end.
fn parse_stat(text: &str) -> Option<u64> {
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The directories of one container and the names in them.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    /// In memory.
    pub(crate) run: PathBuf,
    /// On disk.
    pub(crate) state: PathBuf,
}

impl Dirs {
    /// The supervisor's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join(SOCKET)
    }
    /// The supervisor's [`ProcessId`].
    pub(crate) fn shim_pid(&self) -> PathBuf {
        self.run.join("shim.json")
    }
    /// The [`ProcessId`] of the container's process 1.
    pub(crate) fn init_pid(&self) -> PathBuf {
        self.run.join("init.json")
    }
    /// The [`Record`].
    pub(crate) fn record(&self) -> PathBuf {
        self.state.join("container.json")
    }
    /// The [`Exit`].
    pub(crate) fn exit(&self) -> PathBuf {
        self.state.join(EXIT)
    }
    /// An empty file: it was asked to stop.
    pub(crate) fn stopped(&self) -> PathBuf {
        self.state.join("stopped")
    }
    /// The log files.
    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("log")
    }
}

/// Name of the supervisor's socket.
pub(crate) const SOCKET: &str = "shim.sock";
/// Name of the file that says how a container ended.
pub(crate) const EXIT: &str = "exit.json";

/// Writes all or nothing, whatever happens in between; the last writer wins.
pub(crate) fn write_atomic<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    drop(file);
    fs::rename(&temporary, path)
}

/// Reads what [`write_atomic`] wrote; `None` when there is nothing.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes)?,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// A time as RFC 3339 text.
pub(crate) mod time {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(time)
    }
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Timestamp, D::Error> {
        String::deserialize(input)?.parse().map_err(D::Error::custom)
    }
}

/// A time as RFC 3339 text, or null.
pub(crate) mod time_option {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(time: &Option<Timestamp>, out: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => out.collect_str(time),
            None => out.serialize_none(),
        }
    }
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Timestamp>, D::Error> {
        Option::<String>::deserialize(input)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_name_can_not_fool_the_parser() {
        let line = "7 (a) Z 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(line), Some(4242));
        assert_eq!(parse_stat(&line.replace(") S", ") Z")), None);
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn this_process_is_alive_and_no_other_is_it() {
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(me.alive());
        assert!(!ProcessId { start_time: me.start_time + 1, ..me.clone() }.alive());
        assert!(!ProcessId { boot: "other".into(), ..me }.alive());
    }

    #[test]
    fn files_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read::<Exit>(&path).unwrap(), None);
        let exit = Exit {
            code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at: None,
            finished_at: Timestamp::now(),
            error: None,
        };
        write_atomic(&path, &exit).unwrap();
        assert_eq!(read::<Exit>(&path).unwrap(), Some(exit));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
