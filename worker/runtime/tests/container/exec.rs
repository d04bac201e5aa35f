//! Further programs in a running container.

use std::path::Path;

use anyhow::{Context, Result};
use skep_runtime::{Error, Exec, ExecSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Fixture, PATIENCE, alive, unified, until};

/// Its exit code and what it printed on both streams.
pub(crate) async fn finish(mut exec: Exec) -> Result<(i32, String)> {
    let mut text = String::new();
    let reading = async {
        exec.stdin.take();
        exec.stdout.take().context("stdout")?.read_to_string(&mut text).await?;
        exec.stderr.take().context("stderr")?.read_to_string(&mut text).await?;
        anyhow::Ok(exec.wait().await?)
    };
    let code = tokio::time::timeout(PATIENCE, reading).await??;
    Ok((code, text))
}

pub(crate) fn words(args: &[&str]) -> ExecSpec {
    ExecSpec { args: args.iter().map(ToString::to_string).collect(), ..ExecSpec::default() }
}

#[tokio::test]
async fn it_is_inside_with_the_same_restrictions() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut spec = fixture.probe("host", "/probe");
    spec.args = vec!["sleep".into(), "1000".into()];
    spec.env = vec!["A=1".into(), "B=1".into()];
    spec.cwd = "/home".into();
    fixture.runtime.create(&spec).await?;
    assert!(
        matches!(fixture.runtime.exec("host", &words(&["true"])).await, Err(Error::NotRunning(_))),
        "not before the start"
    );
    let pid = fixture.runtime.start("host").await?.pid;

    let run = async |wish: ExecSpec| finish(fixture.runtime.exec("host", &wish).await?).await;
    let (code, text) = run(words(&["sh", "-c", "pwd; echo $A $B $HOME; id -u; echo err >&2; exit 4"])).await?;
    assert_eq!((code, text.as_str()), (4, "/home\n1 1 /root\n0\nerr\n"));
    let wish = ExecSpec {
        env: vec!["B=2".into()],
        user: Some("app".into()),
        cwd: Some("/tmp".into()),
        ..words(&["sh", "-c", "pwd; echo $A $B; id -u; id -G"])
    };
    assert_eq!(run(wish).await?, (0, "/tmp\n1 2\n1001\n1002 29\n".into()));
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let path = format!("/proc/{pid}/ns/{kind}");
        let (_, text) = run(words(&["readlink", &format!("/proc/self/ns/{kind}")])).await?;
        assert_eq!(text.trim(), std::fs::read_link(path)?.to_string_lossy(), "{kind}");
    }
    assert_eq!(run(words(&["ls", "/proc/self/fd"])).await?, (0, "0\n1\n2\n3\n".into()));
    let caps = if unified() { "CapEff:\t00000000a00425fb" } else { "CapEff:\t00000000a80425fb" };
    let (code, text) = run(words(&["/probe", "probe"])).await?;
    assert_eq!(code, 0, "{text}");
    for line in [
        "keyctl 1",
        "unshare 1",
        "clone_newuser 1",
        "clone_plain ok",
        "Seccomp:\t2",
        caps,
        "SigIgn:\t0000000000001000",
        "chmod_own_exe 30",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} in {text}");
    }
    let (_, text) = run(words(&["/proc/self/exe", "probe"])).await?;
    assert!(!text.contains("chmod_own_exe ok"), "{text}");
    let (code, text) = run(words(&["nope"])).await?;
    assert!(code == 127 && text.contains("nope"), "{code} {text}");
    for number in 0..20 {
        std::os::unix::fs::symlink(
            format!("/proc/self/fd/{number}"),
            Path::new("/proc").join(pid.to_string()).join(format!("root/tmp/w{number}")),
        )?;
        let wish = ExecSpec { cwd: Some(format!("/tmp/w{number}")), ..words(&["pwd"]) };
        let (code, text) = run(wish).await?;
        assert_eq!(code, 125, "{text}");
        assert!(
            fixture
                .runtime
                .exec("host", &ExecSpec { cwd: Some(format!("/proc/self/fd/{number}")), ..words(&["pwd"]) })
                .await
                .is_err()
        );
    }
    Ok(())
}

#[tokio::test]
async fn input_and_the_end() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.spec("host", &["sleep", "1000"])).await?;
    let pid = fixture.runtime.start("host").await?.pid;
    let mut exec = fixture.runtime.exec("host", &words(&["cat"])).await?;
    exec.stdin.as_mut().context("stdin")?.write_all(b"hello").await?;
    assert_eq!(finish(exec).await?, (0, "hello".into()));
    // Dropped, the program dies.
    let exec = fixture.runtime.exec("host", &words(&["sleep", "777"])).await?;
    let inside = || {
        std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| {
            std::fs::read_to_string(process.path().join("cmdline")).is_ok_and(|line| line == "sleep\x00777\x00")
                && std::fs::read_link(process.path().join("ns/pid")).ok()
                    == std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
        })
    };
    until("it runs", inside).await?;
    drop(exec);
    until("it is gone", || !inside()).await?;
    // The container's end is the end of all in it.
    let mut exec = fixture.runtime.exec("host", &words(&["sleep", "1000"])).await?;
    fixture.runtime.signal("host", 9).await?;
    assert!([137, 125].contains(&tokio::time::timeout(PATIENCE, exec.wait()).await??));
    until("process 1 is gone", || !alive(pid)).await?;
    fixture.runtime.wait("host").await?;
    assert!(matches!(fixture.runtime.exec("host", &words(&["true"])).await, Err(Error::NotRunning(_))));
    Ok(())
}

#[tokio::test]
async fn a_paused_container_hangs_nobody() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.spec("ice", &["sleep", "1000"])).await?;
    fixture.runtime.start("ice").await?;
    let group = fixture.config.cgroup_parent.as_str();
    let (directory, file, frozen) = if unified() {
        (Path::new("/sys/fs/cgroup").join(group).join("ice"), "cgroup.freeze", "1")
    } else {
        (Path::new("/sys/fs/cgroup/freezer").join(group).join("ice"), "freezer.state", "FROZEN")
    };
    if !directory.join(file).exists() {
        println!("UNTESTED: exec into a frozen container, no freezer here");
        return Ok(());
    }
    std::fs::write(directory.join(file), frozen)?;
    until("it is frozen", || {
        let says = |file: &str, text: &str| {
            std::fs::read_to_string(directory.join(file)).is_ok_and(|known| known.lines().any(|line| line == text))
        };
        if unified() { says("cgroup.events", "frozen 1") } else { says(file, frozen) }
    })
    .await?;
    let (code, text) = finish(fixture.runtime.exec("ice", &words(&["true"])).await?).await?;
    assert!(code == 125 && text.contains("paused"), "{code} {text}");
    // And it can be removed as it is.
    fixture.runtime.remove("ice").await?;
    Ok(())
}
