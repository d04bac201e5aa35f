//! The house's chores: `cargo xtask verify` is what a change has to pass before its tests run, `fix` repairs what a
//! program can repair, `tidy` checks the rules that the compiler does not know.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod source;
mod steps;
mod tidy;
mod world;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  verify   format, clippy with warnings as errors, tidy, documentation; stops at the first failure
  fix      format, and apply what clippy can repair by itself
  tidy     the rules of the house: arrows between crates, purity, unsafe code, module docs, licences, paths
  doc      documentation of our crates, warnings as errors
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["verify"] => steps::verify(),
        ["fix"] => steps::fix(),
        ["tidy"] => steps::tidy(),
        ["doc"] => steps::doc(),
        ["help" | "-h" | "--help"] | [] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
