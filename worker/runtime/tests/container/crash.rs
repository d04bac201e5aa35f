//! Containers outlive the daemon; they don't outlive their supervisor.

use std::fs::{self, File, FileTimes};
use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use skep_runtime::{Config, Runtime, State};

use crate::fixture::{BINARY, Fixture, PATIENCE, alive, init_pid, shim_pid, until, zygotes};

fn kill(pid: i32) {
    // SAFETY: a signal to a process (or group) that this test started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

#[tokio::test]
async fn the_daemon_is_killed_and_another_takes_over() -> Result<()> {
    let fixture = Fixture::new()?;
    let script = "trap 'echo bye; exit 6' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let spec = serde_json::to_string(&fixture.shell("survivor", script))?;
    let mut daemon = Command::new(BINARY)
        .args([
            "daemon".as_ref(),
            fixture.config.run_dir.as_os_str(),
            fixture.config.state_dir.as_os_str(),
            fixture.config.cgroup_parent.as_ref(),
            spec.as_ref(),
        ])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut line = String::new();
    std::io::BufReader::new(daemon.stdout.take().context("stdout")?).read_line(&mut line)?;
    assert_eq!(line, "ready\n");
    // Its whole process group, as a terminal or a supervisor of services would.
    kill(-daemon.id().cast_signed());
    daemon.wait()?;
    // That of the fixture's own runtime stays.
    until("its zygote is gone", || zygotes(&fixture.config.cgroup_parent).len() == 1).await?;
    let runtime = Runtime::new(Config { ..fixture.config.clone() })?;
    assert_eq!(runtime.list().await?, ["survivor"]);
    let State::Running { pid, started_at } = runtime.state("survivor").await? else { panic!("it should run") };
    assert!(alive(pid));
    assert!(started_at.is_some() && !runtime.asked_to_stop("survivor"));
    let so_far = fixture.lines("survivor").await?.len();
    fixture.printed("survivor", &(so_far + 5).to_string()).await?;
    let waiting = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.wait("survivor").await }
    });
    assert_eq!(runtime.stop("survivor", PATIENCE).await?.code, 6);
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await???.code, 6);
    // A third one, after the end.
    let third = Runtime::new(fixture.config.clone())?;
    let exit = third.wait("survivor").await?;
    assert_eq!((exit.code, exit.started_at), (6, started_at));
    assert!(third.asked_to_stop("survivor"));
    assert_eq!(fixture.lines("survivor").await?.last().context("a line")?, "bye");
    Ok(())
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_container_along() -> Result<()> {
    let fixture = Fixture::new()?;
    for started in [true, false] {
        let id = if started { "running" } else { "created" };
        fixture.runtime.create(&fixture.shell(id, "sleep 1000 & sleep 1000")).await?;
        if started {
            fixture.runtime.start(id).await?;
        }
        let (shim, init) = (shim_pid(&fixture.config, id)?, init_pid(&fixture.config, id)?);
        let waiting = tokio::spawn({
            let runtime = fixture.runtime.clone();
            async move { runtime.wait(id).await }
        });
        kill(shim);
        // By the kernel alone, without any help of a daemon.
        until("process 1 is gone", || !alive(init)).await?;
        let exit = tokio::time::timeout(PATIENCE, waiting).await???;
        assert!(exit.code == 255 && exit.error.as_ref().is_some_and(|error| error.contains("supervisor")), "{exit:?}");
        assert_eq!(fixture.runtime.state(id).await?, State::Exited(exit));
        fixture.runtime.remove(id).await?;
        assert_eq!(fixture.traces(), Vec::<String>::new());
    }
    Ok(())
}

/// What supervisors are forked from may be killed at any time, and goes with the last user of the runtime.
#[tokio::test]
async fn the_zygote_is_replaced_when_it_dies_and_leaves_nothing_when_it_goes() -> Result<()> {
    let fixture = Fixture::new()?;
    let parent = format!("{}-own", fixture.config.cgroup_parent);
    let runtime = Runtime::new(Config { cgroup_parent: parent.clone(), ..fixture.config.clone() })?;
    let groups = || -> Vec<_> {
        let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        roots.chain(["/sys/fs/cgroup".into()]).map(|root| root.join(&parent)).filter(|path| path.exists()).collect()
    };
    let zygotes = || zygotes(&parent);
    for id in ["first", "second"] {
        runtime.create(&fixture.spec(id, &["sleep", "1000"])).await?;
        runtime.start(id).await?;
        let [zygote] = zygotes()[..] else { panic!("one zygote: {:?}", zygotes()) };
        let shim = shim_pid(&fixture.config, id)?;
        let shown = std::fs::read_to_string(format!("/proc/{shim}/cmdline"))?;
        assert_eq!(shown.trim_end_matches('\0'), format!("skep\0shim\0{}", fixture.config.run_dir.join(id).display()));
        kill(zygote);
        until("the zygote is gone", || zygotes().is_empty()).await?;
        assert!(alive(shim), "a supervisor lives on");
        assert!(matches!(runtime.state(id).await?, State::Running { .. }));
    }
    runtime.create(&fixture.spec("third", &["true"])).await?;
    assert!(!groups().is_empty());
    for id in ["first", "second", "third"] {
        runtime.remove(id).await?;
    }
    drop(runtime);
    until("nothing is left of it", || zygotes().is_empty() && groups().is_empty()).await?;
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_zygote_that_hangs_is_replaced_and_what_it_was_asked_for_never_happens() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.spec("before", &["sleep", "1000"])).await?;
    let [zygote] = zygotes(&fixture.config.cgroup_parent)[..] else { panic!("one zygote") };
    // SAFETY: a signal to a process that this test started.
    unsafe { libc::kill(zygote, libc::SIGSTOP) };
    let (first, second) = (fixture.spec("first", &["sleep", "1000"]), fixture.spec("second", &["sleep", "1000"]));
    let both = async { tokio::join!(fixture.runtime.create(&first), fixture.runtime.create(&second)) };
    let made = tokio::time::timeout(PATIENCE, both).await?;
    assert!(made.0.is_ok() != made.1.is_ok(), "one waited in vain, and the other got a new zygote: {made:?}");
    assert!(!alive(zygote) && zygotes(&fixture.config.cgroup_parent).len() == 1);
    assert_eq!(fixture.runtime.list().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_supervisor_that_hangs_does_not_hang_us() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.spec("hung", &["sleep", "1000"])).await?;
    fixture.runtime.start("hung").await?;
    let shim = shim_pid(&fixture.config, "hung")?;
    // SAFETY: a signal to the supervisor that this test started.
    unsafe { libc::kill(shim, libc::SIGSTOP) };
    let answer = tokio::time::timeout(Duration::from_secs(30), fixture.runtime.state("hung")).await?;
    assert!(matches!(answer, Err(skep_runtime::Error::Unresponsive(_))), "{answer:?}");
    fixture.runtime.remove("hung").await?;
    until("it is gone", || !alive(shim)).await?;
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn what_a_restart_of_the_machine_leaves() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.spec("old", &["sleep", "1000"])).await?;
    fixture.runtime.start("old").await?;
    // The processes are gone and so is all that was in memory; the disk is as it was.
    kill(shim_pid(&fixture.config, "old")?);
    let init = init_pid(&fixture.config, "old")?;
    until("process 1 is gone", || !alive(init)).await?;
    std::fs::remove_dir_all(fixture.config.run_dir.join("old"))?;
    let runtime = Runtime::new(fixture.config.clone())?;
    assert_eq!(runtime.list().await?, ["old"]);
    assert!(matches!(runtime.state("old").await?, State::Exited(exit) if exit.error.is_some()));
    runtime.remove("old").await?;
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}

/// On a machine under great load a supervisor may make its group after the container was given up.
#[tokio::test]
async fn empty_groups_of_no_container_are_taken_away_and_no_others() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.spec("made", &["/bin/true"])).await?;
    let hierarchies = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    let parents: Vec<PathBuf> = hierarchies
        .chain(["/sys/fs/cgroup".into()])
        .map(|hierarchy| hierarchy.join(&fixture.config.cgroup_parent))
        .filter(|parent| parent.join("made").is_dir())
        .collect();
    assert!(!parents.is_empty(), "the container has no group");
    let mut sleeper = Command::new("sleep").arg("60").spawn()?;
    for parent in &parents {
        for name in ["lost", "young", "lived-in"] {
            fs::create_dir(parent.join(name))?;
        }
        // Where a hierarchy lets it.
        let _ = fs::write(parent.join("lived-in/cgroup.procs"), sleeper.id().to_string());
        for name in ["lost", "lived-in", "made"] {
            let long_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(300));
            File::open(parent.join(name))?.set_times(long_ago)?;
        }
    }
    let lived_in = |parent: &&PathBuf| {
        fs::read_to_string(parent.join("lived-in/cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
    };
    let homes: Vec<&PathBuf> = parents.iter().filter(lived_in).collect();
    assert!(!homes.is_empty(), "the process is in no group");
    let _again = Runtime::new(fixture.config.clone())?;
    until("the lost group is gone", || parents.iter().all(|parent| !parent.join("lost").exists())).await?;
    assert!(homes.iter().all(|parent| parent.join("lived-in").exists()), "a process has lost its group");
    assert!(parents.iter().all(|parent| parent.join("young").exists() && parent.join("made").exists()));
    sleeper.kill()?;
    sleeper.wait()?;
    for parent in &parents {
        fs::remove_dir(parent.join("young"))?;
        let left = parent.join("lived-in");
        until("the process is counted no more", || !left.exists() || fs::remove_dir(&left).is_ok()).await?;
    }
    fixture.runtime.remove("made").await?;
    Ok(())
}
