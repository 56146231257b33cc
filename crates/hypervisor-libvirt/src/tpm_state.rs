//! Runs swtpm on TPM state: proves that a key opens it, and encrypts it under another key.
//!
//! ```text
//!  state ─► swtpm(old key) ── migration blob under the new key ──► swtpm(new key) ─► state' ─► proved: new opens, old not
//! ```
//! All files are in a private directory on a file system in memory. State is never there in clear text, and no files
//! of a VM are touched. The agent makes swtpm's control socket and passes it on, so it need not wait for the socket to
//! appear.

use crate::host::LibvirtHost;
use crate::owner::Owner;
use crate::program::{Program, SECRET_FD, SHORT, Service, missing};
use crate::said;
use crate::tpm::{STATE_FILE, read_file};
use crate::volumes::{file_error, not_written};
use command_fds::FdMapping;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{Error, Result, SecretText};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where swtpm finds the key of its migration blobs, and its control socket.
const MIGRATION_FD: i32 = SECRET_FD + 1;
const CONTROL_FD: i32 = SECRET_FD + 2;

/// The same TPM under another key.
pub(crate) async fn reencrypt(
    host: &LibvirtHost,
    state: &[u8],
    old: &SecretText,
    new: &SecretText,
) -> Result<Vec<u8>> {
    let work = SwtpmDirectory::open(host)?;
    let blob = work.path("blob");
    let before = work.place("before", Some(state))?;
    let swtpm = work.start(&before, old, Some(new))?;
    swtpm.power_on().await?;
    swtpm.ioctl(&["--save", "permanent", &text(&blob)]).await?;
    swtpm.shut_down().await?;

    let after = work.place("after", None)?;
    let swtpm = work.start(&after, new, Some(new))?;
    // Without this it would make a new TPM when it is powered on.
    swtpm.ioctl(&["--load", "permanent", &text(&blob)]).await?;
    swtpm.power_on().await?;
    swtpm.shut_down().await?;
    let state = read_file(&after.join(STATE_FILE), Owner::swtpm())?;

    work.prove(&state, new).await?;
    match work.prove(&state, old).await {
        Err(Error::TpmStateUnreadable(_)) => Ok(state),
        Ok(()) => Err(Error::TpmStateUnreadable(
            "the old key still opens what was encrypted anew".into(),
        )),
        Err(error) => Err(error),
    }
}

/// Starts a TPM on a copy of the state.
pub(crate) async fn prove(host: &LibvirtHost, state: &[u8], key: &SecretText) -> Result<()> {
    SwtpmDirectory::open(host)?.prove(state, key).await
}

/// A private directory for runs of swtpm, and the programs that run there.
struct SwtpmDirectory<'a> {
    directory: tempfile::TempDir,
    swtpm: &'a Program,
    ioctl: &'a Program,
}

impl<'a> SwtpmDirectory<'a> {
    fn open(host: &'a LibvirtHost) -> Result<Self> {
        let run_dir = &host.config.run_dir;
        let directory = tempfile::Builder::new()
            .prefix("tpm-state-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(run_dir)
            .map_err(file_error("make a directory in", run_dir))?;
        let programs = &host.programs;
        Ok(Self {
            directory,
            swtpm: programs.swtpm.as_ref().ok_or_else(|| missing("swtpm"))?,
            ioctl: programs
                .swtpm_ioctl
                .as_ref()
                .ok_or_else(|| missing("swtpm_ioctl"))?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An empty directory for one swtpm, with that state in it.
    fn place(&self, name: &str, state: Option<&[u8]>) -> Result<PathBuf> {
        let place = self.path(name);
        let _ = durable::remove_tree(&place);
        durable::make_new_directory(&place, 0o700).map_err(file_error("make", &place))?;
        if let Some(state) = state {
            let file = place.join(STATE_FILE);
            durable::replace(&file, state, Access::PRIVATE).map_err(not_written("write", &file))?;
        }
        Ok(place)
    }

    async fn prove(&self, state: &[u8], key: &SecretText) -> Result<()> {
        let place = self.place("proof", Some(state))?;
        let swtpm = self.start(&place, key, None)?;
        swtpm.power_on().await?;
        swtpm.shut_down().await
    }

    /// Starts swtpm on that directory, not powered on yet.
    fn start(
        &self,
        place: &Path,
        key: &SecretText,
        migration_key: Option<&SecretText>,
    ) -> Result<Swtpm<'_>> {
        let socket = place.join("ctrl");
        let listener = UnixListener::bind(&socket).map_err(file_error("listen on", &socket))?;
        let mut arguments = vec![
            "socket".to_owned(),
            "--tpm2".to_owned(),
            "--tpmstate".to_owned(),
            format!("dir={},mode=0600", place.display()),
            "--ctrl".to_owned(),
            format!("type=unixio,fd={CONTROL_FD}"),
            "--key".to_owned(),
            format!("pwdfd={SECRET_FD},mode=aes-256-cbc"),
        ];
        let mut descriptors = vec![
            FdMapping {
                parent_fd: listener.into(),
                child_fd: CONTROL_FD,
            },
            FdMapping {
                parent_fd: self.swtpm.pipe_with(key.expose().as_bytes())?,
                child_fd: SECRET_FD,
            },
        ];
        if let Some(key) = migration_key {
            arguments.push("--migration-key".to_owned());
            arguments.push(format!("pwdfd={MIGRATION_FD},mode=aes-256-cbc"));
            descriptors.push(FdMapping {
                parent_fd: self.swtpm.pipe_with(key.expose().as_bytes())?,
                child_fd: MIGRATION_FD,
            });
        }
        Ok(Swtpm {
            service: self.swtpm.serve(&arguments, descriptors)?,
            ioctl: self.ioctl,
            socket,
        })
    }
}

/// One swtpm and its control socket.
struct Swtpm<'a> {
    service: Service,
    ioctl: &'a Program,
    socket: PathBuf,
}

impl Swtpm<'_> {
    async fn ioctl(&self, command: &[&str]) -> Result<()> {
        let socket = text(&self.socket);
        let arguments: Vec<&str> = ["--unix", &socket]
            .into_iter()
            .chain(command.iter().copied())
            .collect();
        self.ioctl
            .run(&arguments)
            .await
            .map(drop)
            .map_err(|error| match error {
                // The TPM itself said no; all else is the machine's trouble.
                Error::Program { source, .. } if said::of_tpm_result(source.as_ref()) => {
                    Error::TpmStateUnreadable(source)
                }
                other => other,
            })
    }

    /// Lets the TPM read its state: where a wrong key shows.
    async fn power_on(&self) -> Result<()> {
        self.ioctl(&["-i"]).await
    }

    async fn shut_down(self) -> Result<()> {
        self.ioctl(&["-s"]).await?;
        self.service.end(SHORT).await
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
