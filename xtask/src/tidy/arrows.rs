//! Which crate may know which. The compiler sees to it that nobody reaches past the manifest; this sees to the manifest.

use crate::world::World;

/// The whole map. A crate that is not here may not be in the workspace.
const ALLOWED: &[(&str, &[&str])] = &[
    ("skep-proto", &[]),
    ("skep-state", &["skep-proto"]),
    ("skep-plan", &["skep-proto", "skep-state"]),
    ("skep-manager", &["skep-proto", "skep-state", "skep-plan"]),
    ("skep-task", &["skep-proto"]),
    ("skep-image", &[]),
    ("skep-runtime", &[]),
    ("skep-worker", &["skep-proto", "skep-task", "skep-image", "skep-runtime", "skep-netdrv", "skep-net-plan"]),
    ("skep-net-plan", &[]),
    ("skep-net-kernel", &[]),
    ("skep-netdrv", &["skep-net-plan", "skep-net-kernel"]),
    ("skep-net-testkit", &["skep-net-kernel"]),
    (
        "skep-daemon",
        &[
            "skep-proto",
            "skep-manager",
            "skep-state",
            "skep-plan",
            "skep-worker",
            "skep-image",
            "skep-runtime",
            "skep-net-plan",
        ],
    ),
    // The runtime for `skep shim`, which is the supervisor of one container.
    ("skep", &["skep-daemon", "skep-deploy", "skep-runtime", "skep-proto"]),
    ("skep-deploy", &["skep-proto", "skep-net-kernel"]),
    ("skep-whoami", &[]),
    ("xtask", &[]),
    // In place of a crate that openraft depends on.
    ("base2histogram", &[]),
];

/// What only tests may use, besides what the crate itself may.
const FOR_TESTS: &[&str] = &["skep-net-testkit", "skep-net-kernel"];

/// Tests across crates use whatever they test.
const ANYTHING: &str = "skep-tests";

pub(super) fn check(world: &World) -> Vec<String> {
    let ours = |name: &&String| world.crates.iter().any(|c| c.name == **name);
    let mut wrong = Vec::new();
    for krate in world.crates.iter().filter(|c| c.name != ANYTHING) {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == krate.name) else {
            wrong.push(format!(
                "{}/Cargo.toml: crate {} is not on the map: say in xtask/src/tidy/arrows.rs and in ARCHITECTURE.md whom it may know",
                krate.dir, krate.name
            ));
            continue;
        };
        for dependency in krate.dependencies.iter().filter(ours) {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{}/Cargo.toml: {} must not depend on {dependency}", krate.dir, krate.name));
            }
        }
        for dependency in krate.dev_dependencies.iter().filter(ours) {
            if !allowed.contains(&dependency.as_str()) && !FOR_TESTS.contains(&dependency.as_str()) {
                wrong
                    .push(format!("{}/Cargo.toml: tests of {} must not depend on {dependency}", krate.dir, krate.name));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::{krate, world};

    #[test]
    fn arrows_point_one_way() {
        let table: [(&str, &[&str], bool); 6] = [
            ("skep-daemon", &["skep-manager", "skep-worker", "tokio"], true),
            ("skep-manager", &["skep-worker"], false),
            ("skep-worker", &["skep-manager"], false),
            ("skep-proto", &["skep-state"], false),
            ("skep-tests", &["skep-manager", "skep-worker"], true),
            ("skep-newcomer", &[], false),
        ];
        for (name, dependencies, fine) in table {
            let mut crates = vec![krate(name, "x", dependencies)];
            crates.extend(dependencies.iter().filter(|d| d.starts_with("skep")).map(|d| krate(d, "y", &[])));
            let wrong = check(&world(crates, &[]));
            assert_eq!(wrong.is_empty(), fine, "{name} -> {dependencies:?}: {wrong:?}");
        }
    }

    #[test]
    fn the_map_has_no_cycles() {
        fn reaches(from: &str, to: &str) -> bool {
            let next = ALLOWED.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, to)| to);
            next.iter().any(|n| *n == to || reaches(n, to))
        }
        for (name, _) in ALLOWED {
            assert!(!reaches(name, name), "{name}");
        }
    }

    #[test]
    fn tests_may_use_the_test_kit() {
        let mut netdrv = krate("skep-netdrv", "netdrv", &[]);
        netdrv.dev_dependencies = vec!["skep-net-testkit".into()];
        let kit = krate("skep-net-testkit", "netdrv/testkit", &[]);
        assert!(check(&world(vec![netdrv.clone(), kit.clone()], &[])).is_empty());
        netdrv.dependencies = netdrv.dev_dependencies.clone();
        assert_eq!(check(&world(vec![netdrv, kit], &[])).len(), 1);
    }
}
