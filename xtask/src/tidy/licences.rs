//! What others' code is licensed under. Linked into one binary that is Apache-2.0: permissive licences, and MPL-2.0,
//! which asks only for changes to its own files.

use crate::world::World;

const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that say it elsewhere than in their manifest, and what was read there.
const READ_BY_HAND: &[(&str, &str)] = &[("rust-criu", "MIT")];

/// How the source of a crate begins that comes from a registry, and not from a repository or a path elsewhere.
const REGISTRY: &str = "registry+";

pub(super) fn check(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for foreign in &world.foreign {
        let name = foreign.name.split(' ').next().unwrap_or_default();
        let by_hand = READ_BY_HAND.iter().find(|(n, _)| *n == name).map(|(_, licence)| *licence);
        match foreign.license.as_deref().or(by_hand) {
            None => wrong.push(format!("dependency {}: it names no licence", foreign.name)),
            Some(licence) if !permitted(licence) => {
                wrong.push(format!("dependency {}: its licence {licence} is not among those allowed", foreign.name));
            }
            Some(_) => {}
        }
        if !foreign.source.starts_with(REGISTRY) {
            wrong.push(format!(
                "dependency {}: it comes from {}, not from the public registry",
                foreign.name, foreign.source
            ));
        }
    }
    wrong
}

/// Whether one may comply with an SPDX expression by complying with allowed licences only. What can't be read is refused.
fn permitted(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any(&mut rest) && rest.is_empty()
}

/// `all OR all …`
fn any(rest: &mut &[&str]) -> bool {
    let mut permitted = all(rest);
    while let ["OR", after @ ..] = *rest {
        *rest = after;
        permitted |= all(rest);
    }
    permitted
}

/// `one AND one …`
fn all(rest: &mut &[&str]) -> bool {
    let mut permitted = one(rest);
    while let ["AND", after @ ..] = *rest {
        *rest = after;
        permitted &= one(rest);
    }
    permitted
}

/// A licence, with its exception, or an expression in parentheses.
fn one(rest: &mut &[&str]) -> bool {
    match *rest {
        ["(", inner @ ..] => {
            *rest = inner;
            let permitted = any(rest);
            let [")", after @ ..] = *rest else { return false };
            *rest = after;
            permitted
        }
        // An exception gives more rights, never fewer.
        [licence, "WITH", _, after @ ..] | [licence, after @ ..] => {
            *rest = after;
            ALLOWED.contains(&licence.trim_end_matches('+'))
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Foreign;

    #[test]
    fn expressions() {
        for (expression, fine) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0 / MIT", true),
            ("MIT OR GPL-3.0-only", true),
            ("GPL-3.0-only", false),
            ("MIT AND GPL-2.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR GPL-2.0) AND GPL-2.0", false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("MPL-2.0+", true),
            ("", false),
            ("MIT OR", true),
            ("(MIT", false),
            ("MIT MIT", false),
        ] {
            assert_eq!(permitted(expression), fine, "{expression}");
        }
    }

    #[test]
    fn silence_and_other_sources_are_refused() {
        let foreign = |name: &str, license: Option<&str>, source: &str| Foreign {
            name: name.into(),
            license: license.map(Into::into),
            source: source.into(),
        };
        let world = World {
            foreign: vec![
                foreign("a 1.0.0", Some("MIT"), REGISTRY),
                foreign("b 1.0.0", None, REGISTRY),
                foreign("c 1.0.0", Some("MIT"), "git+https://example.org/c"),
                foreign("rust-criu 0.6.1", None, REGISTRY),
            ],
            ..World::default()
        };
        let wrong = check(&world);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }
}
