//! The commands: which programs run, in which order.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::tidy;
use crate::world::World;

/// Everything but the tests.
pub(crate) fn verify() -> Result<()> {
    step("format", || cargo(&["fmt", "--all", "--check"], &[]))?;
    step("tidy", tidy)?;
    step("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]))?;
    step("documentation", doc)
}

/// Repairs what programs can repair.
pub(crate) fn fix() -> Result<()> {
    cargo(&["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"], &[])?;
    cargo(&["fmt", "--all"], &[])
}

/// Documentation of our crates.
pub(crate) fn doc() -> Result<()> {
    cargo(&["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])
}

/// The rules of the house.
pub(crate) fn tidy() -> Result<()> {
    let findings = tidy::check(&World::read()?);
    for warning in &findings.warnings {
        println!("warning: {warning}");
    }
    for error in &findings.errors {
        println!("error: {error}");
    }
    match findings.errors.len() {
        0 => Ok(()),
        n => bail!("tidy found {n} thing(s) to mend"),
    }
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let begun = Instant::now();
    run().with_context(|| format!("{name} failed"))?;
    println!("== {name}: fine ({:.1} s)", begun.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(args: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    // The cargo that runs this program, so that the toolchain is the same.
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).envs(environment.iter().copied()).current_dir(World::root());
    let status = command.status().context("cargo could not be started")?;
    if status.success() { Ok(()) } else { bail!("cargo {} ended with {status}", args.join(" ")) }
}
