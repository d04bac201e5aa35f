//! What can go wrong with images, in words that say which image and what to do.

use std::io;
use std::path::Path;

use crate::codec::limit_of;
use crate::digest::Digest;
use crate::limits::LimitExceeded;
use crate::reference::ParseError;
use crate::{tarstream, unpack};

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of the image store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store's own files.
    #[error("image store: cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the store that should be readable is not.
    #[error("image store: {path} is damaged ({why}); remove the image by force and load it again")]
    Damaged {
        /// Which file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another process holds the store's lock for too long.
    #[error("image store: {path} has been locked by another process for {seconds} s; try again once it is done")]
    Busy {
        /// The lock's path.
        path: String,
        /// How long this call waited.
        seconds: u64,
    },
    /// The archive can't be read, ends early, or is no archive.
    #[error("cannot read the image archive: {why}")]
    Archive {
        /// What was wrong.
        why: String,
        /// The cause, if there is a deeper one.
        #[source]
        source: Option<io::Error>,
    },
    /// The archive's documents contradict each other or lack something.
    #[error("invalid image: {0}")]
    Invalid(String),
    /// Content is not what its digest says.
    #[error("invalid image: {what} has the digest {actual}, but {expected} is stated; get the archive again")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// What is stated.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A layer can't be unpacked.
    #[error("layer {layer}: {why}")]
    Layer {
        /// The layer's diff id, or what is known of it.
        layer: String,
        /// What was wrong.
        why: String,
        /// The cause, if there is a deeper one.
        #[source]
        source: Option<io::Error>,
    },
    /// The archive is larger than allowed.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// A name is malformed.
    #[error(transparent)]
    Reference(#[from] ParseError),
    /// No such image.
    #[error("no such image: {0}")]
    NotFound(String),
    /// An id prefix fits several images.
    #[error("{prefix} is ambiguous, it could be any of {}; write more of the id", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// Some of the ids that fit.
        candidates: Vec<String>,
    },
    /// The image can't be removed (so).
    #[error("cannot remove {name}: {why}")]
    Conflict {
        /// Which image.
        name: String,
        /// Why not, and what would help.
        why: String,
    },
    /// A `--change` instruction of an import is malformed.
    #[error("cannot apply the change {change:?}: {why}")]
    Change {
        /// The instruction.
        change: String,
        /// What is wrong with it.
        why: String,
    },
}

/// For `map_err` on the store's own files.
pub(crate) fn io_at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Io { action, path, source }
}

impl Error {
    /// An I/O error of an archive's reader, which may carry a limit.
    pub(crate) fn reading(source: io::Error) -> Self {
        if let Some(limit) = limit_of(&source) {
            return Self::Limit(limit);
        }
        Self::Archive { why: source.to_string(), source: Some(source) }
    }

    pub(crate) fn archive(error: tarstream::Error) -> Self {
        match error {
            tarstream::Error::Read(source) => Self::reading(source),
            other => Self::Archive { why: other.to_string(), source: None },
        }
    }

    pub(crate) fn layer(layer: &str, error: unpack::Error) -> Self {
        let why = error.to_string();
        match error {
            unpack::Error::Limit(limit) => Self::Limit(limit),
            unpack::Error::Tar(tarstream::Error::Read(source)) => {
                Self::Layer { layer: layer.to_owned(), why: format!("cannot read it: {source}"), source: Some(source) }
            }
            unpack::Error::Io { source, .. } => {
                Self::Layer { layer: layer.to_owned(), why: format!("{why}: {source}"), source: Some(source) }
            }
            _ => Self::Layer { layer: layer.to_owned(), why, source: None },
        }
    }
}
