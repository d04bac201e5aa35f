//! Images and wishes that try to lead the runtime astray.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Instant;

use anyhow::Result;
use skep_runtime::Mount;

use crate::fixture::{Fixture, PATIENCE};

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2026-41579.
#[tokio::test]
async fn kernel_directories_that_are_links() -> Result<()> {
    for name in ["proc", "sys", "dev"] {
        let fixture = Fixture::new()?;
        let canary = tempfile::tempdir()?;
        fs::remove_dir(fixture.layer.join(name))?;
        symlink(canary.path(), fixture.layer.join(name))?;
        let mut spec = fixture.shell("link", "true");
        spec.mounts =
            vec![Mount::Bind { source: canary.path().into(), target: canary.path().into(), read_only: false }];
        let error = fixture.runtime.create(&spec).await.expect_err("it must be refused").to_string();
        assert!(error.contains(&format!("/{name}")), "{error}");
        assert_eq!(fs::read_dir(canary.path())?.count(), 0);
        assert_eq!(fixture.traces(), Vec::<String>::new());
    }
    Ok(())
}

/// CVE-2024-21626: a working directory by descriptor, said openly or hidden behind a link.
#[tokio::test]
async fn working_directories_by_descriptor() -> Result<()> {
    let fixture = Fixture::new()?;
    for number in 3..20 {
        let mut open = fixture.shell("open", "pwd");
        open.cwd = format!("/proc/self/fd/{number}");
        assert!(fixture.runtime.create(&open).await.is_err());
        let link = format!("work{number}");
        symlink(format!("/proc/self/fd/{number}"), fixture.layer.join(&link))?;
        let mut hidden = fixture.shell("hidden", "pwd");
        hidden.cwd = format!("/{link}");
        let error = fixture.runtime.create(&hidden).await.expect_err("it must be refused").to_string();
        assert!(error.contains(&link), "{error}");
    }
    symlink("/proc/self/cwd/../../..", fixture.layer.join("up"))?;
    let mut spec = fixture.shell("up", "pwd");
    spec.cwd = "/up".into();
    assert!(fixture.runtime.create(&spec).await.is_err());
    Ok(())
}

/// Files that the runtime mounts land in the image, whatever links it has.
#[tokio::test]
async fn links_in_the_place_of_our_files() -> Result<()> {
    let fixture = Fixture::new()?;
    let canary = tempfile::tempdir()?;
    let victim = canary.path().join("victim");
    fs::write(&victim, "untouched")?;
    for name in ["hosts", "hostname", "resolv.conf"] {
        symlink(&victim, fixture.layer.join("etc").join(name))?;
    }
    let (_, lines) =
        fixture.run(&fixture.shell("files", "cat /etc/hostname; head -n 1 /etc/hosts; cat /etc/resolv.conf")).await?;
    assert_eq!(lines, ["files", "127.0.0.1\tlocalhost", "nameserver 127.0.0.11"]);
    // The whole of /etc elsewhere.
    fs::remove_dir_all(fixture.layer.join("etc"))?;
    symlink(canary.path(), fixture.layer.join("etc"))?;
    let outcome = fixture.run(&fixture.shell("etc", "cat /etc/hostname")).await;
    assert!(outcome.is_err() || outcome.is_ok_and(|(_, lines)| lines == ["etc"]));
    fs::remove_file(fixture.layer.join("etc"))?;
    symlink("/proc/self", fixture.layer.join("etc"))?;
    assert!(fixture.runtime.create(&fixture.shell("etc2", "true")).await.is_err());
    assert_eq!(fs::read_to_string(&victim)?, "untouched");
    assert_eq!(fs::read_dir(canary.path())?.count(), 1);
    Ok(())
}

/// CVE-2024-45310 and its like: a mount target through a link stays inside.
#[tokio::test]
async fn mount_targets_through_links() -> Result<()> {
    let fixture = Fixture::new()?;
    let canary = tempfile::tempdir()?;
    symlink(canary.path(), fixture.layer.join("way"))?;
    symlink("../../../../../../../../", fixture.layer.join("tmp/up"))?;
    let data = tempfile::tempdir()?;
    fs::write(data.path().join("file"), "data\n")?;
    let mut spec = fixture.shell("mounts", "cat /tmp/up/deep/er/file");
    spec.mounts = vec![Mount::Bind { source: data.path().into(), target: "/tmp/up/deep/er".into(), read_only: false }];
    assert_eq!(fixture.run(&spec).await?.1, ["data"]);
    assert!(!std::path::Path::new("/deep").exists());
    spec.id = "way".into();
    spec.mounts =
        vec![Mount::Bind { source: data.path().join("file"), target: "/way/new/file".into(), read_only: false }];
    let _ = fixture.run(&spec).await;
    assert_eq!(fs::read_dir(canary.path())?.count(), 0, "nothing may be made on the host");
    Ok(())
}

/// CVE-2026-46680 is in the lifecycle tests; here the flood, CVE-2026-47262.
#[tokio::test]
async fn account_files_without_end() -> Result<()> {
    let fixture = Fixture::new()?;
    for name in ["group", "passwd"] {
        let path = fixture.layer.join("etc").join(name);
        let good = fs::read(&path)?;
        fs::File::create(&path)?.set_len(1 << 30)?;
        let begun = Instant::now();
        let error = fixture.runtime.create(&fixture.shell("big", "true")).await.expect_err("too large").to_string();
        assert!(error.contains(&format!("etc/{name}")), "{error}");
        assert!(begun.elapsed() < PATIENCE / 4, "it was read to the end");
        fs::remove_file(&path)?;
        let made = std::process::Command::new("mkfifo").arg(&path).status()?;
        assert!(made.success());
        let error = fixture.runtime.create(&fixture.shell("pipe", "true")).await.expect_err("would block").to_string();
        assert!(error.contains(&format!("etc/{name}")), "{error}");
        fs::remove_file(&path)?;
        fs::write(&path, good)?;
    }
    Ok(())
}
