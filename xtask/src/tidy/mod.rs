//! The rules of the house that the compiler does not know, one file a rule. Each is a pure function from what was read to
//! what is wrong; nothing here reads or writes.

mod architecture;
mod arrows;
mod docs;
mod licences;
mod places;
mod purity;
mod unsafety;

use crate::world::World;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Has to be mended.
    pub(crate) errors: Vec<String>,
    /// Should be looked at.
    pub(crate) warnings: Vec<String>,
}

/// Checks every rule.
pub(crate) fn check(world: &World) -> Findings {
    let mut errors = Vec::new();
    errors.extend(arrows::check(world));
    errors.extend(purity::check(world));
    errors.extend(unsafety::check(world));
    errors.extend(docs::missing(world));
    errors.extend(architecture::check(world));
    errors.extend(licences::check(world));
    errors.extend(places::check(world));
    Findings { errors, warnings: docs::too_long(world) }
}

#[cfg(test)]
mod testing {
    //! Small worlds for the rules' tests.
    use crate::world::{Crate, TextFile, World};

    pub(super) fn krate(name: &str, dir: &str, dependencies: &[&str]) -> Crate {
        Crate {
            name: name.into(),
            dir: dir.into(),
            dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
            roots: vec![format!("{dir}/src/lib.rs")],
            ..Crate::default()
        }
    }

    pub(super) fn world(crates: Vec<Crate>, files: &[(&str, &str)]) -> World {
        let paths = files.iter().flat_map(|(path, _)| {
            path.match_indices('/').map(|(at, _)| path[..at].to_owned()).chain([(*path).to_owned()])
        });
        World {
            root: "/somewhere/built".into(),
            home: "/home/alice".into(),
            crates,
            paths: paths.collect(),
            files: files.iter().map(|(p, t)| TextFile { path: (*p).into(), text: (*t).into() }).collect(),
            ..World::default()
        }
    }
}
