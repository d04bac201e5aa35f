//! Somebody changes things while containers are made: bounded rounds of a swap that a careless runtime loses.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use skep_runtime::Mount;

use crate::fixture::{Fixture, PATIENCE};

/// Fewer when the machine is too busy for them in `PATIENCE / 2`.
const ROUNDS: u32 = 150;

/// Exchanges two names without a pause, as another container that shares the volume could; ends when dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    fn new(one: &Path, other: &Path) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (one, other) = (one.to_owned(), other.to_owned());
        let thread = std::thread::spawn({
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Swapper { stop, count, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// CVE-2024-45310, GHSA-rg2x-37c3-w2rh, GHSA-vp62-88p7-qqf5: a directory of a shared volume is now one, now a link to
/// the host's, while mounts are made below it.
#[tokio::test]
async fn a_mount_target_that_comes_and_goes() -> Result<()> {
    let fixture = Fixture::new()?;
    let (shared, data, canary) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    fs::write(data.path().join("file"), "data\n")?;
    let (here, there) = (shared.path().join("a"), shared.path().join("b"));
    fs::create_dir(&here)?;
    // The host's root by as many steps up as anybody could be deep; within the container there is no such directory.
    symlink(format!("{}{}", "../".repeat(40), canary.path().display()), &there)?;
    let swapper = Swapper::new(&here, &there);

    // Whoever goes by the path is hit, or this proves nothing.
    let begun = Instant::now();
    while fs::read_dir(canary.path())?.count() == 0 {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "a careless program was never hit");
        let _ = fs::create_dir_all(here.join("careless"));
    }
    fs::remove_dir(canary.path().join("careless"))?;

    let (mut made, mut refused) = (0, 0);
    let bind =
        |source: &Path, target: &str| Mount::Bind { source: source.into(), target: target.into(), read_only: false };
    let begun = Instant::now();
    for round in 0..ROUNDS {
        if begun.elapsed() > PATIENCE / 2 {
            break;
        }
        let mut spec = fixture.spec(&format!("r{round}"), &["true"]);
        spec.mounts = vec![
            bind(shared.path(), "/vol"),
            bind(data.path(), "/vol/a/new"),
            bind(&data.path().join("file"), "/vol/a/file"),
            Mount::Tmpfs { target: "/vol/a/deep/er".into(), size: Some(4096), mode: None, read_only: false },
        ];
        match fixture.runtime.create(&spec).await {
            Ok(()) => made += 1,
            Err(_) => refused += 1,
        }
        fixture.runtime.remove(&spec.id).await?;
        assert_eq!(fs::read_dir(canary.path())?.count(), 0, "the host was hit in round {round}");
    }
    let swaps = swapper.count.load(Ordering::Relaxed);
    drop(swapper);
    assert!(made > 0 && refused > 0 && swaps > 1000, "no race: {made} made, {refused} refused, {swaps} swaps");
    assert_eq!(fs::read_to_string(data.path().join("file"))?, "data\n");
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}

/// CVE-2025-31133, CVE-2025-52881: the same, with a link to where the kernel's file systems will be. Whatever comes of
/// it, what a container then finds there is the kernel's, and nothing was made in the volume that went astray.
#[tokio::test]
async fn a_mount_that_now_and_then_goes_to_dev() -> Result<()> {
    let fixture = Fixture::new()?;
    let (shared, data) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (here, there) = (shared.path().join("a"), shared.path().join("b"));
    let script = "stat -f -c %T /proc /sys /dev; stat -c %t:%T /dev/null; head -c 1 /proc/interrupts | wc -c; \
        test -e /vol/a/mark && echo landed";
    let sound = ["proc", "sysfs", "tmpfs", "1:3", "0"];
    fs::write(data.path().join("mark"), "")?;
    for place in ["/dev", "/proc"] {
        // The last swap left the directory under either name.
        for name in [&here, &there] {
            let _ = fs::remove_file(name).or_else(|_| fs::remove_dir(name));
        }
        fs::create_dir(&here)?;
        symlink(place, &there).context("the other name")?;
        let swapper = Swapper::new(&here, &there);
        let begun = Instant::now();
        let (mut landed, mut astray) = (0, 0);
        for round in 0..ROUNDS / 3 {
            if begun.elapsed() > PATIENCE / 2 {
                break;
            }
            let mut spec = fixture.shell(&format!("r{round}"), script);
            spec.mounts = [(shared.path(), "/vol"), (data.path(), "/vol/a")]
                .map(|(source, target)| Mount::Bind { source: source.into(), target: target.into(), read_only: false })
                .to_vec();
            match fixture.run(&spec).await {
                Ok((_, lines)) => {
                    assert_eq!(lines[..5], sound, "{lines:?}");
                    if lines.len() > 5 { landed += 1 } else { astray += 1 }
                }
                Err(_) => {
                    astray += 1;
                    fixture.runtime.remove(&spec.id).await?;
                }
            }
            let left: Vec<_> = fs::read_dir(data.path())?.flatten().map(|entry| entry.file_name()).collect();
            assert_eq!(left, ["mark"], "something was made in the volume");
        }
        drop(swapper);
        assert!(landed + astray > 5 && astray > 0, "no race: {landed} landed, {astray} astray");
        assert_eq!(fs::read_dir(shared.path())?.count(), 2);
    }
    Ok(())
}
