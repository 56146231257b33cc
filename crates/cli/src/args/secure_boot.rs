//! `fleetward secure-boot ...`

use super::parse::parse_parallel;
use super::{TpmHow, Which};
use clap::{Args, Subcommand};
use fleetward_model::VmName;

#[derive(Debug, Subcommand)]
pub enum SecureBootCommand {
    /// Shows which certificates VMs, templates and kept versions trust
    ///
    /// Without names: all VMs and templates. With names: those VMs with the kept versions of `tpm history`.
    Status {
        names: Vec<VmName>,
        /// All VMs, templates and kept versions
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Adds Microsoft's certificates of 2023 beside those of 2011, which have run out
    ///
    /// Only while a VM is stopped. PCR 7 of its TPM changes, so BitLocker asks for its recovery key at the next start, unless it
    /// was suspended in the guest before: manage-bde -protectors -disable C: -RebootCount 1
    Enroll(SecureBootChange),
    /// Brings back what VMs trusted before an enrolment; PCR 7 changes again
    Restore(SecureBootChange),
}

#[derive(Debug, Args)]
pub struct SecureBootChange {
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
