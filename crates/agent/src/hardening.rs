//! What is set for the whole process: no core dumps and no debugger of another user, so that keys in memory stay out of
//! files; and room for connections.

pub use fleetward_link::serve::allow_many_connections;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// To be called first thing, before any key is read.
///
/// # Errors
/// The kernel refused; the process should not go on.
pub fn forbid_core_dumps() -> std::io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}
