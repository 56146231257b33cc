//! Converts errors on a host to a [`Failure`], and says whether a retry may help.

use fleetward_durable::Unexpected;
use fleetward_hypervisor::Error as HypervisorError;
use fleetward_model::{ErrorCode, Failure};
use std::path::PathBuf;

/// A failed operation: what the controller gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub failure: Failure,
    /// Trying the same again later may help without anybody acting.
    pub transient: bool,
}

pub(crate) type Result<T, E = Trouble> = std::result::Result<T, E>;

impl Trouble {
    /// Somebody must act, or the request was wrong.
    pub(crate) fn lasting(failure: Failure) -> Self {
        Self {
            failure,
            transient: false,
        }
    }

    /// It may pass by itself.
    pub(crate) fn passing(failure: Failure) -> Self {
        Self {
            failure,
            transient: true,
        }
    }

    /// A refusal with the code's usual fix.
    pub(crate) fn refuse(
        code: ErrorCode,
        what: impl Into<String>,
        because: impl Into<String>,
    ) -> Self {
        Self::lasting(Failure::new(code, what).because(because.into()))
    }

    /// A file of the agent's own could not be read or written.
    pub(crate) fn file(
        what: impl Into<String>,
        path: impl Into<PathBuf>,
        error: &std::io::Error,
    ) -> Self {
        let path: PathBuf = path.into();
        if let Some(unexpected) = Unexpected::of(error) {
            return Self::lasting(not_expected(what, unexpected));
        }
        let code = if fleetward_durable::is_full(error) {
            ErrorCode::NoSpace
        } else {
            ErrorCode::Internal
        };
        Self::lasting(Failure::new(code, what).because(format!("{}: {error}", path.display())))
    }

    /// The hypervisor's error, said of the attempt `what`.
    pub(crate) fn hypervisor(what: impl Into<String>, error: &HypervisorError) -> Self {
        if let HypervisorError::File { source, .. } = error
            && let Some(unexpected) = Unexpected::of(source)
        {
            return Self::lasting(not_expected(what, unexpected));
        }
        if let HypervisorError::Unending(_) = error {
            return Self::lasting(
                Failure::new(ErrorCode::QemuNotAnswering, what)
                    .because(chain(error))
                    .fix(
                        "bring back what it waits for, as its storage: then the VM stops by itself; where that \
                         cannot be, restart its host",
                    ),
            );
        }
        let code = match error {
            HypervisorError::NoDomain(_) => ErrorCode::VmNotFound,
            HypervisorError::NameTaken { .. } => ErrorCode::NameTaken,
            HypervisorError::CannotChange { .. } => ErrorCode::DefinitionEdited,
            HypervisorError::NewerSpec(..) => ErrorCode::SpecNewer,
            HypervisorError::NoSpace { .. } | HypervisorError::MigrationFull(_) => {
                ErrorCode::NoSpace
            }
            HypervisorError::BadImage { .. } => ErrorCode::ImageInvalid,
            HypervisorError::WrongState { .. } => ErrorCode::VmStateWrong,
            HypervisorError::Tpm(_) => ErrorCode::TpmFailed,
            HypervisorError::TpmStateUnreadable(_) => ErrorCode::TpmStateUnreadable,
            HypervisorError::TpmLockoutGuarded => ErrorCode::TpmLockoutGuarded,
            HypervisorError::Unending(_) => ErrorCode::QemuNotAnswering,
            HypervisorError::DeviceHeld { .. } => ErrorCode::DeviceHeld,
            HypervisorError::NoScreen(_) => ErrorCode::NoScreen,
            HypervisorError::Cancelled => ErrorCode::Cancelled,
            HypervisorError::Migration(_) => ErrorCode::MigrationFailed,
            HypervisorError::File { source, .. } if fleetward_durable::is_full(source) => {
                ErrorCode::NoSpace
            }
            HypervisorError::Unavailable(_)
            | HypervisorError::NoGuestAgent { .. }
            | HypervisorError::BadPicture(_)
            | HypervisorError::Program { .. }
            | HypervisorError::File { .. }
            | HypervisorError::Libvirt { .. } => ErrorCode::HypervisorFailed,
        };
        Self {
            failure: Failure::new(code, what).because(chain(error)),
            transient: error.is_transient(),
        }
    }
}

/// Something lies where a file should be that whoever runs QEMU or swtpm may have put there.
fn not_expected(what: impl Into<String>, unexpected: &Unexpected) -> Failure {
    let path = unexpected.path.display();
    Failure::new(ErrorCode::FileUnexpected, what)
        .because(unexpected.to_string())
        .fix(format!(
            "on that host, look at it and move it away: ls -ld '{path}'; mv '{path}' '{path}.unexpected'"
        ))
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::lasting(failure)
    }
}

pub use fleetward_model::error::chain;

/// `map_err` for results of the hypervisor.
pub(crate) trait HypervisorResult<T> {
    /// Says what was attempted when it failed.
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> HypervisorResult<T> for fleetward_hypervisor::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Trouble::hypervisor(what(), &error))
    }
}
