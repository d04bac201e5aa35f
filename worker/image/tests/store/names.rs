//! Tags, ids, removal and collection.

use std::collections::HashSet;
use std::fs;

use skep_image::{Collected, Error, Limits, Removed};

use crate::kit::{Layer, Place, docker_save};

fn load(place: &Place, content: &str, tags: &[&str]) -> String {
    let base = Layer::new().file("base", b"base").tar();
    let top = Layer::new().file("top", content.as_bytes()).tar();
    let loaded = place.store.load(docker_save(&[base, top], tags).as_slice(), &Limits::default()).unwrap();
    loaded[0].id.clone()
}

fn untagged(removed: &[Removed]) -> Vec<&str> {
    let mut names = Vec::new();
    for removed in removed {
        if let Removed::Untagged(name) = removed {
            names.push(name.as_str());
        }
    }
    names
}

#[test]
fn images_are_found_by_tag_digest_and_beginning_of_the_id() {
    let place = Place::new();
    let ids: Vec<String> = (0..20).map(|n| load(&place, &n.to_string(), &[&format!("x:{n}")])).collect();
    assert_eq!(place.store.list().unwrap().len(), 20);
    for (n, id) in ids.iter().enumerate() {
        let image = place.store.resolve(&format!("docker.io/library/x:{n}")).unwrap();
        assert_eq!(image.references, [format!("x:{n}")]);
        for text in [id.as_str(), &id[7..], &id[7..40], &id[..30], image.digests[0].as_str()] {
            assert_eq!(place.store.resolve(text).unwrap().id, *id, "{text}");
        }
    }
    // Twenty ids share some first digit.
    let shared = ids.iter().map(|id| &id[7..8]).find(|d| ids.iter().filter(|id| &id[7..8] == *d).count() > 1).unwrap();
    match place.store.resolve(shared).unwrap_err() {
        Error::Ambiguous { candidates, .. } => {
            assert!(candidates.len() > 1 && candidates[0].starts_with("sha256:"))
        }
        other => panic!("{other}"),
    }
    for absent in ["x", "y:1", "x:99", "", "sha256:", "zz", "../x", "X", &ids[0].replace("sha256:", "sha256:0")] {
        assert!(matches!(place.store.resolve(absent), Err(Error::NotFound(_))), "{absent}");
    }
    place.store.tag("x:3", "other").unwrap();
    assert_eq!(place.store.resolve("other:latest").unwrap().references, ["other:latest", "x:3"]);
    place.store.tag("x:4", "other").unwrap();
    assert_eq!(place.store.resolve("other").unwrap().id, ids[4]);
    place.store.tag("x:99", "other").unwrap_err();
    place.store.tag("x:1", "Bad").unwrap_err();
}

#[test]
fn removal_takes_names_then_the_image_and_what_only_it_needs() {
    let place = Place::new();
    let none = HashSet::new();
    let a = load(&place, "a", &["a:1", "a:2", "b:1"]);
    let c = load(&place, "c", &["c:1"]);
    assert!(matches!(place.store.remove(&a, false, &none), Err(Error::Conflict { .. })));
    let removed = place.store.remove("a:1", false, &none).unwrap();
    assert_eq!(untagged(&removed), ["a:1"]);
    let removed = place.store.remove("a:2", false, &none).unwrap();
    assert_eq!(untagged(&removed).len(), 2, "with the last tag the digest goes: {removed:?}");
    let removed = place.store.remove("b", false, &none);
    assert!(matches!(removed, Err(Error::NotFound(_))));
    let removed = place.store.remove("b:1", false, &none).unwrap();
    let deleted = removed.iter().filter(|r| matches!(r, Removed::Deleted(_))).count();
    assert_eq!(deleted, 2, "the image and its own layer, not the shared one: {removed:?}");
    assert!(removed.contains(&Removed::Deleted(a)));
    assert_eq!(place.store.layers(&c).unwrap().len(), 2);
    place.store.remove(&c[7..20], false, &none).unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn what_is_in_use_stays() {
    let place = Place::new();
    let id = load(&place, "a", &["a:1"]);
    let used = HashSet::from([id.clone()]);
    assert!(matches!(place.store.remove("a:1", false, &used), Err(Error::Conflict { .. })));
    assert!(matches!(place.store.remove(&id, true, &used), Err(Error::Conflict { .. })));
    assert_eq!(place.store.resolve("a:1").unwrap().id, id);
    let removed = place.store.remove("a:1", true, &used).unwrap();
    assert!(removed.iter().all(|r| matches!(r, Removed::Untagged(_))));
    assert_eq!(place.store.layers(&id).unwrap().len(), 2);
    place.store.remove(&id, false, &HashSet::new()).unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn collection_removes_exactly_what_nothing_needs() {
    let place = Place::new();
    let id = load(&place, "a", &["a:1"]);
    assert_eq!(place.store.collect(&HashSet::new()).unwrap(), Collected::default());
    let paths = place.store.layers(&id).unwrap();
    // As after a crash between layers and record.
    fs::remove_file(place.path("store/images").join(format!("{}.json", &id[7..]))).unwrap();
    let kept = HashSet::from([paths[0].clone()]);
    let collected = place.store.collect(&kept).unwrap();
    assert_eq!((collected.layers, collected.blobs), (1, 4));
    assert!(paths[0].is_dir() && !paths[1].exists());
    assert_eq!(place.store.collect(&HashSet::new()).unwrap().layers, 1);
    // A load afterwards repairs everything.
    assert_eq!(load(&place, "a", &["a:1"]), id);
    assert_eq!(place.store.layers(&id).unwrap().len(), 2);
}

#[test]
fn a_damaged_image_is_left_out_and_comes_back_with_a_load() {
    let place = Place::new();
    let (a, b) = (load(&place, "a", &["a:1"]), load(&place, "b", &["b:1"]));
    fs::write(place.path("store/blobs/sha256").join(&a[7..]), "{}").unwrap();
    assert!(matches!(place.store.resolve("a:1"), Err(Error::Damaged { .. })));
    let ids: Vec<String> = place.store.list().unwrap().into_iter().map(|image| image.id).collect();
    assert_eq!(ids, [b]);
    place.store.remove("a:1", true, &HashSet::new()).unwrap();
    load(&place, "a", &["a:1"]);
    assert_eq!(place.store.resolve("a:1").unwrap().id, a);
}

#[test]
fn a_damaged_record_keeps_what_it_may_need() {
    let place = Place::new();
    let (a, b) = (load(&place, "a", &["a:1"]), load(&place, "b", &["b:1"]));
    let shared = place.store.layers(&b).unwrap().remove(0);
    fs::write(place.path("store/images").join(format!("{}.json", &a[7..])), "{").unwrap();
    place.store.remove("b:1", false, &HashSet::new()).unwrap();
    assert!(shared.is_dir());
    assert!(matches!(place.store.collect(&HashSet::new()), Err(Error::Damaged { .. })));
    place.store.remove(&a, true, &HashSet::new()).unwrap();
    place.store.collect(&HashSet::new()).unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}
