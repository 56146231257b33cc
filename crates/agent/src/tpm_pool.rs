//! A pool of TPMs made in advance, so that a creation does not wait for key generation.
//!
//! A ready TPM is a directory: encrypted state, EK certificate, and the TPM key, sealed for this host's own guardian
//! and bound to the directory's id instead of a VM's. No part is in clear text. It becomes a VM's TPM by a rename.
//!
//! ```text
//!   making-<id>/ ── all files there ──► <id>/ ── taken ──► vms/<vm>/tpm-staged/
//!       └── found at start: removed
//! ```
//! swtpm has opened the state of each with its key, so that the first copy of a VM's TPM need not be tried.

use crate::ek::JudgedEk;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::Keyring;
use crate::tpm_judge;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{Error as HypervisorError, SecretText};
use fleetward_model::vm::TpmLockout;
use fleetward_model::{ErrorCode, Failure, VmId};
use fleetward_protector_open::TpmKey;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long refilling waits after a failure.
const PAUSE: Duration = Duration::from_secs(30);

/// How often a host with work to do is looked at again.
const CALM: Duration = Duration::from_secs(2);

/// How long the host must have been at rest before the pool grows beyond its size.
const REST: Duration = Duration::from_secs(60);

/// The share of the time in which a pool that grows makes TPMs, as one of so many parts.
const SHARE: u32 = 10;

const MAKING: &str = "making-";

/// What is known of the state since it was tried; an earlier version wrote none.
const PROVEN: &str = "proven.json";

/// A state that swtpm has opened with its key.
#[derive(Debug, Serialize, Deserialize)]
struct Proven {
    /// SHA-256, hex.
    state_sha256: String,
    lockout: Option<TpmLockout>,
}

/// One TPM that belongs to no VM yet.
#[derive(Debug, Clone)]
pub(crate) struct ReadyTpm {
    directory: PathBuf,
}

impl ReadyTpm {
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Whether all of it is there.
    pub(crate) fn is_whole(&self) -> bool {
        ["id", "key.der", "ek.der"]
            .iter()
            .all(|name| self.directory.join(name).is_file())
            && self.state_file().is_file()
    }

    /// Puts one together out of state that lies encrypted under `key`; the file that makes it whole comes last.
    pub(crate) fn write(
        &self,
        keyring: &Keyring,
        key: &TpmKey,
        state: &[u8],
        ek_certificate: &JudgedEk,
    ) -> Result<()> {
        let id = VmId(uuid::Uuid::new_v4());
        let sealed = keyring.seal_ahead(id, key).map_err(|because| {
            Trouble::refuse(ErrorCode::TpmFailed, "sealing a new TPM key", because)
        })?;
        self.remove()?;
        durable::make_directory(&self.state(), 0o711)
            .and_then(|()| durable::replace(&self.state_file(), state, Access::PRIVATE))
            .and_then(|()| {
                durable::replace(
                    &self.directory.join("ek.der"),
                    ek_certificate,
                    Access::PRIVATE,
                )
            })
            .and_then(|()| {
                durable::replace(
                    &self.directory.join("key.der"),
                    sealed.der(),
                    Access::PRIVATE,
                )
            })
            .and_then(|()| {
                durable::replace(
                    &self.directory.join("id"),
                    id.to_string().as_bytes(),
                    Access::PRIVATE,
                )
            })
            .map_err(|error| Trouble::file("a copied TPM", &self.directory, &error))
    }

    /// The directory of the encrypted state.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn state_file(&self) -> PathBuf {
        self.state().join("tpm2-00.permall")
    }

    /// Its state, if it is the one that has opened with its key, and what its TPM counted then.
    pub(crate) fn proven(&self) -> Option<(Vec<u8>, Option<TpmLockout>)> {
        let proven: Proven = serde_json::from_slice(&self.read(PROVEN).ok()?).ok()?;
        let state = std::fs::read(self.state_file()).ok()?;
        (tpm_judge::digest_of(&state) == proven.state_sha256).then_some((state, proven.lockout))
    }

    /// Of one that was put together here, or taken from the pool.
    pub(crate) fn ek_certificate(&self) -> Result<JudgedEk> {
        self.read("ek.der").map(JudgedEk::kept)
    }

    /// Why it is of no use here, if it is not.
    fn unusable(&self, host: &Host) -> Option<Trouble> {
        let opens = self.open(&host.keyring).map(drop);
        let made = || host.ek.made_here(self.read("ek.der")?).map(drop);
        opens.and_then(|()| made()).err()
    }

    /// Opens the TPM key.
    pub(crate) fn open(&self, keyring: &Keyring) -> Result<TpmKey> {
        let damaged = |because: String| {
            Trouble::refuse(ErrorCode::TpmFailed, "a TPM made ahead of time", because)
        };
        let id = String::from_utf8(self.read("id")?)
            .ok()
            .and_then(|text| text.parse::<VmId>().ok())
            .ok_or_else(|| damaged("its id cannot be read".into()))?;
        keyring
            .open_ahead(&self.read("key.der")?, id)
            .map_err(damaged)
    }

    /// Removes what is there of it.
    pub(crate) fn remove(&self) -> Result<()> {
        durable::remove_tree(&self.directory)
            .map_err(|error| Trouble::file("a TPM made ahead of time", &self.directory, &error))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.directory.join(name);
        std::fs::read(&path)
            .map_err(|error| Trouble::file("a TPM made ahead of time", &path, &error))
    }
}

/// How many TPMs are kept ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolSizes {
    /// As soon as the host has nothing to do.
    pub(crate) at_once: usize,
    /// When the host has been at rest for long.
    pub(crate) at_rest: usize,
}

/// What a pool does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing, until a TPM is taken.
    Sleep,
    Wait(Duration),
    /// Makes one, and pauses for so many times as long as that took.
    Make {
        pauses: u32,
    },
}

impl PoolSizes {
    /// For so many that are ready, on a host that has had nothing to do for so long.
    fn next(self, ready: usize, rest: Duration) -> Next {
        if ready >= self.at_once.max(self.at_rest) {
            Next::Sleep
        } else if rest.is_zero() {
            Next::Wait(CALM)
        } else if ready < self.at_once {
            Next::Make { pauses: 0 }
        } else if rest < REST {
            Next::Wait(REST - rest)
        } else {
            Next::Make { pauses: SHARE - 1 }
        }
    }
}

/// The ready TPMs of a host.
#[derive(Debug)]
pub(crate) struct TpmPool {
    directory: PathBuf,
    sizes: PoolSizes,
    /// One taker at a time, so that two never take the same.
    taking: Mutex<()>,
    taken: Notify,
}

impl TpmPool {
    pub(crate) fn new(directory: PathBuf, sizes: PoolSizes) -> Self {
        Self {
            directory,
            sizes,
            taking: Mutex::new(()),
            taken: Notify::new(),
        }
    }

    /// Removes what a crash left half made.
    pub(crate) fn clean(&self) {
        for path in self.entries() {
            let half = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(MAKING));
            if (half || !ReadyTpm::at(path.clone()).is_whole())
                && let Err(error) = durable::remove_tree(&path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove half a TPM");
            }
        }
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> u32 {
        u32::try_from(self.ready_entries().len()).unwrap_or(u32::MAX)
    }

    /// Moves a ready TPM to `target`, or makes one there.
    pub(crate) async fn take(&self, host: &Host, target: &ReadyTpm) -> Result<()> {
        let entry = {
            let _turn = self.taking.lock().await;
            let mut taken = None;
            for entry in self.ready_entries() {
                // Sealed by a guardian that this host has lost, or made when it was in another fleet: in the way.
                let ready = ReadyTpm::at(entry.clone());
                if let Some(Trouble { failure, .. }) = ready.unusable(host) {
                    tracing::warn!(path = %entry.display(), because = failure.because, "a TPM made ahead is of no use and is removed");
                    ready.remove()?;
                    continue;
                }
                self.place(&entry, target)?;
                taken = Some(());
                break;
            }
            taken
        };
        self.taken.notify_one();
        if entry.is_some() {
            return Ok(());
        }
        let made = self.make(host).await?;
        self.place(&made, target)
    }

    fn place(&self, entry: &Path, target: &ReadyTpm) -> Result<()> {
        durable::rename(entry, &target.directory)
            .map_err(|error| Trouble::file("a TPM made ahead of time", entry, &error))
    }

    /// How many it may come to have.
    pub(crate) fn most(&self) -> u32 {
        u32::try_from(self.sizes.at_once.max(self.sizes.at_rest)).unwrap_or(u32::MAX)
    }

    /// Keeps the pool full while the host has nothing better to do.
    pub(crate) async fn keep_full(&self, host: Arc<Host>, stop: CancellationToken) {
        // Since when there was nothing to do, whenever it was looked.
        let mut idle = Instant::now();
        while !stop.is_cancelled() {
            let rest = match host.operations.is_any_under_way() {
                true => {
                    idle = Instant::now();
                    Duration::ZERO
                }
                false => idle.elapsed().max(Duration::from_nanos(1)),
            };
            let pause = match self.sizes.next(self.ready_entries().len(), rest) {
                Next::Sleep => None,
                Next::Wait(pause) => Some(pause.min(CALM)),
                Next::Make { pauses } => {
                    let begun = Instant::now();
                    match self.make_ahead(&host).await {
                        Ok(()) => Some(begun.elapsed() * pauses),
                        Err(trouble) => {
                            tracing::warn!(
                                because = trouble.failure.because,
                                "no TPM could be made ahead"
                            );
                            Some(PAUSE)
                        }
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.taken.notified() => idle = Instant::now(),
                () = sleep_or_wait(pause) => {}
            }
        }
    }

    async fn make_ahead(&self, host: &Host) -> Result<()> {
        let made = self.make(host).await?;
        let name = made
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(MAKING))
            .expect("made under that name");
        let ready = self.directory.join(name);
        durable::rename(&made, &ready)
            .map_err(|error| Trouble::file("a TPM made ahead of time", &ready, &error))
    }

    /// Makes one, under a name that says that it is nobody's.
    async fn make(&self, host: &Host) -> Result<PathBuf> {
        let id = VmId(uuid::Uuid::new_v4());
        let directory = self.directory.join(format!("{MAKING}{id}"));
        let made = self.make_in(host, id, &directory).await;
        if made.is_err() {
            // The reason why it was not made is what matters; the next start removes what stays.
            let _ = durable::remove_tree(&directory);
        }
        made.map(|()| directory)
    }

    async fn make_in(&self, host: &Host, id: VmId, directory: &Path) -> Result<()> {
        let trouble = |error: &std::io::Error| Trouble::file("a new TPM", directory, error);
        durable::make_directory(directory, 0o711).map_err(|error| trouble(&error))?;
        let key = TpmKey::generate()
            .map_err(|error| Failure::new(ErrorCode::Internal, "a new TPM key").because(error))?;
        let secret = SecretText::new(key.expose_base64());
        let made = host
            .tpms
            .manufacture(&directory.join("state"), &secret, &host.ek)
            .await
            .attempt(|| "making a TPM".to_owned())?;
        let proven = try_new(host, directory, &secret).await?;
        drop(secret);
        let ek_certificate = host.ek.made_here(made.ek_certificate)?;
        let sealed = host.keyring.seal_ahead(id, &key).map_err(|because| {
            Trouble::refuse(ErrorCode::TpmFailed, "sealing a new TPM key", because)
        })?;
        durable::replace(&directory.join("ek.der"), &ek_certificate, Access::PRIVATE)
            .and_then(|()| match &proven {
                Some(proven) => durable::replace(&directory.join(PROVEN), proven, Access::PRIVATE),
                None => Ok(()),
            })
            .and_then(|()| {
                durable::replace(&directory.join("key.der"), sealed.der(), Access::PRIVATE)
            })
            .and_then(|()| {
                durable::replace(
                    &directory.join("id"),
                    id.to_string().as_bytes(),
                    Access::PRIVATE,
                )
            })
            .map_err(|error| trouble(&error))
    }

    fn ready_entries(&self) -> Vec<PathBuf> {
        self.entries()
            .into_iter()
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| !name.to_string_lossy().starts_with(MAKING))
            })
            .collect()
    }

    fn entries(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.directory)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    }
}

/// Tries the state of a TPM that was just made with its key; yields what is written down of that.
///
/// # Errors
/// The key does not open it. Where it could not be tried, that is left to the first copy.
async fn try_new(host: &Host, directory: &Path, key: &SecretText) -> Result<Option<Vec<u8>>> {
    let file = ReadyTpm::at(directory.to_owned()).state_file();
    let state = std::fs::read(&file).map_err(|error| Trouble::file("a new TPM", &file, &error))?;
    let lockout = match host.tpms.prove_state(&state, key).await {
        Ok(lockout) => lockout,
        Err(error @ HypervisorError::TpmStateUnreadable(_)) => {
            return Err(Trouble::hypervisor("a new TPM", &error));
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a new TPM could not be tried"
            );
            return Ok(None);
        }
    };
    let proven = Proven {
        state_sha256: tpm_judge::digest_of(&state),
        lockout,
    };
    let proven = serde_json::to_vec(&proven);
    let proven =
        proven.map_err(|error| Failure::new(ErrorCode::Internal, "a new TPM").because(error))?;
    Ok(Some(proven))
}

async fn sleep_or_wait(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: PoolSizes = PoolSizes {
        at_once: 4,
        at_rest: 200,
    };

    #[test]
    fn a_pool_is_filled_at_once_and_grows_when_the_host_is_at_rest() {
        let (busy, calm) = (Duration::ZERO, Duration::from_secs(1));
        assert_eq!(SIZES.next(3, busy), Next::Wait(CALM));
        assert_eq!(SIZES.next(3, calm), Next::Make { pauses: 0 });
        assert_eq!(SIZES.next(4, calm), Next::Wait(REST - calm));
        assert_eq!(SIZES.next(4, REST), Next::Make { pauses: 9 });
        assert_eq!(SIZES.next(199, REST), Next::Make { pauses: 9 });
        assert_eq!(SIZES.next(200, REST), Next::Sleep);
    }

    #[test]
    fn a_pool_that_does_not_grow_sleeps_when_it_is_full() {
        let fixed = PoolSizes {
            at_once: 4,
            at_rest: 0,
        };
        assert_eq!(fixed.next(4, REST), Next::Sleep);
        let none = PoolSizes {
            at_once: 0,
            at_rest: 0,
        };
        assert_eq!(none.next(0, REST), Next::Sleep);
    }
}
