//! A small file system for a machine's memory: busybox, programs with their libraries, kernel modules, two scripts.
//!
//! Packed as the kernel takes it: a cpio archive of the "newc" form (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::machine::Kernel;

/// With what they depend on. All but the first make memory that swaps into itself, as far as they are modules.
const MODULES: &[&str] = &["overlay", "lzo_rle", "zram"];

/// The first program. The first root can't be left behind by `pivot_root`, as containers do: a view of it can.
const FIRST: &str = "#!/bin/sh
mount -o bind / /mnt
cd /mnt
mount -o move . /
exec chroot . /bin/sh /inside
";

/// What any machine needs; the tests' own lines come after it.
const PREPARE: &str = "
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /scratch
# Not /tmp: the tests' own binary may lie there.
export TMPDIR=/scratch
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
echo 'machine: on'
for module in /modules/*; do insmod $module; done
if echo 256M > /sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0; then echo 'machine: has swap'; fi
";

/// The last lines: the emulator is told to take a reboot for the end.
const END: &str = "
echo 'machine: off'
sync
reboot -f
";

enum Node {
    Directory,
    File(Vec<u8>),
    Link(String),
}

/// What will be in the archive, by absolute path.
pub(super) struct Tree(BTreeMap<PathBuf, Node>);

impl Tree {
    /// Directories, a shell and its tools.
    pub(super) fn with_busybox() -> Result<Self> {
        let mut tree = Tree(BTreeMap::new());
        for path in
            ["proc", "sys", "dev", "tmp", "scratch", "run", "mnt", "etc", "root", "modules", "usr/bin", "usr/lib64"]
        {
            tree.directory(&Path::new("/").join(path));
        }
        for (name, target) in [("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
            tree.0.insert(Path::new("/").join(name), Node::Link(target.into()));
        }
        let busybox = std::fs::read("/usr/bin/busybox").context("install the package busybox-static")?;
        tree.file("/usr/bin/busybox".as_ref(), busybox);
        let applets = Command::new("/usr/bin/busybox").arg("--list").output()?;
        for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
            tree.0.insert(Path::new("/usr/bin").join(applet), Node::Link("busybox".into()));
        }
        tree.file("/init".as_ref(), FIRST.into());
        Ok(tree)
    }

    /// A program at the path that it has here, with the libraries that it is linked to.
    pub(super) fn program(&mut self, path: &Path) -> Result<()> {
        self.file(path, std::fs::read(path).with_context(|| path.display().to_string())?);
        let output = Command::new("ldd").arg(path).output().context("ldd")?;
        let text = String::from_utf8(output.stdout)?;
        for library in text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':')) {
            let bytes = std::fs::read(library).with_context(|| library.to_owned())?;
            // Where /lib is no link, libraries are found below /usr as well.
            let below = if library.starts_with("/lib") { format!("/usr{library}") } else { library.to_owned() };
            self.file(below.as_ref(), bytes);
        }
        Ok(())
    }

    /// What the kernel doesn't have built in, each after what it depends on.
    pub(super) fn modules(&mut self, kernel: &Kernel) -> Result<()> {
        let mut found = BTreeMap::new();
        find_modules(&kernel.modules, &mut found)?;
        let mut order = Vec::new();
        for name in MODULES {
            load(name, &found, &mut order, 0)?;
        }
        for (number, (_, bytes)) in order.into_iter().enumerate() {
            self.file(Path::new(&format!("/modules/{number:02}.ko")), bytes);
        }
        Ok(())
    }

    /// The lines that run inside, once the machine is ready for them.
    pub(super) fn inside(&mut self, lines: &str) -> Result<()> {
        self.file("/inside".as_ref(), format!("{PREPARE}{lines}{END}").into_bytes());
        Ok(())
    }

    fn directory(&mut self, path: &Path) {
        for ancestor in path.ancestors().filter(|ancestor| *ancestor != Path::new("/")) {
            self.0.entry(ancestor.to_owned()).or_insert(Node::Directory);
        }
    }

    fn file(&mut self, path: &Path, bytes: Vec<u8>) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.0.insert(path.to_owned(), Node::File(bytes));
    }

    /// The archive. Parents come before their children, since the map is sorted.
    pub(super) fn pack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, node)) in self.0.iter().enumerate() {
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
            let (mode, content) = match node {
                Node::Directory => (0o040_755, &[][..]),
                Node::File(bytes) => (0o100_755, bytes.as_slice()),
                Node::Link(target) => (0o120_777, target.as_bytes()),
            };
            entry(&mut out, number + 1, mode, &name, content);
        }
        entry(&mut out, 0, 0, "TRAILER!!!", &[]);
        out
    }
}

/// All modules below a directory by name, in which `-` is `_`.
fn find_modules(directory: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), found)?;
        } else if let Some((name, "" | ".xz")) = file.split_once(".ko") {
            found.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// Appends a module's dependencies and then itself; what isn't there is built in, or missed when it is needed.
fn load(name: &str, found: &BTreeMap<String, PathBuf>, order: &mut Vec<(String, Vec<u8>)>, depth: usize) -> Result<()> {
    ensure!(depth < 8, "modules depend on each other: {name}");
    let Some(path) = found.get(name).filter(|_| !order.iter().any(|(known, _)| known == name)) else { return Ok(()) };
    let bytes = if path.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = Command::new("busybox").arg("xzcat").arg(path).output().context("busybox xzcat")?;
        ensure!(unpacked.status.success(), "{} can't be unpacked", path.display());
        unpacked.stdout
    } else {
        std::fs::read(path)?
    };
    // A string in a section of the module's own: "depends=" and names with commas between them.
    const KEY: &[u8] = b"\0depends=";
    if let Some(start) = bytes.windows(KEY.len()).position(|window| window == KEY) {
        let names = bytes[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
        for dependency in String::from_utf8_lossy(names).split(',') {
            load(&dependency.replace('-', "_"), found, order, depth + 1)?;
        }
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

/// One member: a magic number, thirteen numbers of eight digits, the name and the content, each padded to four bytes.
fn entry(out: &mut Vec<u8>, inode: usize, mode: u32, name: &str, content: &[u8]) {
    let mut head = String::from("070701");
    let mode = mode as usize;
    // Inode, mode, owner, group, links, time, size, device of the file (2), device that it is (2), name, checksum.
    for value in [inode, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
        let _ = write!(head, "{value:08X}");
    }
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}
