//! Secure Boot as a VM's UEFI variables say it is.

use crate::error::Finding;
use crate::{ErrorCode, JobId, VmName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// How the certificates of a VM stand to Microsoft's, of which those of 2011 have run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::Display, strum::VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum CertificateState {
    /// Each certificate of 2011 has its successors beside it.
    Ok,
    /// Successors are missing: `secure-boot enroll` adds them.
    UpdateAvailable,
    /// Somebody's own keys, which are left alone.
    Custom,
    /// Secure Boot is off.
    Off,
    /// The variables are not of a form that is known.
    #[serde(other)]
    Unreadable,
}

/// Secure Boot of a VM, a template, or a kept version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecureBootObserved {
    pub state: CertificateState,
    /// Why they are unreadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Whether the firmware boots only what is signed.
    pub enforced: bool,
    /// Microsoft's certificates that it trusts, by their common names.
    pub certificates: Vec<String>,
    /// How many certificates of others it trusts.
    pub others: u32,
    /// How many programs and certificates it refuses (`dbx`).
    pub dbx_entries: u32,
    /// The date of the newest signed change of `dbx`, as its signer wrote it: `2025-03-10`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dbx_written: Option<String>,
    /// Whether the certificates from before an enrolment are kept with the VM.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub former_kept: bool,
}

/// What the firmware of a running VM says on its serial console while the guest does not start: it trusts none of the keys
/// that its loader is signed by, or the loader is not signed.
///
/// It is the console's word. A guest can have its firmware print what looks like it, by the name of a boot option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderRefused {
    /// The number of the boot option, as UEFI counts them.
    pub boot_option: u16,
}

impl LoaderRefused {
    /// What `vm show` and `check` say of a VM. Whether certificates can be added that may be the missing ones, its
    /// variables say.
    pub fn finding(&self, vm: &VmName, variables: Option<&SecureBootObserved>) -> Finding {
        let what = format!(
            "the firmware of VM {vm} does not trust the loader of its boot option Boot{:04X}, so its guest does not start (as its serial console says)",
            self.boot_option
        );
        let outdated =
            variables.is_some_and(|found| found.state == CertificateState::UpdateAvailable);
        let fix = match outdated {
            true => format!(
                "fleetward vm stop {vm} --force, then fleetward secure-boot enroll {vm}, then fleetward vm start {vm}"
            ),
            false => format!(
                "give it a loader that its firmware trusts; to see what it trusts: fleetward secure-boot status {vm}"
            ),
        };
        Finding {
            blocking: false,
            ..Finding::blocking(ErrorCode::LoaderNotTrusted, what, fix)
        }
    }
}

/// The certificates that a VM trusted before an enrolment. They lie with its definition, so they move with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FormerCertificates {
    /// The job that enrolled.
    pub job: JobId,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Base64 of the variables `KEK` and `db` as they lay in the store.
    pub variables: String,
}

impl SecureBootObserved {
    /// With nothing but its state.
    pub const fn of(state: CertificateState) -> Self {
        Self {
            state,
            because: None,
            enforced: false,
            certificates: Vec::new(),
            others: 0,
            dbx_entries: 0,
            dbx_written: None,
            former_kept: false,
        }
    }

    /// Whether it trusts a certificate of Microsoft's of that year.
    pub fn count_of(&self, year: &str) -> usize {
        let certificates = self.certificates.iter();
        certificates.filter(|name| name.ends_with(year)).count()
    }
}
