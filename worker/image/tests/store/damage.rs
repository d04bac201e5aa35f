//! Archives that are cut off, lie, or are too large: a clear error, and nothing left.

use serde_json::json;
use skep_image::{Digest, Error, Limits};

use crate::kit::{Layer, Place, config, docker_save, docker_save_with, gzip, oci, zst};

fn layer() -> Vec<u8> {
    // Noise, so that compression leaves something to cut.
    let mut state = 1_u32;
    let noise: Vec<u8> = (0..20_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    Layer::new().dir("d/", 0o755).file("d/noise", &noise).file("d/small", b"x").tar()
}

fn refused(place: &Place, archive: &[u8], limits: &Limits) -> Error {
    let error = place.store.load(archive, limits).expect_err("must be refused");
    assert_eq!(place.left(), Vec::<String>::new(), "after: {error}");
    assert!(place.store.list().unwrap().is_empty());
    error
}

#[test]
fn archives_cut_off_anywhere_are_refused() {
    let layers = [layer()];
    let layout = oci(&layers, &[gzip(&layers[0])], "x:1").tar();
    let place = Place::new();
    for (archive, end) in [
        // Without the last of the two end blocks an archive is whole.
        (docker_save(&layers, &["x:1"]), 1024),
        (layout.clone(), 1024),
        (gzip(&layout), 1),
        (zst(&layout), 1),
    ] {
        place.store.load(archive.as_slice(), &Limits::default()).unwrap();
        place.store.remove("x:1", true, &Default::default()).unwrap();
        let last = archive.len() - end;
        let step = (last / 60).max(1);
        for cut in (0..last).step_by(step).chain(last.saturating_sub(20)..=last) {
            let error = refused(&place, &archive[..cut], &Limits::default()).to_string();
            assert!(!error.is_empty(), "{cut}");
        }
    }
}

#[test]
fn one_flipped_bit_in_a_blob_is_found() {
    let layers = [layer()];
    let layout = oci(&layers, &[gzip(&layers[0])], "x:1");
    let place = Place::new();
    for (name, bytes) in &layout.files {
        if !name.starts_with("blobs/") {
            continue;
        }
        let mut bad = oci(&layers, &[gzip(&layers[0])], "x:1");
        let mut bytes = bytes.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
        bad.files.insert(name.clone(), bytes);
        let error = refused(&place, &bad.tar(), &Limits::default());
        assert!(matches!(error, Error::DigestMismatch { .. }), "{name}: {error}");
    }
}

#[test]
fn documents_that_lie_are_refused() {
    let layers = [layer()];
    let other = Layer::new().file("other", b"").tar();
    let place = Place::new();
    let limits = Limits::default();
    let good = config(&layers);

    let mut config = good.clone();
    config["rootfs"]["diff_ids"] = json!([Digest::of(&other)]);
    let error = refused(&place, &docker_save_with(&config, &layers, &["x"]), &limits);
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");

    for diff_ids in [json!([]), json!([Digest::of(&layers[0]), Digest::of(&other)]), json!(["sha256:../../x"])] {
        let mut config = good.clone();
        config["rootfs"]["diff_ids"] = diff_ids;
        let error = refused(&place, &docker_save_with(&config, &layers, &["x"]), &limits);
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }

    let mut config = good.clone();
    config["os"] = json!("windows");
    assert!(refused(&place, &docker_save_with(&config, &layers, &["x"]), &limits).to_string().contains("windows"));

    let manifest = |config: &str, layer: &str| {
        let text = serde_json::to_vec(&json!([{"Config": config, "RepoTags": ["x"], "Layers": [layer]}])).unwrap();
        let body = serde_json::to_vec(&good).unwrap();
        Layer::new().file("c.json", &body).file("l.tar", &layers[0]).file("manifest.json", &text)
    };
    place.store.load(manifest("c.json", "l.tar").tar().as_slice(), &limits).unwrap();
    place.store.remove("x", true, &Default::default()).unwrap();
    for (config, layer) in
        [("../c.json", "l.tar"), ("/etc/passwd", "l.tar"), ("c.json", "absent"), ("c.json", "c.json")]
    {
        refused(&place, &manifest(config, layer).tar(), &limits);
    }
    let twice = manifest("c.json", "l.tar").file("l.tar", b"second");
    assert!(refused(&place, &twice.tar(), &limits).to_string().contains("twice"));
    let named = format!("{}.json", Digest::of(b"another").hex());
    let text = serde_json::to_vec(&json!([{"Config": named, "Layers": ["l.tar"]}])).unwrap();
    let renamed = Layer::new()
        .file(&named, &serde_json::to_vec(&good).unwrap())
        .file("l.tar", &layers[0])
        .file("manifest.json", &text);
    assert!(matches!(refused(&place, &renamed.tar(), &limits), Error::DigestMismatch { .. }));

    for text in ["", "{", "[]", "null", &"[".repeat(10_000)] {
        refused(&place, &Layer::new().file("manifest.json", text.as_bytes()).tar(), &limits);
    }
    for archive in [b"".to_vec(), b"hello".to_vec(), vec![0; 10_240], vec![b'x'; 5000], gzip(b"x")] {
        refused(&place, &archive, &limits);
    }
    let bad_tag = docker_save(&layers, &["UPPER"]);
    assert!(matches!(refused(&place, &bad_tag, &limits), Error::Reference(_)));
}

#[test]
fn other_machines_images_are_refused_by_name() {
    let layers = [layer()];
    let mut layout = oci(&layers, &[layers[0].clone()], "x:1");
    let index = String::from_utf8(layout.files["index.json"].clone()).unwrap();
    let descriptor: serde_json::Value = serde_json::from_str(&index).unwrap();
    let mut descriptor = descriptor["manifests"][0].clone();
    descriptor["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
    layout.files.insert("index.json".into(), serde_json::to_vec(&index).unwrap());
    let error = refused(&Place::new(), &layout.tar(), &Limits::default());
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[test]
fn bombs_end_at_the_limits() {
    let place = Place::new();
    let zeros = vec![0_u8; 8 << 20];
    let big = Layer::new().file("big", &zeros).tar();
    let mut padded = Layer::new().file("small", b"x").tar();
    padded.resize(8 << 20, 0);
    let many = (0..200).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), b"")).tar();
    let deep = Layer::new().file(&("d/".repeat(60) + "f"), b"").tar();
    let long = Layer::new().file(&"n".repeat(256), b"").tar();
    let header = Layer::new().pax(&[("comment", &[b'c'; 9000])]).file("f", b"").tar();
    let tight = Limits { unpacked_bytes: 1 << 20, entries: 100, depth: 50, header_bytes: 8192, ..Limits::default() };
    for (name, layer) in
        [("big", big), ("padded", padded), ("many", many), ("deep", deep), ("long", long), ("header", header)]
    {
        for blob in [layer.clone(), gzip(&layer), zst(&layer)] {
            let layout = oci(std::slice::from_ref(&layer), &[blob], "x:1");
            let error = refused(&place, &layout.tar(), &tight);
            let expected = matches!(&error, Error::Limit(_) | Error::Layer { .. });
            assert!(expected, "{name}: {error}");
        }
    }
    // Layers of one archive share the budget.
    let half = vec![7_u8; 600 << 10];
    let pair = [Layer::new().file("a", &half).tar(), Layer::new().file("b", &half).tar()];
    assert!(matches!(refused(&place, &docker_save(&pair, &["x"]), &tight), Error::Limit(_)));

    let outer = zst(&Layer::new().file("zeros", &zeros).tar());
    let small = Limits { archive_bytes: 1 << 20, ..Limits::default() };
    assert!(matches!(refused(&place, &outer, &small), Error::Limit(_)));
    let json = Limits { json_bytes: 100, ..Limits::default() };
    assert!(matches!(refused(&place, &docker_save(&[layer()], &["x"]), &json), Error::Limit(_)));
    let members = Limits { members: 2, ..Limits::default() };
    assert!(matches!(refused(&place, &docker_save(&[layer()], &["x"]), &members), Error::Limit(_)));
    let none = Limits { layers: 1, ..Limits::default() };
    let pair = [layer(), Layer::new().file("b", b"").tar()];
    assert!(matches!(refused(&place, &docker_save(&pair, &["x"]), &none), Error::Limit(_)));
}
