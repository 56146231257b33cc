//! Errors of a hypervisor, by who must act.

use fleetward_model::VmId;
use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What lies below an error of the hypervisor: an error of its library or of the system, or the words of a program.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failed operation on the host. The text leaves out the cause, which is the source:
/// [`chain`](fleetward_model::error::chain) writes both.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no domain {0} on this host")]
    NoDomain(VmId),
    #[error("a domain named {name} exists already, with another uuid")]
    NameTaken { name: String },
    /// A newer program wrote what the domain is; rewriting it would lose what this one does not know.
    #[error("a newer program wrote the specification of domain {0}: nothing is changed about it")]
    NewerSpec(VmId, fleetward_model::vm::NewerSpec),
    /// The hypervisor itself does not answer; the operation may be tried again.
    #[error("libvirt does not answer")]
    Unavailable(#[source] Cause),
    /// The operation is impossible in the domain's state.
    #[error("domain {id} is {state}, so it cannot {attempt}")]
    WrongState {
        id: VmId,
        state: String,
        attempt: &'static str,
    },
    /// Somebody edited the definition, and what is asked for does not go with the edit.
    #[error("the definition of domain {id} cannot be changed so: {because}")]
    CannotChange { id: VmId, because: String },
    /// A running guest holds on to it.
    #[error("the guest of domain {id} does not let go of {device}")]
    DeviceHeld { id: VmId, device: String },
    /// The domain has no graphics device that can be seen from outside.
    #[error("domain {0} has no screen")]
    NoScreen(VmId),
    /// What the hypervisor gave as a picture is none, or is larger than a screen.
    #[error("the picture of the screen cannot be used: {0}")]
    BadPicture(String),
    #[error("not enough space for {path}")]
    NoSpace { path: PathBuf },
    /// A file is not what it should be: wrong format, backing file outside, not a disk.
    #[error("{path} cannot be used as a disk: {because}")]
    BadImage { path: PathBuf, because: String },
    #[error("the TPM could not be made")]
    Tpm(#[source] Cause),
    /// No TPM starts on that state with that key: damaged, or another key's.
    #[error("the TPM state does not open with its key")]
    TpmStateUnreadable(#[source] Cause),
    /// The TPM's owner has set a password for it.
    #[error("the lockout of the TPM has a password of the guest's")]
    TpmLockoutGuarded,
    #[error("the migration was cancelled")]
    Cancelled,
    #[error("the migration failed")]
    Migration(#[source] Cause),
    /// The destination has no room for the disks.
    #[error("the migration failed")]
    MigrationFull(#[source] Cause),
    /// A program ran and failed.
    #[error("{program} failed")]
    Program {
        program: &'static str,
        #[source]
        source: Cause,
    },
    #[error("{attempt} {path}")]
    File {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The machine's process was told to end and does not: it waits in the kernel.
    #[error("the process does not end before what it waits for comes")]
    Unending(#[source] Cause),
    /// No agent in the guest does what it is asked for, in time.
    #[error("the guest agent of domain {id} does not answer: {because}")]
    NoGuestAgent { id: VmId, because: String },
    /// Any other error of libvirt.
    #[error("libvirt could not {attempt}")]
    Libvirt {
        attempt: &'static str,
        #[source]
        source: Cause,
    },
}
