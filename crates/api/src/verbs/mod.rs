//! Every verb of the controller's API: one module, one declaration each.
//!
//! ```text
//!                         ┌─► the route and its guard           controller: `http`
//!   verb! { VmStop = ...} ┼─► the operation in `docs/openapi.json`
//!                         ├─► the typed call                    command line: `Controller::call::<VmStop>`
//!                         └─► [`ENDPOINTS`], which tests walk
//! ```
//!
//! The list at the end of this file is the only one. A verb without a handler does not compile, and neither does a handler
//! without a verb. Refuses to know what a verb does.

mod declare;
mod uri;

use crate::controller::Role;
use declare::verb;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::openapi::path::{HttpMethod, Operation};
use utoipa::openapi::{RefOr, Schema};

pub use uri::uri;

/// Who may call a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Role(Role),
    /// A join token in the body instead of a certificate.
    JoinToken,
    /// Name and password in the body, at the listener for people alone.
    Password,
}

/// What of the fleet a verb is about, for those whose role holds for some groups alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Reach {
    /// All of it, or what belongs to no group: it is not for them.
    Fleet,
    /// The VM in its path, which must be of one of their groups.
    Vm,
    /// The host in its path, which must be of one of their groups.
    Host,
    /// The job in its path, which must be of a VM or host of theirs, or begun by them.
    Job,
    /// VMs, hosts or jobs that its handler picks: of their groups alone.
    Rows,
    /// Nothing that belongs to a group.
    Open,
}

/// How a request travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// There is nothing to carry.
    Nowhere,
    Query,
    /// A JSON body.
    Body,
    /// In the query, beside a body of plain bytes.
    Upload,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JSON value.
    Json,
    /// A list in pages: a JSON array, or one row a line.
    Pages,
    /// One JSON value without a type of its own.
    Document,
    /// One JSON value a line, as they come.
    Lines,
    Text,
    Nothing,
    /// A PNG file.
    Picture,
    WebSocket,
}

/// One endpoint: a method on a path, who may use it, and what is said there. Made by `verb!`.
pub trait Verb {
    /// `GET`, `POST`, ...
    const METHOD: &'static str;
    /// With its parameters in braces: `/v1/vms/{vm}`.
    const PATH: &'static str;
    /// Its `operationId`.
    const OPERATION: &'static str;
    /// Under which it is listed in the description.
    const TAG: &'static str;
    const ACCESS: Access;
    const REACH: Reach;
    const CARRIED: Carried;
    const FORM: Form;
    /// Whether the answer takes longer than others: it waits for all hosts.
    const LONG: bool;

    /// Values for the path's parameters, in their order.
    type Path<'a>: AsRef<[&'a str]> + Copy;
    type Request: Serialize + DeserializeOwned;
    /// One line, where there are several.
    type Answer: Serialize + DeserializeOwned;

    fn describe() -> Description;
}

/// A verb in the words of OpenAPI.
pub struct Description {
    pub methods: Vec<HttpMethod>,
    pub operation: Operation,
    /// What the operation refers to.
    pub schemas: Vec<(String, RefOr<Schema>)>,
}

/// What is the same for verbs of every type.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub method: &'static str,
    pub path: &'static str,
    pub access: Access,
    pub reach: Reach,
}

impl Endpoint {
    const fn of<V: Verb>() -> Self {
        Self {
            method: V::METHOD,
            path: V::PATH,
            access: V::ACCESS,
            reach: V::REACH,
        }
    }
}

macro_rules! verbs {
    ($($module:ident::$verb:ident,)*) => {
        $(mod $module; pub use $module::$verb;)*

        /// Every endpoint of the controller.
        pub const ENDPOINTS: &[Endpoint] = &[$(Endpoint::of::<$verb>()),*];

        /// Gives the names of all verbs to the macro `with`.
        #[macro_export]
        macro_rules! each_verb {
            ($with:ident) => { $with! { $($verb)* } };
        }
    };
}

verbs! {
    fleet_status::FleetStatus,
    fleet_changes::FleetChanges,
    api_description::ApiDescription,
    host_list::HostList,
    host_load::HostLoad,
    host_show::HostShow,
    host_remove::HostRemove,
    host_expel::HostExpel,
    host_drain::HostDrain,
    host_resume::HostResume,
    host_invite::HostInvite,
    host_readmit::HostReadmit,
    admin_certify::AdminCertify,
    admin_list::AdminList,
    admin_revoke::AdminRevoke,
    user_add::UserAdd,
    user_list::UserList,
    user_set::UserSet,
    user_remove::UserRemove,
    session_begin::SessionBegin,
    session_show::SessionShow,
    session_end::SessionEnd,
    password_change::PasswordChange,
    token_create::TokenCreate,
    token_list::TokenList,
    token_revoke::TokenRevoke,
    alert_list::AlertList,
    alert_target_list::AlertTargetList,
    alert_target_add::AlertTargetAdd,
    alert_target_test::AlertTargetTest,
    alert_target_remove::AlertTargetRemove,
    network_list::NetworkList,
    image_list::ImageList,
    image_import::ImageImport,
    image_import_show::ImageImportShow,
    image_delete::ImageDelete,
    vm_list::VmList,
    vm_load::VmLoad,
    vm_create::VmCreate,
    vm_show::VmShow,
    vm_change::VmChange,
    vm_delete::VmDelete,
    vm_start::VmStart,
    vm_stop::VmStop,
    vm_restart::VmRestart,
    vm_pause::VmPause,
    vm_resume::VmResume,
    vm_migrate::VmMigrate,
    tpm_enable::TpmEnable,
    tpm_disable::TpmDisable,
    tpm_restore::TpmRestore,
    tpm_roll::TpmRoll,
    tpm_unlock::TpmUnlock,
    tpm_history::TpmHistory,
    tpm_kept::TpmKept,
    tpm_forget::TpmForget,
    secure_boot_status::SecureBootStatus,
    secure_boot_enroll::SecureBootEnroll,
    secure_boot_restore::SecureBootRestore,
    vm_bulk::VmBulk,
    bulk_stop::BulkStop,
    vm_clone::VmClone,
    vm_recover::VmRecover,
    vm_settle::VmSettle,
    template_list::TemplateList,
    template_create::TemplateCreate,
    template_show::TemplateShow,
    template_delete::TemplateDelete,
    vm_console::VmConsole,
    vm_screen::VmScreen,
    vm_screenshot::VmScreenshot,
    vm_keys::VmKeys,
    fleet_check::FleetCheck,
    host_check::HostCheck,
    job_kind_list::JobKindList,
    job_list::JobList,
    job_show::JobShow,
    job_events::JobEvents,
    job_give_up::JobGiveUp,
    job_cancel::JobCancel,
    guardian_list::GuardianList,
    guardian_show::GuardianShow,
    guardian_grant::GuardianGrant,
    guardian_revoke::GuardianRevoke,
    guardian_rotate::GuardianRotate,
    guardian_rotate_expiring::GuardianRotateExpiring,
    ek_list::EkList,
    ek_show::EkShow,
    ek_accept::EkAccept,
    ek_revoke::EkRevoke,
    ek_authorities::EkAuthorities,
    ek_crl::EkCrl,
    fleet_metrics::FleetMetrics,
    audit_list::AuditList,
    audit_verify::AuditVerify,
    fleet_rebuild::FleetRebuild,
    host_join::HostJoin,
    host_rejoin::HostRejoin,
}
