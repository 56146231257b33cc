//! The files of one VM besides libvirt's definition: `data_dir/vms/<id>/`.
//!
//! | file | is there |
//! |---|---|
//! | `protector.der` | the last good key protector, from before the TPM state is installed until the VM leaves |
//! | `protector-before.der` | the one that `protector.der` last took the place of on the VM, for an undo |
//! | `ek.der` | the EK certificate of a TPM that was made here |
//! | `tpm-staged/` | a TPM that is made but not installed yet |
//! | `tpm-next/` | a TPM that is proved and about to take the place of the one there is: a roll, a restore |
//! | `transit.json` | while this copy is half of a migration: incoming, or departed |
//! | `outgoing.json` | on the source, from the moment the VM's memory or files have left completely |
//! | `copying.json` | on a VM that is being copied, while its guest may stand still for it |
//! | `copied.json`, `copied.permall`, `copied-*.der` | what a clone or template begins with, until it is defined |
//! | `crashes.json` | of a VM that is started again when its guest crashes: when it did |
//! | `lockout.json` | what the last state of its TPM that was tried counts of wrong guesses |
//! | `tpm-states.json` | by their digests, the state of its TPM that was seen last and those from before |
//! | `committed.json` | after an arrival was committed: by which job |
//!
//! `transit.json` decides which copy is the VM: a live migration carries the source's metadata along, so the metadata
//! of an arriving domain cannot decide that.

use crate::ek::JudgedEk;
use crate::failure::{Result, Trouble};
use crate::keyring::OwnedProtector;
use crate::layout::Layout;
use fleetward_api::agent::{IncomingDisk, Peer};
use fleetward_durable::{self as durable, Access};
use fleetward_model::vm::{TpmLockout, Transit, TransitSide, VmMetadata};
use fleetward_model::{JobId, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// What a TPM counts of wrong guesses, for one state of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockoutRecord {
    /// SHA-256, hex.
    pub state_sha256: String,
    pub lockout: TpmLockout,
}

/// The states of a TPM that this host has seen, as SHA-256 in hex. swtpm encrypts each of them with numbers of its own, so
/// no two are alike, and one from before is known again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TpmStates {
    newest: String,
    /// Oldest first.
    former: Vec<String>,
}

impl TpmStates {
    /// So many are remembered.
    const MANY: usize = 256;

    pub(crate) fn is_former(&self, digest: &str) -> bool {
        self.former.iter().any(|former| former == digest)
    }

    pub(crate) fn knows(&self, digest: &str) -> bool {
        self.newest == digest || self.is_former(digest)
    }

    /// All of them, oldest first.
    pub(crate) fn all(&self) -> Vec<String> {
        let newest = (!self.newest.is_empty()).then_some(&self.newest);
        self.former.iter().chain(newest).cloned().collect()
    }

    /// Another host has seen these before the VM came here; oldest first. What is no digest is left out.
    pub(crate) fn learn(&mut self, former: &[String]) {
        let is_digest =
            |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut before: Vec<String> = Vec::new();
        for digest in former.iter().filter(|digest| is_digest(digest)) {
            if !self.knows(digest) && !before.contains(digest) {
                before.push(digest.clone());
            }
        }
        before.append(&mut self.former);
        self.former = before;
        self.forget_the_oldest();
    }

    fn forget_the_oldest(&mut self) {
        let many = self.former.len().saturating_sub(Self::MANY);
        self.former.drain(..many);
    }

    /// From now on this one is the newest, whatever it was before.
    pub(crate) fn renew(&mut self, digest: &str) {
        let before = std::mem::replace(&mut self.newest, digest.to_owned());
        if !before.is_empty() && before != digest {
            self.former.push(before);
        }
        self.former.retain(|former| former != digest);
        self.forget_the_oldest();
    }
}

/// This copy's place in a migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "side", rename_all = "snake_case")]
pub(crate) enum TransitRecord {
    Incoming(Box<Incoming>),
    Departed { job: JobId },
}

/// An arrival.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Incoming {
    pub job: JobId,
    pub metadata: VmMetadata,
    pub disks: Vec<IncomingDisk>,
    pub live: bool,
    pub from: Peer,
    /// Volumes that did not exist before: the only ones an abandoned arrival removes.
    pub made: Vec<PathBuf>,
    /// Files that have arrived whole, with their SHA-256 (stopped VMs).
    #[serde(default)]
    pub received: BTreeMap<String, String>,
    /// Everything is here; said by the source.
    #[serde(default)]
    pub complete: bool,
    /// The definition that a stopped VM had at its source, without metadata; sent together with `complete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
}

/// A copy being made of a VM: lies with the VM that is copied while its guest may stand still.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Copying {
    pub job: JobId,
    pub to: VmId,
    /// Whether its guest's agent is asked to hold back what writes to the disks: it is told to go on afterwards.
    #[serde(default)]
    pub freezes: bool,
    /// Of a linked copy: what the VM's disks are to write to from then on.
    #[serde(default)]
    pub overlays: Vec<Overlay>,
}

/// A new volume over one of a VM's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overlay {
    /// The disk.
    pub target: String,
    /// File name, in the pool of the disk.
    pub volume: String,
}

/// What was copied, whole: lies with the VM (or template) it was copied for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CopiedRecord {
    pub job: JobId,
    pub from: VmId,
    pub to: fleetward_model::vm::VmSpec,
    pub paused_ms: Option<u64>,
    pub variables: bool,
    #[serde(default)]
    pub linked: bool,
    #[serde(default)]
    pub frozen: bool,
}

/// When a guest crashed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CrashRecord {
    /// Within the last hour, oldest first; seconds since 1970.
    #[serde(default)]
    pub at: Vec<i64>,
    /// When it is started again.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub again: Option<OffsetDateTime>,
    /// Why it is not, any more.
    #[serde(default)]
    pub given_up: Option<String>,
}

/// Encrypted TPM state of another VM, with what opens and certifies it.
pub(crate) struct CopiedTpm {
    pub state: Vec<u8>,
    pub protector: Vec<u8>,
    pub ek_certificate: JudgedEk,
}

/// Its files, in the order of the fields.
const COPIED_TPM: [&str; 3] = ["copied.permall", "copied-protector.der", "copied-ek.der"];

/// A departure whose memory or files have left completely.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    pub job: JobId,
    pub total_ms: u64,
    pub downtime_ms: Option<u64>,
    pub transferred: u64,
}

impl TransitRecord {
    /// As it shows in the VM's metadata.
    pub(crate) fn transit(&self) -> Transit {
        match self {
            Self::Incoming(incoming) => Transit {
                job: incoming.job,
                side: TransitSide::Incoming,
            },
            Self::Departed { job } => Transit {
                job: *job,
                side: TransitSide::Departed,
            },
        }
    }
}

/// The files of one VM.
#[derive(Debug, Clone)]
pub(crate) struct VmRecord {
    vm: VmId,
    directory: PathBuf,
}

impl VmRecord {
    pub(crate) fn of(layout: &Layout, vm: VmId) -> Self {
        Self {
            vm,
            directory: layout.vm(vm),
        }
    }

    pub(crate) fn protector(&self) -> Result<Option<Vec<u8>>> {
        let path = self.directory.join("protector.der");
        durable::read(&path).map_err(|e| self.trouble(&path, &e))
    }

    /// Before it is on the VM.
    pub(crate) fn keep_protector(&self, protector: &OwnedProtector) -> Result<()> {
        self.write("protector.der", protector.der())
    }

    /// The one that the last change of recipients replaced.
    pub(crate) fn protector_before(&self) -> Result<Option<Vec<u8>>> {
        let path = self.directory.join("protector-before.der");
        durable::read(&path).map_err(|e| self.trouble(&path, &e))
    }

    pub(crate) fn keep_protector_before(&self, der: &[u8]) -> Result<()> {
        self.write("protector-before.der", der)
    }

    pub(crate) fn ek_certificate(&self) -> Result<Option<JudgedEk>> {
        let path = self.directory.join("ek.der");
        let der = durable::read(&path).map_err(|e| self.trouble(&path, &e))?;
        Ok(der.map(JudgedEk::kept))
    }

    pub(crate) fn keep_ek_certificate(&self, ek: &JudgedEk) -> Result<()> {
        self.write("ek.der", ek)
    }

    /// What is known of the lockout of a TPM, by its state.
    pub(crate) fn lockout(&self) -> Result<Option<LockoutRecord>> {
        self.read_json("lockout.json")
    }

    /// Of a VM that has files here; of others nothing is kept.
    pub(crate) fn keep_lockout(&self, lockout: &LockoutRecord) -> Result<()> {
        match self.directory.join("protector.der").exists() {
            true => self.write_json("lockout.json", lockout),
            false => Ok(()),
        }
    }

    /// The states of its TPM that were seen here.
    pub(crate) fn tpm_states(&self) -> Result<TpmStates> {
        Ok(self.read_json("tpm-states.json")?.unwrap_or_default())
    }

    /// Of a VM that has files here; of others nothing is kept.
    pub(crate) fn keep_tpm_states(&self, states: &TpmStates) -> Result<()> {
        match self.directory.join("protector.der").exists() {
            true => self.write_json("tpm-states.json", states),
            false => Ok(()),
        }
    }

    /// Forgets key protector, EK certificate, and what is known of states and lockout.
    pub(crate) fn forget_tpm(&self) -> Result<()> {
        for name in [
            "protector.der",
            "protector-before.der",
            "ek.der",
            "lockout.json",
            "tpm-states.json",
        ] {
            let path = self.directory.join(name);
            durable::remove(&path).map_err(|e| self.trouble(&path, &e))?;
        }
        Ok(())
    }

    /// Where a made TPM waits to be installed.
    pub(crate) fn staged_tpm(&self) -> PathBuf {
        self.directory.join("tpm-staged")
    }

    pub(crate) fn transit(&self) -> Result<Option<TransitRecord>> {
        self.read_json("transit.json")
    }

    pub(crate) fn keep_transit(&self, transit: &TransitRecord) -> Result<()> {
        self.write_json("transit.json", transit)
    }

    pub(crate) fn forget_transit(&self) -> Result<()> {
        self.remove("transit.json")
    }

    /// The arrival under way, if this copy is one.
    pub(crate) fn incoming(&self) -> Result<Option<Incoming>> {
        Ok(match self.transit()? {
            Some(TransitRecord::Incoming(incoming)) => Some(*incoming),
            Some(TransitRecord::Departed { .. }) | None => None,
        })
    }

    /// The last arrival that was committed here.
    pub(crate) fn committed(&self) -> Result<Option<JobId>> {
        self.read_json("committed.json")
    }

    pub(crate) fn keep_committed(&self, job: JobId) -> Result<()> {
        self.write_json("committed.json", &job)
    }

    pub(crate) fn outgoing(&self) -> Result<Option<Outgoing>> {
        self.read_json("outgoing.json")
    }

    pub(crate) fn keep_outgoing(&self, outgoing: &Outgoing) -> Result<()> {
        self.write_json("outgoing.json", outgoing)
    }

    pub(crate) fn forget_outgoing(&self) -> Result<()> {
        self.remove("outgoing.json")
    }

    pub(crate) fn crashes(&self) -> Result<Option<CrashRecord>> {
        self.read_json("crashes.json")
    }

    pub(crate) fn keep_crashes(&self, crashes: &CrashRecord) -> Result<()> {
        self.write_json("crashes.json", crashes)
    }

    pub(crate) fn forget_crashes(&self) -> Result<()> {
        self.remove("crashes.json")
    }

    /// Whether this copy is the VM, and no half of a migration or of a copy: what the host may start by itself.
    pub(crate) fn is_whole(&self) -> Result<bool> {
        let leaves = self.outgoing()?.is_some();
        Ok(self.transit()?.is_none() && !leaves && self.copying()?.is_none())
    }

    pub(crate) fn copying(&self) -> Result<Option<Copying>> {
        self.read_json("copying.json")
    }

    pub(crate) fn keep_copying(&self, copying: &Copying) -> Result<()> {
        self.write_json("copying.json", copying)
    }

    pub(crate) fn forget_copying(&self) -> Result<()> {
        self.remove("copying.json")
    }

    pub(crate) fn copied(&self) -> Result<Option<CopiedRecord>> {
        self.read_json("copied.json")
    }

    pub(crate) fn keep_copied(&self, copied: &CopiedRecord) -> Result<()> {
        self.write_json("copied.json", copied)
    }

    pub(crate) fn copied_tpm(&self) -> Result<Option<CopiedTpm>> {
        let mut parts = Vec::new();
        for name in COPIED_TPM {
            let path = self.directory.join(name);
            match durable::read(&path).map_err(|e| self.trouble(&path, &e))? {
                Some(part) => parts.push(part),
                None => return Ok(None),
            }
        }
        let [state, protector, ek_certificate]: [Vec<u8>; 3] =
            parts.try_into().expect("one for each name");
        Ok(Some(CopiedTpm {
            state,
            protector,
            ek_certificate: JudgedEk::kept(ek_certificate),
        }))
    }

    pub(crate) fn keep_copied_tpm(&self, tpm: &CopiedTpm) -> Result<()> {
        let parts: [&[u8]; 3] = [&tpm.state, &tpm.protector, &tpm.ek_certificate];
        COPIED_TPM
            .into_iter()
            .zip(parts)
            .try_for_each(|(name, part)| self.write(name, part))
    }

    /// Forgets what the VM began with.
    pub(crate) fn forget_copied(&self) -> Result<()> {
        COPIED_TPM
            .into_iter()
            .chain(["copied.json"])
            .try_for_each(|name| self.remove(name))
    }

    /// Forgets migrations that are over.
    pub(crate) fn forget_migrations(&self) -> Result<()> {
        self.forget_outgoing()?;
        self.remove("committed.json")
    }

    /// Forgets the VM altogether, its place in a migration last.
    pub(crate) fn forget(&self) -> Result<()> {
        self.forget_tpm()?;
        self.forget_migrations()?;
        self.forget_transit()?;
        durable::remove_tree(&self.directory).map_err(|e| self.trouble(&self.directory, &e))
    }

    /// Removes the directory if nothing is in it any more.
    pub(crate) fn tidy(&self) {
        // A directory that is not empty, or not there, is as it should be.
        let _ = durable::remove_if_empty(&self.directory);
    }

    /// Makes the VM's directory.
    pub(crate) fn prepare(&self) -> Result<()> {
        durable::make_directory(&self.directory, 0o700)
            .map_err(|e| self.trouble(&self.directory, &e))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        self.prepare()?;
        let path = self.directory.join(name);
        durable::replace(&path, content, Access::PRIVATE).map_err(|e| self.trouble(&path, &e))
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.prepare()?;
        let path = self.directory.join(name);
        durable::replace_json(&path, value, Access::PRIVATE).map_err(|e| self.trouble(&path, &e))
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.directory.join(name);
        durable::read_json(&path).map_err(|e| self.trouble(&path, &e))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        durable::remove(&path).map_err(|e| self.trouble(&path, &e))
    }

    fn trouble(&self, path: &Path, error: &io::Error) -> Trouble {
        Trouble::file(format!("the record of VM {}", self.vm), path, error)
    }
}
