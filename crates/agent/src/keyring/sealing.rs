//! Encryption of private keys on the disk: the source of the storage key, and finding and encrypting files in clear
//! text.
//!
//! The key is 32 bytes: a systemd credential named `fleetward-guardian-key` (which systemd-creds can seal to the
//! host's TPM), or a file that the command line names. Some programs write without it (`join` from a root shell, an
//! import before the credential existed), so an agent that starts with the credential encrypts the files that it finds
//! in clear text:
//!
//! ```text
//!   F in clear ── second name F.clear ──► F = F.clear ── F replaced ──► F sealed, F.clear in clear ── wiped ──► F sealed
//! ```
//! F is readable at every moment. `F.clear` is wiped only while F is a different file that opens with the key.

use super::KeyringError;
use super::store::{GUARDIAN, HALF, Store};
use crate::failure::chain;
use fleetward_durable::{self as durable, Access};
use fleetward_failpoint::hold_blocking;
use fleetward_protector_open::{GuardianHalf, LocalGuardian, StorageKey};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The systemd credential that encrypts the store.
const CREDENTIAL: &str = "fleetward-guardian-key";

/// Bytes of the key.
const KEY_SIZE: usize = 32;

/// Extension of the second name that a file in clear has while it is replaced.
const CLEAR: &str = "clear";

/// The key that encrypts the store: in the file that is named, which must be there; else what the service manager gives.
pub(super) fn key(file: Option<&Path>) -> Result<Option<StorageKey>, KeyringError> {
    if let Some(path) = file {
        return read_key(path).map(Some);
    }
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        return Ok(None);
    };
    match read_key(&Path::new(&directory).join(CREDENTIAL)) {
        Err(KeyringError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// A pipe will do, too: `systemd-creds decrypt` writes to one.
fn read_key(path: &Path) -> Result<StorageKey, KeyringError> {
    // Room for all of it at once: a vector that grows leaves its bytes behind.
    let mut content = Zeroizing::new(Vec::with_capacity(2 * KEY_SIZE));
    File::open(path)
        .and_then(|file| file.take(KEY_SIZE as u64 + 1).read_to_end(&mut content))
        .map_err(|source| KeyringError::File {
            path: path.to_owned(),
            source,
        })?;
    let mut bytes: [u8; KEY_SIZE] =
        content
            .as_slice()
            .try_into()
            .map_err(|_| KeyringError::StorageKey {
                path: path.to_owned(),
            })?;
    Ok(StorageKey::from_bytes(&mut bytes))
}

/// What a file of the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Guardian,
    Half,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            GUARDIAN => Some(Self::Guardian),
            HALF => Some(Self::Half),
            _ => None,
        }
    }
}

impl Store {
    /// Names of the files whose private keys are not encrypted. One that cannot be read is among them: it is not known.
    pub(super) fn lying_in_clear(&self) -> Vec<String> {
        let mut found: Vec<String> = self
            .files()
            .unwrap_or_default()
            .iter()
            .filter(|path| is_sealed(path) != Some(true))
            .map(|path| name(path))
            .collect();
        found.sort();
        found
    }

    /// Encrypts what lies in clear; how many files that were. Without a key, only the rest of a
    /// change that was cut off goes.
    pub(super) fn seal_what_lies_in_clear(&self) -> Result<usize, KeyringError> {
        let _turn = self.lock()?;
        self.sweep_now()?;
        let Some(key) = &self.key else { return Ok(0) };
        self.ensure_key_fits()?;
        for path in self.files()? {
            if path.extension().is_some_and(|extension| extension == CLEAR) {
                self.end_cut_off(&path)?;
            }
        }
        let mut sealed = 0;
        let mut failed = None;
        for path in self.files()? {
            let Some(kind) = Kind::of(&path) else {
                continue;
            };
            if is_sealed(&path) == Some(true) {
                continue;
            }
            // One that is damaged keeps the others from nothing.
            match self.seal(&path, kind, key) {
                Ok(()) => sealed += 1,
                Err(error) => {
                    tracing::error!(error = chain(&error), "private keys stay unencrypted");
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(sealed), Err)
    }

    /// Refuses a key that opens nothing of what is encrypted here: two keys for one store, and half of it is lost.
    pub(super) fn ensure_key_fits(&self) -> Result<(), KeyringError> {
        if self.key.is_none() {
            return Ok(());
        }
        let mut refused = None;
        for path in self.files()? {
            if is_sealed(&path) != Some(true) {
                continue;
            }
            match self.open_file(&path) {
                Ok(()) => return Ok(()),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error @ KeyringError::OtherKey { .. }) => Err(error),
            // What is damaged says nothing about the key.
            Some(_) | None => Ok(()),
        }
    }

    fn seal(&self, path: &Path, kind: Kind, key: &StorageKey) -> Result<(), KeyringError> {
        let sealed = match kind {
            Kind::Guardian => self.read_file(path)?.to_storage(Some(key)),
            Kind::Half => self.read_half(&stem(path))?.to_storage(Some(key)),
        }
        .map_err(|error| KeyringError::Make(chain(&error)))?;
        let file = |source| KeyringError::File {
            path: path.to_owned(),
            source,
        };
        let aside = aside(path);
        durable::link(path, &aside).map_err(file)?;
        hold_blocking("agent.guardian-store.seal.aside");
        let replaced = durable::replace(path, &sealed, Access::PRIVATE)
            .map_err(file)
            .and_then(|()| self.open_file(path));
        hold_blocking("agent.guardian-store.seal.replaced");
        if let Err(error) = replaced {
            // What could be read before can be read again.
            durable::rename(&aside, path)
                .and_then(|()| durable::remove(&aside))
                .map_err(file)?;
            return Err(error);
        }
        durable::wipe(&aside).map_err(file)?;
        hold_blocking("agent.guardian-store.seal.wiped");
        Ok(())
    }

    /// Ends what was cut off after `aside` had been made.
    fn end_cut_off(&self, aside: &Path) -> Result<(), KeyringError> {
        let path = aside.with_extension("");
        let file = |source| KeyringError::File {
            path: aside.to_owned(),
            source,
        };
        let inode = |path: &Path| fs::metadata(path).map(|found| found.ino());
        match inode(&path) {
            // Not replaced yet: the second name goes, and all begins anew.
            Ok(found) if found == inode(aside).map_err(file)? => {
                durable::remove(aside).map_err(file)
            }
            Ok(_) => {
                self.open_file(&path)?;
                durable::wipe(aside).map_err(file)
            }
            // Not by this hand. It may be the only copy; what counts for nothing is swept when it is known to.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                durable::rename(aside, &path).map_err(file)
            }
            Err(error) => Err(file(error)),
        }
    }

    /// Whether a file can be read with the key.
    fn open_file(&self, path: &Path) -> Result<(), KeyringError> {
        match Kind::of(path) {
            Some(Kind::Half) => self.read_half(&stem(path)).map(drop),
            Some(Kind::Guardian) | None => self.read_file(path).map(drop),
        }
    }

    /// Every file that holds private keys, also those that count for nothing.
    fn files(&self) -> Result<Vec<PathBuf>, KeyringError> {
        let failed = |source| KeyringError::File {
            path: self.directory().to_owned(),
            source,
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(self.directory()).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let keys = [GUARDIAN, HALF, CLEAR];
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension.is_some_and(|extension| keys.contains(&extension)) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Whether a file's private keys are encrypted; none where that cannot be said.
fn is_sealed(path: &Path) -> Option<bool> {
    let stored = Zeroizing::new(durable::read(path).ok()??);
    match Kind::of(path)? {
        Kind::Guardian => LocalGuardian::is_sealed(&stored).ok(),
        Kind::Half => GuardianHalf::is_sealed(&stored).ok(),
    }
}

pub(super) fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".");
    aside.push(CLEAR);
    aside.into()
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
