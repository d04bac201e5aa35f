//! A directory with an OCI layout, or with an unpacked `docker save`, as the tar archive that a node loads.
//!
//! Decides before anything is sent whether the directory is one and whether it holds only what an archive of an image
//! may hold. It checks no digest: the node does. Called by `skep image load`.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::Stream;
use futures::stream::try_unfold;
use tar::{EntryType, Header};
use tokio::sync::mpsc;

use super::PIECE;

/// Pieces that wait to be sent: one is sent while the next ones are read.
const PIECES: usize = 4;

/// Files and directories of a layout at most. A node takes no archive with more members.
const ENTRIES: usize = 10_000;

/// The directory as an archive, piece by piece. Its files, in the order of their names; directories have no member of
/// their own. A file that can't be read whole ends the stream with an error.
pub(super) fn archive(dir: &Path) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static> {
    let files = files(dir)?;
    Ok(stream(dir.to_owned(), files))
}

/// The files below the directory, relative to it, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let has = |name: &str| dir.join(name).is_file();
    let image = has("manifest.json") || (has("oci-layout") && has("index.json"));
    if !image {
        bail!(
            "{} holds no image: neither oci-layout with index.json nor manifest.json is in it; give a directory with an \
             OCI layout, or a tar archive",
            dir.display()
        );
    }
    let (mut files, mut open, mut entries) = (Vec::new(), vec![PathBuf::new()], 0);
    while let Some(inner) = open.pop() {
        let path = dir.join(&inner);
        let unreadable = || format!("{} can't be read", path.display());
        for entry in path.read_dir().with_context(unreadable)? {
            let entry = entry.with_context(unreadable)?;
            entries += 1;
            if entries > ENTRIES {
                bail!("{} holds more than {ENTRIES} files and directories, which no node loads", dir.display());
            }
            let name = inner.join(entry.file_name());
            let kind = entry.file_type().with_context(unreadable)?;
            if kind.is_dir() {
                open.push(name);
            } else if kind.is_file() {
                files.push(name);
            } else {
                bail!(
                    "{} is neither a regular file nor a directory: remove it, or make a tar archive and load that",
                    entry.path().display()
                );
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What a thread that writes the archive hands over. Its end is the end of the stream, and its failure the stream's.
fn stream(dir: PathBuf, files: Vec<PathBuf>) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    let (sender, receiver) = mpsc::channel(PIECES);
    // It ends early where the receiver is dropped.
    let writer = tokio::task::spawn_blocking(move || write(&dir, &files, Pieces(sender)));
    try_unfold((receiver, writer), |(mut receiver, writer)| async move {
        match receiver.recv().await {
            Some(piece) => Ok(Some((piece, (receiver, writer)))),
            None => writer.await.map_err(io::Error::other)?.map(|()| None),
        }
    })
}

fn write(dir: &Path, files: &[PathBuf], out: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::with_capacity(PIECE, out));
    for name in files {
        let path = dir.join(name);
        append(&mut archive, &path, name)
            .map_err(|error| io::Error::new(error.kind(), format!("{} can't be sent: {error}", path.display())))?;
    }
    archive.into_inner()?.flush()
}

fn append(archive: &mut tar::Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(length);
    archive.append_data(&mut header, name, Exactly { file, left: length })
}

/// As many bytes of a file as its header has promised.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = (&mut self.file).take(self.left).read(buffer)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter meanwhile"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// The writing end of the stream; blocks while enough pieces wait.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use futures::TryStreamExt;
    use tempfile::TempDir;

    use super::*;

    fn layout(files: &[(&str, &[u8])]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    const MARKS: [(&str, &[u8]); 2] = [("oci-layout", b"{}"), ("index.json", b"[]")];

    #[tokio::test]
    async fn an_archive_holds_every_file_as_it_is() {
        // The first one's name does not fit into a plain header, the second takes several pieces and ends in none.
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        let large: Vec<u8> = (0..2 * PIECE + 700).map(|at| (at % 251) as u8).collect();
        let dir = layout(&[MARKS[0], MARKS[1], (&long, b"long"), ("blobs/sha256/b", &large), ("blobs/sha256/c", b"")]);
        fs::create_dir(dir.path().join("ingest")).unwrap();
        let pieces: Vec<Bytes> = archive(dir.path()).unwrap().try_collect().await.unwrap();
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE), "more at a time than is meant to be held");
        let all = pieces.concat();
        assert!(all.len() % 512 == 0 && all.ends_with(&[0; 1024]), "no end mark");
        let mut seen = Vec::new();
        for entry in tar::Archive::new(all.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            // A node refuses a header that leaves a number out.
            let header = entry.header();
            assert_eq!(header.entry_type(), EntryType::Regular);
            assert_eq!((header.mode().unwrap(), header.mtime().unwrap()), (0o644, 0));
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            seen.push((entry.path().unwrap().display().to_string(), content));
        }
        let expected: [(&str, &[u8]); 5] =
            [("blobs/sha256/b", &large), ("blobs/sha256/c", b""), (&long, b"long"), MARKS[1], MARKS[0]];
        assert!(seen.iter().map(|(name, content)| (name.as_str(), content.as_slice())).eq(expected), "{:?}", {
            seen.iter().map(|(name, content)| (name, content.len())).collect::<Vec<_>>()
        });
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        let refused = |dir: &TempDir| files(dir.path()).unwrap_err().to_string();
        for marks in [&[][..], &MARKS[..1], &MARKS[1..], &[("a/manifest.json", b"[]")]] {
            let error = refused(&layout(marks));
            assert!(error.contains("holds no image"), "{marks:?}: {error}");
        }
        for marks in [&MARKS[..], &[("manifest.json", b"[]")]] {
            assert_eq!(files(layout(marks).path()).unwrap().len(), marks.len());
        }
        for below in ["", "blobs/sha256/x"] {
            let dir = layout(&[MARKS[0], MARKS[1], ("blobs/sha256/x/y", b"")]);
            let link = dir.path().join(below).join("link");
            symlink("/etc/hostname", &link).unwrap();
            assert!(refused(&dir).contains(&format!("{} is neither", link.display())));
            fs::remove_file(link).unwrap();
            let socket = dir.path().join(below).join("socket");
            UnixListener::bind(&socket).unwrap();
            assert!(refused(&dir).contains(&format!("{} is neither", socket.display())));
        }
    }

    #[test]
    fn a_directory_of_countless_files_is_refused() {
        let dir = layout(&MARKS);
        for number in MARKS.len()..ENTRIES {
            File::create(dir.path().join(number.to_string())).unwrap();
        }
        assert_eq!(files(dir.path()).unwrap().len(), ENTRIES);
        fs::create_dir(dir.path().join("one more")).unwrap();
        assert!(files(dir.path()).unwrap_err().to_string().contains("more than 10000"));
    }

    #[tokio::test]
    async fn what_changes_while_it_is_sent_ends_the_stream_with_an_error() {
        let dir = layout(&MARKS);
        let listed = files(dir.path()).unwrap();
        fs::remove_file(dir.path().join("oci-layout")).unwrap();
        let error = stream(dir.path().to_owned(), listed).try_collect::<Vec<_>>().await.unwrap_err().to_string();
        assert!(error.contains("oci-layout can't be sent"), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_one_that_grows_is_cut() {
        let dir = layout(&[("file", b"12345")]);
        let read = |left| {
            let mut content = Vec::new();
            let file = File::open(dir.path().join("file")).unwrap();
            Exactly { file, left }.read_to_end(&mut content).map(|_| content)
        };
        assert_eq!(read(5).unwrap(), b"12345");
        assert_eq!(read(3).unwrap(), b"123");
        assert_eq!(read(6).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
