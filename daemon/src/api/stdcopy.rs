//! The framing that carries standard output and standard error over one stream: eight bytes of header (stream number,
//! three zeros, length big-endian) before each piece. Pure.

use bytes::{BufMut, Bytes, BytesMut};

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// An error of the system itself; clients print it and stop.
    System = 3,
}

/// One frame. The payload is far smaller than 4 GiB: log lines are bounded.
pub(super) fn frame(stream: Stream, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = BytesMut::with_capacity(8 + length);
    out.put_u8(stream as u8);
    out.put_bytes(0, 3);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    for part in parts {
        out.put_slice(part);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_its_header_and_its_parts() {
        assert_eq!(&frame(Stream::Stderr, &[b"a ", b"b\n"])[..], b"\x02\0\0\0\0\0\0\x04a b\n");
        assert_eq!(&frame(Stream::Stdout, &[])[..], b"\x01\0\0\0\0\0\0\0");
    }
}
