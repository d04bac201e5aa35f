//! Unsafe code lives in two crates; the compiler forbids it in the root of every other one. Why each block is sound is
//! asked for by clippy (`undocumented_unsafe_blocks`).

use crate::source::{code, lines_with};
use crate::world::World;

const MAY: &[&str] = &["skep-net-kernel", "skep-runtime"];

const FORBID: &str = "#![forbid(unsafe_code)]";

pub(super) fn check(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for krate in world.crates.iter().filter(|c| !MAY.contains(&c.name.as_str())) {
        for root in &krate.roots {
            let text = world.text(root).map(code).unwrap_or_default();
            if !text.lines().any(|line| line.trim() == FORBID) {
                wrong.push(format!("{root}: has to say {FORBID}"));
            }
        }
    }
    for (krate, file) in world.rust().filter(|(krate, _)| !MAY.contains(&krate.name.as_str())) {
        for line in lines_with(&code(&file.text), "unsafe") {
            wrong.push(format!(
                "{}:{line}: unsafe code in {}; it belongs into netdrv/kernel or worker/runtime",
                file.path, krate.name
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::{krate, world};

    #[test]
    fn unsafe_code_is_forbidden_and_absent_but_in_two_crates() {
        let forbid = "#![forbid(unsafe_code)]\n";
        let table = [
            ("skep-daemon", format!("{forbid}fn f() {{}}"), true),
            ("skep-daemon", "fn f() {}".to_owned(), false),
            ("skep-daemon", format!("// {forbid}fn f() {{}}"), false),
            ("skep-daemon", format!("{forbid}fn f() {{ unsafe {{ g() }} }}"), false),
            ("skep-runtime", "fn f() { unsafe { g() } }".to_owned(), true),
        ];
        for (name, text, fine) in table {
            let wrong = check(&world(vec![krate(name, "x", &[])], &[("x/src/lib.rs", &text)]));
            assert_eq!(wrong.is_empty(), fine, "{text}: {wrong:?}");
        }
    }
}
