//! What comes in goes out the same, in every form.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

use skep_image::archive::{SingleBinary, single_binary};
use skep_image::{Digest, Limits, Reference, Store};

use crate::kit::{Halfway, Layer, Place, docker_save, gzip, oci, zst};

fn layers() -> Vec<Vec<u8>> {
    let base = Layer::new().dir("./", 0o755).dir("bin/", 0o755).file("bin/x", &[b'x'; 100_000]).symlink("sh", "bin/x");
    let top = Layer::new().file("etc/conf", b"one").hardlink("etc/same", "etc/conf");
    vec![base.tar(), top.tar()]
}

fn limits() -> Limits {
    Limits::default()
}

#[test]
fn docker_archives_make_the_round_trip_plain_and_compressed() {
    let archive = docker_save(&layers(), &["hive/demo:1", "hive/demo:2"]);
    let first = Place::new();
    let loaded = first.store.load(archive.as_slice(), &limits()).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].references, ["hive/demo:1", "hive/demo:2"]);
    let image = first.store.resolve("hive/demo:1").unwrap();
    assert_eq!(image.id, loaded[0].id);
    assert_eq!((image.architecture.as_str(), image.os.as_str()), ("amd64", "linux"));
    assert_eq!(image.config.entrypoint.as_deref(), Some(&["/x".to_owned()][..]));
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("1:2", "/w"));
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(image.size, 100_003);
    assert_eq!(image.created.unwrap().to_string(), "2024-05-06T07:08:09Z");
    let paths = first.store.layers(&image.id).unwrap();
    assert_eq!(paths.len(), 2);
    assert_eq!(fs::read(paths[0].join("bin/x")).unwrap().len(), 100_000);
    assert_eq!(fs::read_to_string(paths[1].join("etc/same")).unwrap(), "one");
    assert_eq!(fs::metadata(paths[1].join("etc/same")).unwrap().nlink(), 2);

    let mut saved = Vec::new();
    first.store.save(&["hive/demo"], &mut saved).unwrap();
    let mut again = Vec::new();
    first.store.save(&["hive/demo"], &mut again).unwrap();
    assert_eq!(saved, again, "saving is deterministic");
    for bytes in [saved.clone(), gzip(&saved), zst(&saved), gzip(&archive)] {
        let second = Place::new();
        let reloaded = second.store.load(bytes.as_slice(), &limits()).unwrap();
        assert_eq!(reloaded, loaded);
        assert_eq!(second.store.resolve("hive/demo:2").unwrap(), image);
    }
    // By id the image goes without names; by tag with that one.
    for (name, expected) in [(&image.id[7..20], vec![]), ("hive/demo:2", vec!["hive/demo:2"])] {
        let mut saved = Vec::new();
        first.store.save(&[name], &mut saved).unwrap();
        let third = Place::new();
        assert_eq!(third.store.load(saved.as_slice(), &limits()).unwrap()[0].references, expected);
    }
}

#[test]
fn oci_layouts_keep_their_blobs_and_digests() {
    let layers = layers();
    let blobs = vec![gzip(&layers[0]), zst(&layers[1])];
    let layout = oci(&layers, &blobs, "registry.example:5000/demo:3");
    let tar = Place::new();
    let loaded = tar.store.load(layout.tar().as_slice(), &limits()).unwrap();
    assert_eq!(loaded[0].references, ["registry.example:5000/demo:3"]);
    let pinned = format!("registry.example:5000/demo@{}", layout.manifest);
    let image = tar.store.resolve(&pinned).unwrap();
    assert!(image.digests.contains(&pinned), "{:?}", image.digests);
    assert_eq!(image.digests.len(), 2, "the index has a digest too");
    assert_eq!(tar.store.resolve(&layout.manifest).unwrap(), image);
    let both = format!("registry.example:5000/demo:9@{}", layout.manifest);
    assert_eq!(tar.store.resolve(&both).unwrap(), image);

    let dir = Place::new();
    layout.write_to(&dir.path("layout"));
    assert_eq!(dir.store.load_dir(&dir.path("layout"), &limits()).unwrap(), loaded);

    let mut saved = Vec::new();
    tar.store.save(&["registry.example:5000/demo:3"], &mut saved).unwrap();
    let again = Place::new();
    assert_eq!(again.store.load(saved.as_slice(), &limits()).unwrap(), loaded);
    assert_eq!(again.store.resolve(&pinned).unwrap().id, image.id, "the manifest kept its digest");
}

#[test]
fn one_archive_may_hold_images_that_share_layers() {
    let all = layers();
    let place = Place::new();
    place.store.load(docker_save(&all, &["a:1"]).as_slice(), &limits()).unwrap();
    place.store.load(docker_save(&all[..1], &["b:1"]).as_slice(), &limits()).unwrap();
    let (a, b) = (place.store.layers("a:1").unwrap(), place.store.layers("b:1").unwrap());
    assert_eq!(a[0], b[0], "shared by chain id");
    let mut saved = Vec::new();
    place.store.save(&["a:1", "b:1"], &mut saved).unwrap();
    let second = Place::new();
    let loaded = second.store.load(saved.as_slice(), &limits()).unwrap();
    assert_eq!(loaded.len(), 2);
    assert_eq!(second.store.list().unwrap().len(), 2);
    assert_eq!(fs::read_dir(second.path("store/layers")).unwrap().count(), 2);
}

#[test]
fn older_archives_link_equal_layers() {
    let layer = layers().remove(0);
    let pair = [layer.clone(), layer.clone()];
    let config = serde_json::to_vec(&crate::kit::config(&pair)).unwrap();
    let manifest = br#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let archive = Layer::new()
        .file("c.json", &config)
        .file("a/layer.tar", &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file("manifest.json", manifest);
    let place = Place::new();
    let loaded = place.store.load(archive.tar().as_slice(), &limits()).unwrap();
    assert_eq!(loaded[0].references, Vec::<String>::new());
    assert_eq!(place.store.layers(&loaded[0].id).unwrap().len(), 2);
}

#[test]
fn imports_make_an_image_of_a_root_file_system() {
    let rootfs = layers().remove(0);
    for bytes in [rootfs.clone(), gzip(&rootfs), zst(&rootfs)] {
        let place = Place::new();
        let changes = ["CMD [\"/bin/x\"]".to_owned(), "ENV P=1".to_owned()];
        let loaded = place.store.import(bytes.as_slice(), Some("flat"), &changes, Some("by hand"), &limits()).unwrap();
        assert_eq!(loaded.references, ["flat:latest"]);
        let image = place.store.resolve("flat").unwrap();
        assert_eq!(image.config.cmd.as_deref(), Some(&["/bin/x".to_owned()][..]));
        assert_eq!(image.layers, [Digest::of(&rootfs).to_string()]);
        assert_eq!(image.history[0].comment, "by hand");
        let mut saved = Vec::new();
        place.store.save(&["flat"], &mut saved).unwrap();
        assert_eq!(Place::new().store.load(saved.as_slice(), &limits()).unwrap()[0].id, image.id);
    }
    let place = Place::new();
    for bytes in [&b""[..], b"no tar at all", &rootfs[..rootfs.len() - 1024], &rootfs[..5000]] {
        place.store.import(bytes, Some("flat"), &[], None, &limits()).unwrap_err();
        assert_eq!(place.left(), Vec::<String>::new());
    }
    place.store.import(rootfs.as_slice(), None, &["RUN x".to_owned()], None, &limits()).unwrap_err();
}

#[test]
fn the_image_of_one_program_is_reproducible_and_loads() {
    let spec = SingleBinary {
        reference: Reference::parse("skep/whoami").unwrap(),
        program: "whoami".to_owned(),
        exposed_ports: vec!["80/tcp".to_owned()],
        env: vec![],
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let id = single_binary(&spec, b"\x7fELF program", &mut first).unwrap();
    single_binary(&spec, b"\x7fELF program", &mut second).unwrap();
    assert_eq!(first, second);
    let place = Place::new();
    let loaded = place.store.load(first.as_slice(), &limits()).unwrap();
    assert_eq!((&loaded[0].id, &loaded[0].references), (&id, &vec!["skep/whoami:latest".to_owned()]));
    let image = place.store.resolve("skep/whoami").unwrap();
    assert_eq!(image.config.entrypoint.as_deref(), Some(&["/whoami".to_owned()][..]));
    assert!(image.config.exposed_ports.contains("80/tcp"));
    let program = place.store.layers(&id).unwrap()[0].join("whoami");
    assert_eq!(fs::metadata(program).unwrap().mode() & 0o7777, 0o755);
    let bad = SingleBinary { program: "../x".to_owned(), ..spec };
    single_binary(&bad, b"", Vec::new()).unwrap_err();
}

#[test]
fn many_loads_of_one_image_and_collections_at_once_agree() {
    let archive = docker_save(&layers(), &["busy:1"]);
    let place = Place::new();
    let root = place.path("store");
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let store = Store::open(&root).unwrap();
                for _ in 0..3 {
                    store.load(archive.as_slice(), &limits()).unwrap();
                    store.collect(&HashSet::new()).unwrap();
                }
            });
        }
    });
    assert_eq!(place.store.list().unwrap().len(), 1);
    assert_eq!(place.store.layers("busy:1").unwrap().len(), 2);
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
}

#[test]
fn opening_sweeps_what_a_crash_left_and_nothing_else() {
    let place = Place::new();
    let root = place.path("store");
    fs::create_dir_all(root.join("tmp/4242-0/1/diff")).unwrap();
    fs::write(root.join("tmp/4242-0/owner"), "").unwrap();
    let archive = docker_save(&layers(), &["calm:1"]);
    let reader = Halfway {
        bytes: &archive,
        half: archive.len() / 2,
        at_half: || {
            Store::open(&root).unwrap();
            let left = fs::read_dir(root.join("tmp")).unwrap().count();
            assert_eq!(left, 1, "this load's own staging directory");
        },
    };
    place.store.load(reader, &limits()).unwrap();
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
}
