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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::getrlimit;

    #[test]
    fn the_process_leaves_no_core_dump_and_is_closed_to_other_users() {
        forbid_core_dumps().expect("the kernel allows less");
        let limits = getrlimit(Resource::RLIMIT_CORE).expect("the limits");
        assert_eq!(limits, (0, 0), "a core dump could still be written");
        assert!(
            !prctl::get_dumpable().expect("the attribute"),
            "a debugger of the same user could still attach"
        );
    }
}
