//! Takes a lab down, however it was left: kills its machines, whose namespaces, links and mounts go with them, then
//! removes cgroups and files. Goes on after an error and reports all of them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::layout::Layout;
use super::machine::{self, Init};

/// How long the kernel may take to let go of what killed processes held.
const DEADLINE: Duration = Duration::from_secs(30);

/// Removes everything that belongs to the lab.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    let mut errors = Vec::new();
    for init in machines(layout) {
        if let Err(error) = init.kill() {
            errors.push(format!("process {}: {error}", init.pid));
        }
    }
    for root in cgroup_roots() {
        if let Err(error) = remove_cgroup(&root.join(layout.cgroup())) {
            errors.push(error.to_string());
        }
    }
    for dir in [layout.run_dir(), layout.state_dir()] {
        if let Err(error) = retry(|| remove_dir(dir)) {
            errors.push(format!("{}: {error}", dir.display()));
        }
        // The directory that holds all labs goes with the last of them.
        if let Some(parent) = dir.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        bail!(
            "lab {name} is not wholly down: {}; run it again: skep lab down --name {name}",
            errors.join("; "),
            name = layout.name()
        )
    }
}

/// The first processes of the lab's machines: those that are written down, and by their arguments those that an `up`
/// which was killed could not write down.
fn machines(layout: &Layout) -> Vec<Init> {
    let mut inits: Vec<Init> =
        subdirectories(layout.run_dir()).iter().filter_map(|machine| Init::read(&machine.join("init"))).collect();
    let of_lab = |args: &[&str]| match args {
        [_, machine::INIT, _, file, "first"] => Path::new(file).starts_with(layout.run_dir()),
        _ => false,
    };
    inits.extend(machine::find(of_lab));
    inits
}

/// What is left of a lab on this machine: processes, mounts, cgroups, files, a command that is at work on it.
/// Namespaces and links need no look of their own: they end with the processes that hold them.
pub fn leftovers(name: &str) -> Vec<String> {
    let Ok(layout) = Layout::new(name) else { return Vec::new() };
    let mut left = remains(&layout);
    let lock = layout.lock_file();
    if lock.exists() {
        left.push(format!("lock {}", lock.display()));
    }
    left
}

/// The same without the lock, for who has the turn.
pub(super) fn remains(layout: &Layout) -> Vec<String> {
    let mut left = Vec::new();
    let (run, state) = (layout.run_dir().display().to_string(), layout.state_dir().display().to_string());
    let named =
        |text: &str| [&run, &state].iter().any(|dir| text.contains(&format!("{dir}/")) || text.ends_with(dir.as_str()));
    for process in subdirectories(Path::new("/proc")) {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let pid = process.file_name().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        if pid.parse::<u32>().is_ok_and(|p| p != std::process::id()) && named(&command) {
            left.push(format!("process {pid}: {command}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|l| named(l)).map(|l| format!("mount {l}")));
    left.extend(
        cgroup_roots()
            .into_iter()
            .map(|r| r.join(layout.cgroup()))
            .filter(|d| d.exists())
            .map(|d| format!("cgroup {}", d.display())),
    );
    left.extend(
        [layout.run_dir(), layout.state_dir()].iter().filter(|d| d.exists()).map(|d| format!("files {}", d.display())),
    );
    left
}

fn remove_dir(dir: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The root of every controller (v1), or the one tree (v2).
fn cgroup_roots() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(subdirectories(Path::new("/sys/fs/cgroup")));
    roots
}

/// Removes a cgroup and all below it, once their processes have ended.
fn remove_cgroup(dir: &Path) -> std::io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for child in subdirectories(dir) {
        remove_cgroup(&child)?;
    }
    retry(|| match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
    .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", dir.display())))
}

fn retry(mut action: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        match action() {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            done => return done,
        }
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}
