//! The lab of an upgrade: which program is of which version.

use anyhow::{Context, Result};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::former::Former;
use fleetward_e2e::wait::{self, seconds};
use std::fmt;
use std::ops::Deref;

pub(crate) const HOSTS: &[&str] = &["a", "b"];

/// A program that is upgraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Controller,
    /// Of that host.
    Agent(&'static str),
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("the controller"),
            Self::Agent(host) => write!(f, "the agent of host {host}"),
        }
    }
}

/// A fleet of two hosts whose programs are exchanged one by one.
pub(crate) struct World {
    fleet: Fleet,
    upgraded: Vec<Program>,
}

impl World {
    /// Controller, command line and agents of the former version.
    pub(crate) fn of_the_former_version(lab: &str) -> Result<Self> {
        let former = Former::build()?;
        let (fleetward, agent) = (
            former.program("fleetward"),
            former.program("fleetward-agent"),
        );
        let agents = HOSTS
            .iter()
            .map(|host| format!("{host}={}", agent.display()));
        let mut arguments = vec![
            "--hosts".to_owned(),
            HOSTS.len().to_string(),
            "--controller-program".to_owned(),
            fleetward.display().to_string(),
        ];
        for agent in agents {
            arguments.extend(["--agent-program".to_owned(), agent]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut fleet = Fleet::up(lab, &arguments)?;
        fleet.use_cli(fleetward);
        Ok(Self {
            fleet,
            upgraded: Vec::new(),
        })
    }

    /// Kills the program and starts today's in its place.
    pub(crate) fn upgrade(&mut self, program: Program) -> Result<()> {
        let argument = match program {
            Program::Controller => {
                let path = self.fleet.program("fleetward");
                self.fleet.use_cli(path.clone());
                [
                    "--controller-program".to_owned(),
                    path.display().to_string(),
                ]
            }
            Program::Agent(host) => {
                let path = self.fleet.program("fleetward-agent");
                [
                    "--agent-program".to_owned(),
                    format!("{host}={}", path.display()),
                ]
            }
        };
        let count = HOSTS.len().to_string();
        let arguments = ["--hosts", &count, &argument[0], &argument[1]];
        self.fleet
            .lab("up", &arguments)?
            .ok()
            .with_context(|| format!("exchanging {program}"))?;
        self.upgraded.push(program);
        self.all_online()
    }

    /// Whether the program is today's.
    pub(crate) fn is_upgraded(&self, program: Program) -> bool {
        self.upgraded.contains(&program)
    }

    pub(crate) fn all_online(&self) -> Result<()> {
        wait::until("all hosts to be online", seconds(60), || {
            let mut online = true;
            for host in HOSTS {
                online &= self.fleet.json(&["host", "show", host])?["state"] == "online";
            }
            Ok(online.then_some(()))
        })
    }

    pub(crate) fn down(self) -> Result<()> {
        self.fleet.down()
    }
}

impl Deref for World {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}
