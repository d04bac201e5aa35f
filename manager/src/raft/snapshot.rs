//! Snapshot files: a compressed image of the state machine, cut into sealed chunks.
//!
//! Layout: magic, a random file id, a sealed header (what the image covers), then frames of at most 1 MiB of a zstd
//! stream, each sealed with the file's id, its number and whether it is the last, so that no frame can be dropped, moved
//! or taken from another file unnoticed. A file is written under a temporary name, synced and renamed; whatever was
//! there before is removed after that. A reader that holds a file keeps reading it after its removal.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message as _;
use skep_proto::v1;

use super::crypt::{self, Cipher};
use super::types::{LogId, SnapshotMeta};
use super::wire;

/// Bytes of the compressed stream in one frame, on disk and on the wire.
pub(crate) const CHUNK: usize = 1 << 20;
const MAGIC: &[u8; 8] = b"SKEPSNP1";
const LEVEL: i32 = 1;
const SUFFIX: &str = "snap";

type FileId = [u8; 16];

/// A complete snapshot file, open for reading. Removed when dropped unless it was kept.
pub(crate) struct SnapshotFile {
    pub(crate) meta: SnapshotMeta,
    file: File,
    id: FileId,
    cipher: Arc<Cipher>,
    frames_at: u64,
    place: Mutex<Place>,
}

struct Place {
    path: PathBuf,
    temporary: bool,
}

/// A handle that the consensus library passes around.
#[derive(Clone)]
pub(crate) struct SnapshotData(pub(crate) Arc<SnapshotFile>);

/// The snapshots of one node: one current file, and files that are being written.
pub(crate) struct SnapshotStore {
    dir: PathBuf,
    cipher: Arc<Cipher>,
    current: Mutex<Option<Arc<SnapshotFile>>>,
}

impl SnapshotStore {
    /// Opens `dir`, removes leftovers and finds the newest snapshot.
    ///
    /// # Errors
    /// A newest snapshot that cannot be read: the log before it is gone, so an older one would not help.
    pub(crate) fn open(dir: PathBuf, cipher: Arc<Cipher>) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut found: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some(SUFFIX) => found.push(path),
                Some("tmp") => std::fs::remove_file(&path)?,
                _ => {}
            }
        }
        // Names start with the index, zero-padded, so they sort by age.
        found.sort();
        let newest = found.pop();
        let current = match newest {
            Some(path) => Some(Arc::new(SnapshotFile::open(path, Arc::clone(&cipher))?)),
            None => None,
        };
        for path in found {
            std::fs::remove_file(path)?;
        }
        Ok(Self { dir, cipher, current: Mutex::new(current) })
    }

    pub(crate) fn current(&self) -> Option<Arc<SnapshotFile>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a file; `fill` writes the image's frames through [`FrameWriter`].
    pub(crate) fn writer(&self, meta: &SnapshotMeta) -> io::Result<FrameWriter> {
        let id: FileId = crypt::random().map_err(io::Error::other)?;
        let path = self.dir.join(format!("{}.tmp", hex::encode(id)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let mut writer = FrameWriter {
            out: SnapshotFile {
                meta: meta.clone(),
                file,
                id,
                cipher: Arc::clone(&self.cipher),
                frames_at: 0,
                place: Mutex::new(Place { path, temporary: true }),
            },
            at: 0,
            number: 0,
            pending: Vec::new(),
        };
        writer.header()?;
        Ok(writer)
    }

    /// Compresses what `encode` writes into a new, complete file.
    pub(crate) fn write(
        &self,
        meta: &SnapshotMeta,
        encode: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Arc<SnapshotFile>> {
        let mut encoder = zstd::Encoder::new(self.writer(meta)?, LEVEL)?;
        encode(&mut encoder)?;
        encoder.finish()?.finish()
    }

    /// Makes a file the current one, under its final name; older ones go. A file of another store is copied first.
    /// With `only_newer`, a file that covers no more than the current one is dropped.
    pub(crate) fn keep(&self, file: Arc<SnapshotFile>, only_newer: bool) -> io::Result<Arc<SnapshotFile>> {
        let file = if file.dir().as_deref() == Some(&self.dir) { file } else { self.copy(&file)? };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = current.as_ref()
            && (Arc::ptr_eq(old, &file) || (only_newer && old.meta.last_log_id >= file.meta.last_log_id))
        {
            return Ok(Arc::clone(old));
        }
        let index = file.meta.last_log_id.map_or(0, |id: LogId| id.index);
        let path = self.dir.join(format!("{index:020}-{}.{SUFFIX}", hex::encode(&file.id[..4])));
        file.rename(path)?;
        File::open(&self.dir)?.sync_all()?;
        if let Some(old) = current.replace(Arc::clone(&file)) {
            old.discard()?;
        }
        Ok(file)
    }

    fn copy(&self, file: &Arc<SnapshotFile>) -> io::Result<Arc<SnapshotFile>> {
        let mut writer = self.writer(&file.meta)?;
        let mut frames = file.frames();
        while let Some(frame) = frames.next_frame()? {
            writer.write_all(&frame)?;
        }
        writer.finish()
    }
}

impl SnapshotFile {
    fn open(path: PathBuf, cipher: Arc<Cipher>) -> io::Result<Self> {
        let damaged = |reason: &str| damaged(&path, reason);
        let file = File::open(&path)?;
        let mut head = [0; 8 + 16 + 4];
        file.read_exact_at(&mut head, 0).map_err(|_| damaged("it is too short"))?;
        if &head[..8] != MAGIC {
            return Err(damaged("it is no snapshot"));
        }
        let mut id = FileId::default();
        id.copy_from_slice(&head[8..24]);
        let len = u32::from_be_bytes([head[24], head[25], head[26], head[27]]);
        if len as usize > CHUNK {
            return Err(damaged("its header has an impossible length"));
        }
        let mut sealed = vec![0; len as usize];
        file.read_exact_at(&mut sealed, head.len() as u64).map_err(|_| damaged("it is too short"))?;
        let plain = cipher
            .open(&header_place(&id), &sealed, || format!("the snapshot {}", path.display()))
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let meta = v1::RaftSnapshotMeta::decode(&plain[..]).map_err(|e| damaged(&e.to_string()))?;
        let meta = wire::meta_of(meta).map_err(|e| damaged(&e.to_string()))?;
        let frames_at = head.len() as u64 + u64::from(len);
        Ok(Self { meta, file, id, cipher, frames_at, place: Mutex::new(Place { path, temporary: false }) })
    }

    /// Reads the frames from the first one.
    pub(crate) fn frames(self: &Arc<Self>) -> FrameReader {
        FrameReader { file: Arc::clone(self), at: self.frames_at, number: 0, done: false, buffer: Vec::new(), read: 0 }
    }

    /// Calls `restore` with the image, uncompressed.
    pub(crate) fn read<T>(self: &Arc<Self>, restore: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<T> {
        let mut decoder = zstd::Decoder::new(self.frames())?;
        let out = restore(&mut decoder)?;
        // Whoever reads by structure may stop before the end; a file without its last frame must fail all the same.
        io::copy(&mut decoder, &mut io::sink())?;
        Ok(out)
    }

    /// Bytes of the file, 0 if the system won't say.
    pub(crate) fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn dir(&self) -> Option<PathBuf> {
        self.place().path.parent().map(Path::to_path_buf)
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rename(&self, path: PathBuf) -> io::Result<()> {
        let mut place = self.place();
        std::fs::rename(&place.path, &path)?;
        *place = Place { path, temporary: false };
        Ok(())
    }

    fn discard(&self) -> io::Result<()> {
        let place = self.place();
        match std::fs::remove_file(&place.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if self.place().temporary {
            // A leftover is removed at the next start as well.
            self.discard().ok();
        }
    }
}

/// Cuts a stream into sealed frames.
pub(crate) struct FrameWriter {
    out: SnapshotFile,
    at: u64,
    number: u64,
    pending: Vec<u8>,
}

impl FrameWriter {
    fn header(&mut self) -> io::Result<()> {
        let meta = wire::meta_to(&self.out.meta).encode_to_vec();
        let sealed = self.out.cipher.seal(&header_place(&self.out.id), &meta).map_err(io::Error::other)?;
        let len = u32::try_from(sealed.len()).map_err(io::Error::other)?.to_be_bytes();
        let header = [&MAGIC[..], &self.out.id, &len, &sealed].concat();
        self.out.file.write_all_at(&header, 0)?;
        self.at = header.len() as u64;
        self.out.frames_at = self.at;
        Ok(())
    }

    fn frame(&mut self, last: bool) -> io::Result<()> {
        let place = frame_place(&self.out.id, self.number, last);
        let sealed = self.out.cipher.seal(&place, &self.pending).map_err(io::Error::other)?;
        let len = u32::try_from(sealed.len()).map_err(io::Error::other)?.to_be_bytes();
        let frame = [&[u8::from(last)][..], &len, &sealed].concat();
        self.out.file.write_all_at(&frame, self.at)?;
        self.at += frame.len() as u64;
        self.number += 1;
        self.pending.clear();
        Ok(())
    }

    /// Writes the last frame and waits for the disk.
    pub(crate) fn finish(mut self) -> io::Result<Arc<SnapshotFile>> {
        self.frame(true)?;
        self.out.file.sync_all()?;
        Ok(Arc::new(self.out))
    }
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.len() >= CHUNK {
            self.frame(false)?;
        }
        let taken = bytes.len().min(CHUNK - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens frames one by one.
pub(crate) struct FrameReader {
    file: Arc<SnapshotFile>,
    at: u64,
    number: u64,
    done: bool,
    buffer: Vec<u8>,
    read: usize,
}

impl FrameReader {
    /// The next frame's part of the compressed stream; `None` after the last one.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.done {
            return Ok(None);
        }
        let path = self.file.place().path.clone();
        let mut head = [0; 5];
        self.file.file.read_exact_at(&mut head, self.at).map_err(|_| damaged(&path, "its end is missing"))?;
        let last = head[0] == 1;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len > CHUNK + crypt::OVERHEAD {
            return Err(damaged(&path, "a chunk has an impossible length"));
        }
        let mut sealed = vec![0; len];
        self.file.file.read_exact_at(&mut sealed, self.at + 5).map_err(|_| damaged(&path, "its end is missing"))?;
        let place = frame_place(&self.file.id, self.number, last);
        let what = || format!("chunk {} of the snapshot {}", self.number, path.display());
        let plain =
            self.file.cipher.open(&place, &sealed, what).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        self.at += 5 + len as u64;
        self.number += 1;
        self.done = last;
        Ok(Some(plain))
    }
}

impl Read for FrameReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.read == self.buffer.len() {
            let Some(frame) = self.next_frame()? else { return Ok(0) };
            self.buffer = frame;
            self.read = 0;
        }
        let taken = out.len().min(self.buffer.len() - self.read);
        out[..taken].copy_from_slice(&self.buffer[self.read..self.read + taken]);
        self.read += taken;
        Ok(taken)
    }
}

fn header_place(id: &FileId) -> Vec<u8> {
    [b"snapshot/header/", &id[..]].concat()
}

fn frame_place(id: &FileId, number: u64, last: bool) -> Vec<u8> {
    [b"snapshot/frame/", &id[..], &number.to_be_bytes(), &[u8::from(last)]].concat()
}

fn damaged(path: &Path, reason: &str) -> io::Error {
    let message = format!("the snapshot {} is damaged: {reason}; {}", path.display(), super::disk::REJOIN);
    io::Error::new(io::ErrorKind::InvalidData, message)
}
