//! Archives, whole and broken, as the reader sees them.

#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;

const OPTIONS: Options = Options { header_bytes: 4096, require_end: true };

fn member(kind: u8, name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkflag[0] = kind;
    header.set_mode(0o4755);
    header.set_size(data.len() as u64);
    header.set_uid(1000);
    header.set_gid(1001);
    header.set_mtime(7);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    member(b'x', "pax", &data)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut out = members.concat();
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut reader = TarReader::new(bytes, OPTIONS);
    let mut out = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map_err(Error::Read)?;
        out.push((entry, data));
    }
    Ok(out)
}

#[test]
fn extended_headers_speak_for_the_next_member_only() {
    let long = "d/".repeat(80) + "file";
    let bytes = archive(&[
        pax(&[
            ("path", b"a/b"),
            ("uid", b"70000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.security.capability", b"\x01\n\x00=\xff"),
            ("comment", b"ignored"),
        ]),
        member(b'0', "short", b"hello"),
        member(b'L', "././@LongLink", long.as_bytes()),
        member(b'0', "short", b""),
        member(b'g', "global", b""),
        member(b'5', "dir", b""),
        member(0, "olddir/", b""),
    ]);
    let entries = read(&bytes).unwrap();
    let first = &entries[0].0;
    assert_eq!((first.path.as_slice(), first.uid, first.gid, first.mode), (&b"a/b"[..], 70000, 1001, 0o4755));
    assert_eq!(first.mtime, (-2, 500_000_000));
    assert_eq!(first.xattrs, [(b"security.capability".to_vec(), b"\x01\n\x00=\xff".to_vec())]);
    assert_eq!(entries[0].1, b"hello");
    assert_eq!(entries[1].0.path, long.as_bytes());
    assert_eq!((entries[1].0.uid, entries[1].0.mtime), (1000, (7, 0)));
    let kinds: Vec<Kind> = entries.iter().map(|(entry, _)| entry.kind).collect();
    assert_eq!(kinds, [Kind::File, Kind::File, Kind::Directory, Kind::Directory]);
}

#[test]
fn the_pax_size_wins_so_that_no_other_reader_sees_other_members() {
    let mut hidden = member(b'0', "outer", b"");
    hidden.extend(member(b'0', "hidden", b""));
    let bytes = archive(&[pax(&[("size", b"512")]), hidden]);
    let entries = read(&bytes).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].1.len(), 512);
}

#[test]
fn damage_and_excess_are_named() {
    let whole = archive(&[member(b'0', "a", &[7; 600]), member(b'0', "b", b"x")]);
    for end in 0..whole.len() - 2 * BLOCK {
        let error = read(&whole[..end]).unwrap_err();
        let early = match &error {
            Error::Truncated(_) => true,
            Error::Read(error) => error.kind() == io::ErrorKind::UnexpectedEof,
            _ => false,
        };
        assert!(early, "{end}: {error:?}");
    }
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(matches!(read(&flipped), Err(Error::Header { offset: 0, .. })));
    assert!(matches!(read(&[b'x'; 2048]), Err(Error::Header { .. })));
    let big = archive(&[pax(&[("comment", &[b'c'; 5000])]), member(b'0', "a", b"")]);
    assert!(matches!(read(&big), Err(Error::HeaderTooLarge { limit: 4096 })));
    let many: Vec<_> = (0..10).map(|_| member(b'L', "l", b"name")).collect();
    assert!(matches!(read(&archive(&many)), Err(Error::HeaderTooLarge { .. })));
    assert!(matches!(read(&archive(&[member(b'S', "s", b"")])), Err(Error::Unsupported { kind: 'S', .. })));
    assert!(matches!(read(&archive(&[member(b'L', "l", b"name")])), Err(Error::Truncated(_))));
    for record in [&b"5 a=b\n"[..], b"999 a=b\n", b"x a=b\n", b"6 abc\n", b"6 a=bc"] {
        assert!(matches!(read(&archive(&[member(b'x', "p", record)])), Err(Error::Header { .. })));
    }
}

#[test]
fn pax_times() {
    type Row = (&'static [u8], Option<(i64, u32)>);
    let table: [Row; 7] = [
        (b"0", Some((0, 0))),
        (b"12.000000001", Some((12, 1))),
        (b"12.5", Some((12, 500_000_000))),
        (b"-3", Some((-3, 0))),
        (b"-0.25", Some((-1, 750_000_000))),
        (b"1e9", None),
        (b"1.x", None),
    ];
    for (text, expected) in table {
        assert_eq!(pax::time(text), expected, "{}", String::from_utf8_lossy(text));
    }
}
