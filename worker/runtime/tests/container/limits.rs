//! Memory, processor and process limits bite, and what they did is told truthfully.

use std::time::Duration;

use anyhow::Result;
use skep_runtime::State;

use crate::fixture::{Fixture, PATIENCE, limits};

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
    assert!(after.cpu_ns > 0 && after.pids == 1 && after.memory_bytes > 0);
    assert_eq!(after.memory_limit, Some(64 << 20));
    assert!(matches!(fixture.runtime.state("cpu").await?, State::Running { .. }));
    Ok(())
}
