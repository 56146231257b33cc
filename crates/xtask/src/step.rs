//! Steps with a name, a result and a duration; runs cargo.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Steps that have run.
#[derive(Default)]
pub(crate) struct Steps(Vec<Step>);

struct Step {
    name: &'static str,
    took: Duration,
    failure: Option<anyhow::Error>,
}

impl Steps {
    /// Runs one and says so.
    pub(crate) fn run(&mut self, name: &'static str, what: impl FnOnce() -> Result<()>) {
        println!("== {name}");
        let begin = Instant::now();
        let failure = what().err();
        self.0.push(Step {
            name,
            took: begin.elapsed(),
            failure,
        });
    }

    /// Prints a line for each, and says whether all went well.
    pub(crate) fn report(self) -> bool {
        println!("==");
        for step in &self.0 {
            let took = step.took.as_secs_f64();
            match &step.failure {
                None => println!("{:10} {took:7.1} s  ok", step.name),
                Some(error) => println!("{:10} {took:7.1} s  FAILED: {error:#}", step.name),
            }
        }
        let total: Duration = self.0.iter().map(|step| step.took).sum();
        println!("{:10} {:7.1} s", "together", total.as_secs_f64());
        self.0.iter().all(|step| step.failure.is_none())
    }
}

/// Runs the cargo that runs us, in the workspace's directory.
pub(crate) fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut command = command(arguments);
    command.envs(environment.iter().copied());
    succeed(command, &format!("cargo {}", arguments[0]))
}

/// Runs a script of the workspace, named from the workspace's directory.
pub(crate) fn script(name: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(workspace().join(name));
    command.args(arguments).current_dir(workspace());
    succeed(command, name)
}

fn succeed(mut command: Command, name: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}

/// The same, for what it prints.
pub(crate) fn cargo_output(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = command(arguments)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo {} ended with {}", arguments[0], output.status);
    }
    Ok(output.stdout)
}

fn command(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(workspace());
    command
}

fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}
