//! The Debian packages: what is in them, looked at without installing them.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and read files as they like"
)]

mod contents;

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{program_directory, run};
use libtest_mimic::Arguments;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, contents::trials()).exit_code()
}

/// Both packages of one version.
#[derive(Debug, Clone)]
struct Packages {
    controller: PathBuf,
    agent: PathBuf,
}

impl Packages {
    /// Those of the programs under test, made once for all tests.
    fn get() -> Result<&'static Self> {
        static MADE: OnceLock<Result<Packages>> = OnceLock::new();
        let made = MADE.get_or_init(Self::make);
        made.as_ref()
            .map_err(|error| anyhow::anyhow!("the packages cannot be made: {error:#}"))
    }

    fn make() -> Result<Self> {
        let programs = program_directory()?;
        let target = programs.parent().context("the target directory")?;
        let mut make = Command::new(workspace().join("scripts/debs"));
        make.env("CARGO_TARGET_DIR", target)
            .env("FLEETWARD_DEBS_OUT", target.join("packages-tested"))
            .env("FLEETWARD_DEBS_PROFILE", "debug");
        let said = run(&mut make)?.ok()?;
        let found = |name: &str| {
            let start = format!("{name}_");
            let mut paths = said.stdout.lines().map(PathBuf::from);
            let is_it = |path: &PathBuf| {
                path.file_name()
                    .is_some_and(|file| file.to_string_lossy().starts_with(&start))
            };
            paths
                .find(is_it)
                .with_context(|| format!("no package {name} was made: {}", said.stdout))
        };
        Ok(Self {
            controller: found("fleetward")?,
            agent: found("fleetward-agent")?,
        })
    }

    /// With their names.
    fn both(&self) -> [(&'static str, &Path); 2] {
        [
            ("fleetward", &self.controller),
            ("fleetward-agent", &self.agent),
        ]
    }
}

fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// What a program prints that must succeed.
fn output(command: &mut Command) -> Result<String> {
    Ok(run(command)?.ok()?.stdout)
}

/// Fails with both texts where they differ.
fn same(what: &str, found: &str, wanted: &str) -> Result<()> {
    ensure!(
        found.trim() == wanted.trim(),
        "{what}: {found:?}, not {wanted:?}"
    );
    Ok(())
}
