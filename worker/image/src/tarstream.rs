//! A tar reader for archives that nobody vouches for: streaming, every header bounded, one reading of
//! each field. Formats: old, ustar, GNU long names, pax (POSIX.1-2001). Sparse files are refused.
//!
//! It differs from the `tar` crate's iterator, whose headers it uses, in three ways that matter here:
//! extended headers can't grow beyond a limit, binary attribute values survive, and a stream that ends
//! early is an error that says so. It never touches a file system.

use std::io::{self, Read};

use tar::Header;

mod pax;
#[cfg(test)]
mod tests;

const BLOCK: usize = 512;
/// Where a header has the type of its member.
const TYPE_AT: usize = 156;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// One member of an archive, its payload aside.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As stated: may be absolute, may have `..`, may be anything.
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    /// Bytes of payload; 0 for all but files.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the archive ends early, {0}; it was probably cut off while being copied")]
    Truncated(&'static str),
    #[error("damaged tar header at byte {offset}: {what}")]
    Header { offset: u64, what: String },
    #[error("extended headers of one entry are larger than {limit} bytes")]
    HeaderTooLarge { limit: u64 },
    #[error("entry {path:?} is of type {kind:?}, which is not supported")]
    Unsupported { path: String, kind: char },
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
}

/// What to expect of an archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Bytes of the extended headers of one entry.
    pub(crate) header_bytes: u64,
    /// Whether an end without the end-of-archive mark is an error: yes where no digest would tell that
    /// the end is missing.
    pub(crate) require_end: bool,
}

/// Iterates over the members of `inner`; as a reader it gives the payload of the last one.
pub(crate) struct TarReader<R> {
    inner: R,
    options: Options,
    offset: u64,
    remaining: u64,
    padding: u64,
    ended: bool,
}

/// What extended headers said about the next member.
#[derive(Default)]
struct Extended {
    bytes: u64,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R, options: Options) -> Self {
        Self { inner, options, offset: 0, remaining: 0, padding: 0, ended: false }
    }

    /// The next member, or none at the end. What was left of the last one's payload is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.ended {
            return Ok(None);
        }
        let mut extended = Extended::default();
        loop {
            self.skip_payload()?;
            let Some(header) = self.read_header(&extended)? else {
                return Ok(None);
            };
            let kind = header.as_bytes()[TYPE_AT];
            match kind {
                b'L' => extended.long_path = Some(strip_nul(self.read_extended(&header, &mut extended.bytes)?)),
                b'K' => extended.long_link = Some(strip_nul(self.read_extended(&header, &mut extended.bytes)?)),
                b'x' => {
                    let data = self.read_extended(&header, &mut extended.bytes)?;
                    extended.pax = pax::records(&data).ok_or_else(|| self.damaged("malformed pax record"))?;
                }
                // Defaults for all members: nothing that builds images relies on it, and nothing else obeys it.
                b'g' => drop(self.read_extended(&header, &mut extended.bytes)?),
                _ => return self.entry(&header, extended).map(Some),
            }
        }
    }

    /// Reads what follows the end-of-archive mark: digests cover it.
    pub(crate) fn drain(mut self) -> Result<R, Error> {
        self.skip_payload()?;
        io::copy(&mut self.inner, &mut io::sink()).map_err(Error::Read)?;
        Ok(self.inner)
    }

    fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Header { offset: self.offset.saturating_sub(BLOCK as u64), what: what.into() }
    }

    fn skip_payload(&mut self) -> Result<(), Error> {
        let left = self.remaining + self.padding;
        let skipped = io::copy(&mut self.inner.by_ref().take(left), &mut io::sink()).map_err(Error::Read)?;
        self.offset += skipped;
        // A missing padding after the last payload is caught by the missing end mark.
        if skipped < self.remaining {
            return Err(Error::Truncated("in the middle of a file"));
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    fn read_header(&mut self, extended: &Extended) -> Result<Option<Header>, Error> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
        self.offset += filled as u64;
        let end = filled == 0 || (filled == BLOCK && block.iter().all(|b| *b == 0));
        if end && extended.bytes > 0 {
            return Err(Error::Truncated("after an extended header"));
        }
        if filled == 0 {
            self.ended = true;
            return if self.options.require_end { Err(Error::Truncated("without its end mark")) } else { Ok(None) };
        }
        if filled < BLOCK {
            return Err(Error::Truncated("in the middle of a header"));
        }
        if end {
            self.ended = true;
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 0x20;
        if header.cksum().ok() != Some(sum) {
            return Err(self.damaged("the checksum does not match; this is no tar archive, or a damaged one"));
        }
        Ok(Some(header))
    }

    fn read_extended(&mut self, header: &Header, used: &mut u64) -> Result<Vec<u8>, Error> {
        let size = header.entry_size().map_err(|e| self.damaged(e.to_string()))?;
        let limit = self.options.header_bytes;
        *used = used.saturating_add(size).saturating_add(BLOCK as u64);
        if *used > limit {
            return Err(Error::HeaderTooLarge { limit });
        }
        self.set_payload(size)?;
        let mut data = Vec::new();
        self.read_to_end(&mut data).map_err(Error::Read)?;
        Ok(data)
    }

    fn set_payload(&mut self, size: u64) -> Result<(), Error> {
        if size > i64::MAX as u64 {
            return Err(self.damaged("the size is out of range"));
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<Entry, Error> {
        let path = extended.long_path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extended.long_link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
        let number = |field: io::Result<u64>| field.map_err(|e| self.damaged(e.to_string()));
        let id = |value: u64| u32::try_from(value).map_err(|_| self.damaged("an owner's id is out of range"));
        let mut entry = Entry {
            kind: Kind::File,
            path,
            link: link.unwrap_or_default(),
            mode: header.mode().map_err(|e| self.damaged(e.to_string()))? & 0o7777,
            uid: id(number(header.uid())?)?,
            gid: id(number(header.gid())?)?,
            mtime: (i64::try_from(number(header.mtime())?).unwrap_or(0), 0),
            size: number(header.entry_size())?,
            device: (0, 0),
            xattrs: Vec::new(),
        };
        for (key, value) in extended.pax {
            apply_pax(&mut entry, &key, value).map_err(|what| self.damaged(what))?;
        }
        let flag = header.as_bytes()[TYPE_AT];
        entry.kind = match flag {
            // Before ustar a directory was a file whose name ends with a slash.
            0 if entry.path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let path = String::from_utf8_lossy(&entry.path).into_owned();
                return Err(Error::Unsupported { path, kind: char::from(other) });
            }
        };
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            let part = |field: io::Result<Option<u32>>| {
                field.map(Option::unwrap_or_default).map_err(|e| self.damaged(e.to_string()))
            };
            entry.device = (part(header.device_major())?, part(header.device_minor())?);
        }
        if entry.kind != Kind::File {
            entry.size = 0;
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(self.damaged("a name with a zero byte"));
        }
        self.set_payload(entry.size)?;
        Ok(entry)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..want])?;
        if n == 0 {
            let text = "the archive ends early, in the middle of a file; it was probably cut off while being copied";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.remaining -= n as u64;
        self.offset += n as u64;
        Ok(n)
    }
}

fn strip_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

fn apply_pax(entry: &mut Entry, key: &[u8], value: Vec<u8>) -> Result<(), String> {
    let bad = || format!("bad value of pax record {:?}", String::from_utf8_lossy(key));
    match key {
        b"path" if !value.is_empty() => entry.path = value,
        b"linkpath" if !value.is_empty() => entry.link = value,
        b"size" => entry.size = pax::number(&value).ok_or_else(bad)?,
        b"uid" => entry.uid = pax::number(&value).ok_or_else(bad)?,
        b"gid" => entry.gid = pax::number(&value).ok_or_else(bad)?,
        b"mtime" => entry.mtime = pax::time(&value).ok_or_else(bad)?,
        _ if key.starts_with(b"GNU.sparse.") => {
            return Err("sparse files are not supported".to_owned());
        }
        _ => {
            if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                entry.xattrs.push((name.to_vec(), value));
            }
        }
    }
    Ok(())
}
