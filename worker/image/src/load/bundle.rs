//! The members of an archive, copied to a staging directory under numbers: their names are only keys.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::blob::{self, Staged};
use crate::codec::{Metered, decompress};
use crate::error::{Error, Result, io_at};
use crate::limits::{Budget, Limits};
use crate::manifest;
use crate::staging::Staging;
use crate::tarstream::{self, Kind, TarReader};

use super::shorten;

/// Links between members are followed so often at most.
const LINKS: usize = 8;
const NAME_MAX: usize = 4096;

pub(super) struct Bundle {
    files: HashMap<String, Staged>,
    links: HashMap<String, String>,
}

impl Bundle {
    pub(super) fn from_tar(archive: impl Read, staging: &mut Staging, limits: &Limits) -> Result<Self> {
        let mut bytes = Budget::new("bytes of the archive", limits.archive_bytes);
        let mut members = Budget::new("members of the archive", limits.members);
        let (_, stream) = decompress(archive).map_err(Error::reading)?;
        let stream = Metered { inner: stream, budget: &mut bytes };
        let options = tarstream::Options { header_bytes: limits.header_bytes, require_end: true };
        let mut reader = TarReader::new(stream, options);
        let mut bundle = Self { files: HashMap::new(), links: HashMap::new() };
        while let Some(entry) = reader.next_entry().map_err(Error::archive)? {
            members.spend(1)?;
            let name = member_name(&entry.path, "")?;
            match entry.kind {
                Kind::Directory => continue,
                Kind::File => {
                    let staged = blob::stage(&mut reader, staging.fresh())?;
                    bundle.insert(name, staged)?;
                }
                Kind::Symlink | Kind::Hardlink => {
                    let base =
                        if entry.kind == Kind::Symlink { name.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
                    let target = member_name(&entry.link, base)?;
                    bundle.links.insert(name, target);
                }
                Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                    return Err(Error::Invalid(format!("the archive's member {:?} is a device", shorten(&name))));
                }
            }
        }
        // The rest is read so that a compressed archive's own checksum is checked.
        reader.drain().map_err(Error::archive)?;
        Ok(bundle)
    }

    pub(super) fn from_dir(layout: &Path, staging: &mut Staging, limits: &Limits) -> Result<Self> {
        let mut bytes = Budget::new("bytes of the layout", limits.archive_bytes);
        let mut members = Budget::new("members of the layout", limits.members);
        let root = File::open(layout).map_err(io_at("open", layout))?;
        let open = |name: &str, flags: OFlags| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            openat2(&root, name, flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty(), resolve)
        };
        let mut names = vec![manifest::LAYOUT_FILE.to_owned(), manifest::INDEX_FILE.to_owned()];
        let blobs = "blobs/sha256";
        let dir = open(blobs, OFlags::DIRECTORY).map_err(|e| io_at("open", &layout.join(blobs))(e.into()))?;
        for entry in Dir::new(dir).map_err(|e| io_at("read", &layout.join(blobs))(e.into()))? {
            let entry = entry.map_err(|e| io_at("read", &layout.join(blobs))(e.into()))?;
            members.spend(1)?;
            match entry.file_name().to_str() {
                Ok(name) if name != "." && name != ".." => names.push(format!("{blobs}/{name}")),
                _ => {}
            }
        }
        let mut bundle = Self { files: HashMap::new(), links: HashMap::new() };
        for name in names {
            match open(&name, OFlags::empty()) {
                Ok(file) => {
                    let file = File::from(file);
                    if !file.metadata().map_err(io_at("read", &layout.join(&name)))?.is_file() {
                        return Err(Error::Invalid(format!("{name:?} in the layout is no file")));
                    }
                    let staged = blob::stage(Metered { inner: file, budget: &mut bytes }, staging.fresh())?;
                    bundle.insert(name, staged)?;
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(io_at("open", &layout.join(&name))(error.into())),
            }
        }
        Ok(bundle)
    }

    /// Two members of one name are two readings of the archive; neither is taken.
    fn insert(&mut self, name: String, staged: Staged) -> Result<()> {
        match self.files.insert(name.clone(), staged) {
            None => Ok(()),
            Some(_) => Err(Error::Invalid(format!("the archive has {:?} twice", shorten(&name)))),
        }
    }

    /// The member of a name, links followed.
    pub(super) fn get(&self, name: &str) -> Option<&Staged> {
        let mut name = name;
        for _ in 0..LINKS {
            match self.links.get(name) {
                Some(target) => name = target,
                None => break,
            }
        }
        self.files.get(name)
    }

    pub(super) fn require(&self, name: &str) -> Result<&Staged> {
        self.get(name).ok_or_else(|| {
            let name = shorten(name);
            Error::Invalid(format!("the archive lacks {name:?}, which it refers to; was it cut off?"))
        })
    }
}

/// A name in normal form. `..` is obeyed as far as it stays in the archive (older `docker save` links
/// equal layers that way), and refused beyond.
fn member_name(raw: &[u8], base: &str) -> Result<String> {
    let bad = || {
        Error::Invalid(format!(
            "the archive's member name {:?} is not acceptable",
            shorten(&String::from_utf8_lossy(raw))
        ))
    };
    let text = std::str::from_utf8(raw).ok().filter(|text| text.len() <= NAME_MAX).ok_or_else(bad)?;
    let mut parts: Vec<&str> = if text.starts_with('/') { Vec::new() } else { base.split('/').collect() };
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.retain(|part| !part.is_empty());
                parts.pop().ok_or_else(bad)?;
            }
            _ => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_stay_in_the_archive() {
        let table = [
            ("./manifest.json", "", "manifest.json"),
            ("/blobs//sha256/x", "ignored", "blobs/sha256/x"),
            ("../b/layer.tar", "a", "b/layer.tar"),
            ("layer.tar", "a", "a/layer.tar"),
        ];
        for (raw, base, expected) in table {
            assert_eq!(member_name(raw.as_bytes(), base).unwrap(), expected);
        }
        for (raw, base) in [("../x", ""), ("a/../../x", ""), ("../../x", "a")] {
            member_name(raw.as_bytes(), base).unwrap_err();
        }
        member_name(b"\xff", "").unwrap_err();
    }
}
