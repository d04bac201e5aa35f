//! Control groups of version 1, 2 and both at once: finding them, reading them, and emptying them.
//!
//! Decides nothing about limits (libcontainer writes those); kills and removes only below the parent that the daemon
//! owns. Called by the supervisor and by the client's clean-up; blocking, so the client calls it off its async threads.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The child of the parent in which all supervisors live, apart from the daemon and from their containers.
pub(crate) const SHIMS: &str = "shims";

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where.
    pub(crate) mount: PathBuf,
    /// Version 2.
    pub(crate) unified: bool,
    /// Controllers and `name=`, for version 1.
    pub(crate) controllers: Vec<String>,
}

/// All hierarchies of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// Why cgroups could not be dealt with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the hierarchy.
    #[error("cgroup {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Processes that don't die.
    #[error("cgroup {0} still has processes after 10 s of killing; look for processes in state D")]
    Stuck(PathBuf),
}

/// Current use of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes, without the file cache that can be given back at once.
    pub memory_bytes: u64,
    /// Bytes; `None` without a limit.
    pub memory_limit: Option<u64>,
    /// Nanoseconds of processor time since it was made.
    pub cpu_ns: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Cgroups {
    /// Reads which hierarchies are mounted.
    pub(crate) fn detect() -> Result<Self, Error> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let text = fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
        Ok(Self::parse(&text))
    }

    /// From the text of mountinfo (proc_pid_mountinfo(5)).
    pub(crate) fn parse(mountinfo: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut right = right.split(' ');
            let kind = right.next().unwrap_or_default();
            let Some(mount) = left.split(' ').nth(4) else { continue };
            if !["cgroup", "cgroup2"].contains(&kind) || hierarchies.iter().any(|known| known.mount == Path::new(mount))
            {
                continue;
            }
            let controllers = right.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
            hierarchies.push(Hierarchy { mount: mount.into(), unified: kind == "cgroup2", controllers });
        }
        Cgroups { hierarchies }
    }

    /// Version 2 alone.
    pub(crate) fn is_unified(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.unified)
    }

    /// Whether the kernel counts and limits swap.
    pub(crate) fn counts_swap(&self) -> bool {
        match self.controller("memory") {
            Some(hierarchy) if hierarchy.unified => {
                // Not at the root: ask any child, of which the supervisors' group is one (see `join_shims`).
                fs::read_dir(&hierarchy.mount)
                    .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists()))
            }
            Some(hierarchy) => hierarchy.mount.join("memory.memsw.limit_in_bytes").exists(),
            None => false,
        }
    }

    /// Directories of the group `path` that exist, one a hierarchy.
    pub(crate) fn existing(&self, path: &Path) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| within(&hierarchy.mount, path)).filter(|path| path.is_dir()).collect()
    }

    /// The version 1 groups of `path` by the names under which programs look for them; none for version 2.
    pub(crate) fn views(&self, path: &Path) -> Vec<(String, PathBuf)> {
        const KNOWN: [&str; 12] = [
            "blkio",
            "cpu",
            "cpuacct",
            "cpuset",
            "devices",
            "freezer",
            "hugetlb",
            "memory",
            "net_cls",
            "net_prio",
            "perf_event",
            "pids",
        ];
        let mut out = Vec::new();
        for hierarchy in self.hierarchies.iter().filter(|hierarchy| !hierarchy.unified) {
            let names: Vec<&String> =
                hierarchy.controllers.iter().filter(|name| KNOWN.contains(&name.as_str())).collect();
            let joint = hierarchy.mount.file_name().map(|name| name.to_string_lossy().into_owned());
            let mut seen: Vec<String> = names.iter().map(ToString::to_string).collect();
            // Controllers that share a hierarchy are known by both their own names and the joint one.
            seen.extend(joint.filter(|joint| names.len() > 1 && !names.contains(&joint)));
            out.extend(seen.into_iter().map(|name| (name, within(&hierarchy.mount, path))));
        }
        out
    }

    /// Moves the calling process into the supervisors' group below `parent`, made when absent, in every hierarchy but
    /// cpuset (whose new groups accept nobody until they are given processors).
    pub(crate) fn join_shims(&self, parent: &Path) -> Result<(), Error> {
        if self.is_unified() {
            // Where nobody has done it yet: only then do groups say whether swap is counted. Version 2 without the
            // controller fails later, at the limit that needs it.
            for hierarchy in &self.hierarchies {
                let _ = fs::write(hierarchy.mount.join("cgroup.subtree_control"), "+memory");
            }
        }
        for hierarchy in &self.hierarchies {
            if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                continue;
            }
            let group = within(&hierarchy.mount, parent).join(SHIMS);
            let procs = group.join("cgroup.procs");
            // Another container's clean-up may remove the empty group between the two steps.
            let mut tries = 0;
            loop {
                let done = fs::create_dir_all(&group).and_then(|()| fs::write(&procs, "0"));
                match done {
                    Ok(()) => break,
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) && tries < 16 => {
                        tries += 1;
                    }
                    // Without a writable hierarchy (a container within a container) the rest still protects.
                    Err(error) if error.raw_os_error() == Some(libc::EROFS) => break,
                    Err(source) => return Err(Error::Io { path: procs, source }),
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process back to the top of every hierarchy, and removes the group that it was in, and its parent,
    /// unless others live there.
    pub(crate) fn leave_shims(&self, parent: &Path) {
        for hierarchy in &self.hierarchies {
            let _ = fs::write(hierarchy.mount.join("cgroup.procs"), "0");
        }
        self.remove_parent_if_empty(parent);
    }

    /// Moves the calling process into a group that exists.
    pub(crate) fn join(&self, path: &Path) -> Result<(), Error> {
        for group in self.existing(path) {
            let procs = group.join("cgroup.procs");
            fs::write(&procs, "0").map_err(|source| Error::Io { path: procs, source })?;
        }
        Ok(())
    }

    /// Whether the group is frozen: a process that enters it would stop on its way.
    pub(crate) fn frozen(&self, path: &Path) -> bool {
        let says = |group: &Path, file: &str, thawed: &str| {
            fs::read_to_string(group.join(file)).is_ok_and(|text| text.trim() != thawed)
        };
        self.existing(path)
            .iter()
            .any(|group| says(group, "freezer.state", "THAWED") || says(group, "cgroup.freeze", "0"))
    }

    /// Kills every process of the group and below, and waits until none is left.
    pub(crate) fn kill(&self, path: &Path) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let groups = self.existing(path);
        // A frozen process dies only when it is thawed, whichever hierarchy it is looked for in.
        for group in &groups {
            for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                if group.join(file).exists() {
                    let _ = fs::write(group.join(file), thawed);
                }
            }
        }
        for group in groups {
            while kill_once(&group) {
                if Instant::now() > deadline {
                    return Err(Error::Stuck(group));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Removes the group and everything below it in every hierarchy; fine when it isn't there.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(2);
        for group in self.existing(path) {
            loop {
                match remove_tree(&group) {
                    Ok(()) => break,
                    // A process that has just died is still counted for a moment.
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(source) => return Err(Error::Io { path: group, source }),
                }
            }
        }
        Ok(())
    }

    /// Names of the groups directly below `parent`, in any hierarchy, that were made longer than `age` ago.
    pub(crate) fn below(&self, parent: &Path, age: Duration) -> BTreeSet<String> {
        let old = |entry: &fs::DirEntry| {
            let made = entry.metadata().ok().filter(fs::Metadata::is_dir).and_then(|metadata| metadata.modified().ok());
            made.and_then(|made| made.elapsed().ok()).is_some_and(|elapsed| elapsed >= age)
        };
        let entries =
            self.existing(parent).into_iter().filter_map(|group| fs::read_dir(group).ok()).flatten().flatten();
        let names = entries.filter(old).filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != SHIMS).collect()
    }

    /// Removes the group wherever no process is in it.
    pub(crate) fn remove_if_empty(&self, path: &Path) {
        for group in self.existing(path) {
            let _ = remove_tree(&group);
        }
    }

    /// Removes the parent and the supervisors' group if nothing lives in them any more.
    pub(crate) fn remove_parent_if_empty(&self, parent: &Path) {
        for group in self.existing(parent) {
            let _ = fs::remove_dir(group.join(SHIMS));
            let _ = fs::remove_dir(&group);
        }
    }

    /// How many processes of the group the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self, path: &Path) -> u64 {
        let Some(hierarchy) = self.controller("memory") else { return 0 };
        let file = if hierarchy.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(within(&hierarchy.mount, path).join(file)).unwrap_or_default();
        keyed(&text, "oom_kill").unwrap_or(0)
    }

    /// What the group uses now; zero where a controller is missing.
    pub(crate) fn usage(&self, path: &Path) -> Usage {
        let mut usage = Usage::default();
        let read = |hierarchy: &Hierarchy, file: &str| {
            fs::read_to_string(within(&hierarchy.mount, path).join(file)).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().ok();
        if let Some(memory) = self.controller("memory") {
            let (current, limit, cache) = if memory.unified {
                ("memory.current", "memory.max", "inactive_file")
            } else {
                ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
            };
            let idle = keyed(&read(memory, "memory.stat"), cache).unwrap_or(0);
            usage.memory_bytes = number(read(memory, current)).unwrap_or(0).saturating_sub(idle);
            // Version 1 says "none" as a huge number.
            usage.memory_limit = number(read(memory, limit)).filter(|limit| *limit < 1 << 60);
        }
        match self.controller("cpuacct") {
            Some(cpu) if cpu.unified => {
                usage.cpu_ns = keyed(&read(cpu, "cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000);
            }
            Some(cpu) => usage.cpu_ns = number(read(cpu, "cpuacct.usage")).unwrap_or(0),
            None => {}
        }
        if let Some(pids) = self.controller("pids") {
            usage.pids = number(read(pids, "pids.current")).unwrap_or(0);
        }
        usage
    }

    /// The hierarchy of a controller: version 1's own, else version 2's when it stands alone.
    fn controller(&self, name: &str) -> Option<&Hierarchy> {
        let own = self
            .hierarchies
            .iter()
            .find(|hierarchy| hierarchy.controllers.iter().any(|known| known == name) && !hierarchy.unified);
        own.or_else(|| self.hierarchies.iter().find(|hierarchy| hierarchy.unified && self.is_unified()))
    }
}

/// `path` is absolute within the hierarchy.
fn within(mount: &Path, path: &Path) -> PathBuf {
    mount.join(path.strip_prefix("/").unwrap_or(path))
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// One round of killing; whether anybody was there.
fn kill_once(group: &Path) -> bool {
    let mut any = false;
    if let Ok(entries) = fs::read_dir(group) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            any |= kill_once(&entry.path());
        }
    }
    let procs = group.join("cgroup.procs");
    let listed = || fs::read_to_string(&procs).unwrap_or_default();
    for pid in listed().lines().filter_map(|line| line.parse::<i32>().ok()) {
        any = true;
        let Some(Ok(fd)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { continue };
        // With the handle in hand, look again: the number may have passed to somebody else in between.
        if listed().lines().any(|line| line.parse() == Ok(pid)) {
            let _ = pidfd_send_signal(&fd, Signal::KILL);
        }
    }
    any
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path())?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
    const UNIFIED: &str = "34 30 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn layouts() {
        let v1 = Cgroups::parse(V1);
        assert!(!v1.is_unified());
        assert_eq!(v1.hierarchies.len(), 3);
        assert_eq!(v1.controller("cpuacct").map(|h| h.mount.as_path()), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        let hybrid = Cgroups::parse(&format!("{V1}{HYBRID}"));
        assert!(!hybrid.is_unified());
        assert!(
            hybrid.controller("pids").is_none(),
            "an empty version 2 tree beside version 1 has no controllers for us"
        );
        let unified = Cgroups::parse(UNIFIED);
        assert!(unified.is_unified());
        assert!(unified.controller("memory").is_some_and(|h| h.unified));
    }

    #[test]
    fn views_by_every_name() {
        let views = Cgroups::parse(V1).views(Path::new("/skep/x"));
        let cpu = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/skep/x");
        assert_eq!(
            views,
            [
                ("cpu".to_owned(), cpu.clone()),
                ("cpuacct".to_owned(), cpu.clone()),
                ("cpu,cpuacct".to_owned(), cpu),
                ("memory".to_owned(), "/sys/fs/cgroup/memory/skep/x".into()),
            ]
        );
        assert!(Cgroups::parse(UNIFIED).views(Path::new("/skep/x")).is_empty());
    }

    #[test]
    fn counters() {
        assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(keyed("low 0\noom 1\noom_kill 2\noom_group_kill 9\n", "oom_kill"), Some(2));
    }
}
