//! VMs: how they are made, and what is known of them.

use super::{EkStanding, Usage};
use crate::seed::Seed;
use fleetward_model::boot::{AfterBoot, Crashes};
use fleetward_model::change::{NicAsked, Pending};
use fleetward_model::error::Finding;
use fleetward_model::guest::GuestObserved;
use fleetward_model::host::HostState;
use fleetward_model::machine::{BootFirst, MachineSettings};
use fleetward_model::network::NicObserved;
use fleetward_model::secure_boot::SecureBootObserved;
use fleetward_model::spec::Description;
use fleetward_model::vm::{
    DiskObserved, DriveObserved, Firmware, NewerSpec, Profile, TpmObserved, VmState,
};
use fleetward_model::{
    ByteSize, Failure, GroupName, HostName, ImageName, JobId, Labels, PoolName, TemplateName, VmId,
    VmName, change,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

/// `POST /v1/vms`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreateRequest {
    pub name: VmName,
    #[serde(default)]
    pub profile: Profile,
    /// Content of the system disk; none: an empty disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageName>,
    /// Template to make it from, instead of an image; profile, size and firmware are the template's where not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateName>,
    /// Size of the system disk, bytes; not smaller than the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<ByteSize>,
    /// Installer medium: the first drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iso: Option<ImageName>,
    /// Media of more drives, such as drivers beside the installer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_isos: Vec<ImageName>,
    /// Medium with drivers for virtio, for an installer that has none: one more drive, and the disks and cards are virtio
    /// unless something else is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drivers: Option<ImageName>,
    /// What its firmware tries first.
    #[serde(default, skip_serializing_if = "BootFirst::is_default")]
    pub boot: BootFirst,
    /// Disks beside the system disk, empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_disks: Vec<change::DiskAsked>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<ByteSize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    #[serde(default)]
    pub pool: PoolName,
    #[serde(default = "yes")]
    pub tpm: bool,
    #[serde(default = "yes")]
    pub secure_boot: bool,
    #[serde(default)]
    pub start: bool,
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// Its network cards; none: the template's, or one in its host's default network. An empty list: no card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicAsked>>,
    #[serde(default, skip_serializing_if = "Description::is_empty")]
    pub description: Description,
    /// Whether its host starts it after a boot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autostart: bool,
    /// What the guest finds at its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// Only says whether it could be done, by a refusal or by an answer without a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

fn yes() -> bool {
    true
}

/// What one of several hosts says of a VM that each of them says it has.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ClaimView {
    pub host: HostName,
    /// The name that the VM has there.
    pub name: VmName,
    pub state: VmState,
    /// Whether Fleetward made the domain there, as far as its definition says.
    pub managed: bool,
    /// SHA-256 of the certificate of its TPM's endorsement key, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek_certificate: Option<String>,
    /// Whether that is the TPM of which the controller has its newest copy. None: there is nothing to compare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm_known: Option<bool>,
    /// Whether the host has the TPM's state. None: the VM has no TPM there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm_state_present: Option<bool>,
    /// When the host last spoke of it, by the controller's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub observed: OffsetDateTime,
}

/// A VM, as `vm show` gives it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    pub name: VmName,
    pub id: VmId,
    pub host: HostName,
    pub group: Option<GroupName>,
    /// `unknown` while its host does not answer.
    pub state: VmState,
    /// What each host that says it has this VM tells of it, if they are more than one. Nothing is done with the VM then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ClaimView>,
    /// What was seen of it before its host fell silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<LastSeen>,
    /// Since when it has been in that state, as far as the controller saw it; while it is unknown, since its host was last heard.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub state_since: Option<OffsetDateTime>,
    /// What is thought of its host; none for a host that left the fleet.
    #[serde(default)]
    pub host_state: Option<HostState>,
    /// libvirt's word for why.
    pub reason: String,
    /// False for a domain Fleetward did not make.
    pub managed: bool,
    /// A newer program wrote its specification: it is shown, and nothing is changed about it (`SPEC_NEWER`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer: Option<NewerSpec>,
    pub cpus: u32,
    pub memory_bytes: ByteSize,
    pub firmware: Option<Firmware>,
    #[serde(flatten)]
    pub settings: MachineSettings,
    pub disks: Vec<DiskObserved>,
    #[serde(default)]
    pub nics: Vec<NicObserved>,
    #[serde(default)]
    pub drives: Vec<DriveObserved>,
    pub tpm: TpmObserved,
    /// What counts of its TPM's EK certificate; none without one, and before the controller has seen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek: Option<EkStanding>,
    /// The controller's copy of its TPM; none without one.
    #[serde(default)]
    pub escrow: Option<EscrowView>,
    /// Seconds since the controller's copy was certainly what the host has.
    #[serde(default)]
    pub escrow_age: Option<u64>,
    #[serde(default)]
    pub description: Description,
    /// Whether its host starts it after a boot.
    #[serde(default)]
    pub autostart: bool,
    /// Set while it has not come back with its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_boot: Option<AfterBoot>,
    /// Whether its host starts it again when its guest crashes.
    #[serde(default)]
    pub restart_on_crash: bool,
    /// Its crashes of the last hour, where it is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crashes: Option<Crashes>,
    /// What its UEFI variables say of Secure Boot; none before its first start, and from an older agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<SecureBootObserved>,
    /// Its guest, by the guest's own word; none while it does not run, and before it was asked.
    #[serde(default)]
    pub guest: Option<GuestObserved>,
    /// What waits for its next start.
    #[serde(default)]
    pub pending: Vec<Pending>,
    /// The domain's own name, where somebody renamed it on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_name: Option<String>,
    /// What somebody changed past Fleetward.
    #[serde(default)]
    pub findings: Vec<Finding>,
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    pub profile: Option<Profile>,
    /// The job that holds it.
    pub job: Option<JobId>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub created: Option<OffsetDateTime>,
    /// When the host last reported it; old when the host is unreachable.
    #[serde(with = "time::serde::rfc3339")]
    pub observed: OffsetDateTime,
    /// What it uses now, in lists where `usage` asks for it. None: it does not run, or its host has not told lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A VM when its host last answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastSeen {
    pub state: VmState,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// The controller's newest copy of a VM's TPM, in `vm show`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EscrowView {
    /// None: there is no copy yet.
    pub version: Option<u64>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub made: Option<OffsetDateTime>,
    /// Whether it is what the host last reported.
    pub current: bool,
    /// Why the last try to take a copy failed, when it did.
    pub failure: Option<Failure>,
}

/// Query of `DELETE /v1/vms/{vm}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub keep_tpm_state: bool,
}

/// Query of `GET /v1/vms`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VmQuery {
    #[param(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// `key=value`; of several, a VM has all
    #[serde(rename = "label", default)]
    pub labels: Vec<String>,
    pub tpm: Option<bool>,
    #[param(value_type = Option<String>)]
    pub state: Option<VmState>,
    #[param(value_type = Option<String>)]
    pub group: Option<GroupName>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: a VM's name, NAME/HOST or NAME/HOST/ID
    pub after: Option<String>,
    /// with what each uses now
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[param(value_type = Option<bool>)]
    pub usage: bool,
}
