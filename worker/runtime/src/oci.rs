//! From a wish to the OCI runtime spec that libcontainer carries out.
//!
//! Decides namespaces, mounts, masked paths and limits; pure: what depends on the image or the machine
//! comes in as [`Facts`]. Called by the supervisor only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::spec::{ContainerSpec, Mount, normalize, rlimit_name};

/// What the supervisor found out before the spec can be written.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Where the overlay is mounted.
    pub(crate) rootfs: PathBuf,
    /// Absolute path within the cgroup hierarchies.
    pub(crate) cgroup: PathBuf,
    /// Home directory of whom the program runs as.
    pub(crate) home: String,
    /// Prepared files on a private memory file system, in the order in which they are to be mounted.
    pub(crate) files: Vec<PreparedFile>,
    /// The kernel limits swap.
    pub(crate) swap_counted: bool,
    /// Where views of the container's groups in the version 1 hierarchies lie, to be shown as /sys/fs/cgroup. `None` for
    /// version 2, whose one hierarchy the library mounts.
    pub(crate) cgroup_view: Option<PathBuf>,
    /// `netns` is not the host's, so its parameters are the container's own.
    pub(crate) own_network: bool,
    /// Counters of each processor's throttling, which betray what the neighbours compute.
    pub(crate) throttle_counters: Vec<PathBuf>,
}

/// A file to be bind-mounted into the container.
#[derive(Debug, Clone)]
pub(crate) struct PreparedFile {
    /// Where it lies.
    pub(crate) source: PathBuf,
    /// Where the container sees it.
    pub(crate) target: PathBuf,
    /// It can't be written.
    pub(crate) read_only: bool,
}

/// Paths that hold the host's secrets or side channels; they look empty.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Paths by which the host could be changed.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Where a container finds its control groups.
const CGROUP: &str = "/sys/fs/cgroup";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Length of a scheduling period, in microseconds; the quota is a share of it.
const CPU_PERIOD: u64 = 100_000;

/// The spec, ready to be written as `config.json`.
pub(crate) fn build(spec: &ContainerSpec, facts: &Facts) -> Value {
    let mut read_only = READ_ONLY.to_vec();
    if facts.cgroup_view.is_some() {
        read_only.push(CGROUP);
    }
    let masked: Vec<&Path> =
        MASKED.iter().map(Path::new).chain(facts.throttle_counters.iter().map(PathBuf::as_path)).collect();
    let linux = json!({
        "namespaces": namespaces(spec),
        "cgroupsPath": facts.cgroup,
        "resources": resources(spec, facts),
        "maskedPaths": masked,
        "readonlyPaths": read_only,
        "sysctl": sysctls(spec, facts),
        "rootfsPropagation": "slave",
    });
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": facts.rootfs, "readonly": spec.read_only},
        "hostname": hostname(spec),
        "process": process(spec, facts),
        "mounts": mounts(spec, facts),
        "linux": linux,
    })
}

/// The host name that the container gets.
pub(crate) fn hostname(spec: &ContainerSpec) -> String {
    if spec.hostname.is_empty() { spec.id.chars().take(12).collect() } else { spec.hostname.clone() }
}

/// /etc/hosts.
pub(crate) fn hosts(spec: &ContainerSpec) -> String {
    let mut out = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for (ip, names) in &spec.hosts {
        out.push_str(ip);
        out.push('\t');
        out.push_str(&names.join(" "));
        out.push('\n');
    }
    out
}

/// The environment: the wish's, in its order with the last of a name winning, then what every program expects.
pub(crate) fn environment(spec: &ContainerSpec, home: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(spec.env.len() + 4);
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    for pair in spec.env.iter().filter(|pair| pair.contains('=')) {
        let own = name(pair);
        match out.iter_mut().find(|known| name(known) == own) {
            Some(known) => known.clone_from(pair),
            None => out.push(pair.clone()),
        }
    }
    let mut defaults = vec![
        ("PATH", DEFAULT_PATH.to_owned()),
        ("HOSTNAME", hostname(spec)),
        // Always set: libcontainer would else look it up by the C library, which reads the image's name service files.
        ("HOME", home.to_owned()),
    ];
    if spec.tty {
        defaults.push(("TERM", "xterm".to_owned()));
    }
    for (key, value) in defaults {
        match out.iter_mut().find(|known| name(known) == key) {
            // An empty HOME counts as absent for libcontainer.
            Some(known) if key == "HOME" && known.len() == "HOME=".len() => *known = format!("{key}={value}"),
            Some(_) => {}
            None => out.push(format!("{key}={value}")),
        }
    }
    out
}

fn process(spec: &ContainerSpec, facts: &Facts) -> Value {
    let cwd = normalize(Path::new(&spec.cwd)).unwrap_or_else(|| PathBuf::from("/"));
    let rlimits: Vec<Value> = spec
        .ulimits
        .iter()
        .filter_map(|limit| Some(json!({"type": rlimit_name(&limit.name)?, "soft": limit.soft, "hard": limit.hard})))
        .collect();
    // The account, the capabilities and the seccomp filter are not here: process 1 takes them on by itself, right before
    // the program (see `shim::rights`), exactly as an exec'd process does. `noNewPrivileges` is left out too: it would
    // break setuid programs such as ping and sudo.
    json!({
        "terminal": spec.tty,
        "user": {"uid": 0, "gid": 0, "umask": 0o022},
        "args": spec.args,
        "env": environment(spec, &facts.home),
        "cwd": cwd,
        "rlimits": rlimits,
        // Always set, since a container would else inherit the supervisor's.
        "oomScoreAdj": spec.oom_score_adj,
    })
}

fn namespaces(spec: &ContainerSpec) -> Value {
    let mut list: Vec<Value> =
        ["pid", "ipc", "uts", "mount", "cgroup"].iter().map(|kind| json!({"type": kind})).collect();
    match &spec.netns {
        Some(path) => list.push(json!({"type": "network", "path": path})),
        None => list.push(json!({"type": "network"})),
    }
    Value::Array(list)
}

fn resources(spec: &ContainerSpec, facts: &Facts) -> Value {
    let wish = &spec.resources;
    let mut out = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(bytes) = wish.memory_bytes {
        out["memory"] = json!({"limit": bytes});
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        let total = wish.memory_swap.unwrap_or_else(|| limit.saturating_mul(2));
        match (facts.swap_counted, facts.cgroup_view.is_none()) {
            (false, _) => {}
            (true, false) => out["memory"]["swap"] = json!(total),
            // Version 2 counts swap alone. Not by the library, which takes "no swap at all" for "nothing to write".
            (true, true) => {
                let swap = if total < 0 { "max".to_owned() } else { total.saturating_sub(limit).max(0).to_string() };
                out["unified"] = json!({"memory.swap.max": swap});
            }
        }
    }
    if let Some(nano) = wish.nano_cpus {
        // At least a thousandth of a second: the kernel refuses less.
        let quota = (u128::from(nano) * u128::from(CPU_PERIOD) / 1_000_000_000).max(1000);
        out["cpu"] = json!({"period": CPU_PERIOD, "quota": u64::try_from(quota).unwrap_or(u64::MAX)});
    }
    if let Some(pids) = wish.pids.filter(|pids| *pids > 0) {
        out["pids"] = json!({"limit": pids});
    }
    out
}

fn sysctls(spec: &ContainerSpec, facts: &Facts) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    if facts.own_network {
        // Its ports are its own, so nobody needs to be root for port 80, nor a capability for ping.
        out.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        out.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    out.extend(spec.sysctls.iter().cloned());
    out
}

fn mounts(spec: &ContainerSpec, facts: &Facts) -> Vec<Value> {
    let mut list: Vec<(PathBuf, Value)> = Vec::new();
    let kernel = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"][..]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    for (target, kind, source, options) in kernel {
        list.push((target.into(), json!({"destination": target, "type": kind, "source": source, "options": options})));
    }
    list.push((CGROUP.into(), cgroup_mount(facts)));
    for file in &facts.files {
        let mut options = vec!["bind", "nosuid", "nodev", "noexec"];
        options.extend(file.read_only.then_some("ro"));
        list.push((
            file.target.clone(),
            json!({"destination": file.target, "type": "bind", "source": file.source, "options": options}),
        ));
    }
    for mount in &spec.mounts {
        let target = normalize(mount.target()).unwrap_or_else(|| mount.target().to_owned());
        let value = match mount {
            Mount::Bind { source, read_only, .. } => {
                let mut options = vec!["rbind"];
                // Recursive, so that a writable file system below the source can't be written through it.
                options.extend(read_only.then_some("rro"));
                // Without version 1's filter, what is no device here can't be used as one.
                options.extend(facts.cgroup_view.is_none().then_some("rnodev"));
                json!({"destination": target, "type": "bind", "source": source, "options": options})
            }
            Mount::Tmpfs { size, mode, read_only, .. } => {
                let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned()];
                options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
                options.extend(size.map(|size| format!("size={size}")));
                options.extend(read_only.then(|| "ro".to_owned()));
                json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
            }
        };
        list.push((target, value));
    }
    order(list)
}

/// Read-only views of the container's own groups.
///
/// For version 1 not the library's `cgroup` mount: it mounts every hierarchy writable, whatever the options say, so that
/// root in a container could lift its own limits.
fn cgroup_mount(facts: &Facts) -> Value {
    match &facts.cgroup_view {
        Some(view) => json!({
            "destination": CGROUP, "type": "bind", "source": view,
            "options": ["rbind", "nosuid", "noexec", "nodev", "rro"],
        }),
        None => json!({
            "destination": CGROUP, "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        }),
    }
}

/// A later mount replaces an earlier one at the same place, and a parent comes before what lies below it.
///
/// The kernel's file systems and what is wished below them come last. A link in the image, or in a volume that others
/// write to meanwhile, may lead a mount to /proc or /dev: it is then covered, and nothing is made or written in it.
fn order(list: Vec<(PathBuf, Value)>) -> Vec<Value> {
    let mut out: Vec<(PathBuf, Value)> = Vec::with_capacity(list.len());
    for (target, value) in list {
        match out.iter_mut().find(|(known, _)| *known == target) {
            Some(known) => known.1 = value,
            None => out.push((target, value)),
        }
    }
    out.sort_by_key(|(target, _)| (of_the_kernel(target), target.components().count()));
    out.into_iter().map(|(_, value)| value).collect()
}

/// Whether a path is, by its text, one of the kernel's file systems or below one.
pub(crate) fn of_the_kernel(path: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|kernel| path.starts_with(kernel))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::spec::Resources;

    fn facts() -> Facts {
        Facts {
            rootfs: "/run/x/rootfs".into(),
            cgroup: "/skep/x".into(),
            home: "/root".into(),
            files: vec![PreparedFile { source: "/f/hosts".into(), target: "/etc/hosts".into(), read_only: false }],
            swap_counted: true,
            cgroup_view: Some("/run/x/cgroup".into()),
            own_network: true,
            throttle_counters: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
        }
    }

    fn spec() -> ContainerSpec {
        ContainerSpec {
            id: "0123456789abcdef".into(),
            layers: vec!["/l".into()],
            args: vec!["sh".into()],
            ..Default::default()
        }
    }

    #[test]
    fn the_library_can_read_it() {
        let mut wish = spec();
        wish.resources =
            Resources { memory_bytes: Some(8 << 20), memory_swap: None, nano_cpus: Some(500_000_000), pids: Some(9) };
        wish.mounts = vec![
            Mount::Bind { source: "/a".into(), target: "/b".into(), read_only: true },
            Mount::Tmpfs { target: "/t".into(), size: Some(4096), mode: None, read_only: false },
        ];
        let built = build(&wish, &facts());
        serde_json::from_value::<libcontainer::oci_spec::runtime::Spec>(built.clone()).unwrap();
        assert_eq!(built["linux"]["resources"]["memory"], json!({"limit": 8 << 20, "swap": 16 << 20}));
        assert_eq!(built["linux"]["resources"]["cpu"], json!({"period": 100_000, "quota": 50_000}));
        assert!(built["process"].get("noNewPrivileges").is_none());
        assert_eq!(built["hostname"], "0123456789ab");
    }

    #[test]
    fn swap_in_both_versions() {
        let unified = Facts { cgroup_view: None, ..facts() };
        for (wished, total, alone) in [
            (None, 16 << 20, "8388608"),
            (Some(8 << 20), 8 << 20, "0"),
            (Some(9 << 20), 9 << 20, "1048576"),
            (Some(-1), -1, "max"),
        ] {
            let mut wish = spec();
            wish.resources = Resources { memory_bytes: Some(8 << 20), memory_swap: wished, ..Resources::default() };
            assert_eq!(resources(&wish, &facts())["memory"], json!({"limit": 8 << 20, "swap": total}));
            let built = resources(&wish, &unified);
            assert_eq!(built["memory"], json!({"limit": 8 << 20}));
            assert_eq!(built["unified"], json!({"memory.swap.max": alone}), "{wished:?}");
            let uncounted = resources(&wish, &Facts { swap_counted: false, ..unified.clone() });
            assert_eq!(uncounted.get("unified"), None);
        }
    }

    #[test]
    fn every_view_of_the_control_groups_is_read_only() {
        for facts in [facts(), Facts { cgroup_view: None, ..facts() }] {
            let built = build(&spec(), &facts);
            for mount in built["mounts"].as_array().unwrap() {
                let target = mount["destination"].as_str().unwrap();
                let options = mount["options"].as_array().unwrap();
                if target.starts_with(CGROUP) && !options.contains(&json!("ro")) {
                    assert!(built["linux"]["readonlyPaths"].as_array().unwrap().contains(&json!(target)), "{mount}");
                }
            }
        }
    }

    /// GHSA-jq35-85cj-fj4p, GHSA-6fw5-f8r9-fgfm.
    #[test]
    fn side_channels_are_masked() {
        let built = build(&spec(), &facts());
        let masked = built["linux"]["maskedPaths"].as_array().unwrap();
        for path in [
            "/proc/interrupts",
            "/sys/devices/virtual/powercap",
            "/sys/firmware",
            "/sys/devices/system/cpu/cpu0/thermal_throttle",
        ] {
            assert!(masked.contains(&json!(path)), "{path}");
        }
    }

    /// CVE-2026-53488 and its like: labels come with images, and say nothing about how a container is made.
    #[test]
    fn labels_are_only_labels() {
        let mut wish = spec();
        let plain = build(&wish, &facts());
        for (name, value) in [
            ("io.kubernetes.container.seccomp", "unconfined"),
            ("org.opencontainers.image.runtime", "/tmp/x"),
            ("run.oci.hooks.stdout", "/etc/cron.d/x"),
            ("com.docker.swarm.privileged", "true"),
            ("cdi.k8s.io/x", "vendor.com/device=all"),
        ] {
            wish.labels.push((name.into(), value.into()));
        }
        assert_eq!(build(&wish, &facts()), plain);
    }

    #[test]
    fn the_network_of_the_host_is_not_changed() {
        let built = build(&spec(), &Facts { own_network: false, ..facts() });
        assert_eq!(built["linux"]["sysctl"], json!({}));
    }

    #[test]
    fn a_users_mount_replaces_ours_and_parents_come_first() {
        let mut wish = spec();
        wish.mounts = vec![
            Mount::Bind { source: "/x".into(), target: "/etc/hosts".into(), read_only: false },
            Mount::Bind { source: "/y".into(), target: "/etc".into(), read_only: false },
        ];
        let built = mounts(&wish, &facts());
        let place = |target: &str| built.iter().position(|mount| mount["destination"] == target).unwrap();
        assert_eq!(built[place("/etc/hosts")]["source"], "/x");
        assert!(place("/etc") < place("/etc/hosts"));
        assert!(place("/proc") < place("/sys/fs/cgroup"));
        assert!(place("/etc/hosts") < place("/proc"), "what is wished can't cover the kernel's");
        wish.mounts.push(Mount::Bind { source: "/z".into(), target: "/dev/shm/z".into(), read_only: false });
        let built = mounts(&wish, &facts());
        let place = |target: &str| built.iter().position(|mount| mount["destination"] == target).unwrap();
        assert!(place("/dev/shm") < place("/dev/shm/z"));
    }

    #[test]
    fn environment_keeps_order_and_fills_in() {
        let mut wish = spec();
        wish.env = vec!["B=1".into(), "A=2".into(), "B=3".into(), "HOME=".into(), "UNSET".into()];
        assert_eq!(
            environment(&wish, "/root"),
            ["B=3", "A=2", "HOME=/root", &format!("PATH={DEFAULT_PATH}"), "HOSTNAME=0123456789ab"]
        );
    }
}
