//! `fleetward tpm ...`

use super::Wait;
use super::parse::{parse_label, parse_parallel};
use clap::{Args, Subcommand};
use fleetward_model::{HostName, LabelKey, VmName};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum TpmCommand {
    /// Gives VMs a new TPM
    ///
    /// A new TPM cannot open secrets that a former TPM of the VM has sealed: `tpm restore` brings the former one back.
    Enable(TpmChange),
    /// Removes the TPM of VMs; it is kept, and `tpm restore` brings it back
    Disable(TpmChange),
    /// Encrypts the TPM of VMs under a new key
    Roll(TpmChange),
    /// Clears the lockout counter of stopped VMs' TPMs
    ///
    /// A TPM counts wrong passwords, and starts after a power cut; at its limit it refuses every password for some time. The
    /// TPM as it was is kept as another version. Refused where the guest has set a password for clearing the counter.
    Unlock(TpmChange),
    /// Restores a kept version of a VM's TPM
    ///
    /// The VM's present TPM is kept as another version, and replaced only after a question.
    Restore {
        name: VmName,
        /// A version of `tpm history`; default: the newest, for a VM without a TPM
        #[arg(long = "version", value_name = "V")]
        version: Option<u64>,
        #[command(flatten)]
        how: TpmHow,
    },
    /// Shows VMs with the state of their TPM
    Status {
        /// All VMs, if none is named
        names: Vec<VmName>,
    },
    /// Lists the kept versions of a VM's TPM
    History { name: VmName },
    /// Lists the TPMs that are kept of VMs which are not there any more
    ///
    /// Such a VM was deleted with --keep-tpm-state, or its host is lost. `vm recover ID` rebuilds it from its disks and this
    /// TPM.
    Kept,
    /// Removes all that is kept of the TPM of a VM that is not there any more
    Forget {
        /// The VM's id, as `tpm kept` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct TpmChange {
    #[command(flatten)]
    pub which: Which,
    /// Shows what would happen, and changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Number of VMs to change at once; with --no-wait, the jobs of all VMs are started
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_parallel)]
    pub parallel: usize,
    /// Changes no further VMs after so many have failed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_failures: Option<u32>,
    #[command(flatten)]
    pub how: TpmHow,
}

/// VMs by name, host or labels.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Which {
    #[arg(conflicts_with_all = ["all", "host", "labels"])]
    pub names: Vec<VmName>,
    /// All VMs of the fleet
    #[arg(long, conflicts_with_all = ["host", "labels"])]
    pub all: bool,
    /// All VMs on this host
    #[arg(long)]
    pub host: Option<HostName>,
    /// All VMs with this label; may be repeated: VMs with all of them
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(LabelKey, String)>,
}

#[derive(Debug, Clone, Args)]
pub struct TpmHow {
    /// Asks running guests to shut down, and starts them again afterwards; never cuts their power
    #[arg(long)]
    pub stop_and_restart: bool,
    /// Time limit for a guest's shutdown
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    pub deadline: Duration,
    #[command(flatten)]
    pub wait: Wait,
}
