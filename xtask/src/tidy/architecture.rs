//! The map can't lie: every path that ARCHITECTURE.md names or links to exists, and every crate is on it.

use crate::world::World;

const MAP: &str = "ARCHITECTURE.md";

pub(super) fn check(world: &World) -> Vec<String> {
    let Some(text) = world.text(MAP) else {
        return vec![format!("{MAP} is missing")];
    };
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for path in named(line) {
            let relative = path.trim_end_matches('/');
            if !world.paths.iter().any(|p| p == relative) {
                wrong.push(format!("{MAP}:{}: there is no {path}", number + 1));
            }
        }
    }
    for krate in &world.crates {
        let on_map =
            |path: &str| path == krate.dir || path.strip_prefix(&krate.dir).is_some_and(|p| p.starts_with('/'));
        if !text.lines().flat_map(named).any(on_map) {
            wrong.push(format!("{MAP}: crate {} ({}) is not on the map", krate.name, krate.dir));
        }
    }
    wrong
}

/// What is linked to, and what stands between backticks and is a path of the repository by its form: `a/b`, `a/`, `b.rs`.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let quoted = line.split('`').skip(1).step_by(2).filter(|text| is_path(text));
    quoted.chain(linked(line))
}

/// Targets of links, `[text](target)`, that are no addresses and no places in this file.
fn linked(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let files = targets.map(|target| target.split_once('#').map_or(target, |(file, _)| file));
    files.filter(|file| !file.is_empty() && !file.contains("://"))
}

fn is_path(text: &str) -> bool {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '.') && !text.starts_with("./");
    let known = [".rs", ".md", ".toml", ".proto", ".service"].iter().any(|end| text.ends_with(end));
    plain && begins && (text.contains('/') || (known && !text.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::{krate, world};

    #[test]
    fn paths_are_told_from_other_words() {
        let line = "[x](y/z) [`q/r.rs`](q/r.rs#top), not [here](#top) nor [there](https://example.org/x)";
        assert_eq!(named(line).collect::<Vec<_>>(), ["q/r.rs", "y/z", "q/r.rs"]);
        let line = "`a/b.rs` and `lib.rs`, `a/`, not `fn(&View) -> X`, `2377/tcp`, `/etc/skep`, `skep daemon`, `.proto` nor `SWMTKN-1-x`";
        assert_eq!(named(line).collect::<Vec<_>>(), ["a/b.rs", "lib.rs", "a/"]);
    }

    #[test]
    fn the_map_names_what_exists_and_leaves_nothing_out() {
        let crates = vec![krate("skep-state", "manager/state", &[])];
        let files = |map| [("ARCHITECTURE.md", map), ("manager/state/src/lib.rs", "//! x")];
        for (map, errors) in [
            ("`manager/state/` and `manager/state/src/lib.rs`", 0),
            ("[manager/state](manager/state)", 0),
            ("[the state](manager/state/src/lib.rs)", 0),
            ("[the state](manager/state/src/gone.rs)", 1),
            ("`manager/state/src/gone.rs`", 1),
            // Its name alone is no place on the map.
            ("the crate in manager/state", 1),
            ("nothing", 1),
            ("`manager/plan`", 2),
        ] {
            let wrong = check(&world(crates.clone(), &files(map)));
            assert_eq!(wrong.len(), errors, "{map}: {wrong:?}");
        }
        assert_eq!(check(&world(crates, &[])).len(), 1, "no map at all");
    }
}
