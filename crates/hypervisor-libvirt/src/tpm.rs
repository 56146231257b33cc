//! TPM state: making it with swtpm_setup, installing it where libvirt expects it, reading, writing and removing it.
//!
//! ```text
//!  DIR/tpm2-00.permall --install (rename)--> /var/lib/libvirt/swtpm/UUID/tpm2/tpm2-00.permall
//! ```
//! libvirt makes a TPM itself only if that directory is missing at the first start, so ours is installed before. State
//! is always written encrypted: swtpm_setup gets the key through a pipe before it makes anything.

use crate::ek_certificate::{EK_CERTIFICATE_TOOL, serve_one};
use crate::host::LibvirtHost;
use crate::owner::Owner;
use crate::program::{SECRET_FD, SHORT, missing};
use crate::tpm_state;
use crate::volumes::{blocking, file_error, not_written};
use async_trait::async_trait;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{EkIssuer, EkPublic, Error, MadeTpm, Result, SecretText, TpmFactory};
use fleetward_model::VmId;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// swtpm's name for the permanent state of a TPM 2.0.
pub(crate) const STATE_FILE: &str = "tpm2-00.permall";
/// Largest state file read; they have 6 to 20 KiB.
const MAX_STATE: u64 = 1 << 20;

/// Where libvirt keeps TPM state, and as whom swtpm runs.
#[derive(Debug, Clone)]
pub(crate) struct TpmPlace {
    root: PathBuf,
    owner: Owner,
}

impl TpmPlace {
    /// libvirt's own.
    pub(crate) fn standard() -> Self {
        Self {
            root: PathBuf::from("/var/lib/libvirt/swtpm"),
            owner: Owner::swtpm(),
        }
    }

    pub(crate) fn has_state(&self, vm: VmId) -> bool {
        self.file(vm).exists()
    }

    fn vm(&self, vm: VmId) -> PathBuf {
        self.root.join(vm.to_string())
    }

    fn directory(&self, vm: VmId) -> PathBuf {
        self.vm(vm).join("tpm2")
    }

    fn file(&self, vm: VmId) -> PathBuf {
        self.directory(vm).join(STATE_FILE)
    }

    fn staging(&self, vm: VmId) -> PathBuf {
        self.vm(vm).join(".tpm2.new")
    }
}

#[async_trait]
impl TpmFactory for LibvirtHost {
    async fn manufacture(
        &self,
        directory: &Path,
        key: &SecretText,
        issuer: &dyn EkIssuer,
    ) -> Result<MadeTpm> {
        let fresh = FreshDirectory::make(directory)?;
        let setup = SetupDirectory::open(self)?;
        let ek_certificate = setup.make(self, directory, key, issuer).await?;
        let made = directory.to_owned();
        blocking(move || {
            // swtpm leaves its lock file; nobody holds it any more.
            durable::discard(&made.join(".lock"));
            let state = made.join(STATE_FILE);
            durable::sync(&state)
                .and_then(|()| durable::sync(&made))
                .map_err(file_error("write", &state))
        })
        .await?;
        fresh.keep();
        Ok(MadeTpm {
            directory: directory.to_owned(),
            ek_certificate,
        })
    }

    async fn install(&self, vm: VmId, made: &Path) -> Result<()> {
        let place = self.tpm_place.clone();
        let made = made.to_owned();
        blocking(move || install(&place, vm, &made)).await
    }

    fn states_below(&self) -> Option<PathBuf> {
        Some(self.tpm_place.root.clone())
    }

    async fn state(&self, vm: VmId) -> Result<Option<PathBuf>> {
        let file = self.tpm_place.file(vm);
        blocking(move || {
            let there = file.try_exists().map_err(file_error("look for", &file))?;
            Ok(there.then_some(file))
        })
        .await
    }

    async fn write_state(&self, vm: VmId, state: &[u8]) -> Result<()> {
        let place = self.tpm_place.clone();
        let state = state.to_vec();
        blocking(move || {
            if already(&place, vm, &state)? {
                return Ok(());
            }
            let staging = prepare_staging(&place, vm)?;
            write_file(&place, &staging.join(STATE_FILE), &state)?;
            put_in_place(&place, vm, &staging)
        })
        .await
    }

    async fn reencrypt_state(
        &self,
        state: &[u8],
        old: &SecretText,
        new: &SecretText,
    ) -> Result<Vec<u8>> {
        tpm_state::reencrypt(self, state, old, new).await
    }

    async fn prove_state(&self, state: &[u8], key: &SecretText) -> Result<()> {
        tpm_state::prove(self, state, key).await
    }

    async fn replace_state(&self, vm: VmId, state: &[u8]) -> Result<()> {
        let place = self.tpm_place.clone();
        let state = state.to_vec();
        blocking(move || replace(&place, vm, &state)).await
    }

    async fn read_state(&self, vm: VmId) -> Result<Vec<u8>> {
        let file = self.tpm_place.file(vm);
        blocking(move || read_file(&file)).await
    }

    async fn read_damaged_state(&self, vm: VmId) -> Result<Vec<u8>> {
        let file = self.tpm_place.file(vm);
        blocking(move || read_at_most(&file, MAX_DAMAGED)).await
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        let place = self.tpm_place.clone();
        blocking(move || {
            let directory = place.vm(vm);
            durable::remove_tree(&directory).map_err(file_error("remove", &directory))
        })
        .await
    }
}

/// A directory that goes away again unless the work in it succeeded.
struct FreshDirectory<'a>(Option<&'a Path>);

impl<'a> FreshDirectory<'a> {
    fn make(path: &'a Path) -> Result<Self> {
        if !path.is_absolute() {
            return Err(Error::Tpm("its directory's path is not absolute".into()));
        }
        durable::make_new_directory(path, 0o700).map_err(file_error("make", path))?;
        Ok(Self(Some(path)))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for FreshDirectory<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = durable::remove_tree(path);
        }
    }
}

/// A temporary directory for one run of swtpm_setup: its configuration and the socket that the certificate tool calls.
struct SetupDirectory {
    directory: tempfile::TempDir,
    listener: UnixListener,
}

impl SetupDirectory {
    fn open(host: &LibvirtHost) -> Result<Self> {
        let run_dir = &host.config.run_dir;
        let directory = tempfile::Builder::new()
            .prefix("tpm-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(run_dir)
            .map_err(file_error("make a directory in", run_dir))?;
        let tool = directory.path().join(EK_CERTIFICATE_TOOL);
        std::os::unix::fs::symlink(&host.config.ek_certificate_tool, &tool)
            .map_err(file_error("make", &tool))?;
        let socket = directory.path().join("ek.sock");
        let listener = UnixListener::bind(&socket).map_err(file_error("listen on", &socket))?;
        let configuration = format!(
            "create_certs_tool = {}\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = /dev/null\n\
             active_pcr_banks = sha256\n",
            tool.display(),
            socket.display()
        );
        let file = directory.path().join("swtpm_setup.conf");
        durable::replace(&file, configuration.as_bytes(), Access::PRIVATE)
            .map_err(file_error("write", &file))?;
        Ok(Self {
            directory,
            listener,
        })
    }

    /// Runs swtpm_setup and answers its requests for certificates; returns the RSA key's.
    async fn make(
        &self,
        host: &LibvirtHost,
        directory: &Path,
        key: &SecretText,
        issuer: &dyn EkIssuer,
    ) -> Result<Vec<u8>> {
        let setup = host
            .programs
            .swtpm_setup
            .as_ref()
            .ok_or_else(|| missing("swtpm_setup"))?;
        let configuration = self.directory.path().join("swtpm_setup.conf");
        let arguments = [
            "--tpm2",
            "--tpmstate",
            &format!("dir://{}", directory.display()),
            "--create-ek-cert",
            "--lock-nvram",
            "--not-overwrite",
            "--pcr-banks",
            "sha256",
            "--cipher",
            "aes-256-cbc",
            "--pwdfile-fd",
            &SECRET_FD.to_string(),
            "--config",
            &configuration.to_string_lossy(),
        ]
        .map(str::to_owned);
        let setup = setup.run_with(&arguments, Some(key.expose().as_bytes()), SHORT);
        tokio::pin!(setup);
        let mut rsa = None;
        loop {
            tokio::select! {
                done = &mut setup => {
                    done.map_err(|error| Error::Tpm(error.into()))?;
                    break;
                }
                accepted = self.listener.accept() => {
                    let Ok((mut stream, _)) = accepted else { continue };
                    let served = serve_one(&mut stream, |public| {
                        let certificate = issuer.issue(public)?;
                        if matches!(public, EkPublic::Rsa { .. }) {
                            rsa = Some(certificate.clone());
                        }
                        Ok(certificate)
                    });
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "a request for an EK certificate was broken off");
                    }
                }
            }
        }
        rsa.ok_or_else(|| Error::Tpm("swtpm_setup asked for no RSA EK certificate".into()))
    }
}

fn install(place: &TpmPlace, vm: VmId, made: &Path) -> Result<()> {
    let source = made.join(STATE_FILE);
    let state = match read_file(&source) {
        Ok(state) => state,
        // Moved by an earlier call.
        Err(_) if !made.exists() && place.file(vm).exists() => return Ok(()),
        Err(error) => return Err(error),
    };
    if !already(place, vm, &state)? {
        let staging = prepare_staging(place, vm)?;
        // A copy rather than a move: the two directories may lie on different file systems.
        write_file(place, &staging.join(STATE_FILE), &state)?;
        put_in_place(place, vm, &staging)?;
    }
    durable::remove_tree(made).map_err(file_error("remove", made))
}

/// The new state beside the old one, then in its place.
fn replace(place: &TpmPlace, vm: VmId, state: &[u8]) -> Result<()> {
    let target = place.file(vm);
    if !target.exists() {
        let staging = prepare_staging(place, vm)?;
        write_file(place, &staging.join(STATE_FILE), state)?;
        return put_in_place(place, vm, &staging);
    }
    // What a crash left, of this version and of earlier ones.
    durable::sweep(&place.directory(vm))
        .and_then(|_| durable::remove(&place.directory(vm).join(".tpm2-00.permall.new")))
        .map_err(file_error("tidy up beside", &target))?;
    write_file(place, &target, state)
}

/// Whether this very state is in place; another one is an error.
fn already(place: &TpmPlace, vm: VmId, state: &[u8]) -> Result<bool> {
    let file = place.file(vm);
    match read_file(&file) {
        Ok(there) if there == state => Ok(true),
        Ok(_) => Err(Error::Tpm(
            format!("the VM {vm} has TPM state already, and it is another one").into(),
        )),
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// An empty directory on the right file system, with libvirt's owner and modes all the way down.
fn prepare_staging(place: &TpmPlace, vm: VmId) -> Result<PathBuf> {
    for directory in [&place.root, &place.vm(vm)] {
        match durable::make_new_directory(directory, 0o711) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(file_error("make", directory)(error));
            }
            _ => {}
        }
    }
    let staging = place.staging(vm);
    durable::remove_tree(&staging).map_err(file_error("remove", &staging))?;
    durable::make_new_directory(&staging, 0o700).map_err(file_error("make", &staging))?;
    Ok(staging)
}

/// Gives the staged state to swtpm and moves it where libvirt looks, durably.
fn put_in_place(place: &TpmPlace, vm: VmId, staging: &Path) -> Result<()> {
    let target = place.directory(vm);
    let (uid, gid) = (place.owner.uid.as_raw(), place.owner.gid.as_raw());
    chown(staging, Some(uid), Some(gid)).map_err(file_error("give to swtpm", staging))?;
    durable::sync(staging).map_err(file_error("write", staging))?;
    // A directory without state may stand there, with swtpm's lock file at most.
    durable::discard(&target.join(".lock"));
    durable::rename(staging, &target)
        .and_then(|()| durable::sync_parent(&place.vm(vm)))
        .map_err(file_error("put in place", &target))
}

/// Writes state that belongs to swtpm, durably.
fn write_file(place: &TpmPlace, path: &Path, state: &[u8]) -> Result<()> {
    let access = Access::PRIVATE.owned_by(place.owner.uid.as_raw(), place.owner.gid.as_raw());
    durable::replace(path, state, access).map_err(not_written("write", path))
}

/// Of what is no state, so much is kept.
const MAX_DAMAGED: u64 = 16 * 1024 * 1024;

fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(file_error("open", path))?;
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(file_error("read", path))?;
    Ok(bytes)
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_at_most(path, MAX_STATE + 1)?;
    if bytes.len() as u64 > MAX_STATE || bytes.is_empty() {
        return Err(Error::Tpm(
            format!(
                "{} is no TPM state: it has {} bytes",
                path.display(),
                bytes.len()
            )
            .into(),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{getgid, getuid};
    use std::fs;

    fn place(root: &Path) -> TpmPlace {
        TpmPlace {
            root: root.join("swtpm"),
            owner: Owner {
                uid: getuid(),
                gid: getgid(),
            },
        }
    }

    fn made(root: &Path, content: &[u8]) -> PathBuf {
        let made = root.join("made");
        fs::create_dir(&made).unwrap();
        fs::write(made.join(STATE_FILE), content).unwrap();
        made
    }

    #[test]
    fn installing_twice_is_installing_once() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        let made = made(root.path(), b"state");
        install(&place, vm, &made).unwrap();
        install(&place, vm, &made).unwrap();
        assert_eq!(read_file(&place.file(vm)).unwrap(), b"state");
        assert!(!made.exists() && !place.staging(vm).exists());
    }

    #[test]
    fn state_that_is_there_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        install(&place, vm, &made(root.path(), b"state")).unwrap();
        let other = made(root.path(), b"another");
        assert!(matches!(install(&place, vm, &other), Err(Error::Tpm(_))));
        assert_eq!(read_file(&place.file(vm)).unwrap(), b"state");
        assert!(other.exists(), "what was refused is kept");
    }

    #[test]
    fn replaced_state_is_whole_and_swtpms_own() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        replace(&place, vm, b"first").unwrap();
        // A crash left this behind.
        fs::write(place.directory(vm).join(".tpm2-00.permall.new"), b"ha").unwrap();
        replace(&place, vm, b"second").unwrap();
        assert_eq!(read_file(&place.file(vm)).unwrap(), b"second");
        assert_eq!(fs::read_dir(place.directory(vm)).unwrap().count(), 1);
        let mode = fs::metadata(place.file(vm)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_crash_before_the_rename_leaves_nothing_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        let staging = prepare_staging(&place, vm).unwrap();
        fs::write(staging.join(STATE_FILE), b"half").unwrap();
        fs::create_dir(place.directory(vm)).unwrap();
        fs::write(place.directory(vm).join(".lock"), b"").unwrap();
        install(&place, vm, &made(root.path(), b"state")).unwrap();
        assert_eq!(read_file(&place.file(vm)).unwrap(), b"state");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place.vm(vm)), 0o711);
        assert_eq!(mode(&place.directory(vm)), 0o700);
        assert_eq!(mode(&place.file(vm)), 0o600);
    }
}
