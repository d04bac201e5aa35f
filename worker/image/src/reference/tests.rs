//! References as people write them, and what they mean.

#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn names_are_normalised() {
    let digest = format!("sha256:{HEX}");
    let table = [
        ("alpine", "docker.io/library/alpine", "alpine"),
        ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
        ("library/alpine", "docker.io/library/alpine", "alpine"),
        ("docker.io/alpine", "docker.io/library/alpine", "alpine"),
        ("docker.io/library/alpine:latest", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine", "alpine"),
        ("traefik/whoami", "docker.io/traefik/whoami", "traefik/whoami"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1"),
        ("registry.example/a/b/c:T_1.x-y", "registry.example/a/b/c:T_1.x-y", "registry.example/a/b/c:T_1.x-y"),
        ("registry.example/x", "registry.example/x", "registry.example/x"),
        ("HOST/x", "HOST/x", "HOST/x"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x", "127.0.0.1:5000/x"),
        ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
        ("a__b/c---d/e.f_g", "docker.io/a__b/c---d/e.f_g", "a__b/c---d/e.f_g"),
        ("host:5000", "docker.io/library/host:5000", "host:5000"),
    ];
    for (text, full, familiar) in table {
        let reference = Reference::parse(text).unwrap();
        assert_eq!(reference.to_string(), full, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
    }
    let pinned = Reference::parse(&format!("alpine:3@{digest}")).unwrap();
    assert_eq!(pinned.tag(), Some("3"));
    assert_eq!(pinned.digest().unwrap().as_str(), digest);
    assert_eq!(pinned.familiar(), format!("alpine:3@{digest}"));
    assert_eq!(pinned.clone().or_latest(), pinned);
    assert_eq!(Reference::parse("alpine").unwrap().or_latest().familiar(), "alpine:latest");
}

#[test]
fn what_is_no_name_is_refused_with_the_reason() {
    type Check = fn(&ParseError) -> bool;
    let long = "a/".repeat(200) + "b";
    let tag = format!("x:{}", "t".repeat(129));
    let table: Vec<(&str, Check)> = vec![
        ("", |e| matches!(e, ParseError::Empty)),
        ("Alpine", |e| matches!(e, ParseError::Uppercase(_))),
        ("reg.example/Alpine", |e| matches!(e, ParseError::Uppercase(_))),
        (HEX, |e| matches!(e, ParseError::LooksLikeId(_))),
        (&long, |e| matches!(e, ParseError::TooLong)),
        ("-reg.example/x", |e| matches!(e, ParseError::Domain(_))),
        ("reg..example/x", |e| matches!(e, ParseError::Domain(_))),
        ("reg.example:/x", |e| matches!(e, ParseError::Domain(_))),
        ("reg.example:port/x", |e| matches!(e, ParseError::Domain(_))),
        ("[::1/x", |e| matches!(e, ParseError::Domain(_))),
        ("[zz]:1/x", |e| matches!(e, ParseError::Domain(_))),
        ("a//b", |e| matches!(e, ParseError::Path(_))),
        ("/a", |e| matches!(e, ParseError::Path(_))),
        ("a/", |e| matches!(e, ParseError::Path(_))),
        ("../a", |e| matches!(e, ParseError::Domain(_) | ParseError::Path(_))),
        ("a..b", |e| matches!(e, ParseError::Path(_))),
        ("a___b", |e| matches!(e, ParseError::Path(_))),
        ("a._b", |e| matches!(e, ParseError::Path(_))),
        ("-a", |e| matches!(e, ParseError::Path(_))),
        ("a b", |e| matches!(e, ParseError::Path(_))),
        ("é", |e| matches!(e, ParseError::Path(_))),
        ("x:", |e| matches!(e, ParseError::Tag(_))),
        ("x:.t", |e| matches!(e, ParseError::Tag(_))),
        ("x:a:b", |e| matches!(e, ParseError::Tag(_))),
        (&tag, |e| matches!(e, ParseError::Tag(_))),
        ("x@sha256:00", |e| matches!(e, ParseError::Digest(_))),
        ("x@", |e| matches!(e, ParseError::Digest(_))),
    ];
    for (text, check) in table {
        let error = Reference::parse(text).unwrap_err();
        assert!(check(&error), "{text}: {error:?}");
    }
}

proptest! {
    /// Whatever the text, parsing ends, and what it accepts keeps its meaning in both of its forms.
    #[test]
    fn both_forms_parse_to_the_same_name(text in "[a-zA-Z0-9./:@_\\[\\] é-]{0,40}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
            prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
        }
    }

    #[test]
    fn well_formed_names_are_accepted(
        domain in prop::option::of("(localhost|[a-z][a-z0-9]{0,8}\\.[a-z]{2,5})(:[0-9]{1,5})?"),
        path in prop::collection::vec("[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", 1..4),
        tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
    ) {
        // Without a registry, a first component with a dot would be taken for one.
        let hidden = path.len() > 1 && path[0].contains('.');
        let domain = domain.or(hidden.then(|| "docker.io".to_owned()));
        let mut text = domain.map(|d| d + "/").unwrap_or_default() + &path.join("/");
        // A single component of 64 hex digits can't arise: components are shorter.
        if let Some(tag) = &tag { text = format!("{text}:{tag}"); }
        let reference = Reference::parse(&text).unwrap();
        prop_assert_eq!(reference.tag(), tag.as_deref());
        prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
    }
}
