//! The table of requests to a VM and the answer in each state.
//!
//! ```text
//!            start                 stop / shutdown / crash
//!  stopped ---------> running <------------------------------+
//!     ^                 |  \  suspended by libvirt            |
//!     |                 |   +----------> paused --stop/start--+
//!     |                 | migrate
//!     +--- delete       v
//!    (gone)         migrating ---> running (elsewhere, or here again)
//! ```

use crate::ErrorCode;
use crate::vm::VmState;

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    Start,
    Stop,
    Delete,
    Clone,
    MigrateLive,
    MigrateOffline,
}

impl Request {
    pub const ALL: [Self; 6] = [
        Self::Start,
        Self::Stop,
        Self::Delete,
        Self::Clone,
        Self::MigrateLive,
        Self::MigrateOffline,
    ];
}

/// The table's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Accept,
    /// Already so: success, nothing is done.
    Ignore,
    Refuse(ErrorCode, &'static str),
}

/// Whether a VM in `state` takes `request`.
pub const fn answer(state: VmState, request: Request) -> Answer {
    use Answer::{Accept, Ignore, Refuse};
    use VmState::{Failed, Migrating, Paused, Running, Stopped};
    match (request, state) {
        (Request::Start, Stopped | Paused) => Accept,
        (Request::Start, Running) => Ignore,
        (Request::Start, Migrating) => Refuse(ErrorCode::VmBusy, "the VM is migrating"),
        (Request::Start, Failed) => {
            Refuse(ErrorCode::VmStateWrong, "the VM has failed; stop it first")
        }

        (Request::Stop, Running | Paused | Failed) => Accept,
        (Request::Stop, Stopped) => Ignore,
        (Request::Stop, Migrating) => Refuse(
            ErrorCode::VmBusy,
            "the VM is migrating; cancel that job first",
        ),

        (Request::Delete, Stopped) => Accept,
        (Request::Delete, Running | Paused | Failed) => {
            Refuse(ErrorCode::VmRunning, "only a stopped VM is deleted")
        }
        (Request::Delete, Migrating) => Refuse(ErrorCode::VmBusy, "the VM is migrating"),

        (Request::Clone, Stopped | Running) => Accept,
        (Request::Clone, Paused | Failed) => Refuse(
            ErrorCode::VmStateWrong,
            "only a running or a stopped VM is copied",
        ),
        (Request::Clone, Migrating) => Refuse(ErrorCode::VmBusy, "the VM is migrating"),

        (Request::MigrateLive, Running) => Accept,
        (Request::MigrateLive, Stopped) => Refuse(
            ErrorCode::VmNotRunning,
            "the VM is stopped; move it with --offline",
        ),
        (Request::MigrateLive, Paused | Failed) => Refuse(
            ErrorCode::VmStateWrong,
            "only a running or a stopped VM migrates",
        ),
        (Request::MigrateLive | Request::MigrateOffline, Migrating) => {
            Refuse(ErrorCode::VmBusy, "the VM is migrating already")
        }

        (Request::MigrateOffline, Stopped) => Accept,
        (Request::MigrateOffline, Running | Paused | Failed) => {
            Refuse(ErrorCode::VmRunning, "--offline moves only a stopped VM")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_accepted_while_migrating() {
        for request in Request::ALL {
            assert!(matches!(
                answer(VmState::Migrating, request),
                Answer::Refuse(ErrorCode::VmBusy, _)
            ));
        }
    }

    #[test]
    fn a_vm_that_may_be_running_is_never_deleted() {
        for state in [
            VmState::Running,
            VmState::Paused,
            VmState::Failed,
            VmState::Migrating,
        ] {
            assert!(matches!(answer(state, Request::Delete), Answer::Refuse(..)));
        }
    }
}
