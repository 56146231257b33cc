//! The files of the guardian store: which guardians this host holds, and what each is to it.
//!
//! ```text
//! guardians/
//!   keyring.json      which guardians count, and as what; written last, and read again when it has changed
//!   keyring.lock      held by whoever changes the store
//!   <id>.guardian     certificates and private keys of one guardian
//!   own.guardian      the same, of a host that joined before there was a keyring.json
//! ```
//! A guardian file that `keyring.json` does not name is the rest of a change that was cut off: it counts for nothing, and
//! the change can be made again. Removing goes the other way round: out of `keyring.json` first, then the file.

use super::KeyringError;
use crate::durable;
use crate::failure::chain;
use fleetward_model::GuardianId;
use fleetward_model::guardian::GuardianStanding;
use fleetward_protector_open::{LocalGuardian, StorageKey};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The systemd credential that encrypts the store: 32 bytes.
const CREDENTIAL: &str = "fleetward-guardian-key";

/// Version of `keyring.json`.
const VERSION: u32 = 1;

const INDEX: &str = "keyring.json";
const FORMER_OWN: &str = "own.guardian";

/// A guardian with its private keys, and what it is to this host.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) guardian: LocalGuardian,
    pub(super) standing: GuardianStanding,
}

/// What tells one version of the store from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    changed: (i64, i64),
    length: u64,
}

/// The store's directory and the key that encrypts what lies in it.
pub(super) struct Store {
    directory: PathBuf,
    key: Option<StorageKey>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u32,
    guardians: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: GuardianId,
    standing: GuardianStanding,
    /// Name of its file.
    file: String,
    /// When it became that.
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
}

impl Store {
    pub(super) fn new(directory: &Path) -> Result<Self, KeyringError> {
        Ok(Self {
            directory: directory.to_owned(),
            key: storage_key()?,
        })
    }

    /// Whether private keys are encrypted on the disk.
    pub(super) fn is_sealed(&self) -> bool {
        self.key.is_some()
    }

    /// Which version of the store is there now.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let found = std::fs::metadata(self.path(INDEX)).ok()?;
        Some(Stamp {
            inode: found.ino(),
            changed: (found.ctime(), found.ctime_nsec()),
            length: found.len(),
        })
    }

    /// Every guardian, the own one first. One of the others that cannot be read is left out, and said so.
    pub(super) fn load(&self) -> Result<Vec<Held>, KeyringError> {
        let index = self.index()?.ok_or(KeyringError::Empty)?;
        let mut held = Vec::with_capacity(index.guardians.len());
        for entry in index.guardians {
            match self.read(&entry) {
                Ok(guardian) => held.push(Held {
                    guardian,
                    standing: entry.standing,
                }),
                Err(error) if entry.standing == GuardianStanding::Own => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        guardian = entry.id.short(),
                        error = chain(&error),
                        "a guardian is left out"
                    );
                }
            }
        }
        held.sort_by_key(|held| held.standing);
        match held.first() {
            Some(first) if first.standing == GuardianStanding::Own => Ok(held),
            Some(_) | None => Err(KeyringError::Empty),
        }
    }

    /// Whether the host has a guardian of its own.
    pub(super) fn has_own(&self) -> Result<bool, KeyringError> {
        Ok(self.index()?.is_some())
    }

    /// Adds a guardian. False when it is here already, as whatever it is.
    pub(super) fn add(
        &self,
        guardian: &LocalGuardian,
        standing: GuardianStanding,
    ) -> Result<bool, KeyringError> {
        self.change(|entries| {
            if entries.iter().any(|entry| entry.id == *guardian.id()) {
                return Ok(false);
            }
            entries.push(self.write(guardian, standing)?);
            Ok(true)
        })
    }

    /// Makes `guardian` the host's own. The one that was stays as a retired one.
    pub(super) fn replace_own(&self, guardian: &LocalGuardian) -> Result<(), KeyringError> {
        self.change(|entries| {
            let now = OffsetDateTime::now_utc();
            for entry in entries
                .iter_mut()
                .filter(|entry| entry.standing == GuardianStanding::Own)
            {
                entry.standing = GuardianStanding::Retired;
                entry.since = now;
            }
            entries.retain(|entry| entry.id != *guardian.id());
            entries.insert(0, self.write(guardian, GuardianStanding::Own)?);
            Ok(())
        })
    }

    /// Removes a guardian that is not the own one, keys included; one that is not here is fine.
    pub(super) fn remove(&self, id: &GuardianId) -> Result<(), KeyringError> {
        let file = self.change(|entries| {
            let file = entries
                .iter()
                .find(|entry| entry.id == *id)
                .map_or_else(|| file_name(id), |entry| entry.file.clone());
            entries.retain(|entry| entry.id != *id);
            Ok(file)
        })?;
        let path = self.path(&file);
        durable::remove(&path).map_err(|source| KeyringError::File { path, source })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Entry>) -> Result<T, KeyringError>,
    ) -> Result<T, KeyringError> {
        let _turn = self.lock()?;
        let mut guardians = self
            .index()?
            .map(|index| index.guardians)
            .unwrap_or_default();
        let changed = change(&mut guardians)?;
        let path = self.path(INDEX);
        let index = Index {
            version: VERSION,
            guardians,
        };
        durable::write_json(&path, &index).map_err(|source| KeyringError::File { path, source })?;
        Ok(changed)
    }

    fn index(&self) -> Result<Option<Index>, KeyringError> {
        let path = self.path(INDEX);
        let found: Option<Index> =
            durable::read_json(&path).map_err(|source| KeyringError::File {
                path: path.clone(),
                source,
            })?;
        match found {
            Some(index) if index.version == VERSION => Ok(Some(index)),
            Some(index) => Err(KeyringError::Unreadable {
                path,
                because: format!("version {} is not known", index.version),
            }),
            None => self.former_index(),
        }
    }

    /// The index of a store from before there was one: `own.guardian`, and nothing else.
    fn former_index(&self) -> Result<Option<Index>, KeyringError> {
        let path = self.path(FORMER_OWN);
        if !path.exists() {
            return Ok(None);
        }
        let own = self.read_file(&path)?;
        Ok(Some(Index {
            version: VERSION,
            guardians: vec![Entry {
                id: own.id().clone(),
                standing: GuardianStanding::Own,
                file: FORMER_OWN.to_owned(),
                since: own.public().not_before(),
            }],
        }))
    }

    fn read(&self, entry: &Entry) -> Result<LocalGuardian, KeyringError> {
        let path = self.path(&entry.file);
        // A name with a slash would lead out of the directory.
        if Path::new(&entry.file).file_name() != Some(entry.file.as_ref()) {
            return Err(KeyringError::Unreadable {
                path,
                because: "that is no name of a file in the store".into(),
            });
        }
        let guardian = self.read_file(&path)?;
        if *guardian.id() == entry.id {
            Ok(guardian)
        } else {
            Err(KeyringError::Unreadable {
                path,
                because: format!("it holds guardian {}", guardian.id().short()),
            })
        }
    }

    pub(super) fn read_file(&self, path: &Path) -> Result<LocalGuardian, KeyringError> {
        let stored = durable::read(path)
            .and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map(Zeroizing::new)
            .map_err(|source| KeyringError::File {
                path: path.to_owned(),
                source,
            })?;
        LocalGuardian::from_storage(&stored, self.key.as_ref()).map_err(|error| {
            KeyringError::Unreadable {
                path: path.to_owned(),
                because: chain(&error),
            }
        })
    }

    fn write(
        &self,
        guardian: &LocalGuardian,
        standing: GuardianStanding,
    ) -> Result<Entry, KeyringError> {
        let file = file_name(guardian.id());
        self.write_keys(&file, guardian)?;
        Ok(Entry {
            id: guardian.id().clone(),
            standing,
            file,
            since: OffsetDateTime::now_utc(),
        })
    }

    /// Writes a guardian into the directory, and reads it again: what is about to count must be readable.
    pub(super) fn write_keys(
        &self,
        file: &str,
        guardian: &LocalGuardian,
    ) -> Result<(), KeyringError> {
        let path = self.path(file);
        let stored = guardian
            .to_storage(self.key.as_ref())
            .map_err(|error| KeyringError::Make(chain(&error)))?;
        durable::write(&path, &stored).map_err(|source| KeyringError::File {
            path: path.clone(),
            source,
        })?;
        self.read_file(&path).map(drop)
    }

    fn lock(&self) -> Result<nix::fcntl::Flock<File>, KeyringError> {
        let path = self.path("keyring.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| KeyringError::File {
                path: path.clone(),
                source,
            })?;
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, errno)| {
            KeyringError::File {
                path,
                source: errno.into(),
            }
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn file_name(id: &GuardianId) -> String {
    format!("{id}.guardian")
}

/// The key that encrypts the store, where the service manager gives one.
fn storage_key() -> Result<Option<StorageKey>, KeyringError> {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        return Ok(None);
    };
    let path = Path::new(&directory).join(CREDENTIAL);
    let content = durable::read(&path)
        .map(|content| content.map(Zeroizing::new))
        .map_err(|source| KeyringError::File {
            path: path.clone(),
            source,
        })?;
    let Some(content) = content else {
        return Ok(None);
    };
    let mut bytes: [u8; 32] = content
        .as_slice()
        .try_into()
        .map_err(|_| KeyringError::StorageKey { path })?;
    Ok(Some(StorageKey::from_bytes(&mut bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    fn made(host: &str) -> LocalGuardian {
        LocalGuardian::generate(&host.parse().expect("name"), OffsetDateTime::now_utc())
            .expect("guardian")
    }

    static FIRST: LazyLock<LocalGuardian> = LazyLock::new(|| made("a"));
    static SECOND: LazyLock<LocalGuardian> = LazyLock::new(|| made("b"));

    fn standings(store: &Store) -> Vec<(GuardianId, GuardianStanding)> {
        let held = store.load().expect("load");
        held.iter()
            .map(|held| (held.guardian.id().clone(), held.standing))
            .collect()
    }

    #[test]
    fn a_store_from_before_the_index_keeps_its_own_guardian_when_others_come() {
        let dir = tempfile::tempdir().expect("directory");
        let stored = FIRST.to_storage(None).expect("bytes");
        durable::write(&dir.path().join(FORMER_OWN), &stored).expect("write");
        let store = Store::new(dir.path()).expect("store");
        let own = (FIRST.id().clone(), GuardianStanding::Own);
        assert_eq!(standings(&store), std::slice::from_ref(&own));

        assert!(store.add(&SECOND, GuardianStanding::Imported).expect("add"));
        assert!(
            !store
                .add(&SECOND, GuardianStanding::Imported)
                .expect("twice")
        );
        let imported = (SECOND.id().clone(), GuardianStanding::Imported);
        assert_eq!(standings(&store), [own.clone(), imported]);

        store.remove(SECOND.id()).expect("remove");
        store.remove(SECOND.id()).expect("twice");
        assert_eq!(standings(&store), [own]);
        assert!(!dir.path().join(file_name(SECOND.id())).exists());
    }

    #[test]
    fn the_former_own_guardian_is_retired_and_still_there() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::new(dir.path()).expect("store");
        store.add(&FIRST, GuardianStanding::Own).expect("add");
        let before = store.stamp();
        store.replace_own(&SECOND).expect("replace");
        assert_ne!(store.stamp(), before);
        assert_eq!(
            standings(&store),
            [
                (SECOND.id().clone(), GuardianStanding::Own),
                (FIRST.id().clone(), GuardianStanding::Retired)
            ]
        );
    }

    #[test]
    fn a_file_the_index_does_not_name_counts_for_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::new(dir.path()).expect("store");
        store.add(&FIRST, GuardianStanding::Own).expect("add");
        let stored = SECOND.to_storage(None).expect("bytes");
        durable::write(&dir.path().join(file_name(SECOND.id())), &stored).expect("write");
        assert_eq!(standings(&store).len(), 1);
        assert!(store.add(&SECOND, GuardianStanding::Imported).expect("add"));
        assert_eq!(standings(&store).len(), 2);
    }
}
