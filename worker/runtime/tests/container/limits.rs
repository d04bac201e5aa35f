//! Memory, processor and process limits bite, and what they did is told truthfully.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use skep_runtime::State;

use crate::fixture::{Fixture, PATIENCE, limits, unified};

#[tokio::test]
async fn out_of_memory_is_flagged_apart_from_the_code() -> Result<()> {
    if !limits("memory") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let mut spec = fixture.spec("oom", &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    spec.resources.memory_bytes = Some(16 << 20);
    spec.resources.memory_swap = Some(16 << 20);
    let (exit, _) = fixture.run(&spec).await?;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    // A child dies of it and the program goes on: the code is the program's, the flag is set.
    let mut spec = fixture.shell("child", "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null; exit 4");
    spec.resources.memory_bytes = Some(16 << 20);
    spec.resources.memory_swap = Some(16 << 20);
    let (exit, _) = fixture.run(&spec).await?;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (4, None, true));
    // Killed by hand is not out of memory.
    fixture.runtime.create(&fixture.spec("killed", &["sleep", "1000"])).await?;
    fixture.runtime.start("killed").await?;
    fixture.runtime.signal("killed", 9).await?;
    let exit = tokio::time::timeout(PATIENCE, fixture.runtime.wait("killed")).await??;
    assert_eq!((exit.code, exit.oom_killed), (137, false));
    Ok(())
}

#[tokio::test]
async fn processes_are_counted() -> Result<()> {
    if !limits("pids") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let mut spec = fixture.shell("pids", "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait");
    spec.resources.pids = Some(5);
    let (exit, lines) = fixture.run(&spec).await?;
    assert!(exit.code != 0 && lines.iter().any(|line| line.contains("fork")), "{exit:?} {lines:?}");
    Ok(())
}

#[tokio::test]
async fn processor_time_is_limited_and_measured() -> Result<()> {
    if !limits("cpu") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let mut spec = fixture.shell("cpu", "while :; do :; done");
    spec.resources.nano_cpus = Some(100_000_000);
    spec.resources.memory_bytes = Some(64 << 20);
    fixture.runtime.create(&spec).await?;
    fixture.runtime.start("cpu").await?;
    let before = fixture.runtime.stats("cpu").await?;
    let start = std::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = fixture.runtime.stats("cpu").await?;
    let share = Duration::from_nanos(after.cpu_ns - before.cpu_ns).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(share < 0.2, "a tenth of a processor was {share:.2}");
    assert!(after.cpu_ns > before.cpu_ns && after.pids == 1 && after.memory_bytes > 0, "{before:?} {after:?}");
    assert_eq!(after.memory_limit, Some(64 << 20));
    assert!(matches!(fixture.runtime.state("cpu").await?, State::Running { .. }));
    Ok(())
}

/// Swap in every way of asking for it, and the rest of the limits, as the kernel has them afterwards.
#[tokio::test]
async fn what_is_written_is_what_was_wished() -> Result<()> {
    if !["memory", "cpu", "pids"].into_iter().all(limits) {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let memory: i64 = 32 << 20;
    // Memory and swap together as wished, and the swap alone that this leaves.
    for (id, wished, swap) in [
        ("none", Some(memory), Some(0)),
        ("some", Some(memory + 4096), Some(4096)),
        ("default", None, Some(memory)),
        ("endless", Some(-1), None),
    ] {
        let mut spec = fixture.spec(id, &["true"]);
        spec.resources.memory_bytes = Some(memory.cast_unsigned());
        spec.resources.memory_swap = wished;
        spec.resources.nano_cpus = Some(500_000_000);
        spec.resources.pids = Some(7);
        fixture.runtime.create(&spec).await?;
        let group = |controller: &str, file: &str| {
            let base = Path::new("/sys/fs/cgroup").join(if unified() { "" } else { controller });
            let path = base.join(&fixture.config.cgroup_parent).join(id).join(file);
            std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        };
        let number = |text: Option<String>| text.and_then(|text| text.parse::<i64>().ok()).filter(|n| *n < 1 << 60);
        let (limit, swap_file, quota) = if unified() {
            ("memory.max", "memory.swap.max", group("cpu", "cpu.max"))
        } else {
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", group("cpu", "cpu.cfs_quota_us"))
        };
        assert_eq!(number(group("memory", limit)), Some(memory), "{id}");
        assert!(quota.as_ref().is_some_and(|quota| quota.starts_with("50000")), "{id}: {quota:?}");
        assert_eq!(group("pids", "pids.max").as_deref(), Some("7"), "{id}");
        if group("memory", swap_file).is_none() {
            println!("UNTESTED: limits of swap, this kernel doesn't count it");
            continue;
        }
        let expected = if unified() { swap } else { swap.map(|swap| swap + memory) };
        assert_eq!(number(group("memory", swap_file)), expected, "{id}: {swap_file}");
    }
    Ok(())
}
