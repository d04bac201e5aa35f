//! A runtime with directories and a cgroup parent of its own, and a busybox image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use skep_runtime::{Config, ContainerSpec, Exit, Runtime};

static NEXT: AtomicU32 = AtomicU32::new(0);
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_skep-shim-test");
/// Generous: the machine may be busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    pub(crate) runtime: Runtime,
    /// Looked at once the runtime is gone, which is why it stands behind it.
    _end: End,
    pub(crate) config: Config,
    pub(crate) layer: PathBuf,
    root: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Result<Self> {
        let name = format!("skep-rt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(&name);
        let config = Config {
            run_dir: Path::new("/dev/shm").join(&name),
            state_dir: root.join("state"),
            shim_exe: BINARY.into(),
            cgroup_parent: name.clone(),
        };
        let layer = root.join("layer");
        busybox(&layer)?;
        Ok(Fixture { runtime: Runtime::new(config.clone())?, _end: End(name), config, layer, root })
    }

    /// A wish to run these words.
    pub(crate) fn spec(&self, id: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: id.into(),
            layers: vec![self.layer.clone()],
            args: args.iter().map(ToString::to_string).collect(),
            resolv_conf: "nameserver 127.0.0.11\n".into(),
            ..ContainerSpec::default()
        }
    }

    /// A wish to run a shell script.
    pub(crate) fn shell(&self, id: &str, script: &str) -> ContainerSpec {
        self.spec(id, &["/bin/sh", "-c", script])
    }

    /// A wish to run the probe, with the host's libraries: it may be linked to them. A virtual machine has only those
    /// that its programs need.
    pub(crate) fn probe(&self, id: &str, program: &str) -> ContainerSpec {
        let mut spec = self.spec(id, &[program, "probe"]);
        let bind = |source: &str, target: &str| skep_runtime::Mount::Bind {
            source: source.into(),
            target: target.into(),
            read_only: true,
        };
        let libraries = [("/usr/lib", "/usr/lib"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")];
        let there = libraries.into_iter().filter(|(source, _)| Path::new(source).exists());
        spec.mounts =
            [(BINARY, "/probe")].into_iter().chain(there).map(|(source, target)| bind(source, target)).collect();
        spec
    }

    /// Runs a container to its end and removes it; its exit and its lines.
    pub(crate) async fn run(&self, spec: &ContainerSpec) -> Result<(Exit, Vec<String>)> {
        self.runtime.create(spec).await?;
        let started = self.runtime.start(&spec.id).await;
        let exit = tokio::time::timeout(PATIENCE, self.runtime.wait(&spec.id)).await.context("wait")??;
        let lines = self.lines(&spec.id).await?;
        self.runtime.remove(&spec.id).await?;
        started?;
        Ok((exit, lines))
    }

    pub(crate) async fn lines(&self, id: &str) -> Result<Vec<String>> {
        let mut reader = self.runtime.logs(id);
        let mut out = Vec::new();
        while let Some(line) = reader.next().await {
            out.push(String::from_utf8(line?.bytes)?);
        }
        Ok(out)
    }

    /// Waits until a container has printed this line.
    pub(crate) async fn printed(&self, id: &str, wanted: &str) -> Result<()> {
        let mut reader = self.runtime.logs(id).follow(true);
        let search = async {
            while let Some(line) = reader.next().await {
                if line?.bytes == wanted.as_bytes() {
                    return Ok(());
                }
            }
            bail!("the container ended without printing {wanted:?}")
        };
        tokio::time::timeout(PATIENCE, search).await.context("waiting for output")?
    }

    /// Every trace of this fixture's containers that the machine still has.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut out = Vec::new();
        let parent = &self.config.cgroup_parent;
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            out.extend(groups_of_containers(&hierarchy.path().join(parent)));
        }
        out.extend(groups_of_containers(&Path::new("/sys/fs/cgroup").join(parent)));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // To the end of the name: another's may begin like this one's.
        let ours = |line: &&str| [' ', '/'].iter().any(|end| line.contains(&format!("{parent}{end}")));
        out.extend(mounts.lines().filter(ours).map(|line| format!("mount {line}")));
        for directory in [&self.config.run_dir, &self.config.state_dir] {
            out.extend(
                fs::read_dir(directory)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter(|entry| entry.file_name() != SKELETON)
                    .map(|entry| format!("file {}", entry.path().display())),
            );
        }
        out.extend(written_below(&self.config.state_dir.join(SKELETON)));
        let own = format!("{}/", self.config.run_dir.display());
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            // The zygote stays for as long as its runtime.
            let ours = line.contains("shim\0") && line.contains(&own);
            if ours && !line.starts_with("skep\0shim\0zygote\0") {
                out.push(format!("process {}: {}", process.path().display(), line.replace('\0', " ")));
            }
        }
        out
    }
}

/// The runtime's own layer below every image, which no container may leave anything in.
const SKELETON: &str = ".skeleton";

/// Files that have a content.
fn written_below(directory: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(found) if found.is_dir() => out.extend(written_below(&entry.path())),
            Ok(found) if found.is_file() && found.len() == 0 => {}
            other => out.push(format!("in the skeleton {}: {other:?}", entry.path().display())),
        }
    }
    out
}

/// What a runtime itself has made goes with its last user: its zygote and the groups below this parent.
struct End(String);

impl Drop for End {
    fn drop(&mut self) {
        let left = || {
            let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
            let groups = roots.chain(["/sys/fs/cgroup".into()]).map(|root| root.join(&self.0));
            (zygotes(&self.0), groups.filter(|path| path.exists()).collect::<Vec<_>>())
        };
        let start = Instant::now();
        while !std::thread::panicking() && left() != (vec![], vec![]) {
            assert!(start.elapsed() < PATIENCE, "left behind by the runtime: {:?}", left());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What is in a cgroup parent besides the group that supervisors are born in.
fn groups_of_containers(parent: &Path) -> Vec<String> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "shims")
        .map(|entry| format!("cgroup {}", entry.path().display()))
        .collect()
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let runtime = self.runtime.clone();
        let clean = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            executor.block_on(async {
                for id in runtime.list().await.unwrap_or_default() {
                    let _ = runtime.remove(&id).await;
                }
            });
        });
        let _ = clean.join();
        let left = self.traces();
        for directory in [&self.config.run_dir, &self.root] {
            let _ = fs::remove_dir_all(directory);
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// Unpacks a small image: busybox, its applets, accounts.
fn busybox(layer: &Path) -> Result<()> {
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "home"] {
        fs::create_dir_all(layer.join(directory))?;
    }
    fs::copy("/usr/bin/busybox", layer.join("bin/busybox")).context("install the package busybox-static")?;
    for applet in [
        "sh", "ls", "cat", "true", "false", "sleep", "echo", "id", "env", "mount", "mknod", "dd", "ps", "kill",
        "hostname", "yes", "head", "readlink", "stat", "touch", "rm", "mkdir", "wc", "tail", "grep", "df", "trap",
        "ln", "chmod", "od", "test", "unshare",
    ] {
        symlink("busybox", layer.join("bin").join(applet))?;
    }
    fs::write(
        layer.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\napp:x:1001:1002::/home:/bin/sh\n",
    )?;
    fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1002:\nextra:x:29:app\n")?;
    Ok(())
}

/// Polls until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > PATIENCE {
            bail!("waited in vain: {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Number of the supervisor of a container.
pub(crate) fn shim_pid(config: &Config, id: &str) -> Result<i32> {
    pid_in(&config.run_dir.join(id).join("shim.json"))
}

/// Number of process 1 of a container.
pub(crate) fn init_pid(config: &Config, id: &str) -> Result<i32> {
    pid_in(&config.run_dir.join(id).join("init.json"))
}

fn pid_in(path: &Path) -> Result<i32> {
    let value: serde_json::Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    Ok(i32::try_from(value["pid"].as_i64().context("no pid")?)?)
}

/// The processes that supervisors below this cgroup parent are forked from.
pub(crate) fn zygotes(parent: &str) -> Vec<i32> {
    let line = format!("skep\0shim\0zygote\0/{parent}\0");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = processes.filter(|process| {
        fs::read_to_string(process.path().join("cmdline")).is_ok_and(|found| found.starts_with(&line))
    });
    ours.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(|pid| alive(*pid)).collect()
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Version 2 of control groups alone.
pub(crate) fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether this controller can limit containers here; says so when it can't.
pub(crate) fn limits(controller: &str) -> bool {
    let text = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let there =
        Path::new("/sys/fs/cgroup").join(controller).exists() || text.split_whitespace().any(|name| name == controller);
    if !there {
        println!("UNTESTED: limits, no {controller} controller here");
    }
    there
}
