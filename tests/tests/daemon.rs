//! `skep daemon` as a process: what it tells its service manager, what it logs, and how it takes signals.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use skep_deploy::lab::Stage;
use skep_tests::{Cluster, DEADLINE, eventually, program};

/// How long an orderly end may take.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// What log lines call their weight.
const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];

/// The directories of one daemon.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let place = Self { dir: tempfile::Builder::new().prefix("skep-daemon").tempdir()? };
        std::fs::write(place.settings(), "log-level = \"info\"\n")?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn settings(&self) -> PathBuf {
        self.path("skep.toml")
    }

    fn socket(&self) -> PathBuf {
        self.path("skep.sock")
    }

    /// Asks the daemon something.
    fn skep(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg("20").arg(program("skep")?).args(args);
        let output = command.env("SKEP_HOST", format!("unix://{}", self.socket().display())).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }
}

/// A daemon that runs on a machine.
struct Daemon {
    /// Enters the machine, waits there, and ends as the daemon does.
    helper: Child,
    pid: i32,
    told: UnixDatagram,
    /// Where its standard output and its log are.
    files: [PathBuf; 2],
}

impl Daemon {
    /// Starts one, and waits until it says that it is ready. `start` tells the starts in one place apart.
    fn start(cluster: &Cluster, place: &Place, start: &str) -> Result<Self> {
        let notify = place.path(&format!("notify-{start}"));
        let told = UnixDatagram::bind(&notify)?;
        told.set_read_timeout(Some(DEADLINE))?;
        let files = ["out", "log"].map(|name| place.path(&format!("{name}-{start}")));
        let mut helper = command(cluster, place, "run", "skep.sock")?
            .env("NOTIFY_SOCKET", &notify)
            .stdout(File::create(&files[0])?)
            .stderr(File::create(&files[1])?)
            .spawn()?;
        let pid = eventually("the daemon's process", || {
            let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", helper.id()))?;
            Ok(children.split_whitespace().next().context("none yet")?.parse()?)
        });
        let Ok(pid) = pid else {
            helper.kill()?;
            bail!("{:?}; {}", helper.wait()?, std::fs::read_to_string(&files[1])?);
        };
        let daemon = Self { helper, pid, told, files };
        daemon.tells("READY=1")?;
        Ok(daemon)
    }

    /// Waits until it has sent this to its service manager.
    fn tells(&self, what: &str) -> Result<()> {
        let mut buffer = [0; 4096];
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            let size = self.told.recv(&mut buffer).with_context(|| format!("no {what}; {}", self.said()))?;
            if String::from_utf8_lossy(&buffer[..size]).lines().any(|line| line == what) {
                return Ok(());
            }
        }
        bail!("no {what} among other news")
    }

    /// All that it has written so far.
    fn said(&self) -> String {
        self.files.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect()
    }

    /// Its log so far: every line is an object with a time, a level and a message.
    fn lines(&self) -> Result<Vec<serde_json::Value>> {
        let said = self.said();
        // The last line may be half written while it runs.
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        let parsed = whole.lines().map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            let level = value["level"].as_str().with_context(|| format!("no level: {line}"))?;
            ensure!(LEVELS.contains(&level), "an unknown level: {line}");
            ensure!(line.matches("\"level\":").count() == 1, "a field that hides the level: {line}");
            ensure!(value["timestamp"].is_string() && value["message"].is_string(), "no time or message: {line}");
            Ok(value)
        });
        parsed.collect()
    }

    /// Waits for a line of this level whose message has this in it, after so many others, and returns how many there are.
    fn logs(&self, after: usize, level: &str, message: &str) -> Result<usize> {
        eventually(&format!("{level} {message:?} in the log"), || {
            let lines = self.lines()?;
            let fits = |line: &serde_json::Value| {
                let said = line["level"] == level;
                said && line["message"].as_str().is_some_and(|m| m.contains(message))
            };
            ensure!(lines.iter().skip(after).any(fits), "{:?}", lines.iter().skip(after).collect::<Vec<_>>());
            Ok(lines.len())
        })
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let sent = Command::new("kill").args([signal, &self.pid.to_string()]).status()?;
        ensure!(sent.success(), "{signal} was not sent");
        Ok(())
    }

    /// Sends a signal that is to end it, and waits for that.
    fn ended(&mut self, signal: &str) -> Result<(ExitStatus, Duration)> {
        let begun = Instant::now();
        self.signal(signal)?;
        self.tells("STOPPING=1")?;
        Ok((self.end()?, begun.elapsed()))
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let status = eventually("the daemon's end", || self.helper.try_wait()?.context("it runs"));
        status.with_context(|| self.said())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon:\n{}", self.said());
        }
        // The machine takes the daemon itself with it.
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// A daemon in this place, with this name of its run directory and of its socket.
fn command(cluster: &Cluster, place: &Place, run: &str, socket: &str) -> Result<Command> {
    let mut command = cluster.lab.exec("n1", &program("skep")?.to_string_lossy())?;
    command
        .arg("daemon")
        .args(["--config".as_ref(), place.settings().as_os_str()])
        .args(["--data-dir".as_ref(), place.path("data").as_os_str()])
        .args(["--run-dir".as_ref(), place.path(run).as_os_str()])
        .args(["--host", &format!("unix://{}", place.path(socket).display())])
        .args(["--cgroup-parent", &format!("skep-lab-{}/n1", cluster.name())])
        .args(["--log-format", "json"])
        .stdin(Stdio::null());
    Ok(command)
}

/// A daemon beside another one in the same data directory, until its end: whether it succeeded, and what it said.
fn second(cluster: &Cluster, place: &Place) -> Result<(bool, String)> {
    let file = place.path("second");
    let mut command = command(cluster, place, "run2", "second.sock")?;
    let mut child = command.stdout(Stdio::null()).stderr(File::create(&file)?).spawn()?;
    let ended = eventually("the second daemon's end", || child.try_wait()?.context("it runs"));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    Ok((ended?.success(), std::fs::read_to_string(file)?))
}

fn refused(path: &Path) -> Result<()> {
    ensure!(UnixStream::connect(path).is_err(), "{} is served", path.display());
    Ok(())
}

#[test]
fn a_daemon_keeps_its_word_to_its_service_manager_its_log_and_whoever_signals() -> Result<()> {
    let place = Place::new()?;
    let cluster = Cluster::staged("daemon", 1, 1, Stage::Machines)?;
    let mut daemon = Daemon::start(&cluster, &place, "first")?;
    // Ready means that it can be asked, at once.
    assert_eq!(place.skep(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?.trim(), "inactive");
    place.skep(&["swarm", "init", "--advertise-addr", &cluster.lab.address("n1")?])?;
    daemon.logs(0, "INFO", "daemon ready")?;

    let (succeeded, said) = second(&cluster, &place)?;
    assert!(!succeeded, "{said}");
    let data = place.path("data");
    assert!(said.contains(&format!("another skep daemon uses {}", data.display())), "{said}");
    assert!(said.contains("--data-dir"), "no way out is named: {said}");
    refused(&place.path("second.sock"))?;
    place.skep(&["node", "ls"])?;

    settings(&place, &daemon)?;

    let (status, took) = daemon.ended("-TERM")?;
    assert!(status.success() && took < ENDS_WITHIN, "{status} after {took:?}: {}", daemon.said());
    assert!(!place.socket().exists(), "the socket is still there");
    daemon.logs(0, "INFO", "stopped")?;
    daemon.lines()?;
    drop(daemon);

    // The same node again: what it was is in its data directory.
    let mut daemon = Daemon::start(&cluster, &place, "again")?;
    eventually("the node to lead again", || {
        let listed = place.skep(&["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"])?;
        ensure!(listed.trim() == "n1 Ready Leader", "{listed}");
        Ok(())
    })?;
    let (status, took) = daemon.ended("-INT")?;
    assert!(status.success() && took < ENDS_WITHIN, "{status} after {took:?}: {}", daemon.said());
    assert!(!place.socket().exists(), "the socket is still there");
    daemon.lines()?;
    drop(daemon);

    // A request that never ends is waited for, but not against somebody who insists.
    let mut daemon = Daemon::start(&cluster, &place, "forced")?;
    let mut upload = UnixStream::connect(place.socket())?;
    upload.set_read_timeout(Some(DEADLINE))?;
    write!(upload, "POST /images/load HTTP/1.1\r\nHost: skep\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")?;
    let mut asked = [0; 12];
    upload.read_exact(&mut asked)?;
    assert_eq!(&asked, b"HTTP/1.1 100", "the body is not read");
    daemon.signal("-TERM")?;
    daemon.tells("STOPPING=1")?;
    daemon.signal("-TERM")?;
    let status = daemon.end()?;
    assert!(status.success(), "{status}: {}", daemon.said());
    daemon.logs(0, "WARN", "a second signal forced the stop")?;
    assert!(!place.socket().exists(), "the socket is still there");
    drop((daemon, upload));
    cluster.down()?;
    // Nothing is mounted in there any more.
    Ok(place.dir.close()?)
}

/// SIGHUP takes a new log level into force, and a file that can't be used changes nothing.
fn settings(place: &Place, daemon: &Daemon) -> Result<()> {
    let debug = |line: &serde_json::Value| line["level"] == "DEBUG";
    let before = daemon.lines()?;
    assert!(!before.iter().any(debug), "it told more than it was asked to");
    std::fs::write(place.settings(), "log-level = \"debug\"\n")?;
    daemon.signal("-HUP")?;
    eventually("an acknowledgement", || {
        let lines = daemon.lines()?;
        let known =
            |line: &serde_json::Value| line["message"].as_str().is_some_and(|m| m.contains("settings read again"));
        ensure!(lines.iter().skip(before.len()).any(known), "none yet");
        Ok(())
    })?;
    eventually("a line that was not told before", || {
        place.skep(&["node", "ls"])?;
        ensure!(daemon.lines()?.iter().any(debug), "none yet");
        Ok(())
    })?;
    for broken in ["log-level = \n", "log-level = \"no=such=thing\"\n", "no-such-key = 1\n"] {
        let before = daemon.lines()?.len();
        std::fs::write(place.settings(), broken)?;
        daemon.signal("-HUP")?;
        daemon.logs(before, "WARN", "settings can't be read again; nothing changed")?;
        place.skep(&["node", "ls"])?;
    }
    // Less is told again, and what was broken is forgotten.
    std::fs::write(place.settings(), "log-level = \"info\"\n")?;
    let before = daemon.lines()?.len();
    daemon.signal("-HUP")?;
    daemon.logs(before, "INFO", "settings read again").map(|_| ())
}
