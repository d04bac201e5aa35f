//! The layers below the one being unpacked, read only: what a layer refers to without having it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Stat, fgetxattr, fstat};
use rustix::io::Errno;

use super::tree::{self, Tree};

const CAPABILITY: &str = "security.capability";

pub(super) struct Parents {
    /// Topmost first.
    layers: Vec<Tree>,
}

impl Parents {
    pub(super) fn new(layers: Vec<OwnedFd>) -> Self {
        Self { layers: layers.into_iter().map(Tree::new).collect() }
    }

    /// What the topmost layer that knows of a path has there.
    fn find(&self, path: &[u8]) -> Option<(&Tree, Stat)> {
        for layer in &self.layers {
            match layer.node(path) {
                Ok(node) => {
                    let stat = fstat(node).ok()?;
                    return (!tree::is_whiteout(&stat)).then_some((layer, stat));
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(_) => return None,
            }
        }
        None
    }

    pub(super) fn directory(&self, path: &[u8]) -> Option<Stat> {
        let (_, stat) = self.find(path)?;
        (tree::file_type(&stat) == FileType::Directory).then_some(stat)
    }

    /// A regular file, open for reading.
    pub(super) fn file(&self, path: &[u8]) -> Option<(OwnedFd, Stat)> {
        let (layer, stat) = self.find(path)?;
        if tree::file_type(&stat) != FileType::RegularFile {
            return None;
        }
        Some((layer.file(path).ok()?, stat))
    }

    /// All names in the roots of the layers.
    pub(super) fn root_names(&self) -> Vec<Vec<u8>> {
        let mut names: Vec<_> = self
            .layers
            .iter()
            .filter_map(|layer| layer.directory(b"").ok())
            .filter_map(|dir| tree::names(dir.as_fd()).ok())
            .flatten()
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The capabilities of a file, in the form in which an archive states them.
pub(super) fn capability(file: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    // The largest revision of the attribute has 24 bytes.
    let mut value = [0_u8; 64];
    match fgetxattr(file, CAPABILITY, &mut value) {
        Ok(length) => vec![(CAPABILITY.into(), value[..length].to_vec())],
        Err(_) => Vec::new(),
    }
}
