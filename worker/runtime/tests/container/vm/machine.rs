//! A machine emulated in software: boots a kernel and an initial file system, and hands out what was printed.
//!
//! Never outlives its test, nor its own deadline. One that comes to no end is asked from outside what its processors
//! do, then made to panic, so that its kernel tells the rest: inside, nothing may be alive enough to tell.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

const EMULATOR: &str = "qemu-system-x86_64";
/// One processor. With more, versions before 8.1 now and then go on with a stale translation of an instruction that the
/// kernel is just patching: the breakpoint that stood there meanwhile. Such a processor takes that trap for ever, for the
/// branch on `cpu.max` being in use with a run queue locked, and the other one waits for it. The test that sets the first
/// quota of the machine met that once in some runs.
const PROCESSORS: &str = "1";
/// From the start of the emulator to its end: some 15 s to boot, and what the tests take.
const DEADLINE: Duration = Duration::from_secs(230);
/// More than any run prints.
const MAX_TRANSCRIPT: u64 = 4 << 20;
/// The longest that a machine without end may take to tell why: some hundred kernel stacks over a serial port.
const TELLING: Duration = Duration::from_secs(25);
/// The longest that the emulator may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How often its processors are looked at: one look can't tell a loop from a passage.
const LOOKS: usize = 4;
/// The kernel's part of it. An interrupt that can't be masked is a panic, which shows every task's stack, the memory, the
/// timers and the processors; addresses are those of every other boot, so that registers can be read.
const TELLS: &str = "unknown_nmi_panic panic_print=0x47 nokaslr";

/// The socket on which the emulator answers, beside the initial file system.
const MONITOR: &str = "monitor";

/// A kernel package, unpacked by `make setup-test`.
pub(super) struct Kernel {
    image: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The fetched kernel; says UNTESTED when it or the emulator is missing.
    pub(super) fn find(what: &str) -> Result<Option<Self>> {
        // In the target directory, which is one further up where a target was named.
        let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let place = temporary.ancestors().map(|above| above.join("test-kernel")).find(|place| place.exists());
        let emulator = Command::new(EMULATOR).arg("--version").stdout(Stdio::null()).status();
        let emulates = cfg!(target_arch = "x86_64") && emulator.is_ok_and(|status| status.success());
        let (true, Some(place)) = (emulates, place) else {
            println!(
                "UNTESTED: {what}, no {EMULATOR} or no test-kernel above {}; `make setup-test`",
                temporary.display()
            );
            return Ok(None);
        };
        let image = single(&place.join("boot"), "vmlinuz-")?;
        // The directory is below usr on systems newer than Debian 12.
        let lib = [place.join("usr/lib/modules"), place.join("lib/modules")].into_iter().find(|path| path.exists());
        let modules = single(&lib.context("the kernel has no modules")?, "")?.join("kernel");
        Ok(Some(Kernel { image, modules }))
    }
}

/// The one entry of a directory that begins so.
fn single(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut found = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let first = found.next().with_context(|| format!("no {prefix}* in {}", directory.display()))?;
    if found.next().is_some() {
        bail!("several {prefix}* in {}: remove the directory and run `make setup-test`", directory.display());
    }
    Ok(first.path())
}

/// A running machine; dropping it ends it.
pub(super) struct Machine {
    emulator: Child,
    /// Has the initial file system and the kernel's own words.
    directory: tempfile::TempDir,
}

impl Machine {
    /// Starts it. The second serial port is for the tests; the kernel talks on the first.
    pub(super) fn boot(kernel: &Kernel, initramfs: &[u8], words: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let initrd = directory.path().join("initramfs");
        std::fs::write(&initrd, initramfs)?;
        let console = directory.path().join("console");
        let emulator = Command::new(EMULATOR)
            .args(["-name", "machine,debug-threads=on"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", "1024"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .arg("-append")
            .arg(format!("console=ttyS0 loglevel=4 panic=-1 mitigations=off {TELLS} {words}"))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", directory.path().join(MONITOR).display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {EMULATOR}"))?;
        Ok(Machine { emulator, directory })
    }

    /// Everything that was printed until the machine switched itself off; the kernel's words too, when there is nothing
    /// else to learn from.
    pub(super) fn transcript(mut self) -> Result<String> {
        let begun = Instant::now();
        let stdout = self.emulator.stdout.take().context("stdout")?;
        let (sender, receiver) = mpsc::channel();
        // Ends with the emulator, which ends with this value.
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.take(MAX_TRANSCRIPT).read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        });
        let on_time = receiver.recv_timeout(DEADLINE);
        let mut told = String::new();
        let on_time = on_time.or_else(|_| {
            if let Err(error) = self.tell(&mut told) {
                told.push_str(&format!("emulator: no answer: {error:#}\n"));
            }
            // After the panic it ends by itself.
            receiver.recv_timeout(TELLING)
        });
        self.end();
        let bytes = on_time.or_else(|_| receiver.recv())?;
        let _ = reader.join();
        let mut text = String::from_utf8_lossy(&bytes).replace('\r', "");
        text.push_str(&told);
        if !text.contains("machine: off") {
            let console = std::fs::read(self.directory.path().join("console")).unwrap_or_default();
            text.push_str(&format!("\nno end after {:?}; the kernel said:\n", begun.elapsed()));
            text.push_str(&String::from_utf8_lossy(&console));
        }
        Ok(text)
    }

    /// What the processors do, some looks one after the other; then the interrupt that makes the kernel tell the rest.
    fn tell(&self, told: &mut String) -> Result<()> {
        told.push_str(&format!("\nemulator: its threads\n{}", self.threads()));
        let stream = UnixStream::connect(self.directory.path().join(MONITOR))?;
        stream.set_read_timeout(Some(ANSWER))?;
        // The greeting, one answer a line, and what happens meanwhile.
        let mut lines = BufReader::new(stream.try_clone()?.take(MAX_TRANSCRIPT)).lines();
        let mut ask = |order: serde_json::Value| -> Result<String> {
            writeln!(&stream, "{order}")?;
            for line in &mut lines {
                let answer: serde_json::Value = serde_json::from_str(&line?)?;
                if let Some(value) = answer.get("return").or_else(|| answer.get("error")) {
                    return Ok(value.as_str().map_or_else(|| value.to_string(), |text| text.replace('\r', "")));
                }
            }
            bail!("it hung up")
        };
        ask(json!({"execute": "qmp_capabilities"}))?;
        for words in std::iter::repeat_n("info registers -a", LOOKS).chain(["info lapic", "info pic"]) {
            let order = json!({"execute": "human-monitor-command", "arguments": {"command-line": words}});
            told.push_str(&format!("emulator: {words}\n{}\n", ask(order)?));
        }
        told.push_str(&format!("emulator: its threads\n{}", self.threads()));
        ask(json!({"execute": "inject-nmi"}))?;
        Ok(())
    }

    /// The emulator's threads, with state and processor time (in ticks): a busy one that is no processor is its own fault.
    fn threads(&self) -> String {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.emulator.id())).into_iter().flatten().flatten();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        let line = |stat: String| {
            let (name, rest) = stat.rsplit_once(')')?;
            let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
            Some(format!("{name}): {} {} {}\n", fields.first()?, fields.get(11)?, fields.get(12)?))
        };
        stats.filter_map(line).collect()
    }

    fn end(&mut self) {
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}
