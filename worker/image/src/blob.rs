//! Content under its digest. Decides how a blob is kept: as it came, or, if it is a large uncompressed
//! tar, packed with zstd; the digest is always that of the content as it came.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::codec::{Compression, Hashing, sniff};
use crate::digest::Digest;
use crate::error::{Error, Result, io_at};

/// Below this size packing gains nothing.
const PACK_FROM: usize = 64 << 10;
const PACK_LEVEL: i32 = 1;
const PACKED: &str = "zst";

/// A blob in a staging directory.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    pub(crate) digest: Digest,
    /// Bytes of the content as it came.
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    path: PathBuf,
    packed: bool,
}

/// Copies a stream to the new file `path` and learns its digest.
pub(crate) fn stage(stream: impl Read, path: PathBuf) -> Result<Staged> {
    let (compression, mut stream) = sniff(stream).map_err(Error::reading)?;
    let mut head = Vec::with_capacity(PACK_FROM);
    stream.by_ref().take(PACK_FROM as u64).read_to_end(&mut head).map_err(Error::reading)?;
    let packed = compression == Compression::None && head.len() == PACK_FROM;
    let file = File::create_new(&path).map_err(io_at("create", &path))?;
    let mut content = Hashing::new(head.chain(stream));
    if packed {
        let mut encoder = zstd::stream::write::Encoder::new(file, PACK_LEVEL).map_err(io_at("write", &path))?;
        copy(&mut content, &mut encoder, &path)?;
        encoder.finish().map_err(io_at("write", &path))?;
    } else {
        copy(&mut content, &mut { file }, &path)?;
    }
    let (_, digest, size) = content.finish();
    Ok(Staged { digest, size, compression, path, packed })
}

/// Like `io::copy`, but tells an error of the source from one of the disk.
fn copy(from: &mut impl Read, to: &mut impl Write, path: &Path) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n]).map_err(io_at("write", path))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::reading(error)),
        }
    }
}

impl Staged {
    /// The content as it came.
    pub(crate) fn open(&self) -> Result<Box<dyn Read>> {
        open_file(&self.path, self.packed)
    }

    /// The content of a document of at most `limit` bytes.
    pub(crate) fn document(&self, limit: u64) -> Result<Vec<u8>> {
        crate::limits::LimitExceeded::check("bytes of a manifest or config", self.size, limit)?;
        let mut bytes = Vec::new();
        self.open()?.read_to_end(&mut bytes).map_err(io_at("read", &self.path))?;
        Ok(bytes)
    }
}

/// The blobs of a store.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn path(&self, digest: &Digest, packed: bool) -> PathBuf {
        let path = self.dir.join(digest.hex());
        if packed { path.with_extension(PACKED) } else { path }
    }

    /// Moves a staged blob here, if it isn't here yet. The caller holds the lock.
    pub(crate) fn adopt(&self, blob: &Staged) -> Result<()> {
        if self.contains(&blob.digest) {
            return Ok(());
        }
        let path = self.path(&blob.digest, blob.packed);
        fs::rename(&blob.path, &path).map_err(io_at("create", &path))
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        [false, true].into_iter().any(|packed| self.path(digest, packed).exists())
    }

    /// The content as it came; not checked against the digest.
    pub(crate) fn open(&self, digest: &Digest) -> Result<Box<dyn Read>> {
        let packed = self.path(digest, true);
        if packed.exists() { open_file(&packed, true) } else { open_file(&self.path(digest, false), false) }
    }

    /// A small document, checked against its digest.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.path(digest, false);
        let mut bytes = Vec::new();
        self.open(digest)?.read_to_end(&mut bytes).map_err(io_at("read", &path))?;
        if Digest::of(&bytes) == *digest {
            return Ok(bytes);
        }
        let why = "the content does not match the digest".to_owned();
        Err(Error::Damaged { path: path.display().to_string(), why })
    }

    /// Removes all blobs but those that `keep` wants; gives their number and bytes on disk.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) -> Result<(usize, u64)> {
        let mut removed = (0, 0);
        for entry in fs::read_dir(&self.dir).map_err(io_at("read", &self.dir))? {
            let path = entry.map_err(io_at("read", &self.dir))?.path();
            let hex = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if !keep(hex) {
                let bytes = fs::metadata(&path).map_or(0, |m| m.len());
                fs::remove_file(&path).map_err(io_at("remove", &path))?;
                removed = (removed.0 + 1, removed.1 + bytes);
            }
        }
        Ok(removed)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn open_file(path: &Path, packed: bool) -> Result<Box<dyn Read>> {
    let file = File::open(path).map_err(io_at("open", path))?;
    Ok(if packed {
        Box::new(zstd::stream::read::Decoder::new(file).map_err(io_at("open", path))?)
    } else {
        Box::new(io::BufReader::with_capacity(1 << 16, file))
    })
}
