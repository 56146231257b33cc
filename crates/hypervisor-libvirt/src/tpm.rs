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
use crate::tpm_process::{self, PROC};
use crate::tpm_questions;
use crate::tpm_state;
use crate::volumes::{blocking, file_error, not_written};
use async_trait::async_trait;
use fleetward_durable::{self as durable, Access, Expected, SharedDirectory};
use fleetward_hypervisor::{
    EkIssuer, EkPublic, Error, MadeTpm, Result, SecretText, TpmAttention, TpmFactory,
};
use fleetward_model::VmId;
use fleetward_model::vm::TpmLockout;
use std::collections::HashMap;
use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// swtpm's name for the permanent state of a TPM 2.0.
pub(crate) const STATE_FILE: &str = "tpm2-00.permall";
/// libvirt's name for swtpm's directory, and ours for one that is to become it.
const TPM2: &str = "tpm2";
const STAGING: &str = ".tpm2.new";
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

    /// Whether anything lies where the state should be. In doubt, nothing does.
    pub(crate) fn has_state(&self, vm: VmId) -> bool {
        self.find_state(vm).unwrap_or(false)
    }

    fn find_state(&self, vm: VmId) -> io::Result<bool> {
        match self.open_tpm2(vm) {
            Ok(directory) => directory.has(STATE_FILE),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// swtpm's own directory: it may put anything there.
    fn open_tpm2(&self, vm: VmId) -> io::Result<SharedDirectory> {
        SharedDirectory::open(&self.vm(vm))?.below(TPM2)
    }

    fn processes(&self) -> tpm_process::Place<'_> {
        tpm_process::Place {
            proc: Path::new(PROC),
            states: &self.root,
            user: self.owner.uid.as_raw(),
        }
    }

    /// What a file of swtpm's must be.
    fn expected(&self, at_most: u64) -> Expected {
        Expected::at_most(at_most).or_of(self.owner.uid.as_raw())
    }

    fn access(&self) -> Access {
        Access::PRIVATE.owned_by(self.owner.uid.as_raw(), self.owner.gid.as_raw())
    }

    fn vm(&self, vm: VmId) -> PathBuf {
        self.root.join(vm.to_string())
    }

    fn directory(&self, vm: VmId) -> PathBuf {
        self.vm(vm).join(TPM2)
    }

    fn file(&self, vm: VmId) -> PathBuf {
        self.directory(vm).join(STATE_FILE)
    }

    /// Reads state; `NotFound` where there is none.
    fn read(&self, vm: VmId, expected: &Expected, at_most: u64) -> Result<Vec<u8>> {
        let read = || {
            let file = self.open_tpm2(vm)?.file(STATE_FILE, expected)?;
            let mut bytes = Vec::new();
            file.take(at_most).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(file_error("read", &self.file(vm)))
    }

    /// The state, where swtpm itself could open it.
    fn read_state(&self, vm: VmId) -> Result<Vec<u8>> {
        let expected = self.expected(u64::MAX).with_mode(0o600);
        let state = self.read(vm, &expected, MAX_STATE + 1)?;
        plausible(state, &self.file(vm))
    }
}

async fn questions(place: TpmPlace, vm: VmId, take: bool) -> Result<TpmAttention> {
    blocking(move || {
        tpm_questions::look(&place.processes(), vm, take)
            .map_err(|error| Error::Tpm(Box::new(error)))
    })
    .await
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
        let expected = self.tpm_place.expected(MAX_STATE);
        blocking(move || {
            let finish = || {
                let directory = SharedDirectory::open(&made)?;
                // swtpm leaves its lock file; nobody holds it any more.
                directory.remove(".lock")?;
                directory.file(STATE_FILE, &expected)?.sync_all()?;
                directory.sync()
            };
            finish().map_err(file_error("write", &made.join(STATE_FILE)))
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
        let place = self.tpm_place.clone();
        blocking(move || {
            let file = place.file(vm);
            let there = place.find_state(vm);
            Ok(there
                .map_err(file_error("look for", &file))?
                .then_some(file))
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
            put_in_place(&place, vm, &state)
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

    async fn prove_state(&self, state: &[u8], key: &SecretText) -> Result<Option<TpmLockout>> {
        tpm_state::prove(self, state, key).await
    }

    async fn clear_lockout(&self, state: &[u8], key: &SecretText) -> Result<Vec<u8>> {
        tpm_state::clear_lockout(self, state, key).await
    }

    async fn replace_state(&self, vm: VmId, state: &[u8]) -> Result<()> {
        let place = self.tpm_place.clone();
        let state = state.to_vec();
        blocking(move || replace(&place, vm, &state)).await
    }

    async fn read_state(&self, vm: VmId) -> Result<Vec<u8>> {
        let place = self.tpm_place.clone();
        blocking(move || place.read_state(vm)).await
    }

    async fn processes(&self) -> Result<HashMap<VmId, Option<u32>>> {
        let place = self.tpm_place.clone();
        blocking(move || {
            let found = tpm_process::all(&place.processes());
            let found = found.map_err(file_error("list", Path::new(PROC)))?;
            let stopped = |process: tpm_process::Found| process.stopped.then_some(process.pid);
            Ok(found
                .into_iter()
                .map(|(vm, process)| (vm, stopped(process)))
                .collect())
        })
        .await
    }

    async fn wake(&self, vm: VmId, process: u32) -> Result<()> {
        let place = self.tpm_place.clone();
        blocking(move || {
            tpm_process::wake(&place.processes(), vm, process)
                .map_err(|error| Error::Tpm(Box::new(error)))
        })
        .await
    }

    async fn attention(&self, vm: VmId) -> Result<TpmAttention> {
        questions(self.tpm_place.clone(), vm, false).await
    }

    async fn take_back(&self, vm: VmId) -> Result<TpmAttention> {
        questions(self.tpm_place.clone(), vm, true).await
    }

    async fn cut_off(&self, vm: VmId) -> Result<()> {
        let place = self.tpm_place.clone();
        blocking(move || {
            tpm_questions::cut_off(&place.processes(), vm)
                .map_err(|error| Error::Tpm(Box::new(error)))
        })
        .await
    }

    async fn remove_strays(&self, vm: VmId) -> Result<()> {
        let place = self.tpm_place.clone();
        blocking(move || {
            let remove = || match place.open_tpm2(vm) {
                Ok(directory) => remove_strays(&directory),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            remove().map_err(file_error("clear", &place.directory(vm)))
        })
        .await
    }

    async fn sync_state(&self, vm: VmId) -> Result<()> {
        let place = self.tpm_place.clone();
        blocking(move || {
            let sync = || {
                let directory = place.open_tpm2(vm)?;
                let file = directory.file(STATE_FILE, &place.expected(MAX_STATE))?;
                file.sync_all()?;
                directory.sync()
            };
            sync().map_err(file_error("write", &place.file(vm)))
        })
        .await
    }

    async fn read_damaged_state(&self, vm: VmId) -> Result<Vec<u8>> {
        let place = self.tpm_place.clone();
        blocking(move || place.read(vm, &place.expected(u64::MAX), MAX_DAMAGED)).await
    }

    async fn remove(&self, vm: VmId) -> Result<()> {
        let place = self.tpm_place.clone();
        blocking(move || {
            let removed = SharedDirectory::open_if_there(&place.root);
            removed
                .and_then(|root| root.map_or(Ok(()), |root| root.remove_tree(vm.to_string())))
                .map_err(file_error("remove", &place.vm(vm)))
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
    let state = match read_file(&made.join(STATE_FILE), place.owner) {
        Ok(state) => state,
        // Moved by an earlier call.
        Err(_) if !made.exists() && place.has_state(vm) => return Ok(()),
        Err(error) => return Err(error),
    };
    if !already(place, vm, &state)? {
        // A copy rather than a move: the two directories may lie on different file systems.
        put_in_place(place, vm, &state)?;
    }
    durable::remove_tree(made).map_err(file_error("remove", made))
}

/// The new state beside the old one, then in its place.
fn replace(place: &TpmPlace, vm: VmId, state: &[u8]) -> Result<()> {
    if !place.has_state(vm) {
        return put_in_place(place, vm, state);
    }
    let write = || {
        let directory = place.open_tpm2(vm)?;
        // What a crash left, of this version and of earlier ones.
        directory.sweep()?;
        directory.remove_tree(".tpm2-00.permall.new")?;
        directory.replace(STATE_FILE, state, place.access())
    };
    write().map_err(not_written("write", &place.file(vm)))
}

/// Whether this very state is in place; another one is an error.
fn already(place: &TpmPlace, vm: VmId, state: &[u8]) -> Result<bool> {
    match place.read_state(vm) {
        Ok(there) if there == state => Ok(true),
        Ok(_) => Err(Error::Tpm(
            format!("the VM {vm} has TPM state already, and it is another one").into(),
        )),
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes state where libvirt looks, durably, with libvirt's owner and modes all the way down: as a directory of its own, put
/// in place of one without state.
fn put_in_place(place: &TpmPlace, vm: VmId, state: &[u8]) -> Result<()> {
    let put = || {
        let at = SharedDirectory::open_or_make(&place.vm(vm), 0o711)?;
        at.remove_tree(STAGING)?;
        let staging = at.make(STAGING, 0o700)?;
        staging.replace(STATE_FILE, state, place.access())?;
        staging.give(
            Some(place.owner.uid.as_raw()),
            Some(place.owner.gid.as_raw()),
        )?;
        staging.sync()?;
        match at.below(TPM2) {
            // A directory without state may stand there, with swtpm's lock file at most.
            Ok(target) => {
                target.remove_tree(".lock")?;
                remove_strays(&target)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        at.rename(STAGING, &at, TPM2)
    };
    put().map_err(not_written("put in place", &place.directory(vm)))
}

/// Source: swtpm 0.7.1, `swtpm_nvstore_dir.c`: the memory of a TPM, and what its writes are called until they are whole.
const STRAYS: [&str; 3] = [
    "tpm2-00.volatilestate",
    "TMP2-00.permall",
    "TMP2-00.volatilestate",
];

fn remove_strays(directory: &SharedDirectory) -> io::Result<()> {
    STRAYS
        .iter()
        .try_for_each(|stray| directory.remove_tree(stray))
}

/// Of what is no state, so much is kept.
const MAX_DAMAGED: u64 = 16 * 1024 * 1024;

/// Reads state that lies somewhere else, in a directory that a swtpm worked in.
pub(crate) fn read_file(path: &Path, swtpm: Owner) -> Result<Vec<u8>> {
    let expected = Expected::at_most(MAX_STATE).or_of(swtpm.uid.as_raw());
    let bytes = durable::read_expected(path, &expected)
        .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(file_error("read", path))?;
    plausible(bytes, path)
}

fn plausible(bytes: Vec<u8>, path: &Path) -> Result<Vec<u8>> {
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
        assert_eq!(place.read_state(vm).unwrap(), b"state");
        assert!(!made.exists() && !place.vm(vm).join(STAGING).exists());
    }

    #[test]
    fn state_that_is_there_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        install(&place, vm, &made(root.path(), b"state")).unwrap();
        let other = made(root.path(), b"another");
        assert!(matches!(install(&place, vm, &other), Err(Error::Tpm(_))));
        assert_eq!(place.read_state(vm).unwrap(), b"state");
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
        assert_eq!(place.read_state(vm).unwrap(), b"second");
        assert_eq!(fs::read_dir(place.directory(vm)).unwrap().count(), 1);
        let mode = fs::metadata(place.file(vm)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_crash_before_the_rename_leaves_nothing_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        let staging = place.vm(vm).join(STAGING);
        SharedDirectory::open_or_make(&place.vm(vm), 0o711).unwrap();
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join(STATE_FILE), b"half").unwrap();
        fs::create_dir(place.directory(vm)).unwrap();
        fs::write(place.directory(vm).join(".lock"), b"").unwrap();
        // Of a TPM that was here before.
        for stray in STRAYS {
            fs::write(place.directory(vm).join(stray), b"memory").unwrap();
        }
        install(&place, vm, &made(root.path(), b"state")).unwrap();
        assert_eq!(place.read_state(vm).unwrap(), b"state");
        assert!(!place.directory(vm).join(STRAYS[0]).exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place.vm(vm)), 0o711);
        assert_eq!(mode(&place.directory(vm)), 0o700);
        assert_eq!(mode(&place.file(vm)), 0o600);
    }

    /// What a swtpm that was taken over may put in the place of its state.
    #[test]
    fn what_swtpm_plants_is_neither_read_nor_written() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        replace(&place, vm, b"state").unwrap();
        let (file, secret) = (place.file(vm), root.path().join("guardian-key"));
        type Plant<'a> = (&'static str, &'a dyn Fn(&Path));
        let plants: [Plant<'_>; 4] = [
            ("link", &|at| {
                std::os::unix::fs::symlink(&secret, at).unwrap()
            }),
            ("name", &|at| fs::hard_link(&secret, at).unwrap()),
            ("pipe", &|at| {
                nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRUSR).unwrap();
            }),
            ("directory", &|at| fs::create_dir(at).unwrap()),
        ];
        for (what, plant) in plants {
            fs::write(&secret, b"a key").unwrap();
            fs::remove_file(&file).unwrap();
            plant(&file);
            let (sent, done) = std::sync::mpsc::channel();
            let reading = place.clone();
            std::thread::spawn(move || {
                let damaged = reading.read(vm, &reading.expected(u64::MAX), MAX_DAMAGED);
                let _ = sent.send((
                    reading.read_state(vm),
                    damaged,
                    already(&reading, vm, b"state"),
                ));
            });
            let (read, damaged, there) = done
                .recv_timeout(std::time::Duration::from_secs(10))
                .unwrap_or_else(|_| panic!("{what}: reading hangs"));
            for refused in [read.map(drop), damaged.map(drop), there.map(drop)] {
                let Err(Error::File { source, .. }) = refused else {
                    panic!("{what}: {refused:?}");
                };
                assert!(
                    durable::Unexpected::of(&source).is_some(),
                    "{what}: {source}"
                );
            }
            assert!(
                place.has_state(vm),
                "{what}: no other TPM is made in its place"
            );
            // Writing cures it; only a directory, which nobody can replace in one step, is for a person to remove.
            if what == "directory" {
                assert!(replace(&place, vm, b"state").is_err());
                fs::remove_dir(&file).unwrap();
            }
            replace(&place, vm, b"state").unwrap();
            assert_eq!(place.read_state(vm).unwrap(), b"state", "{what}");
            assert_eq!(fs::read(&secret).unwrap(), b"a key", "{what}");
            assert_eq!(
                fs::metadata(&secret).unwrap().permissions().mode() & 0o777,
                0o644
            );
        }
    }

    #[test]
    fn a_directory_that_swtpm_leads_elsewhere_is_not_entered() {
        let root = tempfile::tempdir().unwrap();
        let (place, vm) = (place(root.path()), VmId(uuid::Uuid::new_v4()));
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join(STATE_FILE), b"another's").unwrap();
        fs::create_dir_all(place.vm(vm)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, place.directory(vm)).unwrap();
        for refused in [
            place.read_state(vm).map(drop),
            put_in_place(&place, vm, b"state"),
        ] {
            assert!(
                matches!(refused, Err(Error::File { source, .. }) if durable::Unexpected::of(&source).is_some())
            );
        }
        let root = SharedDirectory::open(&place.root).unwrap();
        root.remove_tree(vm.to_string()).unwrap();
        assert_eq!(fs::read(elsewhere.join(STATE_FILE)).unwrap(), b"another's");
        replace(&place, vm, b"state").unwrap();
        assert_eq!(place.read_state(vm).unwrap(), b"state");
    }
}
