//! Layers under a real overlay mount: what the kernel makes of them is what the image says.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use skep_image::Limits;

use crate::kit::{Layer, Member, Place, docker_save};

struct Mounted(PathBuf);

impl Mounted {
    /// None where the machine can't mount overlays.
    fn new(place: &Place, image: &str) -> Option<Self> {
        let target = place.path("merged");
        for dir in ["merged", "upper", "work"] {
            fs::create_dir(place.path(dir)).unwrap();
        }
        let layers = place.store.layers(image).unwrap();
        let lower: Vec<String> = layers.iter().rev().map(|path| path.display().to_string()).collect();
        let (upper, work) = (place.path("upper"), place.path("work"));
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        let options = CString::new(options).unwrap();
        match mount("overlay", &target, "overlay", MountFlags::empty(), Some(options.as_c_str())) {
            Ok(()) => Some(Self(target)),
            Err(error) => {
                println!("UNTESTED: layers under a real overlay mount ({error})");
                None
            }
        }
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn mode(&self, path: &str) -> u32 {
        fs::symlink_metadata(self.0.join(path)).unwrap().permissions().mode() & 0o7777
    }

    fn read(&self, path: impl AsRef<Path>) -> String {
        fs::read_to_string(self.0.join(path)).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn whiteouts_links_and_attributes_survive_to_the_mount() {
    let base = Layer::new()
        .dir("./", 0o755)
        .file("gone", b"1")
        .dir("d", 0o711)
        .file("d/x", b"x")
        .file("d/y", b"y")
        .dir("o", 0o755)
        .file("o/1", b"1")
        .dir("replaced", 0o755)
        .file("replaced/old", b"1")
        .dir("recreated", 0o755)
        .file("recreated/old", b"1")
        .dir("tmp", 0o1777)
        .member(&Member { path: "su", mode: 0o4755, owner: (7, 8), data: b"#!", ..Member::default() })
        .pax(&[("SCHILY.xattr.security.capability", CAPABILITY), ("SCHILY.xattr.user.note", b"a\nb")])
        .file("capable", b"#!")
        .member(&Member { kind: b'2', path: "link", link: "/d/y", owner: (9, 9), ..Member::default() })
        .device(b'3', "null", (1, 3))
        .device(b'6', "pipe", (0, 0));
    let top = Layer::new()
        .file(".wh.gone", b"")
        .file("d/.wh.x", b"")
        .file("o/2", b"2")
        .file("o/.wh..wh..opq", b"")
        .file(".wh.replaced", b"")
        .file("replaced", b"now a file")
        .file(".wh.recreated", b"")
        .dir("recreated", 0o755)
        .file("recreated/new", b"2")
        .file("tmp/f", b"f")
        .file(".wh..wh.plnk", b"")
        .hardlink("y2", "d/y");
    let place = Place::new();
    place.store.load(docker_save(&[base.tar(), top.tar()], &["o:1"]).as_slice(), &Limits::default()).unwrap();
    let Some(merged) = Mounted::new(&place, "o:1") else {
        return;
    };
    assert_eq!(
        merged.names(""),
        ["capable", "d", "link", "null", "o", "pipe", "recreated", "replaced", "su", "tmp", "y2"]
    );
    assert_eq!(merged.names("d"), ["y"]);
    assert_eq!(merged.names("o"), ["2"]);
    assert_eq!(merged.names("recreated"), ["new"]);
    assert_eq!(merged.read("replaced"), "now a file");
    assert_eq!(merged.read("y2"), "y");
    assert_eq!(merged.mode("tmp"), 0o1777, "a directory that the layer doesn't list keeps its mode");
    assert_eq!(merged.mode("d"), 0o711);
    assert_eq!(merged.mode("su"), 0o4755);
    let su = fs::metadata(merged.0.join("su")).unwrap();
    assert_eq!((su.uid(), su.gid(), su.mtime()), (7, 8, 1_000_000));
    assert_eq!(fs::metadata(merged.0.join("recreated")).unwrap().mtime(), 1_000_000);
    let link = fs::symlink_metadata(merged.0.join("link")).unwrap();
    assert_eq!((link.uid(), link.mtime()), (9, 1_000_000));
    assert_eq!(fs::read_link(merged.0.join("link")).unwrap(), Path::new("/d/y"));
    assert!(fs::metadata(merged.0.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(merged.0.join("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    let mut value = [0_u8; 64];
    for (name, expected) in [("security.capability", CAPABILITY), ("user.note", b"a\nb")] {
        let length = rustix::fs::getxattr(merged.0.join("capable"), name, &mut value).unwrap();
        assert_eq!(&value[..length], expected, "{name}");
    }
}

#[test]
fn an_opaque_root_hides_all_that_is_below() {
    let base = Layer::new().file("a", b"1").dir("d", 0o755).file("d/old", b"1").file("b", b"1").tar();
    let top = Layer::new().file("d/new", b"2").file(".wh..wh..opq", b"").file("b", b"2").tar();
    let place = Place::new();
    place.store.load(docker_save(&[base, top], &["o:1"]).as_slice(), &Limits::default()).unwrap();
    let Some(merged) = Mounted::new(&place, "o:1") else {
        return;
    };
    assert_eq!(merged.names(""), ["b", "d"]);
    assert_eq!(merged.names("d"), ["new"]);
    assert_eq!(merged.read("b"), "2");
}
