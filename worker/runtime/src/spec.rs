//! What a container is to be: the caller's wish, and the check that it can be one.
//!
//! Decides which wishes are refused before anything is touched; never looks at the machine or the image (what depends
//! on those is decided by the supervisor). Called by the client before a container is created.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::caps;

/// The most layers that one overlay mount takes; its options have to fit one page.
pub const MAX_LAYERS: usize = 127;
/// The most injected files (secrets and configs) of one container.
pub const MAX_FILES: usize = 512;
/// The most bytes of all injected files together.
pub const MAX_FILES_BYTES: usize = 64 << 20;

/// A container to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// 1 to 128 of `[A-Za-z0-9_.-]`, the first alphanumeric; unique within the [`crate::Config::run_dir`].
    pub id: String,
    /// Directories of unpacked layers, overlay whiteouts and all: the base **first**, the topmost **last** (the order
    /// in which an image lists its layers).
    pub layers: Vec<PathBuf>,
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub args: Vec<String>,
    /// `NAME=value`. PATH, HOME, HOSTNAME and (with a terminal) TERM are added when absent; the last of a name wins.
    pub env: Vec<String>,
    /// Working directory, absolute; made when the image lacks it; empty means `/`.
    pub cwd: String,
    /// As an image's USER or `--user`: `name|uid[:group|gid]`, resolved in the image's own files; empty means root.
    pub user: String,
    /// Further groups, by name or number.
    pub groups: Vec<String>,
    /// Host name; empty means the first 12 characters of the id.
    pub hostname: String,
    /// Lines of /etc/hosts (address, names), after the ones for localhost.
    pub hosts: Vec<(String, Vec<String>)>,
    /// All of /etc/resolv.conf.
    pub resolv_conf: String,
    /// The network namespace to join; without one the container has an empty one of its own.
    pub netns: Option<PathBuf>,
    /// What to mount, besides the usual kernel file systems.
    pub mounts: Vec<Mount>,
    /// Files that exist in memory only, as long as the container does: secrets and configs.
    pub files: Vec<InjectedFile>,
    /// The root file system can't be written.
    pub read_only: bool,
    /// Standard streams are one terminal; everything it prints counts as stdout.
    pub tty: bool,
    /// A small init is process 1: it reaps orphans and forwards signals to the program.
    pub init: bool,
    /// What asks the program to end: a name with or without `SIG`, or a number; empty means SIGTERM.
    pub stop_signal: String,
    /// Limits.
    pub resources: Resources,
    /// Capabilities beyond the default ones, or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities taken away, or `ALL`; `cap_add` is stronger for those that it names.
    pub cap_drop: Vec<String>,
    /// Kernel parameters of the container's own namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Limits per process, for example `nofile`.
    pub ulimits: Vec<Ulimit>,
    /// -1000 (never) to 1000 (first).
    pub oom_score_adj: i32,
    /// Kept with the container and given back by [`crate::Runtime::inspect`]; never interpreted.
    pub labels: Vec<(String, String)>,
    /// How much of the output is kept.
    pub log: LogOptions,
    /// Which system calls are allowed.
    pub seccomp: Seccomp,
}

/// Something mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mount {
    /// A directory or file of the host; `source` must exist.
    Bind {
        /// On the host, absolute.
        source: PathBuf,
        /// In the container, absolute.
        target: PathBuf,
        /// Not writable, nor what is mounted below it.
        read_only: bool,
    },
    /// A new file system in memory.
    Tmpfs {
        /// In the container, absolute.
        target: PathBuf,
        /// Bytes at most; without one half of the machine's memory, as the kernel has it.
        size: Option<u64>,
        /// Mode of its root; 0o1777 by default.
        mode: Option<u32>,
        /// Not writable.
        read_only: bool,
    },
}

impl Mount {
    /// Where it appears in the container.
    pub fn target(&self) -> &Path {
        match self {
            Mount::Bind { target, .. } | Mount::Tmpfs { target, .. } => target,
        }
    }
}

/// A file that the container finds, and that never touches a disk.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectedFile {
    /// In the container, absolute.
    pub path: PathBuf,
    /// Content; travels outside the serialised form.
    #[serde(skip)]
    pub bytes: Vec<u8>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions, for example 0o444.
    pub mode: u32,
}

impl std::fmt::Debug for InjectedFile {
    /// Without the content: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InjectedFile").field("path", &self.path).field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// Limits of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory, in bytes; at least 6 MiB.
    pub memory_bytes: Option<u64>,
    /// Memory and swap together, in bytes; -1 without limit; by default twice the memory. Ignored where the kernel
    /// doesn't count swap.
    pub memory_swap: Option<i64>,
    /// Processor time, in billionths of one processor.
    pub nano_cpus: Option<u64>,
    /// Processes and threads; 0 or less without limit.
    pub pids: Option<i64>,
}

/// A limit per process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// For example `nofile`, with or without `RLIMIT_`, in any case.
    pub name: String,
    /// What a process starts with; `u64::MAX` without limit.
    pub soft: u64,
    /// What it can raise it to.
    pub hard: u64,
}

/// How much of a container's output is kept: `max_files` files of `max_size` bytes, the oldest given up first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Bytes of one file, at least 4 KiB.
    pub max_size: u64,
    /// Files, at least 1.
    pub max_files: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { max_size: 10 << 20, max_files: 3 }
    }
}

/// Which system calls a container may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// The known default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
}

/// Why a wish can't be a container.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not a usable id.
    #[error("container id {0:?}: use 1 to 128 of A-Z a-z 0-9 _ . - and begin with a letter or digit")]
    Id(String),
    /// A field that can't be so.
    #[error("{field} {value:?}: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it was.
        value: String,
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// A capability that doesn't exist.
    #[error(transparent)]
    Capability(#[from] caps::Error),
}

/// Whether `id` can name a container; ids become file names and cgroup names.
pub fn valid_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

impl ContainerSpec {
    /// Refuses what can't be a container whatever the image and the machine.
    pub fn validate(&self) -> Result<(), Error> {
        if !valid_id(&self.id) {
            return Err(Error::Id(self.id.clone()));
        }
        self.validate_process()?;
        self.validate_files()?;
        self.validate_limits()?;
        caps::resolve(&self.cap_add, &self.cap_drop)?;
        for (name, _) in &self.sysctls {
            if !namespaced_sysctl(name) {
                return Err(field(
                    "sysctl",
                    name,
                    "only net.*, fs.mqueue.* and kernel.msg*, sem and shm* belong to a container",
                ));
            }
        }
        Ok(())
    }

    /// The signal that asks the program to end.
    pub fn stop_signal(&self) -> i32 {
        parse_signal(&self.stop_signal).unwrap_or(libc::SIGTERM)
    }

    fn validate_process(&self) -> Result<(), Error> {
        match self.args.first() {
            Some(program) if !program.is_empty() => {}
            _ => return Err(field("args", "", "name a program; the image has neither entrypoint nor command")),
        }
        for text in self.args.iter().chain(&self.env).chain([&self.cwd, &self.user, &self.hostname]) {
            if text.contains('\0') {
                return Err(field("text", text, "a NUL character can't be passed to a program"));
            }
        }
        for pair in &self.env {
            if pair.is_empty() || pair.starts_with('=') {
                return Err(field("env", pair, "write NAME=value"));
            }
        }
        if !self.stop_signal.is_empty() && parse_signal(&self.stop_signal).is_none() {
            return Err(field(
                "stop signal",
                &self.stop_signal,
                "use a name such as SIGTERM, or a number from 1 to 64",
            ));
        }
        if self.hostname.len() > 64 || self.hostname.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
            return Err(field("hostname", &self.hostname, "at most 64 characters without spaces"));
        }
        let broken = |text: &String| text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control());
        for (ip, names) in &self.hosts {
            if broken(ip) || names.is_empty() || names.iter().any(broken) {
                return Err(field("hosts", ip, "an address and at least one name, without spaces"));
            }
        }
        if !self.cwd.is_empty() {
            let cwd = normalize(Path::new(&self.cwd))
                .ok_or_else(|| field("working directory", &self.cwd, "must be absolute"))?;
            if cwd.starts_with("/proc") || cwd.starts_with("/sys") {
                return Err(field("working directory", &self.cwd, "can't be in /proc or /sys"));
            }
        }
        Ok(())
    }

    fn validate_files(&self) -> Result<(), Error> {
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return Err(field("layers", &self.layers.len().to_string(), "from 1 to 127 are possible"));
        }
        for layer in &self.layers {
            if !layer.is_absolute() {
                return Err(field("layer", &layer.to_string_lossy(), "must be an absolute path"));
            }
        }
        for path in self.mounts.iter().map(Mount::target).chain(self.files.iter().map(|file| file.path.as_path())) {
            let shown = path.to_string_lossy();
            let Some(target) = normalize(path) else {
                return Err(field("mount target", &shown, "must be absolute"));
            };
            if ["/", "/dev", "/sys"].iter().any(|taken| target == Path::new(taken)) || target.starts_with("/proc") {
                return Err(field("mount target", &shown, "is the runtime's own; choose another place"));
            }
            if path.to_str().is_none_or(|text| text.contains('\0')) {
                return Err(field("mount target", &shown, "must be UTF-8"));
            }
        }
        for mount in &self.mounts {
            if let Mount::Bind { source, .. } = mount
                && (!source.is_absolute() || source.to_str().is_none())
            {
                return Err(field("mount source", &source.to_string_lossy(), "must be absolute and UTF-8"));
            }
        }
        if self.files.len() > MAX_FILES
            || self.files.iter().map(|file| file.bytes.len()).sum::<usize>() > MAX_FILES_BYTES
        {
            return Err(field(
                "files",
                &self.files.len().to_string(),
                "at most 512 secrets and configs, 64 MiB together",
            ));
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<(), Error> {
        if let Some(bytes) = self.resources.memory_bytes
            && !(6 << 20..i64::MAX as u64 / 2).contains(&bytes)
        {
            return Err(field("memory", &bytes.to_string(), "at least 6 MiB (6291456)"));
        }
        if let (Some(swap), memory) = (self.resources.memory_swap, self.resources.memory_bytes)
            && swap != -1
            && memory.is_none_or(|memory| i64::try_from(memory).is_ok_and(|memory| swap < memory))
        {
            return Err(field("memory and swap", &swap.to_string(), "needs a memory limit that isn't larger, or -1"));
        }
        if let Some(nano) = self.resources.nano_cpus
            && !(10_000_000..=100_000_000_000_000).contains(&nano)
        {
            return Err(field("cpus", &nano.to_string(), "at least 0.01 of a processor (10000000)"));
        }
        if !(-1000..=1000).contains(&self.oom_score_adj) {
            return Err(field("oom score", &self.oom_score_adj.to_string(), "from -1000 to 1000"));
        }
        if self.log.max_size < 4096 || !(1..=10_000).contains(&self.log.max_files) {
            return Err(field(
                "log",
                &format!("{}x{}", self.log.max_files, self.log.max_size),
                "at least one file of 4096 bytes",
            ));
        }
        for limit in &self.ulimits {
            if rlimit_name(&limit.name).is_none() || limit.soft > limit.hard {
                return Err(field("ulimit", &limit.name, "unknown, or its soft limit is above the hard one"));
            }
        }
        Ok(())
    }
}

fn field(field: &'static str, value: &str, reason: &'static str) -> Error {
    Error::Field { field, value: value.chars().take(256).collect(), reason }
}

/// An absolute path without `.` and `..`, decided from its text alone; `None` when it isn't absolute.
pub(crate) fn normalize(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    Some(out)
}

/// Whether a kernel parameter belongs to one of the container's own namespaces.
fn namespaced_sysctl(name: &str) -> bool {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) && !name.contains("..");
    plain && (IPC.contains(&name) || name.starts_with("fs.mqueue.") || name.starts_with("net."))
}

/// The OCI name of a limit, from the one that users write.
pub(crate) fn rlimit_name(name: &str) -> Option<String> {
    const KNOWN: [&str; 16] = [
        "AS",
        "CORE",
        "CPU",
        "DATA",
        "FSIZE",
        "LOCKS",
        "MEMLOCK",
        "MSGQUEUE",
        "NICE",
        "NOFILE",
        "NPROC",
        "RSS",
        "RTPRIO",
        "RTTIME",
        "SIGPENDING",
        "STACK",
    ];
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
    KNOWN.contains(&short).then(|| format!("RLIMIT_{short}"))
}

/// A signal's number from its name (with or without `SIG`, any case, `RTMIN+n` too) or number.
pub fn parse_signal(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 32] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("IOT", libc::SIGIOT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", 16),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
    // The C library keeps 32 and 33 for itself, so that its RTMIN is 34.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let in_range = |n: i32| (1..=RTMAX).contains(&n).then_some(n);
    if let Ok(n) = text.parse::<i32>() {
        return in_range(n);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, n)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*n);
    }
    let (base, offset) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => (RTMIN, rest),
        (_, Some(rest)) => (RTMAX, rest),
        _ => return None,
    };
    let offset = if offset.is_empty() { 0 } else { offset.parse::<i32>().ok()? };
    in_range(base.checked_add(offset)?).filter(|n| *n >= RTMIN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn good() -> ContainerSpec {
        ContainerSpec {
            id: "abc".into(),
            layers: vec!["/layers/1".into()],
            args: vec!["true".into()],
            ..ContainerSpec::default()
        }
    }

    #[test]
    fn the_smallest_wish_is_fine() {
        assert_eq!(good().validate(), Ok(()));
    }

    #[test]
    fn bad_wishes_are_refused() {
        type Spoil = fn(&mut ContainerSpec);
        let bind = |target: &str| Mount::Bind { source: "/a".into(), target: target.into(), read_only: false };
        let table: Vec<(&str, Spoil)> = vec![
            ("empty id", |s| s.id.clear()),
            ("slash in id", |s| s.id = "a/b".into()),
            ("dots", |s| s.id = "..".into()),
            ("no program", |s| s.args.clear()),
            ("empty program", |s| s.args = vec![String::new()]),
            ("nul", |s| s.args.push("a\0b".into())),
            ("nameless env", |s| s.env.push("=x".into())),
            ("relative cwd", |s| s.cwd = "work".into()),
            ("cwd by descriptor", |s| s.cwd = "/proc/self/fd/7".into()),
            ("cwd by detour", |s| s.cwd = "/a/../proc/self/fd/7".into()),
            ("no layer", |s| s.layers.clear()),
            ("relative layer", |s| s.layers.push("x".into())),
            ("capability", |s| s.cap_add.push("FLY".into())),
            ("host sysctl", |s| s.sysctls.push(("kernel.core_pattern".into(), "|x".into()))),
            ("sysctl escape", |s| s.sysctls.push(("net./../kernel/x".into(), "1".into()))),
            ("tiny memory", |s| s.resources.memory_bytes = Some(4096)),
            ("swap without memory", |s| s.resources.memory_swap = Some(1 << 30)),
            ("no cpu", |s| s.resources.nano_cpus = Some(0)),
            ("oom score", |s| s.oom_score_adj = 1001),
            ("log", |s| s.log.max_files = 0),
            ("ulimit", |s| s.ulimits.push(Ulimit { name: "speed".into(), soft: 1, hard: 1 })),
            ("ulimit order", |s| s.ulimits.push(Ulimit { name: "nofile".into(), soft: 2, hard: 1 })),
            ("signal", |s| s.stop_signal = "SIGNOPE".into()),
            ("hosts line", |s| s.hosts.push(("1.2.3.4".into(), vec!["a\n6.6.6.6 b".into()]))),
        ];
        for (what, spoil) in table {
            let mut spec = good();
            spoil(&mut spec);
            assert!(spec.validate().is_err(), "{what} was accepted");
        }
        for target in ["/", "/proc", "/proc/sys", "/dev", "/sys", "x/y", "/a/.."] {
            let mut spec = good();
            spec.mounts.push(bind(target));
            assert!(spec.validate().is_err(), "{target} was accepted");
        }
        let mut spec = good();
        spec.mounts.push(bind("/dev/shm/x"));
        assert_eq!(spec.validate(), Ok(()));
    }

    #[test]
    fn signals_by_every_name() {
        for (text, n) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX", Some(64)),
            ("RTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("SIG", None),
            ("RTMIN-1", None),
            ("RTMIN+99999999999", None),
        ] {
            assert_eq!(parse_signal(text), n, "{text}");
        }
    }
}
