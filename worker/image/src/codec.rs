//! Compression and hashing of streams. Decides by the first bytes, never by a name or a media type, what
//! a stream is compressed with; must never hold more of it in memory than a decoder's window.

use std::io::{self, BufReader, Cursor, Read, Write};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::limits::{Budget, LimitExceeded};

/// The largest window that a zstd frame may ask for: 2^27 bytes, what `zstd` itself takes by default.
const ZSTD_WINDOW_LOG: u32 = 27;
const SNIFF: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(head: &[u8]) -> io::Result<Self> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(unsupported("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(unsupported("bzip2")),
            _ => Ok(Self::None),
        }
    }
}

fn unsupported(name: &str) -> io::Error {
    let text = format!("{name} compression is not supported; compress with gzip or zstd instead");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Reads the first bytes of a stream and gives it back whole.
pub(crate) fn sniff<'a, R: Read + 'a>(mut stream: R) -> io::Result<(Compression, impl Read + 'a)> {
    let mut head = Vec::with_capacity(SNIFF);
    stream.by_ref().take(SNIFF as u64).read_to_end(&mut head)?;
    let compression = Compression::of(&head)?;
    Ok((compression, Cursor::new(head).chain(stream)))
}

/// The stream without its compression, if it has one.
pub(crate) fn decompress<'a, R: Read + 'a>(stream: R) -> io::Result<(Compression, Box<dyn Read + 'a>)> {
    let (compression, stream) = sniff(stream)?;
    let reader: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(stream),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 16, stream))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(stream)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    Ok((compression, reader))
}

/// Hashes what passes through.
pub(crate) struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// The inner stream, the digest and the number of bytes that passed.
    pub(crate) fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest::finish(self.hasher), self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Fails with [`LimitExceeded`] (inside of an I/O error) once more was read than the budget allows.
pub(crate) struct Metered<'a, R> {
    pub(crate) inner: R,
    pub(crate) budget: &'a mut Budget,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.budget.spend(n as u64).map_err(io::Error::other)?;
        Ok(n)
    }
}

/// The limit that an I/O error of one of these readers carries, if it does.
pub(crate) fn limit_of(error: &io::Error) -> Option<LimitExceeded> {
    error.get_ref()?.downcast_ref::<LimitExceeded>().cloned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn streams_are_told_apart_by_their_first_bytes() {
        let plain = b"hello, hive".to_vec();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let gz = gz.finish().unwrap();
        let zst = zstd::encode_all(plain.as_slice(), 1).unwrap();
        for (bytes, expected) in [(&plain, Compression::None), (&gz, Compression::Gzip), (&zst, Compression::Zstd)] {
            let (compression, mut reader) = decompress(bytes.as_slice()).unwrap();
            let mut out = Vec::new();
            reader.read_to_end(&mut out).unwrap();
            assert_eq!((compression, &out), (expected, &plain));
        }
        for bytes in [&gz[..gz.len() - 3], &zst[..zst.len() - 3]] {
            let (_, mut reader) = decompress(bytes).unwrap();
            reader.read_to_end(&mut Vec::new()).unwrap_err();
        }
        assert!(decompress(&b"BZh91AY"[..]).err().unwrap().to_string().contains("bzip2"));
    }
}
