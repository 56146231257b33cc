//! The record of a lab between commands: its nodes and their process 1s. It is written before anything is started, so
//! that the next command can clean up after a crash.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;
use crate::files::LabFiles;
use crate::process::ProcessId;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabRecord {
    pub name: String,
    /// Process numbers mean nothing after the machine was booted again.
    pub boot_id: String,
    /// Whether `up` once came to its end. A lab without it is a wreck.
    pub complete: bool,
    /// Whether there are a controller and agents, or only hosts with libvirtd.
    pub fleet: bool,
    pub accelerator: Accelerator,
    pub switch: Option<ProcessId>,
    pub controller: Option<ProcessId>,
    /// The controller's program, where it is not the one beside `fleetward-lab`.
    #[serde(default)]
    pub controller_program: Option<PathBuf>,
    /// Whether the controller listens for programs with API tokens, too.
    #[serde(default)]
    pub console: bool,
    /// Networks of guests.
    #[serde(default)]
    pub networks: Vec<LabNetwork>,
    pub hosts: Vec<HostRecord>,
}

/// A network that guests can be in, on every host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabNetwork {
    pub name: String,
    /// A bridge of Open vSwitch, not of Linux.
    pub openvswitch: bool,
}

impl LabNetwork {
    /// The bridge in each host.
    pub fn bridge(&self) -> String {
        format!("br-{}", self.name)
    }
}

/// `lan`, or `lan:openvswitch`.
impl std::str::FromStr for LabNetwork {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, kind) = text.split_once(':').unwrap_or((text, "bridge"));
        // `br-` and the name are the name of an interface.
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !(1..=12).contains(&name.len()) || !name.chars().all(plain) || name == "nat" {
            anyhow::bail!(
                "a network of a lab has a name of at most 12 small letters and digits, and not nat"
            );
        }
        let openvswitch = match kind {
            "bridge" => false,
            "openvswitch" => true,
            _ => anyhow::bail!("a network is a bridge or openvswitch, not {kind}"),
        };
        let name = name.to_owned();
        Ok(Self { name, openvswitch })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostRecord {
    pub name: String,
    pub group: String,
    /// Decides the address; never given to another host while the lab lives.
    pub index: u8,
    /// libvirt's `host_uuid`.
    pub uuid: uuid::Uuid,
    /// Process 1 of the host, while it is powered on.
    pub init: Option<ProcessId>,
    /// Size of the file system under the default pool; unlimited without it.
    pub volume_bytes: Option<u64>,
    pub joined: bool,
    /// The agent's program, where it is not the one beside `fleetward-lab`.
    #[serde(default)]
    pub agent_program: Option<PathBuf>,
}

impl HostRecord {
    pub fn address(&self) -> String {
        address_of(self.index)
    }

    pub fn is_on(&self) -> bool {
        self.init.is_some_and(ProcessId::is_alive)
    }
}

impl LabRecord {
    /// `None` when there is no lab; a record that cannot be read is an error.
    pub fn load(files: &LabFiles) -> Result<Option<Self>> {
        let path = files.record();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    pub fn save(&self, files: &LabFiles) -> Result<()> {
        let path = files.record();
        let json = serde_json::to_vec_pretty(self)?;
        fleetward_durable::replace(&path, &json, fleetward_durable::Access::PUBLIC)
            .with_context(|| format!("write {}", path.display()))
    }

    pub fn host(&self, name: &str) -> Option<&HostRecord> {
        self.hosts.iter().find(|h| h.name == name)
    }

    pub fn host_mut(&mut self, name: &str) -> Option<&mut HostRecord> {
        self.hosts.iter_mut().find(|h| h.name == name)
    }

    /// All process 1s, dead ones included.
    pub fn processes(&self) -> Vec<ProcessId> {
        let hosts = self.hosts.iter().filter_map(|h| h.init);
        self.switch
            .into_iter()
            .chain(self.controller)
            .chain(hosts)
            .collect()
    }

    /// Whether the lab can be used as it is: `up` was finished, in this boot, and its network is there.
    pub fn is_usable(&self) -> bool {
        self.complete && self.boot_id == boot_id() && self.switch.is_some_and(ProcessId::is_alive)
    }
}

/// The controller has index 0, hosts count from 1.
pub(crate) fn address_of(index: u8) -> String {
    format!("10.77.0.{}", if index == 0 { 2 } else { 10 + index })
}

pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
