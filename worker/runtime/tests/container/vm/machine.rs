//! A machine emulated in software: boots a kernel and an initial file system, and hands out what was printed.
//!
//! Never outlives its test, nor its own deadline.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const EMULATOR: &str = "qemu-system-x86_64";
/// From the start of the emulator to its end: some 15 s to boot, and what the tests take.
const DEADLINE: Duration = Duration::from_secs(230);
/// More than any run prints.
const MAX_TRANSCRIPT: u64 = 4 << 20;

/// A kernel package, unpacked by `make setup-test`.
pub(super) struct Kernel {
    image: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The fetched kernel; says UNTESTED when it or the emulator is missing.
    pub(super) fn find(what: &str) -> Result<Option<Self>> {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-kernel");
        let emulator = Command::new(EMULATOR).arg("--version").stdout(Stdio::null()).status();
        if !cfg!(target_arch = "x86_64") || !emulator.is_ok_and(|status| status.success()) || !place.exists() {
            println!("UNTESTED: {what}, no {EMULATOR} or no kernel in {}; `make setup-test`", place.display());
            return Ok(None);
        }
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
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .arg("-append")
            .arg(format!("console=ttyS0 loglevel=4 panic=-1 mitigations=off {words}"))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
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
        self.end();
        let bytes = on_time.or_else(|_| receiver.recv())?;
        let _ = reader.join();
        let mut text = String::from_utf8_lossy(&bytes).replace('\r', "");
        if !text.contains("machine: off") {
            let console = std::fs::read(self.directory.path().join("console")).unwrap_or_default();
            text.push_str(&format!("\nno end after {:?}; the kernel said:\n", begun.elapsed()));
            text.push_str(&String::from_utf8_lossy(&console));
        }
        Ok(text)
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
