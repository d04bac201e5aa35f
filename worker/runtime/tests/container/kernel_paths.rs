//! Images and volumes that try to put something of their own where the kernel's file systems belong.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use skep_runtime::Mount;

use crate::fixture::Fixture;

fn bind(source: &Path, target: &str) -> Mount {
    Mount::Bind { source: source.into(), target: target.into(), read_only: false }
}

/// Every path below a directory with its kind and content, to see whether anything was made or changed there.
fn snapshot(directory: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut out = Vec::new();
    let mut queue = vec![directory.to_owned()];
    while let Some(next) = queue.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let kind = path.symlink_metadata()?.file_type();
            let what = if kind.is_file() { fs::read_to_string(&path)? } else { format!("{kind:?}") };
            if kind.is_dir() {
                queue.push(path.clone());
            }
            out.push((path, what));
        }
    }
    out.sort();
    Ok(out)
}

/// What would do harm if it were taken for /proc, /sys or /dev.
fn fake(directory: &Path, victim: &Path) -> Result<()> {
    for name in ["sys/net/ipv4", "sys/kernel", "self/attr", "self/fd", "pts", "firmware"] {
        fs::create_dir_all(directory.join(name))?;
    }
    for name in ["sys/net/ipv4/ip_unprivileged_port_start", "sys/net/ipv4/ping_group_range", "kcore", "keys"] {
        fs::write(directory.join(name), "as it was")?;
    }
    for name in ["null", "ptmx", "pts/ptmx", "console"] {
        symlink(victim, directory.join(name))?;
    }
    Ok(())
}

/// What holds in every container, however its image and its mounts are.
const SOUND: &str = "
    stat -f -c %T /proc /sys /dev; stat -c %t:%T /dev/null
    for f in /proc/kcore /proc/keys; do test -e $f && head -c 1 $f | wc -c; done
    (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo WROTE
    cat /proc/sys/net/ipv4/ip_unprivileged_port_start";

fn sound(lines: &[String]) {
    let (kinds, rest) = lines.split_at(lines.len().min(4));
    assert_eq!(kinds, ["proc", "sysfs", "tmpfs", "1:3"], "{lines:?}");
    let (port, rest) = rest.split_last().expect("a port");
    assert!(port == "0" && rest.iter().all(|line| line == "0"), "{lines:?}");
}

/// CVE-2025-31133, CVE-2025-52881, CVE-2026-41579: a mount whose target the image leads into a kernel file system.
#[tokio::test]
async fn links_of_the_image_under_a_mount() -> Result<()> {
    for place in ["/", "/proc", "/proc/sys", "/proc/self/attr", "/sys", "/sys/fs", "/dev", "/dev/pts", "/dev/shm"] {
        let fixture = Fixture::new()?;
        let (volume, canary) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let victim = canary.path().join("victim");
        fs::write(&victim, "untouched")?;
        fake(volume.path(), &victim)?;
        let before = snapshot(volume.path())?;
        symlink(place, fixture.layer.join("app"))?;
        for target in ["/app", "/app/deeper"] {
            let mut spec = fixture.shell("led", SOUND);
            spec.mounts = vec![bind(volume.path(), target)];
            if place == "/" && target != "/app" {
                // That is /deeper, and nothing but it.
                sound(&fixture.run(&spec).await?.1);
            } else {
                let error = fixture.runtime.create(&spec).await.expect_err("it must be refused").to_string();
                assert!(error.contains("/app"), "{error}");
            }
            spec.mounts = vec![Mount::Tmpfs { target: target.into(), size: Some(4096), mode: None, read_only: false }];
            if place == "/" && target != "/app" {
                sound(&fixture.run(&spec).await?.1);
            } else {
                assert!(fixture.runtime.create(&spec).await.is_err(), "tmpfs at {target} -> {place}");
            }
        }
        assert_eq!(snapshot(volume.path())?, before, "through {place}");
        assert_eq!(fs::read_to_string(&victim)?, "untouched");
        assert_eq!(fixture.traces(), Vec::<String>::new());
    }
    Ok(())
}

/// The same by links in a volume, which others may write while the container is made: the kernel's file systems are
/// mounted last, so whatever went to their places is hidden below them.
#[tokio::test]
async fn links_of_a_volume_under_a_mount() -> Result<()> {
    let mut made = 0;
    for place in ["/proc", "/proc/sys", "/proc/self/attr", "/sys", "/dev", "/dev/pts", "/../../dev", "/"] {
        let fixture = Fixture::new()?;
        let (shared, volume, canary) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
        let victim = canary.path().join("victim");
        fs::write(&victim, "untouched")?;
        fake(volume.path(), &victim)?;
        let before = snapshot(volume.path())?;
        symlink(place, shared.path().join("link"))?;
        let mut spec = fixture.shell("nested", SOUND);
        spec.mounts = vec![bind(shared.path(), "/vol"), bind(volume.path(), "/vol/link")];
        match fixture.run(&spec).await {
            Ok((_, lines)) => {
                assert_ne!(place, "/", "a volume is no root");
                sound(&lines);
                made += 1;
            }
            Err(error) if place == "/" => assert!(format!("{error:#}").contains("/ in the container"), "{error:#}"),
            // A link to what the image doesn't have.
            Err(error) => assert!(place.matches('/').count() > 1, "{place}: {error:#}"),
        }
        assert_eq!(fs::read_to_string(&victim)?, "untouched");
        if place == "/" {
            // Directories to mount on may have been made in it, which whoever has the volume could as well.
            assert_eq!(fixture.traces(), Vec::<String>::new());
        } else {
            assert_eq!(snapshot(volume.path())?, before, "through {place}");
        }
    }
    assert!(made >= 3, "or nothing was tried");
    Ok(())
}

/// CVE-2025-31133, CVE-2025-52565: devices, terminals and the console as links in the image.
#[tokio::test]
async fn links_of_the_image_below_dev() -> Result<()> {
    let fixture = Fixture::new()?;
    for (name, target) in [
        ("null", "/proc/sys/kernel/core_pattern"),
        ("console", "/proc/sysrq-trigger"),
        ("pts", "/proc/sys"),
        ("ptmx", "/proc/sys/kernel/core_pattern"),
        ("shm", "/proc/sys"),
        ("kcore", "/etc/passwd"),
    ] {
        symlink(target, fixture.layer.join("dev").join(name))?;
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    for tty in [false, true] {
        let mut spec = fixture.shell("dev", &format!("{SOUND}; test -c /dev/pts/ptmx || echo no terminals"));
        spec.tty = tty;
        let (exit, lines) = fixture.run(&spec).await?;
        assert_eq!(exit.code, 0);
        sound(&lines.iter().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>());
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern")?, pattern);
    Ok(())
}

/// CVE-2025-52565: somebody's directory in the place of the terminals.
#[tokio::test]
async fn a_console_is_a_terminal_or_there_is_none() -> Result<()> {
    let fixture = Fixture::new()?;
    let (volume, canary) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let victim = canary.path().join("victim");
    fs::write(&victim, "untouched")?;
    for name in ["ptmx", "0", "1"] {
        symlink("/proc/sysrq-trigger", volume.path().join(name))?;
    }
    let mut spec = fixture.shell("tty", "stat -c %t:%T -L /dev/console");
    spec.tty = true;
    spec.mounts = vec![bind(volume.path(), "/dev/pts")];
    let error = fixture.runtime.create(&spec).await.expect_err("no terminal can be made there").to_string();
    assert!(error.contains("tty") || error.contains("terminal") || error.contains("pty"), "{error}");
    // A real terminal master of the host's in their place.
    fs::remove_file(volume.path().join("ptmx"))?;
    fs::write(volume.path().join("ptmx"), "")?;
    spec.mounts.push(bind("/dev/ptmx".as_ref(), "/dev/pts/ptmx"));
    let ours = fs::metadata("/dev/ptmx")?.file_type();
    assert!(ours.is_char_device());
    match fixture.run(&spec).await {
        Err(_) => {}
        Ok((_, lines)) => assert!(lines[0].starts_with("88:"), "{lines:?}"),
    }
    fixture.runtime.remove("tty").await?;
    // The console itself.
    spec.mounts = vec![bind(&victim, "/dev/console")];
    match fixture.run(&spec).await {
        Err(_) => {}
        Ok((_, lines)) => assert!(lines[0].starts_with("88:"), "{lines:?}"),
    }
    assert_eq!(fs::read_to_string(&victim)?, "untouched");
    Ok(())
}

/// GHSA-jq35-85cj-fj4p, GHSA-6fw5-f8r9-fgfm: what betrays the neighbours' work looks empty.
#[tokio::test]
async fn side_channels_are_empty() -> Result<()> {
    let fixture = Fixture::new()?;
    let paths = [
        "/proc/interrupts",
        "/proc/timer_list",
        "/sys/devices/virtual/powercap",
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
    ];
    let mut tried = 0;
    for path in paths {
        let Ok(found) = fs::metadata(path) else {
            println!("UNTESTED: {path} in a container, this kernel has none");
            continue;
        };
        let script = if found.is_dir() { format!("ls -A {path} | wc -l") } else { format!("head -c 1 {path} | wc -c") };
        let (_, lines) = fixture.run(&fixture.shell("mask", &script)).await?;
        assert_eq!(lines, ["0"], "{path}");
        tried += 1;
    }
    assert!(tried > 0, "there is always /proc/interrupts");
    Ok(())
}

/// GHSA-rc4r-wh2q-q6c4: as the kernel has them, the primary group is among the supplementary ones.
#[tokio::test]
async fn the_primary_group_is_among_the_groups() -> Result<()> {
    let fixture = Fixture::new()?;
    for (user, expected) in [("", "0"), ("app", "29 1002"), ("1000", "0"), ("1000:77", "77"), ("app:extra", "29")] {
        let mut spec = fixture.spec("groups", &["grep", "Groups:", "/proc/self/status"]);
        spec.user = user.into();
        let (_, lines) = fixture.run(&spec).await?;
        let groups = lines[0].strip_prefix("Groups:").context("groups")?.trim();
        assert_eq!(groups, expected, "user {user:?}");
    }
    Ok(())
}
