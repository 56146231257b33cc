//! Finds which VMs and kept TPMs of this host each guardian opens, from the key protectors on this host, without
//! libvirt.
//!
//! `vms/<id>/protector.der` is the last good key protector of a VM of this host, `history/<id>/<time>/protector.der` that of
//! a TPM that was removed but kept.

use super::KeyringError;
use crate::failure::chain;
use crate::layout::Layout;
use fleetward_durable as durable;
use fleetward_model::GuardianId;
use fleetward_protector::KeyProtector;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One key protector that lies here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependent {
    /// The VM's id.
    pub vm: String,
    /// When its TPM was removed; none for the TPM it has.
    pub removed: Option<String>,
    /// Whose guardians open it.
    pub guardians: Vec<GuardianId>,
}

impl Dependent {
    /// Whether of the guardians that `held` knows, only `id` opens it.
    pub fn opens_only_with(&self, id: &GuardianId, held: impl Fn(&GuardianId) -> bool) -> bool {
        self.guardians.contains(id)
            && !self
                .guardians
                .iter()
                .any(|other| other != id && held(other))
    }
}

impl fmt::Display for Dependent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.removed {
            None => write!(f, "VM {}", self.vm),
            Some(removed) => write!(f, "the TPM that VM {} had until {removed}", self.vm),
        }
    }
}

/// What a look at all key protectors of this host has brought.
#[derive(Debug, Default)]
pub struct Survey {
    pub readable: Vec<Dependent>,
    /// What could not be read: which guardians it needs is not known.
    pub unreadable: Vec<KeyringError>,
}

impl Survey {
    /// All of them; an error if one cannot be read.
    pub fn complete(self) -> Result<Vec<Dependent>, KeyringError> {
        match self.unreadable.into_iter().next() {
            None => Ok(self.readable),
            Some(error) => Err(error),
        }
    }

    fn take(&mut self, read: Result<Option<Dependent>, KeyringError>) {
        match read {
            Ok(found) => self.readable.extend(found),
            Err(error) => self.unreadable.push(error),
        }
    }

    fn directories(&mut self, path: &Path) -> Vec<PathBuf> {
        directories(path).unwrap_or_else(|error| {
            self.unreadable.push(error);
            Vec::new()
        })
    }
}

/// All key protectors of this host. One that cannot be read is an error: what it needs is not known.
pub fn dependents(layout: &Layout) -> Result<Vec<Dependent>, KeyringError> {
    survey(layout).complete()
}

/// The key protectors of this host that can be read, and what cannot.
pub fn survey(layout: &Layout) -> Survey {
    let mut survey = Survey::default();
    for vm in survey.directories(&layout.vms()) {
        survey.take(read(&vm, name(&vm), None));
    }
    for vm in survey.directories(&layout.history()) {
        for version in survey.directories(&vm) {
            survey.take(read(&version, name(&vm), Some(name(&version))));
        }
    }
    survey
}

fn read(
    directory: &Path,
    vm: String,
    removed: Option<String>,
) -> Result<Option<Dependent>, KeyringError> {
    let path = directory.join("protector.der");
    let der = durable::read(&path).map_err(|source| KeyringError::File {
        path: path.clone(),
        source,
    })?;
    let Some(der) = der else { return Ok(None) };
    let protector = KeyProtector::from_der(&der).map_err(|error| KeyringError::Protector {
        path,
        because: chain(&error),
    })?;
    Ok(Some(Dependent {
        vm,
        removed,
        guardians: protector.inspect().guardian_ids(),
    }))
}

fn directories(path: &Path) -> Result<Vec<PathBuf>, KeyringError> {
    let failed = |source| KeyringError::File {
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?.path();
        if entry.is_dir() {
            found.push(entry);
        }
    }
    found.sort();
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn one_unreadable_protector_hides_no_other_and_whoever_must_know_all_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let layout = Layout::new(&Config {
            data_dir: dir.path().to_owned(),
            ..Config::default()
        });
        let guardian = fleetward_protector_open::LocalGuardian::generate(
            &"a".parse().expect("name"),
            time::OffsetDateTime::now_utc(),
        )
        .expect("guardian");
        let vm = fleetward_model::VmId(uuid::Uuid::new_v4());
        let sealed = fleetward_protector_open::seal(&fleetward_protector_open::SealRequest {
            vm_id: vm,
            key_id: fleetward_model::KeyId(uuid::Uuid::new_v4()),
            tpm_key: &fleetward_protector_open::TpmKey::generate().expect("key"),
            owner: &guardian,
            recipients: &[],
            now: time::OffsetDateTime::now_utc(),
            expired: &fleetward_protector::ExpiredAllowed::none(),
        })
        .expect("sealed");
        let damaged = layout.vms().join("0-damaged");
        let versions = layout.history().join("1-vm");
        for (directory, content) in [
            (layout.vm(vm), sealed.der()),
            (damaged.clone(), &b"no protector"[..]),
            (versions.join("then"), sealed.der()),
            (versions.join("later"), b""),
        ] {
            std::fs::create_dir_all(&directory).expect("directory");
            std::fs::write(directory.join("protector.der"), content).expect("write");
        }
        let found = survey(&layout);
        let vms: Vec<&str> = found.readable.iter().map(|d| d.vm.as_str()).collect();
        assert_eq!(vms, [vm.to_string().as_str(), "1-vm"]);
        assert_eq!(found.unreadable.len(), 2);
        let said = chain(&found.unreadable[0]);
        assert!(
            said.contains("0-damaged") && said.contains("key protector"),
            "{said}"
        );
        assert!(dependents(&layout).is_err());

        std::fs::remove_dir_all(&damaged).expect("remove");
        std::fs::remove_dir_all(versions.join("later")).expect("remove");
        assert_eq!(dependents(&layout).expect("all").len(), 2);
    }
}
