//! Layers that try to reach what lies outside of them (CVE-2026-17106 and its kind). Each attack is also
//! run against a naive unpacker, which shows that it would hit if nothing stopped it.

use std::fs;
use std::path::Path;

use skep_image::Limits;

use crate::kit::{Layer, Member, Place, canary, docker_save};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Outcome {
    /// The load fails and leaves nothing.
    Refused,
    /// The load succeeds, and everything is inside.
    Confined,
}

struct Attack {
    name: &'static str,
    layer: Layer,
    outcome: Outcome,
    /// Whether a naive unpacker is hit.
    hits_naive: bool,
}

fn attack(name: &'static str, layer: Layer, outcome: Outcome, hits_naive: bool) -> Attack {
    Attack { name, layer, outcome, hits_naive }
}

/// `outside` is the absolute path of the directory that must not change.
fn corpus(outside: &str) -> Vec<Attack> {
    use Outcome::{Confined, Refused};
    let canary = &format!("{outside}/canary");
    let up = &format!("../../../../../../../../../../../../../..{outside}");
    let new = Layer::new;
    vec![
        attack("dot dot", new().file(&format!("{up}/canary"), b"dead"), Refused, true),
        attack("inner dot dot", new().dir("a", 0o755).file(&format!("a/{up}/new"), b"dead"), Refused, true),
        attack("dot dot dir", new().dir(&format!("{up}/made"), 0o777), Refused, true),
        attack("absolute", new().file(canary, b"dead"), Confined, true),
        attack("link as parent", new().symlink("l", outside).file("l/canary", b"dead"), Refused, true),
        attack("relative link", new().symlink("l", up).file("l/canary", b"dead"), Refused, true),
        attack("chain", new().symlink("b", outside).symlink("a", "b").file("a/new", b"dead"), Refused, true),
        attack(
            "deep chain",
            new().dir("d/e", 0o755).symlink("d/e/up", "../../x").symlink("x", outside).file("d/e/up/new", b"dead"),
            Refused,
            true,
        ),
        attack("dir below a link", new().symlink("l", outside).dir("l/made", 0o777), Refused, true),
        attack("link below a link", new().symlink("l", outside).symlink("l/made", "x"), Refused, true),
        attack("write through a link", new().symlink("f", canary).file("f", b"dead"), Confined, true),
        attack("mode through a link", new().symlink("d", outside).dir("d", 0o777).file("d/new", b"x"), Confined, true),
        attack("hard link absolute", new().hardlink("h", canary).file("h", b"dead"), Refused, true),
        attack("hard link upwards", new().hardlink("h", &format!("{up}/canary")), Refused, true),
        attack("hard link through a link", new().symlink("l", outside).hardlink("h", "l/canary"), Refused, true),
        attack(
            "hard link to a link",
            new().symlink("s", canary).hardlink("h", "s").file("h", b"dead").file("s", b"dead"),
            Confined,
            true,
        ),
        attack(
            "directory swapped for a link",
            new().dir("d", 0o755).file("d/x", b"x").symlink("d", outside).file("d/canary", b"dead"),
            Refused,
            false,
        ),
        attack(
            "parent swapped for a link",
            new().dir("p/d", 0o755).file("p/d/x", b"x").symlink("p", outside).file("p/d/x", b"dead"),
            Refused,
            false,
        ),
        attack("magic link", new().symlink("m", "/proc/self/root").file(&format!("m{canary}"), b"dead"), Refused, true),
        attack("whiteout of dot", new().dir("d", 0o755).file("d/.wh..", b""), Refused, false),
        attack("whiteout of dot dot", new().dir("d", 0o755).file("d/.wh...", b""), Refused, false),
        attack("whiteout of nothing", new().file(".wh.", b""), Refused, false),
        attack("whiteout through a link", new().symlink("l", outside).file("l/.wh.canary", b""), Refused, true),
        attack("opaque through a link", new().symlink("l", outside).file("l/.wh..wh..opq", b""), Refused, true),
        attack("root as link", new().symlink("./", outside).file("new", b"x"), Refused, false),
        attack("root as file", new().file("/", b"x"), Refused, false),
        attack("root as hard link", new().file("a", b"").hardlink("/", "a"), Refused, false),
        attack("hard link to the root", new().hardlink("h", "/"), Refused, false),
        attack("hard link to a directory", new().dir("d", 0o755).hardlink("h", "d"), Refused, false),
        attack("hard link to nothing", new().hardlink("h", "nothing"), Refused, false),
        attack("file as parent", new().file("f", b"").file("f/x", b""), Refused, false),
        attack("loop", new().symlink("l", "l").file("l/x", b""), Refused, false),
        attack("disk", new().device(b'4', "disk", (8, 0)), Refused, false),
        attack("memory", new().device(b'3', "mem", (1, 1)), Refused, false),
        attack("forged whiteout", new().device(b'3', "w", (0, 0)), Refused, false),
        attack("disk in dev", new().dir("dev", 0o755).device(b'4', "dev/sda", (8, 0)), Confined, false),
        attack("pipe", new().device(b'6', "p", (0, 0)).file("p", b"replaced"), Confined, false),
        attack(
            "forged redirect",
            new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir("d", 0o755),
            Refused,
            false,
        ),
        attack(
            "forged user redirect",
            new().pax(&[("SCHILY.xattr.user.overlay.opaque", b"y")]).dir("d", 0o755),
            Refused,
            false,
        ),
        attack(
            "owner that means unchanged",
            new().member(&Member { path: "f", owner: (u64::from(u32::MAX), 0), ..Member::default() }),
            Refused,
            false,
        ),
        attack("unknown type", new().member(&Member { kind: b'Z', path: "z", ..Member::default() }), Refused, false),
        attack("sparse", new().member(&Member { kind: b'S', path: "s", ..Member::default() }), Refused, false),
        attack("zero byte", new().pax(&[("path", b"a\0b")]).file("x", b""), Refused, false),
    ]
}

/// Unpacks as a careless program would: paths joined as text, links followed.
fn unpack_naively(tar: &[u8], root: &Path) {
    let mut archive = tar::Archive::new(tar);
    let Ok(entries) = archive.entries() else {
        return;
    };
    for entry in entries {
        let Ok(mut entry) = entry else { return };
        let path = root.join(entry.path().unwrap());
        let link = entry.link_name().unwrap().map(|link| link.into_owned()).unwrap_or_default();
        // Errors don't stop it either.
        let _ = match entry.header().entry_type() {
            tar::EntryType::Directory => fs::create_dir_all(&path).and_then(|()| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&path, fs::Permissions::from_mode(entry.header().mode().unwrap()))
            }),
            tar::EntryType::Symlink => std::os::unix::fs::symlink(link, &path),
            tar::EntryType::Link => fs::hard_link(root.join(link), &path),
            _ => {
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut entry, &mut data).map(|_| ()).and_then(|()| fs::write(&path, data))
            }
        };
    }
}

#[test]
fn nothing_outside_of_a_layer_is_ever_touched() {
    let names: Vec<&str> = corpus("/x").iter().map(|attack| attack.name).collect();
    for (at, name) in names.iter().enumerate() {
        let place = Place::new();
        let outside = place.outside();
        let attack = corpus(outside.to_str().unwrap()).swap_remove(at);
        let tar = attack.layer.tar();
        let before = place.canary();
        let archive = docker_save(std::slice::from_ref(&tar), &["evil:1"]);
        let loaded = place.store.load(archive.as_slice(), &Limits::default());
        assert_eq!(place.canary(), before, "{name}: outside was changed");
        match attack.outcome {
            Outcome::Refused => {
                let error = loaded.expect_err(name);
                assert_eq!(place.left(), Vec::<String>::new(), "{name}: {error}");
            }
            Outcome::Confined => {
                loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
                place.store.remove("evil:1", true, &Default::default()).unwrap();
                assert_eq!(place.left(), Vec::<String>::new(), "{name}");
            }
        }
        assert_eq!(place.canary(), before, "{name}: removal changed what is outside");
        let imported = place.store.import(tar.as_slice(), None, &[], None, &Limits::default());
        assert_eq!(imported.is_ok(), attack.outcome == Outcome::Confined, "{name}");
        assert_eq!(place.canary(), before, "{name}: the import changed what is outside");

        let naive = place.path("naive");
        fs::create_dir(&naive).unwrap();
        unpack_naively(&tar, &naive);
        assert_eq!(canary(&outside) != before, attack.hits_naive, "{name}: does the attack work at all?");
    }
}

#[test]
fn members_of_the_archive_itself_are_only_keys() {
    let place = Place::new();
    let before = place.canary();
    let outside = place.outside();
    let outside = outside.to_str().unwrap();
    let up = format!("../../../../../../../../../../..{outside}/canary");
    for archive in [
        Layer::new().file(&up, b"dead"),
        Layer::new().file(&format!("{outside}/canary"), b"dead"),
        Layer::new().symlink("manifest.json", &up),
        Layer::new().symlink("manifest.json", &format!("{outside}/canary")),
        Layer::new().hardlink("manifest.json", &format!("{outside}/canary")),
        Layer::new().symlink("manifest.json", "manifest.json"),
        Layer::new().symlink("x", outside).file("x/canary", b"dead"),
        Layer::new().device(b'4', "manifest.json", (8, 0)),
    ] {
        place.store.load(archive.tar().as_slice(), &Limits::default()).unwrap_err();
        assert_eq!(place.canary(), before);
        assert_eq!(place.left(), Vec::<String>::new());
    }
}

#[test]
fn links_in_a_layout_directory_are_not_followed() {
    let place = Place::new();
    let layer = Layer::new().file("f", b"").tar();
    let layout = crate::kit::oci(std::slice::from_ref(&layer), std::slice::from_ref(&layer), "x:1");
    let dir = place.path("layout");
    layout.write_to(&dir);
    let name = layout.files.keys().find(|name| name.starts_with("blobs/")).unwrap();
    fs::rename(dir.join(name), place.outside().join("blob")).unwrap();
    std::os::unix::fs::symlink(place.outside().join("blob"), dir.join(name)).unwrap();
    place.store.load_dir(&dir, &Limits::default()).unwrap_err();
    assert_eq!(place.left(), Vec::<String>::new());
}

/// A file goes where its layer says: a link that leads into a layer below is no place for it, and the error says so.
#[test]
fn a_link_into_a_layer_below_is_no_directory() {
    let place = Place::new();
    let below = Layer::new().dir("usr", 0o755).dir("usr/lib", 0o755).tar();
    let above = Layer::new().symlink("lib", "usr/lib").file("lib/x", b"x").tar();
    let archive = docker_save(&[below, above], &["links:1"]);
    let error = place.store.load(archive.as_slice(), &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("\"lib\" on the way to it is a link to no directory of this layer"), "{error}");
    assert_eq!(place.left(), Vec::<String>::new());
}
