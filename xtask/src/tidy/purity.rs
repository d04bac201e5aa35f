//! Crates that decide and do nothing else: no runtime, no socket, no clock, no file, no randomness. What they may depend
//! on is listed; what the standard library would let them do is searched for.

use crate::source::{code, lines_with};
use crate::world::World;

const PURE: &[&str] = &["skep-state", "skep-plan", "skep-task", "skep-net-plan"];

/// Libraries of data structures and encodings.
const MAY_USE: &[&str] = &["imbl", "prost", "prost-types", "serde", "serde_json", "thiserror", "zstd"];

/// Ways out of a pure function, and why each is one.
const WAYS_OUT: &[(&str, &str)] = &[
    ("std::fs", "files"),
    ("std::io::stdin", "the terminal"),
    ("std::process", "processes"),
    ("std::thread", "threads"),
    ("std::env", "the environment"),
    ("TcpStream", "sockets"),
    ("TcpListener", "sockets"),
    ("UdpSocket", "sockets"),
    ("UnixStream", "sockets"),
    ("UnixListener", "sockets"),
    ("std::os::unix::net", "sockets"),
    ("SystemTime", "the clock: take the time as a parameter"),
    ("Instant::now", "the clock: take the time as a parameter"),
    ("RandomState", "randomness: use a BTreeMap, whose order is the same on every node"),
];

pub(super) fn check(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for krate in world.crates.iter().filter(|c| PURE.contains(&c.name.as_str())) {
        let outside = krate.dependencies.iter().filter(|d| !world.crates.iter().any(|c| c.name == **d));
        for dependency in outside.filter(|d| !MAY_USE.contains(&d.as_str())) {
            wrong.push(format!("{}/Cargo.toml: {} is pure and must not depend on {dependency}", krate.dir, krate.name));
        }
    }
    for (krate, file) in world.rust() {
        // Tests may read files and clocks.
        let product = file.path.strip_prefix(&krate.dir).is_some_and(|rest| rest.starts_with("/src/"));
        if !PURE.contains(&krate.name.as_str()) || !product || file.path.ends_with("tests.rs") {
            continue;
        }
        let code = code(&file.text);
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (word, what) in WAYS_OUT {
            for line in lines_with(code, word) {
                wrong.push(format!("{}:{line}: {} is pure; {word} reaches {what}", file.path, krate.name));
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
    fn a_pure_crate_has_no_way_out() {
        let table = [
            ("skep-plan", "fn f(now: u64) -> u64 { now }", true),
            ("skep-plan", "// SystemTime is not used\nconst T: &str = \"std::fs\";", true),
            ("skep-plan", "use std::net::Ipv4Addr;", true),
            ("skep-plan", "fn f() { SystemTime::now(); }", false),
            ("skep-plan", "use std::fs::File;", false),
            ("skep-plan", "fn f() {}\n#[cfg(test)]\nmod tests {\n use std::fs;\n}", true),
            ("skep-netdrv", "use std::fs::File;", true),
        ];
        for (name, text, fine) in table {
            let wrong = check(&world(vec![krate(name, "x", &[])], &[("x/src/lib.rs", text)]));
            assert_eq!(wrong.is_empty(), fine, "{text}: {wrong:?}");
        }
    }

    #[test]
    fn a_pure_crate_depends_on_data_structures_only() {
        for (dependency, fine) in [("imbl", true), ("tokio", false), ("rustix", false), ("rand", false)] {
            let wrong = check(&world(vec![krate("skep-state", "x", &[dependency])], &[]));
            assert_eq!(wrong.is_empty(), fine, "{dependency}: {wrong:?}");
        }
    }
}
