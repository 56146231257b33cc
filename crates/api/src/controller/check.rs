//! Checks and audit.

use fleetward_model::error::Finding;
use fleetward_model::{ErrorCode, Failure, GroupName, HostName, VmId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Query of `GET /v1/check`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CheckQuery {
    #[param(value_type = Option<String>)]
    pub vm: Option<VmName>,
    #[param(value_type = Option<String>)]
    pub to: Option<HostName>,
    /// check a move of the stopped VM
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[param(value_type = Option<bool>)]
    pub offline: bool,
    /// at most so many rows, 1 to 1,000; without it all, where they are 100,000 at most
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// only what follows: VM/ID/TO of a row
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Rows of the largest check that is given whole: some 60 MB of text.
const MOST_PAIRS: usize = 100_000;

/// Refuses to check so many VMs against so many hosts at once.
///
/// # Errors
/// `TOO_LARGE`.
pub fn require_pairs(vms: usize, hosts: usize) -> Result<(), Failure> {
    if vms.saturating_mul(hosts) <= MOST_PAIRS {
        return Ok(());
    }
    let what = format!("the check of {vms} VMs against {hosts} hosts");
    let because =
        format!("without a limit it is made for {MOST_PAIRS} pairs of VM and host at most");
    Err(Failure::new(ErrorCode::TooLarge, what)
        .because(because)
        .fix("fleetward check --by-host"))
}

/// Whether one VM can move to (or, on its own host, start on) one host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    pub vm: VmName,
    /// The VM's; none where an older controller answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VmId>,
    pub from: HostName,
    pub to: HostName,
    pub possible: bool,
    /// The first blocking finding's code.
    pub code: Option<ErrorCode>,
    pub findings: Vec<Finding>,
}

/// Query of `GET /v1/check/hosts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HostCheckQuery {
    #[param(value_type = Option<String>)]
    pub group: Option<GroupName>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: a host's name
    pub after: Option<String>,
}

/// What the VMs of one host can do, counted from what hosts have reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostCheckView {
    pub host: HostName,
    pub group: GroupName,
    pub online: bool,
    /// Fleetward's VMs that are there.
    pub vms: u32,
    /// Those that run there, or can start there.
    pub can_start: u32,
    /// Those that another host of the group can take as they are, running or stopped.
    pub can_move: u32,
    /// What keeps the others, in the order of the codes. A VM that can neither start nor move counts twice.
    pub in_the_way: Vec<CodeCount>,
    /// What is to be known of VMs although it stops nothing, in the order of the codes; each VM counts once a code.
    #[serde(default)]
    pub remarks: Vec<CodeCount>,
    /// What is to be known of the host itself, as in its own view.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How many VMs have that code: as the first thing in their way, or as a remark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CodeCount {
    pub code: ErrorCode,
    pub vms: u32,
}

/// Query of `GET /v1/audit`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// name or id, also of a VM that is gone
    #[param(value_type = Option<String>)]
    pub vm: Option<VmName>,
    /// RFC 3339
    pub since: Option<String>,
    /// at most so many rows, 1 to 1,000; without it all
    pub limit: Option<u32>,
    /// only what follows: TIME/HOST/SEQ/HASH of a record
    pub after: Option<String>,
}

/// Answer of `GET /v1/audit/verify`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditVerdict {
    /// Every chain holds, and every host's own log was compared.
    pub intact: bool,
    pub records: u64,
    /// The first record that does not fit, and why.
    pub broken: Option<String>,
    /// Everything that does not fit, the first of each chain.
    #[serde(default)]
    pub breaks: Vec<AuditBreakView>,
    /// Logs of hosts that were damaged and closed: by whom, when and why. They stay listed.
    #[serde(default)]
    pub closed: Vec<String>,
    /// Hosts whose own log could not be compared with the copy here, because they did not answer.
    #[serde(default)]
    pub not_compared: Vec<HostName>,
}

/// A place where an audit chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditBreakView {
    /// Whose records: a host's name, or `controller`.
    pub chain: String,
    /// Where the records lie that do not fit: `controller` for the copy in its store, else the host.
    pub kept_by: String,
    /// Number of the record that was changed, is missing or is out of place.
    pub seq: Option<u64>,
    pub what: String,
}
