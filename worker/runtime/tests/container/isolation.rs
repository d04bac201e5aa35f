//! What a container can see and do.

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use skep_runtime::Seccomp;

use crate::fixture::{BINARY, Fixture, limits, shim_pid, unified};

fn table(lines: &[String]) -> HashMap<&str, &str> {
    lines.iter().filter_map(|line| line.split_once([' ', '\t'])).collect()
}

#[tokio::test]
async fn the_default_filter_and_capabilities() -> Result<()> {
    let fixture = Fixture::new()?;
    let (exit, lines) = fixture.run(&fixture.probe("probe", "/probe")).await?;
    assert_eq!(exit.code, 0, "{lines:?}");
    let seen = table(&lines);
    // Without the device filter of version 1 nobody makes device nodes.
    let caps = if unified() { "00000000a00425fb" } else { "00000000a80425fb" };
    for (name, expected) in [
        ("keyctl", "1"),
        ("add_key", "1"),
        ("unshare", "1"),
        ("setns", "1"),
        ("mount", "1"),
        ("bpf", "1"),
        ("clone3", "38"),
        ("clone_newuser", "1"),
        ("clone_plain", "ok"),
        ("personality_query", "ok"),
        ("personality_norandom", "1"),
        ("socket_vsock", "1"),
        ("socket_inet", "ok"),
        ("Seccomp:", "2"),
        ("NoNewPrivs:", "0"),
        ("SigBlk:", "0000000000000000"),
        ("CapEff:", caps),
        ("CapBnd:", caps),
        ("CapAmb:", "0000000000000000"),
    ] {
        assert_eq!(seen.get(name).copied(), Some(expected), "{name} in {lines:#?}");
    }
    // The probe is a Rust program: it ignores SIGPIPE itself, and nothing else may be ignored.
    assert_eq!(seen.get("SigIgn:").copied(), Some("0000000000001000"));
    let (_, lines) = fixture.run(&fixture.spec("grep", &["grep", "SigIgn", "/proc/self/status"])).await?;
    assert_eq!(table(&lines)["SigIgn:"], "0000000000000000");
    Ok(())
}

#[tokio::test]
async fn the_canary_unconfined_may_do_it() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut spec = fixture.probe("free", "/probe");
    spec.seccomp = Seccomp::Unconfined;
    let (_, lines) = fixture.run(&spec).await?;
    let seen = table(&lines);
    assert_eq!(seen.get("Seccomp:").copied(), Some("0"));
    assert_ne!(seen.get("keyctl").copied(), Some("1"), "or the probe proves nothing: {lines:?}");
    assert_eq!(seen.get("clone3").copied(), Some("22"), "or the probe proves nothing: {lines:?}");
    assert_eq!(seen.get("personality_norandom").copied(), Some("ok"), "or the probe proves nothing: {lines:?}");
    let mut spec = fixture.probe("drop", "/probe");
    spec.cap_drop = vec!["ALL".into()];
    spec.cap_add = vec!["CHOWN".into()];
    let (_, lines) = fixture.run(&spec).await?;
    assert_eq!(table(&lines).get("CapEff:").copied(), Some("0000000000000001"));
    Ok(())
}

/// CVE-2019-5736: the supervisor's binary, whichever way a container gets hold of it, can't be written to.
#[tokio::test]
async fn the_binary_is_out_of_reach() -> Result<()> {
    let fixture = Fixture::new()?;
    let before = std::fs::read(BINARY)?;
    let (_, lines) = fixture.run(&fixture.probe("self", "/proc/self/exe")).await?;
    assert_eq!(table(&lines).get("chmod_own_exe").copied(), Some("30"), "EROFS: {lines:?}");
    let mut spec = fixture.probe("init", "/probe");
    spec.init = true;
    let (_, lines) = fixture.run(&spec).await?;
    assert_eq!(table(&lines).get("chmod_init_exe").copied(), Some("13"), "EACCES, it is not dumpable: {lines:?}");
    // With the strongest capabilities there is still the mount.
    spec.id = "strong".into();
    spec.cap_add = vec!["ALL".into()];
    let (_, lines) = fixture.run(&spec).await?;
    assert_eq!(table(&lines).get("chmod_init_exe").copied(), Some("30"), "EROFS: {lines:?}");
    assert_eq!(std::fs::read(BINARY)?, before);
    // And by hand it doesn't run at all.
    let output = std::process::Command::new(BINARY)
        .args(["shim", "zygote", "/nowhere"])
        .stdin(std::process::Stdio::null())
        .output()?;
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("writable mount"));
    Ok(())
}

#[tokio::test]
async fn only_three_descriptors_get_in() -> Result<()> {
    let fixture = Fixture::new()?;
    let etc = std::fs::File::open("/etc")?;
    // A daemon's mistake: one that survives exec.
    // SAFETY: a duplicate of an open descriptor, closed below.
    let leaked = unsafe { libc::dup(etc.as_raw_fd()) };
    let result = fixture.run(&fixture.spec("fds", &["ls", "/proc/self/fd"])).await;
    // SAFETY: ours, see above.
    unsafe { libc::close(leaked) };
    // The fourth is the directory that ls reads.
    assert_eq!(result?.1, ["0", "1", "2", "3"]);
    let mut spec = fixture.shell("init-fds", "ls /proc/1/fd 2>&1");
    spec.init = true;
    spec.cap_add = vec!["ALL".into()];
    assert_eq!(fixture.run(&spec).await?.1, ["0", "1", "2"]);
    Ok(())
}

#[tokio::test]
async fn kernel_file_systems() -> Result<()> {
    let fixture = Fixture::new()?;
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do test -e $f && test -s $f && echo leak $f; cat $f 2>/dev/null | head -c 1 | wc -c; done; \
        ls /sys/firmware | wc -l; \
        (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo WROTE; (echo x > /proc/sysrq-trigger) 2>/dev/null && echo WROTE; \
        (echo x > /sys/kernel/x) 2>/dev/null && echo WROTE; for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/x 2>/dev/null && echo WROTE $d; done; \
        (echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes) 2>/dev/null && echo WROTE; test -e /sys/fs/cgroup/cgroup.procs || test -e /sys/fs/cgroup/memory/cgroup.procs || echo missing cgroup; \
        for d in null zero full random urandom tty; do test -c /dev/$d || echo missing $d; done; \
        stat -c %a /dev/shm; test -d /dev/mqueue && test -c /dev/pts/ptmx && readlink /dev/ptmx; readlink /dev/fd; \
        (mknod /dev/disk b 8 0 && head -c 1 /dev/disk) 2>&1 | grep -c 'not permitted'; (mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk) 2>&1 | grep -c -E 'denied|not permitted'; \
        ps | grep -c .; cat /proc/1/cgroup | grep -v ':/$' | wc -l; ls /proc/self/ns | wc -l";
    let (_, lines) = fixture.run(&fixture.shell("fs", script)).await?;
    // Masked files are empty; no write; devices; process list of one shell, ps and grep plus its header.
    let (head, tail) = lines.split_at(4);
    assert_eq!(head, ["0", "0", "0", "0"], "{lines:?}");
    assert!(
        !lines.iter().any(|line| line.contains("WROTE") || line.contains("missing") || line.contains("leak")),
        "{lines:#?}"
    );
    assert_eq!(tail[..5], ["0", "1777", "pts/ptmx", "/proc/self/fd", "1"], "{lines:#?}");
    Ok(())
}

#[tokio::test]
async fn namespaces_are_its_own() -> Result<()> {
    let fixture = Fixture::new()?;
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}")).join(";");
    let (_, lines) = fixture.run(&fixture.shell("ns", &script)).await?;
    for (kind, inside) in kinds.iter().zip(&lines) {
        let outside = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
        assert_ne!(outside.to_string_lossy(), inside.as_str(), "{kind}");
    }
    // A network namespace that is joined: here that of another container.
    let mut first = fixture.spec("first", &["sleep", "1000"]);
    if limits("pids") {
        first.resources.pids = Some(100);
    }
    fixture.runtime.create(&first).await?;
    let pid = fixture.runtime.start("first").await?.pid;
    let path = format!("/proc/{pid}/ns/net");
    let expected = std::fs::read_link(&path)?;
    let mut second =
        fixture.shell("second", "readlink /proc/self/ns/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    second.netns = Some(path.into());
    let (_, lines) = fixture.run(&second).await?;
    assert_eq!(lines, [expected.to_string_lossy().as_ref(), "0"]);
    // The host's own is left as it is.
    let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    let mut host = fixture.shell("host", "true");
    host.netns = Some("/proc/self/ns/net".into());
    fixture.run(&host).await?;
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?, before);
    Ok(())
}

#[tokio::test]
async fn a_read_only_root_and_the_supervisors_place() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut spec =
        fixture.shell("ro", "(echo x > /file) 2>/dev/null && echo WROTE; echo ok > /dev/shm/f && cat /dev/shm/f");
    spec.read_only = true;
    assert_eq!(fixture.run(&spec).await?.1, ["ok"]);
    fixture.runtime.create(&fixture.spec("where", &["sleep", "1000"])).await?;
    let pid = shim_pid(&fixture.config, "where")?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = format!("/{}/shims", fixture.config.cgroup_parent);
    for line in groups.lines().filter(|line| !line.contains("cpuset") && (line.starts_with("0::") || !unified())) {
        assert!(line.ends_with(&own), "the supervisor sits in {line}");
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3)).context("session")?;
    assert_eq!(session, pid.to_string(), "a session of its own");
    Ok(())
}

/// Secrets exist in the container's memory only: no file of the host has them, while it lives or after.
#[tokio::test]
async fn secrets_are_nowhere_else() -> Result<()> {
    let fixture = Fixture::new()?;
    let needle = format!("needle-{}-in-a-haystack", std::process::id());
    let mut spec = fixture.shell("secret", "cat /run/secrets/s > /dev/null && echo read; sleep 1000");
    spec.files = vec![skep_runtime::InjectedFile {
        path: "/run/secrets/s".into(),
        bytes: needle.clone().into_bytes(),
        uid: 0,
        gid: 0,
        mode: 0o400,
    }];
    fixture.runtime.create(&spec).await?;
    fixture.runtime.start("secret").await?;
    fixture.printed("secret", "read").await?;
    let mut queue = vec![fixture.config.run_dir.clone(), fixture.config.state_dir.clone()];
    let mut files = 0;
    while let Some(path) = queue.pop() {
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_dir() {
            queue.extend(
                std::fs::read_dir(&path)?
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<Result<Vec<_>, _>>()?,
            );
        } else if kind.is_file() {
            files += 1;
            let bytes = std::fs::read(&path)?;
            let found = bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
            assert!(!found, "{} has the secret", path.display());
        }
    }
    assert!(files > 3, "the search saw nothing");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&fixture.config.cgroup_parent), "the host sees a mount of the container");
    Ok(())
}
