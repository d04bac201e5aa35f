//! Names in a layer, before any file system is asked. Decides which are acceptable: relative to the
//! layer's root, without `..`, bounded. Pure.

use crate::limits::{LimitExceeded, Limits};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// A checked path: the directory (empty for the root) and the name in it (empty for the root itself).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryPath {
    pub(super) parent: Vec<u8>,
    pub(super) name: Vec<u8>,
}

/// What the name in a layer stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The entry itself.
    Entry,
    /// The named sibling of the layers below is gone.
    Whiteout(Vec<u8>),
    /// Everything that the layers below have in this directory is gone.
    Opaque,
    /// Bookkeeping of another storage driver.
    Ignored,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum PathError {
    #[error("the path leads upwards (`..`)")]
    Upwards,
    #[error("the whiteout names no file")]
    BadWhiteout,
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

impl EntryPath {
    /// Splits a path as an archive states it. A leading `/` means the layer's root, as everywhere.
    pub(super) fn parse(raw: &[u8], limits: &Limits) -> Result<Self, PathError> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(PathError::Upwards),
                _ => {
                    LimitExceeded::check("bytes of a file name", part.len() as u64, limits.name_bytes as u64)?;
                    LimitExceeded::check("levels of directories", parts.len() as u64 + 1, limits.depth as u64)?;
                    parts.push(part);
                }
            }
        }
        let name = parts.pop().unwrap_or_default().to_vec();
        Ok(Self { parent: parts.join(&b'/'), name })
    }

    pub(super) fn is_root(&self) -> bool {
        self.name.is_empty()
    }

    /// The whole path again, without a leading slash.
    pub(super) fn joined(&self) -> Vec<u8> {
        if self.parent.is_empty() { self.name.clone() } else { [&self.parent[..], &self.name[..]].join(&b'/') }
    }

    pub(super) fn meaning(&self) -> Result<Meaning, PathError> {
        if self.name == OPAQUE {
            return Ok(Meaning::Opaque);
        }
        if self.name.starts_with(RESERVED) {
            return Ok(Meaning::Ignored);
        }
        match self.name.strip_prefix(WHITEOUT) {
            None => Ok(Meaning::Entry),
            Some(b"" | b"." | b"..") => Err(PathError::BadWhiteout),
            Some(hidden) => Ok(Meaning::Whiteout(hidden.to_vec())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_relative_to_the_root_and_never_lead_up() {
        let limits = Limits { depth: 3, name_bytes: 5, ..Limits::default() };
        let parse = |raw: &str| {
            EntryPath::parse(raw.as_bytes(), &limits)
                .map(|p| format!("{}|{}", String::from_utf8_lossy(&p.parent), String::from_utf8_lossy(&p.name)))
        };
        for (raw, expected) in [
            ("", "|"),
            ("./", "|"),
            ("/", "|"),
            ("a", "|a"),
            ("./a/b/", "a|b"),
            ("/a//b/./c", "a/b|c"),
            ("...", "|..."),
        ] {
            assert_eq!(parse(raw).as_deref(), Ok(expected), "{raw}");
        }
        for raw in ["..", "../a", "a/..", "a/../b", "/..", "./../x"] {
            assert_eq!(parse(raw), Err(PathError::Upwards), "{raw}");
        }
        for raw in ["a/b/c/d", "sixsix"] {
            assert!(matches!(parse(raw), Err(PathError::Limit(_))), "{raw}");
        }
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        let meaning = |raw: &str| EntryPath::parse(raw.as_bytes(), &Limits::default()).unwrap().meaning();
        assert_eq!(meaning("a/.wh.b"), Ok(Meaning::Whiteout(b"b".to_vec())));
        assert_eq!(meaning("a/.wh..wh..opq"), Ok(Meaning::Opaque));
        assert_eq!(meaning(".wh..wh.plnk"), Ok(Meaning::Ignored));
        assert_eq!(meaning("a/.who"), Ok(Meaning::Entry));
        assert_eq!(meaning("x.wh.y"), Ok(Meaning::Entry));
        for bad in [".wh.", ".wh..", ".wh..."] {
            assert_eq!(meaning(bad), Err(PathError::BadWhiteout), "{bad}");
        }
    }
}
