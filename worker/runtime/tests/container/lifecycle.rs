//! From create to remove: codes, signals, output, environment, accounts.

use std::time::Duration;

use anyhow::Result;
use skep_runtime::{Error, InjectedFile, LogOptions, Mount, State, Stream};

use crate::fixture::{Fixture, PATIENCE, alive, init_pid, shim_pid, until};

#[tokio::test]
async fn a_whole_life() -> Result<()> {
    let fixture = Fixture::new()?;
    let runtime = &fixture.runtime;
    assert_eq!(runtime.state("one").await?, State::Missing);
    let mut spec = fixture.shell("one", "echo out; echo err >&2; exit 3");
    spec.labels = vec![("k".into(), "v".into())];
    runtime.create(&spec).await?;
    assert_eq!(runtime.state("one").await?, State::Created);
    assert_eq!(runtime.list().await?, ["one"]);
    assert_eq!(runtime.inspect("one").await?.labels, spec.labels);
    assert!(matches!(runtime.create(&spec).await, Err(Error::Exists(_))));
    let pid = runtime.start("one").await?.pid;
    assert!(pid > 1);
    let exit = tokio::time::timeout(PATIENCE, runtime.wait("one")).await??;
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.error), (3, None, false, None));
    assert!(exit.started_at.is_some_and(|started| started <= exit.finished_at));
    assert!(matches!(runtime.state("one").await?, State::Exited(exit) if exit.code == 3));
    assert_eq!(runtime.wait("one").await?.code, 3, "a second wait answers at once");
    assert!(matches!(runtime.signal("one", 15).await, Err(Error::NotRunning(_))));
    let mut reader = runtime.logs("one");
    let mut seen = Vec::new();
    while let Some(line) = reader.next().await {
        let line = line?;
        seen.push((line.stream, String::from_utf8(line.bytes)?));
    }
    seen.sort_by_key(|(stream, _)| *stream == Stream::Stderr);
    assert_eq!(seen, [(Stream::Stdout, "out".into()), (Stream::Stderr, "err".into())]);
    runtime.remove("one").await?;
    runtime.remove("one").await?;
    assert_eq!(runtime.state("one").await?, State::Missing);
    assert!(matches!(runtime.wait("one").await, Err(Error::NotFound(_))));
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn an_ended_one_is_made_anew_and_what_it_printed_stays() -> Result<()> {
    let fixture = Fixture::new()?;
    let runtime = &fixture.runtime;
    let spec = fixture.shell("again", "test -e /left && echo dirty; touch /left; echo run; exit 5");
    assert!(matches!(runtime.renew(&spec).await, Err(Error::NotFound(_))));
    runtime.create(&spec).await?;
    assert!(matches!(runtime.renew(&spec).await, Err(Error::Exists(_))), "it has not ended");
    let created = runtime.inspect("again").await?.created_at;
    for restarts in 1..=2 {
        runtime.start("again").await?;
        assert_eq!(tokio::time::timeout(PATIENCE, runtime.wait("again")).await??.code, 5);
        runtime.renew(&spec).await?;
        assert_eq!(runtime.state("again").await?, State::Created);
        let record = runtime.inspect("again").await?;
        assert_eq!((record.restarts, record.created_at), (restarts, created));
    }
    assert_eq!(fixture.lines("again").await?, ["run", "run"], "every run's lines, and a fresh layer each");
    runtime.start("again").await?;
    tokio::time::timeout(PATIENCE, runtime.wait("again")).await??;
    // What can't be made is over, and its log still there.
    let mut broken = spec.clone();
    broken.layers = vec!["/nonexistent".into()];
    assert!(matches!(runtime.renew(&broken).await, Err(Error::Failed { .. })));
    let State::Exited(exit) = runtime.state("again").await? else { anyhow::bail!("it has not ended") };
    assert!(exit.code == 255 && exit.error.is_some_and(|error| error.contains("layer")), "no reason");
    assert_eq!(fixture.lines("again").await?, ["run", "run", "run"]);
    runtime.remove("again").await?;
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn signals_and_grace() -> Result<()> {
    let fixture = Fixture::new()?;
    let runtime = &fixture.runtime;
    // It has a handler: it may end by itself.
    runtime
        .create(&fixture.shell("polite", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done"))
        .await?;
    runtime.start("polite").await?;
    fixture.printed("polite", "ready").await?;
    assert_eq!(runtime.stop("polite", PATIENCE).await?.code, 7);
    assert_eq!(fixture.lines("polite").await?, ["ready", "bye"]);
    // It has none, so process 1 ignores it, and is killed.
    runtime.create(&fixture.spec("stubborn", &["sleep", "1000"])).await?;
    runtime.start("stubborn").await?;
    let exit = runtime.stop("stubborn", Duration::from_millis(50)).await?;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    // The image's own stop signal.
    let mut spec = fixture.shell("quit", "trap 'exit 9' QUIT; echo ready; while :; do sleep 0.1; done");
    spec.stop_signal = "SIGQUIT".into();
    runtime.create(&spec).await?;
    runtime.start("quit").await?;
    fixture.printed("quit", "ready").await?;
    assert_eq!(runtime.stop("quit", PATIENCE).await?.code, 9);
    // Never started.
    runtime.create(&fixture.spec("waiting", &["true"])).await?;
    let exit = runtime.stop("waiting", PATIENCE).await?;
    assert_eq!((exit.signal, exit.started_at), (Some(9), None));
    Ok(())
}

#[tokio::test]
async fn an_init_reaps_and_forwards() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut spec = fixture.spec("init", &["sleep", "1000"]);
    spec.init = true;
    fixture.runtime.create(&spec).await?;
    fixture.runtime.start("init").await?;
    // The program isn't process 1, so the default action of SIGTERM holds.
    let exit = fixture.runtime.stop("init", PATIENCE).await?;
    assert_eq!((exit.code, exit.signal), (143, None));
    let mut spec =
        fixture.shell("orphans", "(sleep 0.01 &) ; sleep 0.3; cat /proc/[0-9]*/stat | grep -c ') Z '; exit 5");
    spec.init = true;
    let (exit, lines) = fixture.run(&spec).await?;
    assert_eq!((exit.code, lines), (5, vec!["0".to_owned()]));
    Ok(())
}

#[tokio::test]
async fn programs_that_can_not_run() -> Result<()> {
    let fixture = Fixture::new()?;
    std::fs::write(fixture.layer.join("bin/text"), "no program")?;
    for (id, program, code) in [
        ("absent", "/bin/nope", 127),
        ("lookup", "nope", 127),
        ("denied", "/etc/passwd", 126),
        ("format", "/bin/text", 126),
    ] {
        if id == "format" {
            std::fs::set_permissions(
                fixture.layer.join("bin/text"),
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )?;
        }
        fixture.runtime.create(&fixture.spec(id, &[program])).await?;
        let error = fixture.runtime.start(id).await.expect_err("it can't run").to_string();
        assert!(error.contains(program), "{error}");
        let exit = fixture.runtime.wait(id).await?;
        assert_eq!(exit.code, code, "{id}");
        assert!(exit.error.is_some_and(|reason| reason.contains(program)));
    }
    Ok(())
}

#[tokio::test]
async fn environment_accounts_and_files() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut spec = fixture.shell(
        "all",
        "id -u; id -g; id -G; echo $HOME; pwd; hostname; cat /etc/hostname; echo $A; tail -n 1 /etc/hosts; cat /etc/resolv.conf; \
         cat /run/secrets/key; stat -c '%a %u %g' /run/secrets/key; echo x 2>/dev/null > /run/secrets/key || echo read-only; \
         echo hi > /scratch/f && cat /scratch/f; cat /data/host; (echo x > /data/new) 2>/dev/null || echo read-only",
    );
    let data = tempfile::tempdir()?;
    std::fs::write(data.path().join("host"), "from the host\n")?;
    std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    spec.user = "app".into();
    spec.env = vec!["A=1".into(), "A=2".into()];
    spec.cwd = "/made/for/you".into();
    spec.hostname = "hive".into();
    spec.hosts = vec![("10.0.0.9".into(), vec!["queen".into(), "q".into()])];
    spec.files = vec![InjectedFile {
        path: "/run/secrets/key".into(),
        bytes: b"s3cret\n".to_vec(),
        uid: 1001,
        gid: 1002,
        mode: 0o400,
    }];
    spec.mounts = vec![
        Mount::Tmpfs { target: "/scratch".into(), size: Some(1 << 20), mode: None, read_only: false },
        Mount::Bind { source: data.path().into(), target: "/data".into(), read_only: true },
    ];
    let (exit, lines) = fixture.run(&spec).await?;
    assert_eq!(
        lines,
        [
            "1001",
            "1002",
            "1002 29",
            "/home",
            "/made/for/you",
            "hive",
            "hive",
            "2",
            "10.0.0.9\tqueen q",
            "nameserver 127.0.0.11",
            "s3cret",
            "400 1001 1002",
            "read-only",
            "hi",
            "from the host",
            "read-only",
        ]
    );
    assert_eq!(exit.code, 0);
    for (user, groups, expected) in [
        ("", vec![], "0 0 0"),
        ("1000", vec![], "1000 0 0"),
        ("1000:77", vec!["extra".to_owned()], "1000 77 29 77"),
        ("app:extra", vec![], "1001 29 29"),
    ] {
        let mut spec = fixture.shell("who", "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n)");
        std::os::unix::fs::symlink("busybox", fixture.layer.join("bin/tr")).ok();
        std::os::unix::fs::symlink("busybox", fixture.layer.join("bin/sort")).ok();
        spec.user = user.into();
        spec.groups = groups;
        let (_, lines) = fixture.run(&spec).await?;
        assert_eq!(lines, [expected], "user {user:?}");
    }
    let mut spec = fixture.shell("ghost", "true");
    spec.user = "ghost".into();
    let error = fixture.runtime.create(&spec).await.expect_err("no such user").to_string();
    assert!(error.contains("ghost"), "{error}");
    Ok(())
}

#[tokio::test]
async fn nothing_of_a_failed_create_is_left() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut no_source = fixture.shell("a", "true");
    no_source.mounts = vec![Mount::Bind { source: "/does/not/exist".into(), target: "/x".into(), read_only: false }];
    let mut no_layer = fixture.shell("b", "true");
    no_layer.layers = vec!["/does/not/exist".into()];
    let mut no_network = fixture.shell("c", "true");
    no_network.netns = Some("/does/not/exist".into());
    for spec in [no_source, no_layer, no_network] {
        let error = fixture.runtime.create(&spec).await.expect_err("it can't be made").to_string();
        assert!(error.contains("/does/not/exist") || spec.id == "c", "{error}");
        assert_eq!(fixture.traces(), Vec::<String>::new(), "after {error}");
    }
    Ok(())
}

#[tokio::test]
async fn output_is_followed_and_bounded() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut spec = fixture.shell("flood", "yes 0123456789 | head -n 200000; echo done; sleep 1000");
    spec.log = LogOptions { max_size: 64 << 10, max_files: 3 };
    fixture.runtime.create(&spec).await?;
    fixture.runtime.start("flood").await?;
    fixture.printed("flood", "done").await?;
    let directory = fixture.config.state_dir.join("flood/log");
    let sizes: Vec<u64> = std::fs::read_dir(directory)?
        .map(|entry| entry.and_then(|entry| entry.metadata()).map(|found| found.len()))
        .collect::<Result<_, _>>()?;
    assert!(sizes.len() <= 3 && sizes.iter().all(|size| *size <= 64 << 10), "{sizes:?}");
    // The supervisor answers at once in the middle of a flood.
    let mut spec = fixture.shell("endless", "yes");
    spec.log = LogOptions { max_size: 64 << 10, max_files: 1 };
    fixture.runtime.create(&spec).await?;
    fixture.runtime.start("endless").await?;
    fixture.printed("endless", "y").await?;
    assert!(matches!(fixture.runtime.state("endless").await?, State::Running { .. }));
    assert_eq!(fixture.runtime.stop("endless", Duration::from_millis(10)).await?.signal, Some(9));
    // A follower ends when the container does.
    let runtime = fixture.runtime.clone();
    let follower = tokio::spawn(async move {
        let mut reader = runtime.logs("flood").tail(Some(1)).follow(true);
        let mut count = 0;
        while reader.next().await.is_some() {
            count += 1;
        }
        count
    });
    fixture.runtime.stop("flood", Duration::from_millis(10)).await?;
    assert!(tokio::time::timeout(PATIENCE, follower).await?? >= 1);
    Ok(())
}

#[tokio::test]
async fn a_terminal() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut spec = fixture.shell(
        "tty",
        "test -t 0 && test -t 1 && test -t 2 && echo terminal; stat -c %t:%T -L /dev/console; echo $TERM",
    );
    spec.tty = true;
    let (exit, lines) = fixture.run(&spec).await?;
    assert_eq!(exit.code, 0);
    assert_eq!(lines[0].trim_end(), "terminal");
    assert!(lines[1].starts_with("88:"), "the console is a pts by its device number: {}", lines[1]);
    assert_eq!(lines[2].trim_end(), "xterm");
    Ok(())
}

#[tokio::test]
async fn many_at_once() -> Result<()> {
    let fixture = std::sync::Arc::new(Fixture::new()?);
    let mut runs = tokio::task::JoinSet::new();
    for n in 0..12 {
        let fixture = fixture.clone();
        runs.spawn(async move {
            fixture.run(&fixture.shell(&format!("c{n}"), &format!("exit {n}"))).await.map(|(exit, _)| (n, exit))
        });
    }
    while let Some(result) = runs.join_next().await {
        let (n, exit) = result??;
        assert_eq!(exit.code, n);
    }
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn removing_a_running_one() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.shell("busy", "sleep 1000 & sleep 1000 & wait")).await?;
    fixture.runtime.start("busy").await?;
    let pids = [init_pid(&fixture.config, "busy")?, shim_pid(&fixture.config, "busy")?];
    let waiting = tokio::spawn({
        let runtime = fixture.runtime.clone();
        async move { runtime.wait("busy").await }
    });
    fixture.runtime.remove("busy").await?;
    until("its processes are gone", || !pids.iter().any(|pid| alive(*pid))).await?;
    // Whoever waited learns that it is gone, or how it ended if that was noted first.
    assert!(!matches!(tokio::time::timeout(PATIENCE, waiting).await??, Ok(exit) if exit.code == 0));
    assert_eq!(fixture.traces(), Vec::<String>::new());
    Ok(())
}
