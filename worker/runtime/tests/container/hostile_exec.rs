//! Containers that lie in wait for whoever enters them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use skep_runtime::ExecSpec;

use crate::exec::{finish, words};
use crate::fixture::{BINARY, Fixture, PATIENCE, until};

/// CVE-2019-5736: a program that is exec'd is a copy of the supervisor for a moment, or for longer when it asks to be
/// `/proc/self/exe`. Root of the container takes hold of that file, waits until nobody runs it, and writes to it.
#[tokio::test]
async fn the_binary_of_whoever_enters() -> Result<()> {
    let fixture = Fixture::new()?;
    let before = fs::read(BINARY)?;
    let mut spec = fixture.probe("trap", "/bin/sh");
    let script = "while :; do
            for p in /proc/[0-9]*; do
                case $(readlink $p/exe) in
                    ''|*busybox) ;;
                    *) exec 9< $p/exe || continue
                       echo caught
                       (echo x >> $p/exe) 2>&1
                       until ! test -e $p/exe; do :; done
                       (echo x >> /proc/self/fd/9) 2>&1
                       chmod 777 /proc/self/fd/9 2>&1
                       echo over
                       exit ;;
                esac
            done
        done";
    spec.args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    spec.cap_add = vec!["ALL".into()];
    spec.seccomp = skep_runtime::Seccomp::Unconfined;
    fixture.runtime.create(&spec).await?;
    fixture.runtime.start("trap").await?;
    // It waits for an order, as every helper does at first, until its input ends.
    let mut exec = fixture.runtime.exec("trap", &words(&["/proc/self/exe", "shim", "exec"])).await?;
    fixture.printed("trap", "caught").await?;
    drop(exec.stdin.take());
    tokio::time::timeout(PATIENCE, exec.wait()).await??;
    tokio::time::timeout(PATIENCE, fixture.runtime.wait("trap")).await??;
    let lines = fixture.lines("trap").await?;
    assert_eq!(lines.last().map(String::as_str), Some("over"), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("can't create")).count(), 2, "{lines:?}");
    // And not only because its supervisor still runs from the same file: the mount is read-only.
    assert!(lines.iter().any(|line| line.contains("chmod") && line.contains("Read-only file system")), "{lines:?}");
    assert!(fs::read(BINARY)? == before, "the binary was written to");
    Ok(())
}

/// The helper has every right of the host's root; inside, it opens nothing by a name that the container chooses.
#[tokio::test]
async fn a_null_device_that_is_a_trap() -> Result<()> {
    let fixture = Fixture::new()?;
    let script = "touch /trap; rm /dev/null; ln -s /trap /dev/null; echo set; while :; do sleep 1; done";
    fixture.runtime.create(&fixture.shell("trap", script)).await?;
    fixture.runtime.start("trap").await?;
    fixture.printed("trap", "set").await?;
    let mut exec = fixture.runtime.exec("trap", &words(&["sh", "-c", "echo in; exec sleep 1000"])).await?;
    let helper = || {
        fs::read_dir("/proc/self/task").into_iter().flatten().flatten().find_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).ok()?;
            children.split_whitespace().find_map(|pid| {
                let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
                words.contains("shim\0exec").then(|| pid.to_owned())
            })
        })
    };
    let mut seen = String::new();
    until("the helper has let go of the program's streams", || {
        let Some(pid) = helper() else { return false };
        let targets: Vec<String> = (0..3)
            .filter_map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok())
            .map(|path| path.display().to_string())
            .collect();
        seen = targets.join(" ");
        targets.len() == 3 && !seen.contains("pipe:")
    })
    .await?;
    assert_eq!(seen, "/dev/null /dev/null /dev/null");
    drop(exec.stdout.take());
    drop(exec);
    // And others go on.
    assert_eq!(finish(fixture.runtime.exec("trap", &words(&["echo", "still"])).await?).await?, (0, "still\n".into()));
    Ok(())
}

/// CVE-2026-47262, CVE-2026-46680: account files that the container changed after it was made.
#[tokio::test]
async fn accounts_that_changed_meanwhile() -> Result<()> {
    let fixture = Fixture::new()?;
    fixture.runtime.create(&fixture.spec("host", &["sleep", "1000"])).await?;
    let pid = fixture.runtime.start("host").await?.pid;
    let run = async |wish: ExecSpec| finish(fixture.runtime.exec("host", &wish).await?).await;
    let app = || ExecSpec { user: Some("app".into()), ..words(&["id", "-u"]) };
    assert_eq!(run(app()).await?, (0, "1001\n".into()));
    let passwd = Path::new("/proc").join(pid.to_string()).join("root/etc/passwd");
    for (how, complaint) in [("flood", "is larger than"), ("pipe", "is not a regular file")] {
        if how == "flood" {
            fs::File::create(&passwd)?.set_len(1 << 30)?;
        } else {
            fs::remove_file(&passwd)?;
            assert!(std::process::Command::new("mkfifo").arg(&passwd).status()?.success());
        }
        let begun = Instant::now();
        let (code, text) = run(app()).await?;
        assert!(code == 125 && text.contains(complaint), "{how}: {code} {text}");
        assert!(begun.elapsed() < PATIENCE / 4, "{how} was waited for");
    }
    // A user who is named like a number.
    fs::remove_file(&passwd)?;
    fs::write(&passwd, "0:x:1234:0::/:/bin/sh\nroot:x:0:0::/root:/bin/sh\n")?;
    assert_eq!(run(ExecSpec { user: Some("0".into()), ..words(&["id", "-u"]) }).await?, (0, "0\n".into()));
    // A link out of the root by way of the kernel is not followed: there is no such file then.
    fs::write(passwd.with_file_name("other"), "root:x:0:0::/root:/bin/sh\n")?;
    fs::remove_file(&passwd)?;
    symlink("/etc/other", &passwd)?;
    assert_eq!(run(ExecSpec { user: Some("root".into()), ..words(&["true"]) }).await?.0, 0, "or this proves nothing");
    fs::remove_file(&passwd)?;
    symlink("/proc/1/root/etc/other", &passwd)?;
    let (code, text) = run(ExecSpec { user: Some("root".into()), ..words(&["true"]) }).await?;
    assert!(code == 125 && text.contains("root"), "{code} {text}");
    Ok(())
}
