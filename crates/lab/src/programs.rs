//! The programs that the lab starts: argument vectors, absolute paths, and errors that include the program's output.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::record::HostRecord;

/// The project's own programs, found together.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    dir: PathBuf,
    /// Another `fleetward` than the one in `dir`: of an earlier version, say.
    controller: Option<PathBuf>,
}

impl Programs {
    /// In `FLEETWARD_BIN_DIR`, or beside the running program. A test lies one directory further down.
    pub(crate) fn find() -> Result<Self> {
        if let Some(dir) = std::env::var_os("FLEETWARD_BIN_DIR") {
            return Self::in_dir(PathBuf::from(dir));
        }
        let own = std::env::current_exe().context("find the running program")?;
        let dir = own.parent().context("a program lies in a directory")?;
        match dir.parent() {
            Some(above) if dir.ends_with("deps") => Self::in_dir(above.to_owned()),
            _ => Self::in_dir(dir.to_owned()),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lab(&self) -> PathBuf {
        self.dir.join("fleetward-lab")
    }

    /// The controller, and the command line that talks to it: one program.
    pub(crate) fn fleetward(&self) -> PathBuf {
        let own = || self.dir.join("fleetward");
        self.controller.clone().unwrap_or_else(own)
    }

    pub(crate) fn set_controller(&mut self, program: Option<PathBuf>) {
        self.controller = program;
    }

    /// The agent of a host.
    pub(crate) fn agent(&self, host: &HostRecord) -> PathBuf {
        let own = || self.dir.join("fleetward-agent");
        host.agent_program.clone().unwrap_or_else(own)
    }

    /// Says how to build what is missing.
    pub(crate) fn require_fleet(&self) -> Result<()> {
        for program in ["fleetward", "fleetward-agent"].map(|name| self.dir.join(name)) {
            if !program.exists() {
                bail!(
                    "{} is missing\n  fix: cargo build --workspace, or set FLEETWARD_BIN_DIR, or use --no-fleet",
                    program.display()
                );
            }
        }
        Ok(())
    }

    fn in_dir(dir: PathBuf) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("find {}", dir.display()))?;
        let programs = Self {
            dir,
            controller: None,
        };
        if !programs.lab().exists() {
            bail!(
                "{} is missing\n  fix: cargo build -p fleetward-lab",
                programs.lab().display()
            );
        }
        Ok(programs)
    }
}

/// The full path of a program of the system.
pub(crate) fn tool(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("the program {name} is missing\n  fix: scripts/install-packages"))
}

/// Runs to the end; what the program wrote becomes part of the error when it fails.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let shown = shown(command);
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}: {}", output.status, said.trim());
    }
    Ok(output)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    // Tokens for joining are secrets while they last.
    let words: Vec<String> = words
        .map(|w| w.to_string_lossy().into_owned())
        .map(|w| {
            if w.starts_with("fwj1.") {
                "fwj1...".to_owned()
            } else {
                w
            }
        })
        .collect();
    words.join(" ")
}
