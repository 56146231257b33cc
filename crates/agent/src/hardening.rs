//! Keeps keys in memory out of files: no core dumps, no debugger of another user.

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
