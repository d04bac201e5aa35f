//! Every file of Rust begins with what it is for, and is short enough to be read in one go.

use crate::world::World;

/// Lines; longer ones are asked to be split by responsibility.
const LONG: usize = 600;

pub(super) fn missing(world: &World) -> Vec<String> {
    let files = world.rust().map(|(_, file)| file);
    files
        .filter(|file| !file.text.lines().find(|line| !line.trim().is_empty()).is_some_and(|l| l.starts_with("//! ")))
        .map(|file| {
            format!(
                "{}: has to begin with a module doc (//!): what it decides, what it must never do, who calls it",
                file.path
            )
        })
        .collect()
}

pub(super) fn too_long(world: &World) -> Vec<String> {
    let long = world.rust().map(|(_, file)| (file, file.text.lines().count()));
    long.filter(|(_, lines)| *lines > LONG)
        .map(|(file, lines)| format!("{}: {lines} lines; split it by responsibility (the limit is {LONG})", file.path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::{krate, world};

    #[test]
    fn a_file_begins_with_its_doc() {
        for (text, fine) in [
            ("//! What it is.\nfn f() {}", true),
            ("\n//! What it is.", true),
            ("fn f() {}\n//! late", false),
            ("// a comment", false),
            ("//!", false),
            ("", false),
        ] {
            let wrong = missing(&world(vec![krate("skep", "x", &[])], &[("x/src/a.rs", text)]));
            assert_eq!(wrong.is_empty(), fine, "{text:?}: {wrong:?}");
        }
    }

    #[test]
    fn long_files_are_named() {
        let text = "//! x\n".repeat(LONG + 1);
        assert_eq!(too_long(&world(vec![krate("skep", "x", &[])], &[("x/src/a.rs", &text)])).len(), 1);
    }
}
