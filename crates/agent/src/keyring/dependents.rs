//! What on this host opens with which guardians: read from the key protectors that lie here, without asking libvirt.
//!
//! `vms/<id>/protector.der` is the last good key protector of a VM of this host, `history/<id>/<time>/protector.der` that of
//! a TPM that was removed but kept.

use super::KeyringError;
use crate::durable;
use crate::failure::chain;
use crate::layout::Layout;
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

/// All key protectors of this host. One that cannot be read is an error: what it needs is not known.
pub fn dependents(layout: &Layout) -> Result<Vec<Dependent>, KeyringError> {
    let mut found = Vec::new();
    for vm in directories(&layout.vms())? {
        found.extend(read(&vm, name(&vm), None)?);
    }
    for vm in directories(&layout.history())? {
        for version in directories(&vm)? {
            found.extend(read(&version, name(&vm), Some(name(&version)))?);
        }
    }
    Ok(found)
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
    let protector = KeyProtector::from_der(&der).map_err(|error| KeyringError::Unreadable {
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
