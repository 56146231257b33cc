//! Commands for developers: `cargo xtask check`, `cargo xtask generate`.
//!
//! Every command runs cargo on the whole workspace, so that nothing is built twice with different features.

mod dependencies;
mod fixes;
mod generate;
mod layering;
mod names;
mod step;

use anyhow::{Result, bail};
use std::process::ExitCode;
use step::{Steps, cargo};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  check      what `lints` does, and the tests of all crates but the end-to-end ones
  lints      layering, dependencies, messages, formatting, clippy with warnings denied
  layering   only: which crate may depend on which
  dependencies
             only: nothing unused, banned, in two versions or under an unknown licence
  messages   only: no command in a message has a placeholder
  generate   writes docs/reference/ and docs/openapi.json, and man pages and completions into target/";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["check"] => check(Tests::Run),
        ["lints"] => check(Tests::Leave),
        ["layering"] => layering::check(),
        ["dependencies"] => dependencies::check(),
        ["messages"] => fixes::check(),
        ["generate"] => generate::write(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the tests belong to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tests {
    Run,
    /// `make test` runs them beside the end-to-end tests.
    Leave,
}

/// What has to hold before a change lands, the quick things first. All of it runs, also after a failure.
///
/// The end-to-end tests need root and a lab; `make test` runs them. Whether generated files are up to date is among
/// the tests, see [`generate`].
fn check(tests: Tests) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("layering", layering::check);
    steps.run("dependencies", dependencies::check);
    steps.run("messages", fixes::check);
    steps.run("format", || cargo(&["fmt", "--all", "--check"], &[]));
    steps.run("clippy", || {
        cargo(
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--quiet",
                "--",
                "--deny=warnings",
            ],
            &[],
        )
    });
    if tests == Tests::Run {
        steps.run("tests", || {
            cargo(
                &[
                    "test",
                    "--workspace",
                    "--exclude=fleetward-e2e",
                    "--no-fail-fast",
                    "--locked",
                    "--quiet",
                ],
                &[],
            )
        });
    }
    if steps.report() {
        Ok(())
    } else {
        bail!("not everything holds")
    }
}
