//! Hosts: joining, what is known of them, their networks; administrators; the controller itself.

use crate::bulk::Plan;
use crate::controller::{ConsoleView, Usage};
use fleetward_model::certificate::{CertificateFacts, Serial};
use fleetward_model::error::Finding;
use fleetward_model::guardian::{GuardianFacts, TrustMode};
use fleetward_model::host::{HostFacts, HostState};
use fleetward_model::network::NetworkPlace;
use fleetward_model::role::Role;
use fleetward_model::{Failure, GroupName, GuardianId, HostName, JobId, NetworkName, VmId, VmName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    /// The fleet's id.
    pub fleet: String,
    /// SHA-256 of the fleet authority's certificate, hex.
    pub authority: String,
    /// When the authority ends, and every certificate of the fleet with it. None: from controllers that do not tell.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub authority_ends: Option<OffsetDateTime>,
    /// Who grants keys inside a group: jobs (`auto`), or only people (`manual`).
    #[serde(default)]
    pub trust: TrustMode,
    pub hosts: u32,
    pub hosts_online: u32,
    pub vms: u32,
    pub jobs_running: u32,
    /// Where people and programs without a certificate of the fleet come in; none: nowhere.
    #[serde(default)]
    pub console: Option<ConsoleView>,
    /// What is to be known of the fleet as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// A line of `GET /v1/changes`: what is to be read anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangesView {
    /// Everything.
    pub all: bool,
    /// VMs that came, went or changed.
    pub vms: Vec<VmId>,
    /// Hosts that came, went, or say something new of themselves.
    pub hosts: Vec<HostName>,
}

/// A host in lists and on its own.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    pub name: HostName,
    pub group: GroupName,
    pub state: HostState,
    /// `address:port` of its agent; none until it has joined.
    pub address: Option<String>,
    /// Last reported facts.
    pub facts: Option<HostFacts>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen: Option<OffsetDateTime>,
    pub vms: u32,
    pub warnings: Vec<String>,
    /// What it still has to do of jobs that ended while it was away; it is asked for nothing else before.
    #[serde(default)]
    pub debts: Vec<DebtView>,
    /// The certificate with which it speaks to the fleet, as it last showed it; renewed at two thirds of its life.
    #[serde(default)]
    pub certificate: Option<CertificateFacts>,
    /// What it uses now, in lists where `usage` asks for it. None: it has not told lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A step of a job that a host owes: it was away when the job needed it, and the job ended without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DebtView {
    pub job: JobId,
    /// `vm-migrate`, ...
    pub kind: String,
    pub step: String,
    /// Whether the step is to be undone, rather than done.
    pub undo: bool,
    /// The VM it is about; none for the host's own guardian.
    pub vm: Option<VmId>,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why it failed although the host answered: waiting does not cure it.
    pub failure: Option<Failure>,
}

/// `POST /v1/host-tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub host: HostName,
    #[serde(default)]
    pub group: GroupName,
    /// Seconds, 1 to 604,800 (a week); default one hour.
    #[serde(default = "one_hour")]
    pub ttl_seconds: u32,
    /// The host has joined before, does not answer, and comes back with nothing of what it had: installed anew.
    #[serde(default)]
    pub reinstalled: bool,
}

fn one_hour() -> u32 {
    3600
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub host: HostName,
    pub group: GroupName,
    /// Shown once.
    pub token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires: OffsetDateTime,
}

/// `POST /v1/join`, from an agent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub token: String,
    /// PEM certificate request for the host's identity.
    pub host_csr: String,
    /// PEM certificate request for the host's EK issuing authority.
    pub ek_csr: String,
    pub guardian: GuardianFacts,
    /// `address:port` on which the controller and other agents reach this one.
    pub address: String,
    /// What the host's clock says. A controller of before November 2026 refuses the field by its name.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub clock: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinReply {
    pub host: HostName,
    pub group: GroupName,
    /// The fleet's id.
    pub fleet: String,
    /// PEM.
    pub host_certificate: String,
    /// PEM; to be pinned.
    pub authority_certificate: String,
    /// PEM, this host's issuing certificate.
    pub ek_certificate: String,
    /// PEM, the fleet's EK root.
    pub ek_root_certificate: String,
}

/// `POST /v1/hosts/{host}/rejoin-token`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RejoinTokenRequest {
    /// Seconds, 1 to 604,800 (a week); default one hour.
    #[serde(default = "one_hour")]
    pub ttl_seconds: u32,
}

/// `POST /v1/rejoin`, from a host of the fleet that has no good certificate.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RejoinRequest {
    pub token: String,
    /// PEM certificate request for the host's identity.
    pub host_csr: String,
    /// The host's own guardian, which the fleet knows.
    pub guardian: GuardianId,
    /// Base64: its signature over token and request.
    pub proof: String,
    /// `address:port` on which the controller and other agents reach this one.
    pub address: String,
    /// What the host's clock says.
    #[serde(with = "time::serde::rfc3339")]
    pub clock: OffsetDateTime,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RejoinReply {
    pub host: HostName,
    /// PEM.
    pub host_certificate: String,
}

/// Query of `POST /v1/hosts/{host}/expel`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExpelQuery {
    /// only says what it would come to
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub dry_run: bool,
}

/// What the expulsion of a host comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExpelAnswer {
    pub host: HostName,
    /// VMs that were on it; each is lost until it is rebuilt.
    pub lost: Vec<LostVm>,
    /// VMs elsewhere whose keys its guardians open: they lose them, and the keys are rolled.
    pub keys: Vec<ExposedKey>,
    /// Guardians that were imported there, as the host says. Others may depend on them, so they keep what they open.
    pub imported: Vec<GuardianId>,
    /// Jobs that were under way with the host or one of its VMs; they are cancelled.
    pub jobs: Vec<JobId>,
}

/// A VM of a host that was expelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostVm {
    pub id: VmId,
    pub name: VmName,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// When the controller's newest copy of its TPM was made; none where it has none.
    #[serde(with = "time::serde::rfc3339::option")]
    pub copy: Option<OffsetDateTime>,
}

/// A VM whose key a host that was expelled could open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExposedKey {
    pub id: VmId,
    pub name: VmName,
    pub host: HostName,
    pub guardians: Vec<GuardianId>,
    pub roll: RollWhen,
}

/// When a key is rolled that was taken away from somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollWhen {
    AtOnce,
    /// The VM runs: until it stops, the key stays.
    NextStop,
    /// Its host does not answer.
    HostBack,
}

/// `POST /v1/admins`: a client certificate for somebody not on the controller's machine.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminRequest {
    /// Letters, digits, `.`, `_`, `-`, at most 63.
    pub name: HostName,
    pub role: Role,
    /// PEM certificate request; the private key stays with the caller.
    pub csr: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AdminReply {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub authority_certificate: String,
}

/// A certificate that an administrator has got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdminCertificate {
    pub name: String,
    pub role: Role,
    pub standing: AdminStanding,
    #[serde(flatten)]
    pub certificate: CertificateFacts,
    #[serde(with = "time::serde::rfc3339")]
    pub made: OffsetDateTime,
    /// Who had it made.
    pub made_by: String,
    /// When it was revoked; none if it was not.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked: Option<OffsetDateTime>,
}

/// Whether an administrator's certificate lets anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdminStanding {
    Good,
    /// Its time is over.
    Ended,
    /// Refused before its end.
    Revoked,
}

/// `POST /v1/admins/{name}/revoke`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeAdminRequest {
    /// Only this certificate; none: every one of that name that was made until now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Also if none of that name is listed: it was made before certificates were remembered.
    #[serde(default)]
    pub unlisted: bool,
}

/// What was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdminRevoked {
    pub name: String,
    /// Those that are known and were good until now.
    pub revoked: Vec<AdminCertificate>,
}

/// A network that hosts offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    pub name: NetworkName,
    /// The hosts that have it, by name.
    pub hosts: Vec<NetworkOnHost>,
}

/// What a network is on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkOnHost {
    pub host: HostName,
    #[serde(flatten)]
    pub place: NetworkPlace,
    /// Whether a card in it can have a VLAN.
    pub vlans: bool,
    /// Whether a card in it can have a filter.
    pub filters: bool,
    /// Whether it is the network of cards of which nothing else is said.
    pub default: bool,
    /// Why nothing can be connected to it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Query of `POST /v1/hosts/{host}/drain`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DrainQuery {
    /// only says where each VM would go
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub dry_run: bool,
}

/// Answer of `POST /v1/hosts/{host}/drain`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DrainAnswer {
    /// None: it was a dry run.
    pub job: Option<JobId>,
    /// What would become of each VM, in a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<Plan>,
}

/// Answer of `POST /v1/rebuild`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RebuildView {
    pub hosts_asked: u32,
    pub hosts_answered: u32,
    pub vms: u32,
    /// Hosts that did not answer, names that clash.
    pub warnings: Vec<String>,
}
