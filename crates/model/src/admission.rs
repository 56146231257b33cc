//! What a VM can be asked in which state: every request, every state, one table.
//!
//! ```text
//!            start                 stop / shutdown / crash
//!  stopped ---------> running <------------------------------+
//!     ^                 |  \  suspended by the hypervisor     |
//!     |                 |   +----------> paused --stop/start--+
//!     |                 | migrate
//!     +--- delete       v
//!    (gone)         migrating ---> running (elsewhere, or here again)
//!
//!  saved (by the hypervisor, when its host is shut down) --start--> running; --stop --force--> stopped
//!  any of them, on a host that does not answer: unknown
//! ```
//! [`admit`] decides for a request of a person; [`answer`] is the table alone, which a job's step asks again once nobody
//! else can change the VM.

use crate::vm::{NewerSpec, VmState};
use crate::{ErrorCode, Failure, HostName, JobId, Names, VmName};
use strum::VariantArray;

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    Start,
    Stop,
    ForceStop,
    /// Stopped and started again, so that what waits for its next start takes effect; `force`: its power is cut.
    Restart {
        force: bool,
    },
    /// Its processors stand still; its memory stays.
    Pause,
    /// A paused one runs on.
    Resume,
    Delete,
    Clone,
    /// A template of it.
    Template,
    MigrateLive,
    MigrateOffline,
    /// Its description, labels, hardware; what of that its state allows is the planner's matter.
    Change,
    /// Its TPM, `restart`: a running VM may be stopped for it and started again.
    Tpm {
        change: TpmChange,
        restart: bool,
    },
    /// The certificates in its UEFI variables; `restart` as for its TPM.
    Certificates {
        change: CertificateChange,
        restart: bool,
    },
    /// Its TPM key is wrapped for one more guardian.
    Grant,
    /// A guardian loses its TPM key.
    Revoke,
    /// Rebuilt on another host, because its own is lost.
    Recover,
    /// Its serial console.
    Console,
    /// Its screen and keyboard.
    Screen,
}

/// What can be done to the TPM of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::VariantArray)]
pub enum TpmChange {
    Enable,
    Disable,
    Restore,
    Roll,
    Unlock,
}

/// What can be done to the certificates of Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::VariantArray)]
pub enum CertificateChange {
    Enroll,
    Restore,
}

impl Request {
    /// Every request there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = [
            Self::Start,
            Self::Stop,
            Self::ForceStop,
            Self::Restart { force: false },
            Self::Restart { force: true },
            Self::Pause,
            Self::Resume,
            Self::Delete,
            Self::Clone,
            Self::Template,
            Self::MigrateLive,
            Self::MigrateOffline,
            Self::Change,
            Self::Grant,
            Self::Revoke,
            Self::Recover,
            Self::Console,
            Self::Screen,
        ];
        let tpm = TpmChange::VARIANTS
            .iter()
            .copied()
            .flat_map(|change| [false, true].map(|restart| Self::Tpm { change, restart }));
        let certificates = CertificateChange::VARIANTS.iter().copied();
        let certificates = certificates
            .flat_map(|change| [false, true].map(|restart| Self::Certificates { change, restart }));
        plain.into_iter().chain(tpm).chain(certificates)
    }

    /// Whether somebody only looks at the guest and types into it, which needs nothing of what the VM is.
    const fn is_at_the_guest(self) -> bool {
        match self {
            Self::Console | Self::Screen => true,
            Self::Start
            | Self::Stop
            | Self::ForceStop
            | Self::Restart { .. }
            | Self::Pause
            | Self::Resume
            | Self::Delete
            | Self::Clone
            | Self::Template
            | Self::MigrateLive
            | Self::MigrateOffline
            | Self::Change
            | Self::Tpm { .. }
            | Self::Certificates { .. }
            | Self::Grant
            | Self::Revoke
            | Self::Recover => false,
        }
    }

    /// Whether a job that works on the VM speaks against it. A console changes nothing, a grant waits for its turn, and a VM
    /// can be cut off whatever else is done with it.
    const fn needs_the_vm_alone(self) -> bool {
        match self {
            Self::Console | Self::Screen | Self::Grant | Self::ForceStop => false,
            Self::Start
            | Self::Stop
            | Self::Restart { .. }
            | Self::Pause
            | Self::Resume
            | Self::Delete
            | Self::Clone
            | Self::Template
            | Self::MigrateLive
            | Self::MigrateOffline
            | Self::Change
            | Self::Tpm { .. }
            | Self::Certificates { .. }
            | Self::Revoke
            | Self::Recover => true,
        }
    }
}

/// The table's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Accept,
    /// Already so: success, nothing is done.
    Done,
    Refuse(Reason),
}

/// Why a state refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    pub code: ErrorCode,
    because: &'static str,
    fix: &'static str,
}

impl Reason {
    /// Why, with the names of the VM and of its host.
    pub fn because(&self, vm: &VmName, host: &HostName) -> String {
        named(self.because, vm, host)
    }

    /// What helps, with the same names.
    pub fn fix(&self, vm: &VmName, host: &HostName) -> String {
        named(self.fix, vm, host)
    }
}

fn named(text: &str, vm: &VmName, host: &HostName) -> String {
    text.replace("{vm}", vm.as_str())
        .replace("{host}", host.as_str())
}

const fn refuse(code: ErrorCode, because: &'static str, fix: &'static str) -> Answer {
    Answer::Refuse(Reason { code, because, fix })
}

/// Whether a VM in `state` takes `request`.
pub const fn answer(state: VmState, request: Request) -> Answer {
    use Answer::{Accept, Done};
    use ErrorCode::{HostUnreachable, VmBusy, VmNotLost, VmNotRunning, VmRunning, VmStateWrong};
    use VmState::{Failed, Migrating, Paused, Running, Saved, Stopped, Unknown};
    const START: &str = "fleetward vm start {vm}";
    const STOP: &str = "fleetward vm stop {vm}";
    const SHOW: &str = "fleetward vm show {vm}";
    const WAIT: &str = "wait for the job that moves it: fleetward vm show {vm}";
    const AWAY: &str = "host {host} does not answer, so its state is unknown";
    const CALL: &str =
        "check that its agent runs and that its port is reachable: fleetward host show {host}";
    const SAVED: &str =
        "its memory is saved on the disk, and its disks, its TPM and its place belong to it";
    const GO_ON: &str = "let it go on: fleetward vm start {vm}; or give its memory up, as if its power were cut: \
                         fleetward vm stop {vm} --force";
    match (request, state) {
        (Request::Start, Stopped | Saved | Paused) => Accept,
        (Request::Start, Running) => Done,
        (Request::Start, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),
        (Request::Start, Failed) => refuse(VmStateWrong, "the VM has failed; stop it first", STOP),
        (Request::Start, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Stop | Request::ForceStop, Running | Paused | Failed) => Accept,
        (Request::Stop | Request::ForceStop, Stopped) => Done,
        (Request::ForceStop, Saved) => Accept,
        (Request::Stop, Migrating) => {
            refuse(VmBusy, "the VM is migrating; cancel that job first", WAIT)
        }
        (Request::ForceStop, Migrating) => Accept,
        (Request::Stop | Request::ForceStop, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Restart { .. }, Running) => Accept,
        (Request::Restart { force: true }, Saved | Paused | Failed) => Accept,
        (Request::Restart { force: false }, Paused) => refuse(
            VmStateWrong,
            "a paused guest does not hear that it is to shut down",
            "fleetward vm resume {vm}; or cut its power: fleetward vm restart {vm} --force",
        ),
        (Request::Restart { force: false }, Failed) => refuse(
            VmStateWrong,
            "the VM has failed, and cannot shut down by itself",
            "cut its power: fleetward vm restart {vm} --force",
        ),
        (Request::Restart { .. }, Stopped) => refuse(VmNotRunning, "the VM is stopped", START),
        (Request::Restart { .. }, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),
        (Request::Restart { .. }, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Pause, Running) => Accept,
        (Request::Pause, Paused) => Done,
        (Request::Pause, Stopped) => refuse(VmNotRunning, "the VM is stopped", START),
        (Request::Pause | Request::Resume, Saved) => {
            refuse(VmNotRunning, "its memory is saved on the disk", START)
        }
        (Request::Pause, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),
        (Request::Pause, Failed) => refuse(VmStateWrong, "the VM has failed; stop it first", STOP),
        (Request::Pause, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Resume, Paused) => Accept,
        (Request::Resume, Running) => Done,
        (Request::Resume, Stopped) => refuse(VmNotRunning, "the VM is stopped", START),
        (Request::Resume, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),
        (Request::Resume, Failed) => refuse(VmStateWrong, "the VM has failed; stop it first", STOP),
        (Request::Resume, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (
            Request::Stop
            | Request::Restart { force: false }
            | Request::Delete
            | Request::Clone
            | Request::Template
            | Request::MigrateLive
            | Request::MigrateOffline
            | Request::Change
            | Request::Tpm { .. }
            | Request::Certificates { .. }
            | Request::Revoke,
            Saved,
        ) => refuse(VmStateWrong, SAVED, GO_ON),

        (Request::Delete, Stopped) => Accept,
        (Request::Delete, Running | Paused | Failed) => {
            refuse(VmRunning, "only a stopped VM is deleted", STOP)
        }
        (Request::Delete, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),
        (Request::Delete, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Clone | Request::Template, Stopped | Running) => Accept,
        (Request::Clone | Request::Template, Paused | Failed) => refuse(
            VmStateWrong,
            "only a running or a stopped VM is copied",
            STOP,
        ),
        (Request::Clone | Request::Template, Migrating) => {
            refuse(VmBusy, "the VM is migrating", WAIT)
        }
        (Request::Clone | Request::Template, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::MigrateLive, Running) => Accept,
        (Request::MigrateLive, Stopped) => refuse(
            VmNotRunning,
            "the VM is stopped; move it with --offline",
            "add --offline; or: fleetward vm start {vm}",
        ),
        (Request::MigrateLive, Paused | Failed) => refuse(
            VmStateWrong,
            "only a running or a stopped VM migrates",
            SHOW,
        ),
        (Request::MigrateLive, Migrating) => refuse(VmBusy, "the VM is migrating already", WAIT),
        (Request::MigrateLive, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::MigrateOffline, Stopped) => Accept,
        (Request::MigrateOffline, Running | Paused | Failed) => {
            refuse(VmRunning, "--offline moves only a stopped VM", STOP)
        }
        (Request::MigrateOffline, Migrating) => refuse(VmBusy, "the VM is migrating already", WAIT),
        (Request::MigrateOffline, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Change, Running | Stopped | Paused) => Accept,
        (Request::Change, Failed) => refuse(VmStateWrong, "the VM has failed; stop it first", STOP),
        (Request::Change, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),
        (Request::Change, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Tpm { .. }, Stopped) => Accept,
        (Request::Tpm { restart: true, .. }, Running) => Accept,
        (Request::Tpm { restart: false, .. }, Running) | (Request::Tpm { .. }, Paused | Failed) => {
            refuse(
                VmRunning,
                "a TPM is changed only while the VM is stopped",
                "fleetward vm stop {vm}; or add --stop-and-restart",
            )
        }
        (Request::Certificates { .. }, Stopped) => Accept,
        (Request::Certificates { restart: true, .. }, Running) => Accept,
        (Request::Certificates { restart: false, .. }, Running)
        | (Request::Certificates { .. }, Paused | Failed) => refuse(
            VmRunning,
            "its firmware has the certificates in use until it stops",
            "fleetward vm stop {vm}; or add --stop-and-restart",
        ),
        (Request::Tpm { .. } | Request::Certificates { .. }, Migrating) => {
            refuse(VmBusy, "the VM is migrating", WAIT)
        }
        (Request::Tpm { .. } | Request::Certificates { .. }, Unknown) => {
            refuse(HostUnreachable, AWAY, CALL)
        }

        (Request::Grant | Request::Revoke, Running | Stopped | Paused | Failed) => Accept,
        // The saved memory is of the same key; what it brings back of an older protector is granted again.
        (Request::Grant, Saved) => Accept,
        // Waits for the move to end, as for any other job.
        (Request::Grant, Migrating) => Accept,
        (Request::Revoke, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),
        (Request::Grant | Request::Revoke, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Recover, Unknown) => Accept,
        (Request::Recover, Running | Stopped | Saved | Paused | Failed) => refuse(
            VmNotLost,
            "host {host} answers",
            "to move it, choose a host: fleetward check {vm}",
        ),
        (Request::Recover, Migrating) => refuse(VmBusy, "the VM is migrating", WAIT),

        (Request::Console, Running | Paused | Failed | Migrating) => Accept,
        (Request::Console, Stopped | Saved) => refuse(
            VmNotRunning,
            "a stopped VM has no console",
            "fleetward vm start {vm}",
        ),
        (Request::Console, Unknown) => refuse(HostUnreachable, AWAY, CALL),

        (Request::Screen, Running | Paused | Failed | Migrating) => Accept,
        (Request::Screen, Stopped | Saved) => refuse(
            VmNotRunning,
            "a stopped VM has no screen",
            "fleetward vm start {vm}",
        ),
        (Request::Screen, Unknown) => refuse(HostUnreachable, AWAY, CALL),
    }
}

/// A VM as admission sees it.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    pub name: &'a VmName,
    pub host: &'a HostName,
    /// False: a domain that Fleetward did not make.
    pub managed: bool,
    /// A newer program wrote what it is.
    pub newer: Option<&'a NewerSpec>,
    /// The hosts that say they have it, if they are more than one.
    pub claimants: &'a [HostName],
    /// As it is shown: see [`VmState::shown`].
    pub state: VmState,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// The job that works on it.
    pub holder: Option<Holder>,
    /// Hosts that could take it, should its own be lost.
    pub refuge: Option<&'a HostName>,
}

/// A job that works on a VM, and the request that it carries out.
#[derive(Debug, Clone, Copy)]
pub struct Holder {
    pub job: JobId,
    pub request: Option<Request>,
}

/// How a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It becomes a job.
    Accepted,
    /// Already so.
    Done,
    /// This job does it already.
    UnderWay(JobId),
}

/// Whether `request` can be made of the VM now.
///
/// # Errors
/// The refusal, with the names of what it is about.
pub fn admit(vm: &Subject<'_>, request: Request) -> Result<Admission, Failure> {
    let (name, host) = (vm.name, vm.host);
    if !vm.claimants.is_empty() {
        return Err(disputed(name, vm.claimants));
    }
    if !vm.managed {
        let what = format!("domain {name} was not made by Fleetward");
        return Err(Failure::new(ErrorCode::VmNotManaged, what)
            .fix(format!("manage it with virsh on host {host}")));
    }
    if let (Some(newer), false) = (vm.newer, request.is_at_the_guest()) {
        return Err(newer.refusal(name, host));
    }
    if let Request::Tpm { change, .. } = request {
        let under_way = vm.holder.and_then(|holder| match holder.request {
            Some(Request::Tpm { change, .. }) => Some((holder.job, change)),
            Some(_) | None => None,
        });
        match under_way {
            Some((job, other)) if other == change => return Ok(Admission::UnderWay(job)),
            // Another TPM job is running; its outcome is unknown until it ends.
            Some(_) => {}
            None if tpm_is_so(change, vm.tpm) => return Ok(Admission::Done),
            None => {}
        }
    }
    if let (Request::Certificates { change, .. }, Some(holder)) = (request, vm.holder)
        && let Some(Request::Certificates { change: other, .. }) = holder.request
        && change == other
    {
        return Ok(Admission::UnderWay(holder.job));
    }
    if let Some(holder) = vm.holder
        && request.needs_the_vm_alone()
    {
        return Err(busy(name, holder.job));
    }
    match answer(vm.state, request) {
        Answer::Accept => {}
        Answer::Done => return Ok(Admission::Done),
        Answer::Refuse(reason) => return Err(refusal(vm, reason)),
    }
    let without_tpm = |code, fix: String| {
        let what = format!("VM {name} has no TPM");
        Err(Failure::new(code, what).fix(fix))
    };
    let enable = || format!("fleetward tpm enable {name}");
    match request {
        Request::Tpm {
            change: TpmChange::Roll | TpmChange::Unlock,
            ..
        }
        | Request::Revoke
            if !vm.tpm =>
        {
            without_tpm(ErrorCode::VmStateWrong, enable())
        }
        Request::Start
        | Request::Stop
        | Request::ForceStop
        | Request::Restart { .. }
        | Request::Pause
        | Request::Resume
        | Request::Delete
        | Request::Clone
        | Request::Template
        | Request::MigrateLive
        | Request::MigrateOffline
        | Request::Change
        | Request::Tpm { .. }
        | Request::Certificates { .. }
        | Request::Grant
        | Request::Revoke
        | Request::Recover
        | Request::Console
        | Request::Screen => Ok(Admission::Accepted),
    }
}

/// Whether the TPM is on or off as wanted. The others always have something to do.
const fn tpm_is_so(change: TpmChange, tpm: bool) -> bool {
    match change {
        TpmChange::Enable => tpm,
        TpmChange::Disable => !tpm,
        TpmChange::Restore | TpmChange::Roll | TpmChange::Unlock => false,
    }
}

fn refusal(vm: &Subject<'_>, reason: Reason) -> Failure {
    let (name, host) = (vm.name, vm.host);
    let because = reason.because(name, host);
    let mut fix = reason.fix(name, host);
    if reason.code != ErrorCode::HostUnreachable {
        let what = format!("VM {name} is {}", vm.state);
        return Failure::new(reason.code, what).because(because).fix(fix);
    }
    if let (Some(refuge), true) = (vm.refuge, vm.managed) {
        fix = format!("{fix}; if it is lost for good: fleetward vm recover {name} --to {refuge}");
    }
    let what = format!("host {host} of VM {name} does not answer");
    Failure::new(reason.code, what).because(because).fix(fix)
}

/// The refusal of a VM that several hosts claim.
pub fn disputed(vm: &VmName, claimants: &[HostName]) -> Failure {
    let hosts: Vec<_> = claimants.iter().map(HostName::as_str).collect();
    let settle = |host| format!("fleetward vm settle {vm} --host {host}");
    let settles: Vec<_> = hosts.iter().copied().map(settle).collect();
    let what = format!("hosts {} say that they have VM {vm}", hosts.join(" and "));
    Failure::new(ErrorCode::VmDisputed, what)
        .because("its keys, its copies and its disks belong to one of them, and only you can know to which")
        .fix(format!(
            "see what each of them has: fleetward vm show {vm}; then name the one that is right: {}",
            settles.join(", or ")
        ))
}

/// The refusal of a VM that a job works on.
pub fn busy(vm: &VmName, job: JobId) -> Failure {
    Failure::new(ErrorCode::VmBusy, format!("job {job} works on VM {vm}"))
        .about(&Names::default().job(job))
}

#[cfg(test)]
mod tests;
