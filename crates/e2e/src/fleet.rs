//! A lab and its command line. All actions of a case go through this module.

use anyhow::{Context, Result, anyhow, bail, ensure};
use fleetward_failpoint::HoldPoints;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// The program must have ended with exit code 0.
    pub fn ok(self) -> Result<Self> {
        ensure!(
            self.code == 0,
            "exit code {}\nstdout: {}\nstderr: {}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// The program must have failed with that exit code, naming that error code.
    pub fn refused(self, exit: i32, code: &str) -> Result<Self> {
        ensure!(
            self.code == exit && self.stderr.contains(&format!("error[{code}]")),
            "expected exit {exit} and error[{code}], got exit {}\nstdout: {}\nstderr: {}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }
}

/// A lab that is up, until dropped.
pub struct Fleet {
    name: String,
    bin: PathBuf,
    /// The command line, where it is not the one beside the tests.
    cli: Option<PathBuf>,
}

impl Fleet {
    /// Brings a lab up; `arguments` go to `fleetward-lab up`.
    pub fn up(name: &str, arguments: &[&str]) -> Result<Self> {
        let fleet = Self {
            name: name.to_owned(),
            bin: program_directory()?,
            cli: None,
        };
        let mut up = vec!["up", "--name", name];
        up.extend(arguments);
        eprintln!("lab {name}: up {}", arguments.join(" "));
        fleet.lab_plain(&up)?.ok().context("fleetward-lab up")?;
        Ok(fleet)
    }

    /// Takes it down and fails if anything is left.
    pub fn down(self) -> Result<()> {
        let said = self.lab("down", &[])?;
        std::mem::forget(self);
        said.ok().context("fleetward-lab down")?;
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything of the lab lies below this directory.
    pub fn directory(&self) -> PathBuf {
        let parent = std::env::var_os("FLEETWARD_LAB_DIR")
            .map_or_else(|| PathBuf::from("/var/lib/fleetward-lab"), PathBuf::from);
        parent.join(&self.name)
    }

    /// The points at which services of this lab can be held.
    pub fn holds(&self) -> HoldPoints {
        HoldPoints::in_directory(self.hold_directory())
    }

    pub fn hold_directory(&self) -> PathBuf {
        self.directory().join("hold")
    }

    /// The program of that name beside the tests.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// What the agent of a host has printed so far, over all of its processes.
    pub fn agent_log(&self, host: &str) -> Result<String> {
        let log = self.directory().join("nodes").join(host).join("agent.log");
        std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))
    }

    /// From now on another program is the command line: that of an earlier version, beside its controller.
    pub fn use_cli(&mut self, program: PathBuf) {
        self.cli = Some(program);
    }

    /// `fleetward-lab VERB --name LAB ARGUMENTS`.
    pub fn lab(&self, verb: &str, arguments: &[&str]) -> Result<Said> {
        let mut all = vec![verb, "--name", &self.name];
        all.extend(arguments);
        self.lab_plain(&all)
    }

    fn lab_plain(&self, arguments: &[&str]) -> Result<Said> {
        run(Command::new(self.program("fleetward-lab")).args(arguments))
    }

    /// A command on a lab host; the host's exit code comes back.
    pub fn exec(&self, host: &str, command: &[&str]) -> Result<Said> {
        let mut arguments = vec![host, "--"];
        arguments.extend(command);
        self.lab("exec", &arguments)
    }

    /// `fleetward ARGUMENTS`, talking to this lab as its local administrator.
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Said> {
        run(self.cli_command().args(arguments))
    }

    /// The command to add arguments to.
    pub fn cli_command(&self) -> Command {
        let own = || self.program("fleetward");
        let mut command = Command::new(self.cli.clone().unwrap_or_else(own));
        command.env("FLEETWARD_SOCKET", self.socket());
        command
    }

    /// The controller's socket for local administrators.
    pub fn socket(&self) -> PathBuf {
        self.variable("FLEETWARD_SOCKET")
            .map(PathBuf::from)
            .unwrap_or_else(|_| self.directory().join("controller.sock"))
    }

    /// A variable of `fleetward-lab env`.
    pub fn variable(&self, name: &str) -> Result<String> {
        let env = self.lab("env", &[])?.ok()?;
        env.stdout
            .lines()
            .find_map(|line| {
                line.strip_prefix("export ")?
                    .strip_prefix(name)?
                    .strip_prefix('=')
            })
            .map(|value| value.trim_matches(['"', '\'']).to_owned())
            .ok_or_else(|| anyhow!("fleetward-lab env has no {name}:\n{}", env.stdout))
    }

    /// `fleetward ARGUMENTS -o json`, which must succeed.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        self.cli(&all)?
            .ok()
            .with_context(|| arguments.join(" "))?
            .json()
    }

    /// `fleetward vm show NAME -o json`.
    pub fn vm(&self, name: &str) -> Result<Value> {
        self.json(&["vm", "show", name])
    }

    /// The VM's state and host.
    pub fn place(&self, name: &str) -> Result<(String, String)> {
        let vm = self.vm(name)?;
        Ok((text(&vm, "state")?, text(&vm, "host")?))
    }

    /// Starts a job with `--no-wait`; its id.
    pub fn start_job(&self, arguments: &[&str]) -> Result<String> {
        let mut all = arguments.to_vec();
        all.push("--no-wait");
        let said = self.cli(&all)?.ok()?;
        let id = said
            .stdout
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned();
        ensure!(id.len() == 36, "no job id in {:?}", said.stdout);
        Ok(id)
    }

    /// Kills something of the lab with SIGKILL: `HOST`, `controller`, `HOST/agent`, `HOST/libvirtd`.
    pub fn kill(&self, what: &str) -> Result<()> {
        self.lab("kill", &[what])?
            .ok()
            .with_context(|| format!("kill {what}"))?;
        Ok(())
    }

    pub fn start(&self, what: &str) -> Result<()> {
        self.lab("start", &[what])?
            .ok()
            .with_context(|| format!("start {what}"))?;
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        match self.lab("down", &[]).and_then(Said::ok) {
            Ok(_) => {}
            Err(error) => eprintln!("lab {}: down failed: {error:#}", self.name),
        }
    }
}

/// A string member of a JSON object.
pub fn text(value: &Value, key: &str) -> Result<String> {
    value[key]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("no text {key:?} in {value}"))
}

/// Runs a command to its end, with no standard input.
pub fn run(command: &mut Command) -> Result<Said> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", command.get_program().to_string_lossy()))?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Where the programs under test lie: `FLEETWARD_BIN_DIR`, or two directories above a test program.
pub fn program_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("FLEETWARD_BIN_DIR") {
        return Ok(PathBuf::from(directory));
    }
    let me = std::env::current_exe()?;
    let directory = me
        .ancestors()
        .skip(1)
        .find(|d| d.join("fleetward-lab").is_file());
    match directory {
        Some(directory) => Ok(Path::to_owned(directory)),
        None => {
            bail!("fleetward-lab is not beside the tests; build it first: cargo build --workspace")
        }
    }
}
