//! The paths of a lab's files. Only this module knows names of files and directories.

use std::path::{Path, PathBuf};

/// The directory of one lab and all that is in it.
#[derive(Debug, Clone)]
pub struct LabFiles {
    root: PathBuf,
}

impl LabFiles {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn record(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// Held while a command changes the lab. Lies beside the lab's directory, which comes and goes.
    pub fn lock(&self) -> PathBuf {
        self.root.with_extension("lock")
    }

    /// Names of all nodes, seen by every node as /etc/hosts.
    pub fn hosts(&self) -> PathBuf {
        self.root.join("hosts")
    }

    /// What guests print, one file for each VM, common to all hosts.
    pub fn serial(&self) -> PathBuf {
        self.root.join("serial")
    }

    /// The pool that all hosts of the lab see.
    pub fn shared_volumes(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// Failpoints of controller and agents.
    pub fn hold(&self) -> PathBuf {
        self.root.join("hold")
    }

    /// How far the controller's clock is from the machine's; only in labs whose clock can be moved.
    pub fn clock(&self) -> PathBuf {
        self.root.join("clock")
    }

    /// The same for the clock of a host's agent; none before its first start.
    pub fn clock_of(&self, host: &str) -> PathBuf {
        self.root.join(format!("clock-{host}"))
    }

    pub fn socket(&self) -> PathBuf {
        self.root.join("controller.sock")
    }

    pub fn controller_data(&self) -> PathBuf {
        self.root.join("controller")
    }

    pub fn node(&self, name: &str) -> NodeFiles {
        NodeFiles {
            root: self.root.join("nodes").join(name),
        }
    }
}

/// The disk of one node: what survives a power cut.
#[derive(Debug, Clone)]
pub struct NodeFiles {
    root: PathBuf,
}

impl NodeFiles {
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the node's kernel says its boot is called; written anew at each.
    pub fn boot_id(&self) -> PathBuf {
        self.root.join("boot-id")
    }

    /// Appears when process 1 has made the node's world.
    pub fn ready(&self) -> PathBuf {
        self.root.join("ready")
    }

    /// What the programs of the node print.
    pub fn log(&self, program: &str) -> PathBuf {
        self.root.join(format!("{program}.log"))
    }

    /// The node's private version of a directory of the machine, for instance of `/var/lib/libvirt`.
    pub fn private(&self, directory: &str) -> PathBuf {
        self.root
            .join("disk")
            .join(directory.trim_start_matches('/'))
    }

    /// A small file system in a file, in place of the volumes directory.
    pub fn limited_volumes(&self) -> PathBuf {
        self.root.join("volumes.ext4")
    }
}

/// Inside every host.
pub(crate) mod inside {
    pub(crate) const AGENT_CONFIG: &str = "/etc/fleetward/agent.toml";
    pub(crate) const VOLUMES: &str = "/var/lib/fleetward/volumes";
    pub(crate) const SHARED: &str = "/var/lib/fleetward-shared";
    pub(crate) const SERIAL: &str = "/var/log/fleetward-serial";
    pub(crate) const LIBVIRT_SOCKET: &str = "/run/libvirt/libvirt-sock";
}
