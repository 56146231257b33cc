//! `fleetward guardian ...`

use super::{ListFormat, Rows, Wait};
use clap::{Args, Subcommand};
use fleetward_model::{GuardianId, HostName, VmName};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum GuardianCommand {
    /// Lists guardians, one row per certificate
    List {
        /// Only those of this host
        #[arg(long)]
        host: Option<HostName>,
        /// As --output, or in the format of `certutil -store`, for scripts that read it
        #[arg(long, value_enum, conflicts_with = "output")]
        format: Option<ListFormat>,
        #[command(flatten)]
        rows: Rows,
    },
    /// Shows one guardian
    Show {
        /// Its id, or the first characters of it
        id: String,
    },
    /// Wraps the TPM keys of VMs for one more guardian; no private key moves
    Grant(GrantArgs),
    /// Revokes a guardian's access to a VM's TPM key, and rolls the key at once or when the VM stops
    Revoke {
        vm: VmName,
        /// The guardian that loses access: its host, its id, or the first characters of the id
        #[arg(long, value_name = "HOST|GUARDIAN")]
        from: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Makes a new pair for a host's guardian, and re-wraps the keys of all VMs that depend on it while they run
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
pub struct GrantArgs {
    #[arg(required_unless_present = "all", value_name = "VM")]
    pub names: Vec<VmName>,
    /// Every VM of the guardian's group
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// The guardian that gets access: its host, its id, or the first characters of the id
    #[arg(long, value_name = "HOST|GUARDIAN")]
    pub to: String,
    /// Only shows what would happen
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Uses this guardian although its certificates have expired; may be repeated
    #[arg(long, value_name = "GUARDIAN")]
    pub allow_expired: Vec<GuardianId>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The host whose guardian to rotate
    #[arg(
        long,
        required_unless_present = "expiring",
        conflicts_with = "expiring"
    )]
    pub host: Option<HostName>,
    /// Every guardian that expires within this time, such as 1y
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub expiring: Option<Duration>,
    /// Only lists the hosts
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}
