//! The files of the guardian store: which guardians this host has, and the role of each.
//!
//! ```text
//! guardians/
//!   keyring.json      which guardians count, and as what; written last, and read again when it has changed
//!   keyring.lock      held by whoever changes the store
//!   <id>.guardian     certificates and private keys of one guardian
//!   <sha256>.half     one certificate and its private key, which wait for the other half of their guardian
//!   own.guardian      the same, of a host that joined before there was a keyring.json
//!   *.clear, *.new    for moments: see `sealing`, and a file that is being written
//! ```
//! A guardian file that `keyring.json` does not name is left from an interrupted change: it is ignored, and the change
//! can be repeated. A removal first takes the guardian out of `keyring.json`, which records the removal, and then
//! removes the file. Files of recorded removals, and halves without an entry, are removed at the next change or start.

use super::KeyringError;
use super::sealing::aside;
use crate::failure::chain;
use fleetward_durable::{self as durable, Access};
use fleetward_failpoint::hold_blocking;
use fleetward_model::GuardianId;
use fleetward_model::guardian::{CertificateRole, GuardianStanding};
use fleetward_protector::GuardianCertificate;
use fleetward_protector_open::pfx::PairError;
use fleetward_protector_open::{GuardianHalf, LocalGuardian, StorageError, StorageKey};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Version of `keyring.json`.
const VERSION: u32 = 1;

const INDEX: &str = "keyring.json";
const FORMER_OWN: &str = "own.guardian";
/// Extension of a half's file.
pub(super) const HALF: &str = "half";
/// Extension of a guardian's file.
pub(super) const GUARDIAN: &str = "guardian";
/// Extension of a file that was being written when the program was killed.
const UNFINISHED: &str = "new";

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
    pub(super) key: Option<StorageKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u32,
    guardians: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    halves: Vec<HalfEntry>,
    /// Files of guardians that were removed: they go, also when the one who removed them was stopped before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removed: Vec<String>,
}

/// One half of a guardian, waiting for the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HalfEntry {
    /// Thumbprint of its certificate; its file is named so.
    sha256: String,
    role: CertificateRole,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
}

/// What became of a half that was brought in.
#[derive(Debug)]
pub(super) enum HalfAdded {
    /// It waits for the other one.
    Waits,
    /// It waits already.
    WaitedBefore,
    /// The other one was here: the two are this guardian now.
    Completed(Box<LocalGuardian>),
    /// It is not known which of those that wait is the other one.
    Ambiguous,
    /// The two do not make a guardian.
    NotAPair(PairError),
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
    pub(super) fn new(directory: &Path, key: Option<StorageKey>) -> Self {
        Self {
            directory: directory.to_owned(),
            key,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
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

    /// Adds a guardian. Returns false if the store already has it, in any role. Removes a waiting half of it.
    pub(super) fn add(
        &self,
        guardian: &LocalGuardian,
        standing: GuardianStanding,
    ) -> Result<bool, KeyringError> {
        self.change(|index| self.enter(index, guardian, standing))
    }

    fn enter(
        &self,
        index: &mut Index,
        guardian: &LocalGuardian,
        standing: GuardianStanding,
    ) -> Result<bool, KeyringError> {
        let new = index
            .guardians
            .iter()
            .all(|entry| entry.id != *guardian.id());
        if new {
            index.guardians.push(self.write(guardian, standing)?);
            index
                .removed
                .retain(|file| *file != file_name(guardian.id()));
        }
        let public = guardian.public();
        let parts = [public.signing(), public.encryption()].map(thumbprint);
        index.halves.retain(|half| !parts.contains(&half.sha256));
        Ok(new)
    }

    /// Takes one half in. `record` is called before anything is kept, with the guardian where the half completes one.
    pub(super) fn add_half(
        &self,
        half: GuardianHalf,
        record: impl Fn(Option<&GuardianId>) -> Result<(), KeyringError>,
    ) -> Result<HalfAdded, KeyringError> {
        let sha256 = thumbprint(half.certificate());
        self.change(|index| {
            if index.halves.iter().any(|entry| entry.sha256 == sha256) {
                return Ok(HalfAdded::WaitedBefore);
            }
            let mut others = self.readable(&index.halves);
            others.retain(|other| other.fits(&half));
            match (others.pop(), others.is_empty()) {
                (None, _) => {
                    record(None)?;
                    self.write_half(&sha256, &half)?;
                    index.halves.push(HalfEntry {
                        sha256,
                        role: half.role(),
                        since: OffsetDateTime::now_utc(),
                    });
                    Ok(HalfAdded::Waits)
                }
                (Some(_), false) => Ok(HalfAdded::Ambiguous),
                (Some(other), true) => match half.join(other) {
                    Err(error) => Ok(HalfAdded::NotAPair(error)),
                    Ok(guardian) => {
                        record(Some(guardian.id()))?;
                        self.enter(index, &guardian, GuardianStanding::Imported)?;
                        Ok(HalfAdded::Completed(Box::new(guardian)))
                    }
                },
            }
        })
    }

    /// The halves that wait, the oldest first. One that cannot be read is left out, and said so.
    pub(super) fn halves(&self) -> Result<Vec<GuardianHalf>, KeyringError> {
        let index = self.index()?;
        Ok(index.map_or_else(Vec::new, |index| self.readable(&index.halves)))
    }

    fn readable(&self, halves: &[HalfEntry]) -> Vec<GuardianHalf> {
        let read = |entry: &HalfEntry| {
            self.read_half(&entry.sha256)
                .inspect_err(|error| {
                    tracing::warn!(
                        certificate = entry.sha256,
                        error = chain(error),
                        "half a guardian is left out"
                    );
                })
                .ok()
        };
        halves.iter().filter_map(read).collect()
    }

    /// Removes a half that waits, key included; one that is not here is fine.
    pub(super) fn remove_half(&self, sha256: &str) -> Result<(), KeyringError> {
        self.change(|index| {
            index.halves.retain(|half| half.sha256 != sha256);
            Ok(())
        })
    }

    /// Makes `guardian` the host's own. The one that was stays as a retired one.
    pub(super) fn replace_own(&self, guardian: &LocalGuardian) -> Result<(), KeyringError> {
        self.change(|index| {
            let entries = &mut index.guardians;
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
            index
                .removed
                .retain(|file| *file != file_name(guardian.id()));
            Ok(())
        })
    }

    /// Removes a guardian that is not the own one, keys included; one that is not here is fine.
    pub(super) fn remove(&self, id: &GuardianId) -> Result<(), KeyringError> {
        let file = self.change(|index| {
            let entries = &mut index.guardians;
            let file = entries
                .iter()
                .find(|entry| entry.id == *id)
                .map_or_else(|| file_name(id), |entry| entry.file.clone());
            entries.retain(|entry| entry.id != *id);
            index.removed.push(file.clone());
            Ok(file)
        })?;
        // Swept already; what could not be is an error here.
        let path = self.path(&file);
        for path in [aside(&path), path] {
            durable::wipe(&path).map_err(|source| KeyringError::File { path, source })?;
        }
        Ok(())
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T, KeyringError>,
    ) -> Result<T, KeyringError> {
        let _turn = self.lock()?;
        let before = self.index()?.unwrap_or_else(Index::empty);
        let mut after = before.clone();
        after.removed.retain(|file| self.path(file).exists());
        let changed = change(&mut after).and_then(|changed| {
            let path = self.path(INDEX);
            durable::replace_json(&path, &after, Access::PRIVATE)
                .map_err(|source| KeyringError::File { path, source })?;
            hold_blocking("agent.guardian-store.index");
            Ok(changed)
        });
        self.sweep(if changed.is_ok() { &after } else { &before });
        hold_blocking("agent.guardian-store.swept");
        changed
    }

    /// Removes what a change that was cut off has left.
    pub(super) fn tidy(&self) -> Result<(), KeyringError> {
        let _turn = self.lock()?;
        self.sweep_now()
    }

    /// The same for a caller that holds the lock.
    pub(super) fn sweep_now(&self) -> Result<(), KeyringError> {
        if let Some(index) = self.index()? {
            self.sweep(&index);
        }
        Ok(())
    }

    /// Removes keys of halves that `index` does not name: from failed or interrupted changes, and of halves that have
    /// become a guardian. Also removes unfinished files; the caller holds the lock, so no other process is writing.
    fn sweep(&self, index: &Index) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let waits = |sha256: &str| index.halves.iter().any(|half| half.sha256 == sha256);
            let sha256 = path.file_stem().and_then(|stem| stem.to_str());
            let gone = match path.extension().and_then(|extension| extension.to_str()) {
                Some(HALF) => !sha256.is_some_and(waits),
                Some(UNFINISHED) => true,
                Some(GUARDIAN) => {
                    let named = |file: &str| path.file_name() == Some(file.as_ref());
                    let held = |entry: &Entry| named(&entry.file);
                    index.removed.iter().any(|file| named(file))
                        && !index.guardians.iter().any(held)
                }
                _ => false,
            };
            if gone {
                // Tried again at the next change.
                if let Err(error) = durable::wipe(&path) {
                    tracing::warn!(path = %path.display(), %error, "the rest of a change was not removed");
                }
            }
        }
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
            ..Index::empty()
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
        self.read_with(path, LocalGuardian::from_storage)
    }

    pub(super) fn read_half(&self, sha256: &str) -> Result<GuardianHalf, KeyringError> {
        let path = self.half_path(sha256)?;
        let half = self.read_with(&path, GuardianHalf::from_storage)?;
        if thumbprint(half.certificate()) == sha256 {
            Ok(half)
        } else {
            Err(KeyringError::Unreadable {
                path,
                because: "it holds another certificate".into(),
            })
        }
    }

    /// Writes a half, and reads it again: what is about to count must be readable.
    fn write_half(&self, sha256: &str, half: &GuardianHalf) -> Result<(), KeyringError> {
        self.ensure_key_fits()?;
        let path = self.half_path(sha256)?;
        let stored = half
            .to_storage(self.key.as_ref())
            .map_err(|error| KeyringError::Make(chain(&error)))?;
        durable::replace(&path, &stored, Access::PRIVATE)
            .map_err(|source| KeyringError::File { path, source })?;
        hold_blocking("agent.guardian-store.half");
        self.read_half(sha256).map(drop)
    }

    fn half_path(&self, sha256: &str) -> Result<PathBuf, KeyringError> {
        let path = self.path(&format!("{sha256}.{HALF}"));
        // A name with a slash would lead out of the directory.
        if sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(path)
        } else {
            Err(KeyringError::Unreadable {
                path,
                because: "that is no name of a file in the store".into(),
            })
        }
    }

    fn read_with<T>(
        &self,
        path: &Path,
        parse: impl FnOnce(&[u8], Option<&StorageKey>) -> Result<T, StorageError>,
    ) -> Result<T, KeyringError> {
        let stored = durable::read(path)
            .and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map(Zeroizing::new)
            .map_err(|source| KeyringError::File {
                path: path.to_owned(),
                source,
            })?;
        parse(&stored, self.key.as_ref()).map_err(|error| {
            let path = path.to_owned();
            match error {
                StorageError::KeyNeeded => KeyringError::Sealed { path },
                StorageError::WrongKey => KeyringError::OtherKey { path },
                error => KeyringError::Unreadable {
                    path,
                    because: chain(&error),
                },
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
        self.ensure_key_fits()?;
        let path = self.path(file);
        let stored = guardian
            .to_storage(self.key.as_ref())
            .map_err(|error| KeyringError::Make(chain(&error)))?;
        durable::replace(&path, &stored, Access::PRIVATE).map_err(|source| KeyringError::File {
            path: path.clone(),
            source,
        })?;
        hold_blocking("agent.guardian-store.keys");
        self.read_file(&path).map(drop)
    }

    pub(super) fn lock(&self) -> Result<durable::Lock, KeyringError> {
        let path = self.path("keyring.lock");
        durable::lock(&path).map_err(|source| KeyringError::File { path, source })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Index {
    fn empty() -> Self {
        Self {
            version: VERSION,
            guardians: Vec::new(),
            halves: Vec::new(),
            removed: Vec::new(),
        }
    }
}

/// SHA-256 of a certificate in hex, as lists show it.
pub(super) fn thumbprint(certificate: &GuardianCertificate) -> String {
    certificate.facts().sha256
}

fn file_name(id: &GuardianId) -> String {
    format!("{id}.{GUARDIAN}")
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
        durable::replace(&dir.path().join(FORMER_OWN), &stored, Access::PRIVATE).expect("write");
        let store = Store::new(dir.path(), None);
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
        let store = Store::new(dir.path(), None);
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
        let store = Store::new(dir.path(), None);
        store.add(&FIRST, GuardianStanding::Own).expect("add");
        let stored = SECOND.to_storage(None).expect("bytes");
        durable::replace(
            &dir.path().join(file_name(SECOND.id())),
            &stored,
            Access::PRIVATE,
        )
        .expect("write");
        assert_eq!(standings(&store).len(), 1);
        assert!(store.add(&SECOND, GuardianStanding::Imported).expect("add"));
        assert_eq!(standings(&store).len(), 2);
    }

    /// Both halves of a guardian, as PFX files give them.
    fn halves(guardian: &LocalGuardian) -> [GuardianHalf; 2] {
        use fleetward_protector_open::pfx;
        [CertificateRole::Signing, CertificateRole::Encryption].map(|role| {
            let password = Zeroizing::new("a long password".to_owned());
            let file =
                pfx::export(guardian, role, &password, pfx::Protection::Aes256).expect("exported");
            let keys = pfx::read(&file, &password).expect("read");
            match pfx::sort_out(keys).expect("sorted out") {
                pfx::Found::Half(half) => *half,
                pfx::Found::Guardian(_) => panic!("one certificate is no guardian"),
            }
        })
    }

    fn files(store: &Store, extension: &str) -> usize {
        let entries = std::fs::read_dir(&store.directory).expect("directory");
        entries
            .filter(|entry| {
                let path = entry.as_ref().expect("entry").path();
                path.extension().is_some_and(|found| found == extension)
            })
            .count()
    }

    #[test]
    fn a_half_waits_in_either_order_and_counts_only_with_the_other() {
        for reversed in [false, true] {
            let dir = tempfile::tempdir().expect("directory");
            let store = Store::new(dir.path(), None);
            store.add(&FIRST, GuardianStanding::Own).expect("add");
            let mut both = halves(&SECOND);
            if reversed {
                both.reverse();
            }
            let [one, other] = both;
            let said = std::cell::RefCell::new(Vec::new());
            let record = |id: Option<&GuardianId>| {
                said.borrow_mut().push(id.cloned());
                Ok(())
            };
            let role = one.role();
            assert!(matches!(
                store.add_half(one, record).expect("half"),
                HalfAdded::Waits
            ));
            assert_eq!(standings(&store).len(), 1);
            assert_eq!(store.halves().expect("halves")[0].role(), role);
            let again = halves(&SECOND).into_iter().find(|half| half.role() == role);
            let again = store.add_half(again.expect("half"), record).expect("again");
            assert!(matches!(again, HalfAdded::WaitedBefore));

            let added = store.add_half(other, record).expect("other half");
            let HalfAdded::Completed(guardian) = added else {
                panic!("{added:?}");
            };
            assert_eq!(guardian.id(), SECOND.id());
            assert_eq!(standings(&store).len(), 2);
            assert!(store.halves().expect("halves").is_empty());
            assert_eq!((files(&store, "half"), files(&store, "guardian")), (0, 2));
            assert_eq!(said.into_inner(), [None, Some(SECOND.id().clone())]);
        }
    }

    #[test]
    fn a_half_is_removed_and_gone_when_its_whole_guardian_comes() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::new(dir.path(), None);
        store.add(&FIRST, GuardianStanding::Own).expect("add");
        let [signing, encryption] = halves(&SECOND);
        let sha256 = thumbprint(signing.certificate());
        store.add_half(signing, |_| Ok(())).expect("half");
        store.remove_half(&sha256).expect("remove");
        store.remove_half(&sha256).expect("twice");
        assert_eq!(files(&store, "half"), 0);
        store.add_half(encryption, |_| Ok(())).expect("half");
        assert_eq!(files(&store, "half"), 1);
        store.add(&SECOND, GuardianStanding::Imported).expect("add");
        assert_eq!(files(&store, "half"), 0);
        assert!(store.halves().expect("halves").is_empty());
    }

    #[test]
    fn halves_of_two_hosts_do_not_find_each_other_and_an_unrecorded_one_is_not_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::new(dir.path(), None);
        store.add(&FIRST, GuardianStanding::Own).expect("add");
        let ([signing, _], [_, encryption]) = (halves(&FIRST), halves(&SECOND));
        for half in [signing, encryption] {
            let added = store.add_half(half, |_| Ok(())).expect("half");
            assert!(matches!(added, HalfAdded::Waits), "{added:?}");
        }
        assert_eq!(standings(&store).len(), 1);
        let [third, _] = halves(&SECOND);
        let refused = store.add_half(third, |_| Err(KeyringError::Empty));
        assert!(refused.is_err());
        assert_eq!((files(&store, "half"), files(&store, "guardian")), (2, 1));
    }
}
