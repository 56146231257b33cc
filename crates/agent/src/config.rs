//! `agent.toml`: the administrator's settings for a host. All have defaults except the address that others use.
//!
//! ```toml
//! advertise = "192.0.2.11:7443"      # where controller and other agents reach this host
//! accelerator = "auto"               # auto, kvm or tcg
//! memory_reserve = "1G"              # stays with the host, is never given to VMs
//!
//! autostart_parallel = 2             # so many VMs come back at once after the host's boot
//! autostart_without_controller = false  # true only for a host that is alone: see below
//! first_boot_grace = 600             # a guest's agent answers so long, in seconds, before its first boot's medium goes
//!
//! [[pool]]
//! name = "default"
//! path = "/var/lib/fleetward/volumes"
//!
//! [[network]]                        # beside nat, which every host has
//! name = "lan"
//! bridge = "br0"
//! kind = "bridge"                    # bridge (of Linux) or openvswitch
//! ```
//! `default_network = "lan"`, above the tables, is the network of cards of which nothing else is said.

use fleetward_model::ek::EkAddress;
use fleetward_model::host::Accelerator;
use fleetward_model::network::NetworkPlace;
use fleetward_model::{ByteSize, NetworkName, PoolName};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the configuration lies unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/fleetward/agent.toml";

/// Largest configuration file read, in bytes.
const MAX_CONFIG: u64 = 256 * 1024;

/// The host's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Identity, guardian keys, records of VMs, images, audit log.
    pub data_dir: PathBuf,
    /// Sockets; may vanish with a reboot.
    pub run_dir: PathBuf,
    /// The one port.
    pub listen: SocketAddr,
    /// `address:port` that reaches `listen` from other machines; needed to join.
    pub advertise: Option<String>,
    pub libvirt_uri: String,
    /// Where a migrating VM's source reaches libvirt here; none: the usual places.
    pub libvirt_socket: Option<PathBuf>,
    pub accelerator: AcceleratorChoice,
    /// Directory of serial logs, one file a VM; none: no logs. Must be the same on all hosts of a group.
    pub serial_log_dir: Option<PathBuf>,
    /// How many TPMs to keep ready, 0 to 64.
    pub tpm_pool_size: usize,
    /// How many TPMs to keep ready once the host has had nothing to do for a minute, 0 to 1,000; making them takes a tenth of
    /// one processor at most. Not more than `tpm_pool_size`: the pool does not grow.
    pub tpm_pool_at_rest: usize,
    /// The address of the directory on a web server where what `fleetward ek publish` writes is published, such as
    /// `http://pki.example/fleetward/`; none: EK certificates name no address. Best the same on all hosts.
    pub ek_address: Option<EkAddress>,
    /// Memory that stays with the host and is never given to VMs, such as `"2G"`.
    #[serde(deserialize_with = "size")]
    pub memory_reserve: ByteSize,
    /// How many VMs with autostart are started at once after the host's boot, 1 to 64.
    pub autostart_parallel: usize,
    /// Seconds between a start and the next one that takes its place.
    pub autostart_pause: u32,
    /// Whether they start although the controller does not answer. One that was rebuilt on another host meanwhile would run
    /// twice then: this is for a host that is alone.
    pub autostart_without_controller: bool,
    /// Seconds that the controller is waited for before that, 1 to 3,600.
    pub autostart_patience: u32,
    /// Seconds between a guest's crash and its next start, where it is started again; twice as long after each further crash
    /// within an hour. 0 to 3,600.
    pub crash_pause: u32,
    /// Seconds for which a guest's agent answers without a break before the medium for its first boot goes, at most a day.
    pub first_boot_grace: u32,
    /// Where UEFI variables of new VMs lie. Must be the same on all hosts of a group. libvirt gives its own directory, the
    /// default, to QEMU's user; any other one, such as `/var/lib/fleetward/uefi`, is made as root's, and no QEMU can put names
    /// there.
    pub nvram_dir: PathBuf,
    /// Where those of VMs lie that were made before `nvram_dir` was set: they stay there until they move while stopped.
    pub former_nvram_dir: PathBuf,
    /// The unprivileged user that reads images from elsewhere, in a confinement.
    pub conversion_user: String,
    #[serde(rename = "pool")]
    pub pools: Vec<PoolConfig>,
    #[serde(rename = "network")]
    pub networks: Vec<NetworkConfig>,
    /// The network of a card of which nothing else is said.
    pub default_network: NetworkName,
    /// Key of the guardian store, where it is not the service manager that hands it over. Said on the command line only: a
    /// path that is written down beside the store leads whoever steals the disk to it.
    #[serde(skip)]
    pub credential_file: Option<PathBuf>,
}

/// Where libvirt puts UEFI variables of which nothing else is said.
const LIBVIRTS_NVRAM: &str = "/var/lib/libvirt/qemu/nvram";

/// A directory of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    pub name: PoolName,
    pub path: PathBuf,
}

/// A network that VMs' cards can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    pub name: NetworkName,
    /// The bridge's name on this host.
    pub bridge: String,
    #[serde(default)]
    pub kind: NetworkKind,
}

impl NetworkConfig {
    /// What a card in it is connected to.
    pub(crate) fn place(&self) -> NetworkPlace {
        let bridge = self.bridge.clone();
        match self.kind {
            NetworkKind::Bridge => NetworkPlace::Bridge { bridge },
            NetworkKind::Openvswitch => NetworkPlace::Openvswitch { bridge },
        }
    }
}

/// What makes a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    /// Linux.
    #[default]
    Bridge,
    Openvswitch,
}

/// Longest name of a network interface in Linux (`IFNAMSIZ` without its zero byte).
const MAX_INTERFACE: usize = 15;

/// Whether Linux takes it as the name of an interface, and as one directory's name.
fn is_interface(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_INTERFACE).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.chars().all(plain)
}

/// What starts VMs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM where a guest really boots under it, translation elsewhere.
    #[default]
    Auto,
    Kvm,
    Tcg,
}

impl AcceleratorChoice {
    /// The choice, when it is one.
    pub const fn fixed(self) -> Option<Accelerator> {
        match self {
            Self::Auto => None,
            Self::Kvm => Some(Accelerator::Kvm),
            Self::Tcg => Some(Accelerator::Tcg),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/fleetward".into(),
            run_dir: "/run/fleetward".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            advertise: None,
            libvirt_uri: "qemu:///system".into(),
            libvirt_socket: None,
            accelerator: AcceleratorChoice::Auto,
            serial_log_dir: None,
            tpm_pool_size: 4,
            tpm_pool_at_rest: 200,
            ek_address: None,
            memory_reserve: ByteSize::gib(1),
            autostart_parallel: 2,
            autostart_pause: 5,
            autostart_without_controller: false,
            autostart_patience: 60,
            crash_pause: 10,
            first_boot_grace: 600,
            nvram_dir: LIBVIRTS_NVRAM.into(),
            former_nvram_dir: LIBVIRTS_NVRAM.into(),
            conversion_user: "nobody".into(),
            pools: vec![PoolConfig {
                name: PoolName::default(),
                path: "/var/lib/fleetward/volumes".into(),
            }],
            networks: Vec::new(),
            default_network: NetworkName::default(),
            credential_file: None,
        }
    }
}

/// A size as people write it.
fn size<'de, D: serde::Deserializer<'de>>(text: D) -> Result<ByteSize, D::Error> {
    String::deserialize(text)?
        .parse()
        .map_err(serde::de::Error::custom)
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration {path} has more than {MAX_CONFIG} bytes")]
    TooLarge { path: PathBuf },
    #[error("the configuration {path} is wrong: {because}")]
    Malformed { path: PathBuf, because: String },
    #[error("in the configuration {path}, {key} {because}")]
    Value {
        path: PathBuf,
        key: &'static str,
        because: String,
    },
}

impl Config {
    /// Reads a file. A missing one at the default place means that everything is at its default.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        match std::fs::metadata(path) {
            Err(e)
                if e.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) =>
            {
                return Ok(Self::default());
            }
            Err(e) => return Err(read(e)),
            Ok(metadata) if metadata.len() > MAX_CONFIG => {
                return Err(ConfigError::TooLarge {
                    path: path.to_owned(),
                });
            }
            Ok(_) => {}
        }
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            because: error.to_string(),
        })?;
        let wrong = |key, because: String| {
            Err(ConfigError::Value {
                path: path.to_owned(),
                key,
                because,
            })
        };
        for (key, value) in [
            ("data_dir", Some(&config.data_dir)),
            ("run_dir", Some(&config.run_dir)),
            ("nvram_dir", Some(&config.nvram_dir)),
            ("former_nvram_dir", Some(&config.former_nvram_dir)),
            ("serial_log_dir", config.serial_log_dir.as_ref()),
            ("libvirt_socket", config.libvirt_socket.as_ref()),
        ] {
            if value.is_some_and(|v| !v.is_absolute()) {
                return wrong(key, "must be an absolute path".into());
            }
        }
        if config.tpm_pool_size > 64 {
            return wrong("tpm_pool_size", "is at most 64".into());
        }
        if config.tpm_pool_at_rest > 1000 {
            return wrong("tpm_pool_at_rest", "is at most 1000".into());
        }
        if !(1..=64).contains(&config.autostart_parallel) {
            return wrong("autostart_parallel", "is 1 to 64".into());
        }
        if config.autostart_pause > 3600 {
            return wrong("autostart_pause", "is at most 3600".into());
        }
        if config.crash_pause > 3600 {
            return wrong("crash_pause", "is at most 3600".into());
        }
        if config.first_boot_grace > 24 * 3600 {
            return wrong("first_boot_grace", "is at most 86400".into());
        }
        if !(1..=3600).contains(&config.autostart_patience) {
            return wrong("autostart_patience", "is 1 to 3600".into());
        }
        if let Some(address) = &config.advertise
            && !address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return wrong(
                "advertise",
                format!("must be address:port, not {address:?}"),
            );
        }
        let mut names = BTreeSet::new();
        for pool in &config.pools {
            if !pool.path.is_absolute() {
                return wrong(
                    "pool.path",
                    format!("must be absolute, not {:?}", pool.path),
                );
            }
            if !names.insert(&pool.name) {
                return wrong("pool.name", format!("{} is there twice", pool.name));
            }
        }
        let mut names = BTreeSet::new();
        for network in &config.networks {
            if network.name.is_nat() {
                return wrong(
                    "network.name",
                    "cannot be nat: that is QEMU's own, which every host has".into(),
                );
            }
            if !is_interface(&network.bridge) {
                return wrong(
                    "network.bridge",
                    format!("must be the name of a bridge, not {:?}", network.bridge),
                );
            }
            if !names.insert(&network.name) {
                return wrong("network.name", format!("{} is there twice", network.name));
            }
        }
        let default = &config.default_network;
        if !default.is_nat() && !names.contains(default) {
            return wrong(
                "default_network",
                format!("is {default}, which is none of the networks"),
            );
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("agent.toml"), text)
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").expect("defaults");
        assert_eq!(config.data_dir, Path::new("/var/lib/fleetward"));
        assert_eq!(config.pools.len(), 1);
        assert_eq!(config.accelerator.fixed(), None);
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_named() {
        for (text, word) in [
            ("datadir = '/x'", "datadir"),
            ("credential_file = '/x'", "credential_file"),
            ("data_dir = 'x'", "data_dir"),
            ("advertise = 'host'", "advertise"),
            ("tpm_pool_size = 1000", "tpm_pool_size"),
            ("tpm_pool_at_rest = 1001", "tpm_pool_at_rest"),
            ("ek_address = 'pki.example'", "ek_address"),
            ("autostart_parallel = 0", "autostart_parallel"),
            ("autostart_patience = 0", "autostart_patience"),
            ("autostart_pause = 100000", "autostart_pause"),
            ("memory_reserve = 'much'", "memory_reserve"),
            ("accelerator = 'xen'", "accelerator"),
            ("[[pool]]\nname = '../x'\npath = '/x'", "name"),
            (
                "[[pool]]\nname = 'a'\npath = '/x'\n[[pool]]\nname = 'a'\npath = '/y'",
                "twice",
            ),
            ("[[network]]\nname = 'nat'\nbridge = 'br0'", "network.name"),
            (
                "[[network]]\nname = 'lan'\nbridge = '../br0'",
                "network.bridge",
            ),
            (
                "[[network]]\nname = 'lan'\nbridge = 'br0'\nkind = 'macvtap'",
                "kind",
            ),
            (
                "[[network]]\nname = 'a'\nbridge = 'x'\n[[network]]\nname = 'a'\nbridge = 'y'",
                "twice",
            ),
            ("default_network = 'lan'", "default_network"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
