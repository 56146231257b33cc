//! The viewer that is installed on this machine.

use fleetward_model::{ErrorCode, Failure};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Viewers, in the order in which they are looked for, and how each wants the address.
const VIEWERS: &[(&str, Address)] = &[
    ("remote-viewer", Address::Url),
    ("vncviewer", Address::Port),
    ("xtigervncviewer", Address::Port),
    ("krdc", Address::Url),
    ("vinagre", Address::Url),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Address {
    /// `vnc://127.0.0.1:5901`
    Url,
    /// `127.0.0.1::5901`: one colon would be a display's number.
    Port,
}

/// An installed viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Viewer {
    program: PathBuf,
    address: Address,
}

impl Viewer {
    /// The first that is installed.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn find() -> Result<Self, Failure> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories: Vec<PathBuf> = std::env::split_paths(&path)
            .filter(|directory| directory.is_absolute())
            .collect();
        Self::find_in(&directories).ok_or_else(|| {
            let names: Vec<&str> = VIEWERS.iter().map(|(name, _)| *name).collect();
            Failure::new(ErrorCode::ViewerMissing, "there is no VNC viewer")
                .because(format!("none of {} is installed", names.join(", ")))
        })
    }

    fn find_in(directories: &[PathBuf]) -> Option<Self> {
        VIEWERS.iter().find_map(|(name, address)| {
            let mut places = directories.iter().map(|directory| directory.join(name));
            Some(Self {
                program: places.find(|place| is_program(place))?,
                address: *address,
            })
        })
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(&self, at: SocketAddr) -> Result<tokio::process::Child, Failure> {
        let address = match self.address {
            Address::Url => format!("vnc://{at}"),
            Address::Port => format!("{}::{}", at.ip(), at.port()),
        };
        let started = tokio::process::Command::new(&self.program)
            .arg(address)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn();
        started.map_err(|error| {
            let what = format!("{} cannot be started", self.program.display());
            Failure::new(ErrorCode::ViewerMissing, what).because(error)
        })
    }
}

fn is_program(path: &Path) -> bool {
    let found = std::fs::metadata(path);
    found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test makes files as it likes")]
    fn the_first_viewer_that_can_be_run_is_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = |name: &str| directory.path().join(name);
        let directories = [directory.path().to_owned()];
        assert_eq!(Viewer::find_in(&directories), None);
        std::fs::write(place("remote-viewer"), "no program").expect("written");
        std::fs::write(place("vncviewer"), "#!/bin/sh").expect("written");
        let runs = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(place("vncviewer"), runs).expect("a mode");
        let wanted = Viewer {
            program: place("vncviewer"),
            address: Address::Port,
        };
        assert_eq!(Viewer::find_in(&directories), Some(wanted));
    }
}
