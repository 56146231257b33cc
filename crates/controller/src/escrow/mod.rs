//! Escrow: the controller's copies of VMs' TPMs, as versions. `tpm history` lists them, `tpm restore` restores one,
//! and `vm recover` rebuilds a VM of a lost host from one.
//!
//! ```text
//!   bundle ── checked ──► unchanged? ── yes ──► the newest version, confirmed
//!                              │ no
//!                              ▼
//!          DATA/escrow/<vm>/<version>-<sha256>.zst ──► index in the store (escrow/<vm>/<version>) ──► memory
//! ```
//! [`blob`] manages the files, [`retention`] decides which versions stay, [`pull`] fetches bundles from hosts,
//! [`keeper`] follows what guests write. The file is on the disk before the index names it. A file without an index
//! entry (after a crash, or a lost database) is added to the index at the next start. Every read verifies the file's
//! SHA-256, and [`Escrow::verify`] reads the newest version of each VM every hour: a lost one is copied again if a
//! host still has the TPM.
//!
//! The controller cannot open a version: the states are encrypted, and the keys are in key protectors.

mod blob;
mod forgotten;
pub(crate) mod keeper;
pub(crate) mod pull;
pub(crate) mod retention;
mod versions;

pub(crate) use blob::parse;
use blob::{Blobs, Kept};
use fleetward_api::tpm::{TpmBundle, TpmVersion, VersionReason};
use fleetward_model::fit::TpmWriter;
use fleetward_model::vm::{VmObserved, VmSpec};
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName, Names, VmId};
use fleetward_protector::KeyProtector;
use fleetward_store::{Guard, Store, StoreExt, Txn};
use retention::Retention;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use time::OffsetDateTime;
use tokio::sync::{Mutex, MutexGuard};
use versions::Versions;

const INDEX: &str = "escrow/";
/// The highest number of a version that was lost, by VM: no number is used twice.
const LOST: &str = "escrow-lost/";

/// A version with where its content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Indexed {
    version: TpmVersion,
    /// Name of the file in the VM's directory; holds the SHA-256 of the file's bytes.
    file: String,
    /// SHA-256 of the key protector's base64.
    protector_sha256: String,
    /// SHA-256 of the VM's specification: a changed one makes a new version too.
    spec_sha256: String,
    /// As [`TpmBundle::variables_sha256`]; none as well from programs that did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variables_sha256: Option<String>,
}

/// What a host has of a VM that its newest version has not; the first of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacking {
    Everything,
    State,
    Protector,
    /// A recovery would define the VM as it is no more: with other disks, say.
    Specification,
}

#[derive(Debug, Default)]
struct Known {
    versions: Versions,
    /// As under [`LOST`].
    lost: HashMap<VmId, u64>,
    /// Why the newest try to take a copy failed, for `vm show`.
    missed: HashMap<VmId, Failure>,
    /// As under [`forgotten::FORGOTTEN`].
    forgotten: BTreeSet<VmId>,
}

/// All kept versions.
#[derive(Debug)]
pub(crate) struct Escrow {
    store: Arc<dyn Store>,
    blobs: Blobs,
    retention: Retention,
    known: RwLock<Known>,
    turns: Turns,
}

/// One change to the versions of a VM at a time, so that version numbers are used once. Few VMs share a turn, so that a batch
/// of some does not wait for the disk of others.
#[derive(Debug)]
struct Turns([Mutex<()>; 64]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Turns {
    async fn of(&self, vm: VmId) -> MutexGuard<'_, ()> {
        let turn = vm.0.as_u128() % self.0.len() as u128;
        self.0[turn as usize].lock().await
    }
}

fn key(vm: VmId, version: u64) -> String {
    format!("{INDEX}{vm}/{version:020}")
}

impl Escrow {
    /// Reads the index, and takes files into it that it does not name.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        data: &Path,
        retention: Retention,
    ) -> anyhow::Result<Self> {
        let blobs = Blobs::open(data.join("escrow")).await?;
        let mut known = Known::default();
        for (_, found) in store.list_json::<Indexed>(INDEX).await?.0 {
            known.versions.put(found.value);
        }
        for (key, found) in store.list_json::<u64>(LOST).await?.0 {
            if let Some(Ok(vm)) = key.strip_prefix(LOST).map(str::parse) {
                known.lost.insert(vm, found.value);
            }
        }
        known.forgotten = forgotten::read(&*store).await?;
        for (vm, file) in blobs.list().await? {
            if known.versions.of(vm).any(|indexed| indexed.file == file) {
                continue;
            }
            match blobs.read(vm, &file).await {
                Ok(Kept { version, bundle }) if version.vm == vm => {
                    let indexed = Indexed {
                        protector_sha256: sha256(bundle.key_protector.as_bytes()),
                        spec_sha256: spec_sha256(&bundle.metadata.spec),
                        variables_sha256: bundle.variables_sha256(),
                        version,
                        file,
                    };
                    let number = indexed.version.version;
                    // A number that another file has: this one was replaced, and was not removed any more.
                    if known.versions.get(vm, number).is_some() {
                        blobs.remove(vm, &indexed.file).await?;
                        continue;
                    }
                    let _ = store
                        .put_json(&key(vm, number), &indexed, Guard::Any)
                        .await?;
                    known.versions.put(indexed);
                }
                Ok(_) => tracing::warn!(%vm, file, "an escrow file lies in another VM's directory"),
                Err(failure) => {
                    tracing::warn!(%vm, file, because = failure.because, "an escrow file cannot be used")
                }
            }
        }
        Ok(Self {
            store,
            blobs,
            retention,
            known: RwLock::new(known),
            turns: Turns::default(),
        })
    }

    /// Keeps a bundle that came from the host of `writer`. One that has not changed gives the newest version again.
    ///
    /// # Errors
    /// When the bundle is not whole or not of the VM it says, and when it cannot be written.
    pub(crate) async fn keep(
        &self,
        bundle: &TpmBundle,
        writer: &TpmWriter,
        why: VersionReason,
        by: &str,
    ) -> Result<TpmVersion, Failure> {
        let kept = self.keep_checked(bundle, writer, why, by).await;
        let mut known = self.write();
        match &kept {
            Ok(_) => {
                known.missed.remove(&bundle.vm);
            }
            Err(failure) => {
                known.missed.insert(bundle.vm, failure.clone());
            }
        }
        kept
    }

    async fn keep_checked(
        &self,
        bundle: &TpmBundle,
        writer: &TpmWriter,
        why: VersionReason,
        by: &str,
    ) -> Result<TpmVersion, Failure> {
        let host = &writer.host;
        let refuse = |because: String| {
            let name = name_of(bundle);
            let what = format!("the copy of the TPM of VM {name} that host {host} sent");
            let failure = Failure::new(ErrorCode::EscrowCorrupt, what).because(because);
            failure.about(&Names::default().vm(name))
        };
        let parts = bundle
            .check()
            .map_err(|problem| refuse(problem.to_string()))?;
        let protector = KeyProtector::from_der(&parts.key_protector)
            .map_err(|error| refuse(crate::chain(&error)))?;
        let binding = &protector.inspect().binding;
        if binding.vm_id != bundle.vm {
            return Err(refuse(format!(
                "its key protector is of VM {}",
                binding.vm_id
            )));
        }
        let key_id = binding.key_id;
        let spec_sha256 = spec_sha256(&bundle.metadata.spec);

        let _turn = self.turns.of(bundle.vm).await;
        let newest = self.newest_indexed(bundle.vm);
        if let Some(newest) = &newest
            && newest.version.sha256 == bundle.sha256
            && newest.spec_sha256 == spec_sha256
        {
            return self.confirm(newest, bundle, writer, why, by).await;
        }
        let version = TpmVersion {
            vm: bundle.vm,
            vm_name: bundle.metadata.spec.name.clone(),
            version: self.last_number(bundle.vm, newest.as_ref()) + 1,
            made: OffsetDateTime::now_utc(),
            by: by.to_owned(),
            why,
            size_bytes: parts.state.len() as u64,
            key_id,
            ek_sha256: parts.ek_certificate.as_deref().map(sha256),
            host: host.clone(),
            sha256: bundle.sha256.clone(),
            state_sha256: sha256(&parts.state),
            swtpm: writer.swtpm,
            libtpms: writer.libtpms,
            certificates: parts
                .uefi_variables
                .as_deref()
                .map(|variables| fleetward_uefi::assess(variables).state),
        };
        let kept = Kept {
            version: version.clone(),
            bundle: bundle.clone(),
        };
        let indexed = Indexed {
            file: self.blobs.write(&kept).await?,
            version: version.clone(),
            protector_sha256: sha256(bundle.key_protector.as_bytes()),
            spec_sha256,
            variables_sha256: bundle.variables_sha256(),
        };
        self.index(&indexed).await?;
        self.remember(bundle.vm).await?;
        // What the new one makes superfluous, now that it is safe. That it stays does no harm.
        if let Err(failure) = self
            .apply_retention(bundle.vm, OffsetDateTime::now_utc())
            .await
        {
            tracing::warn!(vm = %bundle.vm, because = failure.because, "old versions stay");
        }
        Ok(version)
    }

    /// The newest version holds what there is. Where it lies now, and what it is now kept for, is noted: in its file too,
    /// or a lost database would bring the old word back.
    async fn confirm(
        &self,
        newest: &Indexed,
        bundle: &TpmBundle,
        writer: &TpmWriter,
        why: VersionReason,
        by: &str,
    ) -> Result<TpmVersion, Failure> {
        let mut confirmed = newest.clone();
        confirmed.variables_sha256 = bundle.variables_sha256();
        confirmed.version.host = writer.host.clone();
        // Not a byte of it was written since, so what is there now has not written it.
        if newest.version.libtpms.is_none() {
            (confirmed.version.swtpm, confirmed.version.libtpms) = (writer.swtpm, writer.libtpms);
        }
        if replaces(why, newest.version.why) {
            confirmed.version.why = why;
            confirmed.version.by = by.to_owned();
        }
        if confirmed == *newest {
            return Ok(confirmed.version);
        }
        let kept = Kept {
            version: confirmed.version.clone(),
            bundle: bundle.clone(),
        };
        confirmed.file = self.blobs.write(&kept).await?;
        self.index(&confirmed).await?;
        // A number that another file has: should the old one stay, the next start removes it.
        if confirmed.file != newest.file
            && let Err(failure) = self.blobs.remove(bundle.vm, &newest.file).await
        {
            tracing::warn!(vm = %bundle.vm, because = failure.because, "a replaced copy stays");
        }
        Ok(confirmed.version)
    }

    /// The versions of a VM, oldest first.
    pub(crate) fn list(&self, vm: VmId) -> Vec<TpmVersion> {
        let known = self.read();
        let versions = known.versions.of(vm);
        versions.map(|indexed| indexed.version.clone()).collect()
    }

    /// The states of a VM's TPM of which there are copies, as SHA-256 in hex, oldest first.
    pub(crate) fn states(&self, vm: VmId) -> Vec<String> {
        let versions = self.list(vm).into_iter();
        versions.map(|version| version.state_sha256).collect()
    }

    /// The newest version of a VM.
    pub(crate) fn newest(&self, vm: VmId) -> Option<TpmVersion> {
        self.newest_indexed(vm).map(|indexed| indexed.version)
    }

    /// The digest of the UEFI variables of the newest version.
    pub(crate) fn newest_variables(&self, vm: VmId) -> Option<String> {
        self.read().versions.newest(vm)?.variables_sha256.clone()
    }

    /// What brings the TPM of a VM back whose state or key protector is gone or is not good, where there is a copy.
    pub(crate) fn cure(&self, vm: VmId, name: &str, code: ErrorCode) -> Option<String> {
        let cured = matches!(
            code,
            ErrorCode::TpmStateMissing
                | ErrorCode::TpmStateDamaged
                | ErrorCode::TpmStateOutdated
                | ErrorCode::TpmStateUnreadable
                | ErrorCode::KeyProtectorUnreadable
        );
        let version = self.newest(vm).filter(|_| cured)?.version;
        Some(format!("fleetward tpm restore {name} --version {version}"))
    }

    /// What the VM's host has, as far as it has said so, and the newest version has not.
    pub(crate) fn lacks(&self, vm: &VmObserved) -> Option<Lacking> {
        let metadata = vm.metadata.as_ref().filter(|m| m.transit.is_none())?;
        let (state, protector) = (&vm.tpm.state_sha256, &vm.tpm.protector_sha256);
        let (true, Some(protector)) = (vm.tpm.enabled, protector) else {
            return None;
        };
        let Some(state) = state else {
            // Something lies there that its host cannot read as a state; asked for a copy, it says why.
            let damaged = vm.tpm.state_present && vm.state.stands_still();
            return damaged.then_some(Lacking::State);
        };
        let Some(newest) = self.newest_indexed(vm.id) else {
            return Some(Lacking::Everything);
        };
        if newest.version.state_sha256 != *state {
            Some(Lacking::State)
        } else if newest.protector_sha256 != *protector {
            Some(Lacking::Protector)
        } else if newest.spec_sha256 != spec_sha256(&metadata.spec) {
            Some(Lacking::Specification)
        } else {
            None
        }
    }

    /// VMs of that name that have versions, whether or not they exist at the moment.
    pub(crate) fn named(&self, name: &str) -> Vec<VmId> {
        let known = self.read();
        let named = known.versions.vms().iter().filter(|(_, versions)| {
            let newest = versions.last_key_value();
            newest.is_some_and(|(_, indexed)| indexed.version.vm_name.as_str() == name)
        });
        named.map(|(vm, _)| *vm).collect()
    }

    /// The newest versions of those VMs that were last seen on `host`, as far as they are `wanted`.
    pub(crate) fn last_from(
        &self,
        host: &HostName,
        wanted: impl Fn(&TpmVersion) -> bool,
    ) -> Vec<TpmVersion> {
        let known = self.read();
        let newest = known.versions.last_from(host);
        let newest = newest.map(|indexed| &indexed.version);
        newest.filter(|version| wanted(version)).cloned().collect()
    }

    /// Why the last try to take a copy failed, where it did.
    pub(crate) fn missed(&self, vm: VmId) -> Option<Failure> {
        self.read().missed.get(&vm).cloned()
    }

    /// Remembers that no copy could be taken.
    pub(crate) fn note_missed(&self, vm: VmId, failure: Failure) {
        self.write().missed.insert(vm, failure);
    }

    /// One version's content, checked.
    ///
    /// # Errors
    /// `TPM_VERSION_NOT_FOUND`; `ESCROW_CORRUPT` when the file is missing, unreadable or not what was written.
    pub(crate) async fn bundle(&self, vm: VmId, version: u64) -> Result<TpmBundle, Failure> {
        // Between looking up a file and reading it nobody replaces it.
        let _turn = self.turns.of(vm).await;
        let indexed = self.read().versions.get(vm, version).cloned();
        let indexed = indexed.ok_or_else(|| {
            let what = format!("there is no version {version} of the TPM of VM {vm}");
            Failure::new(ErrorCode::TpmVersionNotFound, what).about(&Names::default().vm(vm))
        })?;
        let refuse = |because: String| {
            let name = &indexed.version.vm_name;
            let what = format!("version {version} of the TPM of VM {name} cannot be used");
            let failure = Failure::new(ErrorCode::EscrowCorrupt, what).because(because);
            failure.about(&Names::default().vm(name))
        };
        let kept = self.blobs.read(vm, &indexed.file).await;
        let Kept { bundle, .. } = kept.map_err(|failure| refuse(failure.because))?;
        if bundle.vm != vm || bundle.sha256 != indexed.version.sha256 {
            return Err(refuse("its file holds another version".to_owned()));
        }
        bundle
            .check()
            .map_err(|problem| refuse(problem.to_string()))?;
        Ok(bundle)
    }

    /// The key protector for a VM whose host cannot be asked: the one with the digest `wanted` if it is for the key of
    /// `version`; otherwise the newest that was kept for that key, which has the most recent recipients.
    pub(crate) async fn protector(
        &self,
        version: &TpmVersion,
        wanted: Option<&str>,
    ) -> Result<String, Failure> {
        let number = {
            let known = self.read();
            let versions = known.versions.of(version.vm);
            let same_key: Vec<_> = versions
                .filter(|indexed| indexed.version.key_id == version.key_id)
                .collect();
            let current = same_key
                .iter()
                .rfind(|indexed| Some(indexed.protector_sha256.as_str()) == wanted);
            let kept = current.or(same_key.last());
            kept.map_or(version.version, |indexed| indexed.version.version)
        };
        let bundle = match self.bundle(version.vm, number).await {
            // Another version than the one that is brought back may be damaged; that one has a key protector too.
            Err(_) if number != version.version => self.bundle(version.vm, version.version).await?,
            bundle => bundle?,
        };
        Ok(bundle.key_protector)
    }

    /// The owners of all key protectors that are kept, for the first start that knows owners. What cannot be read owns nothing.
    pub(crate) async fn owners(&self) -> BTreeSet<GuardianId> {
        let versions: Vec<_> = {
            let known = self.read();
            let all = known.versions.vms().iter();
            all.flat_map(|(vm, versions)| versions.keys().map(|version| (*vm, *version)))
                .collect()
        };
        let mut owners = BTreeSet::new();
        for (vm, version) in versions {
            let Ok(bundle) = self.bundle(vm, version).await else {
                continue;
            };
            if let Ok(protector) = KeyProtector::from_base64(&bundle.key_protector) {
                owners.insert(protector.inspect().owner.id().clone());
            }
        }
        owners
    }

    /// Every version of every VM.
    pub(crate) fn everything(&self) -> Vec<TpmVersion> {
        let known = self.read();
        let all = known.versions.vms().values().flat_map(BTreeMap::values);
        all.map(|indexed| indexed.version.clone()).collect()
    }

    /// SHA-256, hex, of the EK certificates that are kept, for the first start that judges them.
    pub(crate) async fn ek_certificates(&self) -> BTreeSet<String> {
        let mut digests = BTreeSet::new();
        for version in self.everything() {
            if version.ek_sha256.is_some() {
                digests.extend(version.ek_sha256);
                continue;
            }
            // Kept before it was noted, or without one.
            let bundle = self.bundle(version.vm, version.version).await;
            let parts = bundle.ok().and_then(|bundle| bundle.check().ok());
            let ek = parts.and_then(|parts| parts.ek_certificate);
            digests.extend(ek.as_deref().map(sha256));
        }
        digests
    }

    /// Removes what the retention lets go, of all VMs. Returns how many versions went.
    pub(crate) async fn prune(&self, now: OffsetDateTime) -> Result<usize, Failure> {
        let vms: Vec<_> = self.read().versions.vms().keys().copied().collect();
        let mut gone = 0;
        for vm in vms {
            let _turn = self.turns.of(vm).await;
            gone += self.apply_retention(vm, now).await?;
        }
        Ok(gone)
    }

    /// How many VMs it has copies of.
    pub(crate) fn vms(&self) -> usize {
        self.read().versions.vms().len()
    }

    /// Looks whether the newest version of each of some VMs is what was written: of at most `most`, those that follow `after`
    /// in the order of ids. One that is not is no version any more, so that the copy is taken again from the VM's host; its
    /// file is set aside. Returns the VMs that lost one, and after which to go on, if there are more.
    pub(crate) async fn verify(
        &self,
        after: Option<VmId>,
        most: usize,
    ) -> (Vec<VmId>, Option<VmId>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let vms: Vec<_> = {
            let known = self.read();
            let following = known.versions.vms().range((from, Bound::Unbounded));
            following.map(|(vm, _)| *vm).take(most).collect()
        };
        let last = vms.last().copied().filter(|_| vms.len() == most);
        let mut hurt = Vec::new();
        for vm in vms {
            let _turn = self.turns.of(vm).await;
            while let Some(newest) = self.newest_indexed(vm) {
                let Err(unread) = self.blobs.look_at(vm, &newest.file).await else {
                    break;
                };
                let TpmVersion {
                    vm_name, version, ..
                } = &newest.version;
                if !unread.lost {
                    tracing::warn!(%vm, name = %vm_name, version, because = unread.because, "a copy of a TPM cannot be read now");
                    break;
                }
                tracing::error!(%vm, name = %vm_name, version, because = unread.because,
                    "a copy of a TPM is lost; it is taken again from the VM's host");
                if let Err(failure) = self.lose(&newest, &unread.because).await {
                    tracing::warn!(%vm, because = failure.because, "a lost copy still counts as kept");
                    break;
                }
                hurt.push(vm);
            }
        }
        hurt.dedup();
        (hurt, last)
    }

    async fn lose(&self, indexed: &Indexed, because: &str) -> Result<(), Failure> {
        let TpmVersion { vm, version, .. } = indexed.version;
        let highest = self.last_number(vm, Some(indexed));
        let txn = Txn::new()
            .delete(key(vm, version))
            .put_json(format!("{LOST}{vm}"), &highest);
        let txn = txn.map_err(|error| crate::store_failure(&error))?;
        let gone = self.store.commit(txn).await;
        let _ = gone.map_err(|error| crate::store_failure(&error))?;
        if let Err(error) = self.blobs.set_aside(vm, &indexed.file).await {
            tracing::warn!(%vm, %error, "a damaged copy stays where it is");
        }
        let name = &indexed.version.vm_name;
        let what = format!("version {version} of the TPM of VM {name} is lost");
        let mut known = self.write();
        known.lost.insert(vm, highest);
        known.versions.remove(vm, version);
        let failure = Failure::new(ErrorCode::EscrowCorrupt, what).because(because);
        let failure = failure.about(&Names::default().vm(name));
        known.missed.insert(vm, failure);
        Ok(())
    }

    /// The highest number that was ever used.
    fn last_number(&self, vm: VmId, newest: Option<&Indexed>) -> u64 {
        let lost = self.read().lost.get(&vm).copied().unwrap_or(0);
        newest.map_or(0, |n| n.version.version).max(lost)
    }

    /// Removes every version of a VM that was deleted for good.
    pub(crate) async fn forget(&self, vm: VmId) -> Result<(), Failure> {
        let _turn = self.turns.of(vm).await;
        let all: Vec<_> = self.read().versions.of(vm).cloned().collect();
        for indexed in all {
            self.drop_version(&indexed).await?;
        }
        self.blobs.remove_vm(vm).await?;
        let txn = Txn::new()
            .delete(format!("{LOST}{vm}"))
            .put(forgotten::key(vm), "");
        let gone = self.store.commit(txn);
        let _ = gone.await.map_err(|error| crate::store_failure(&error))?;
        let mut known = self.write();
        known.forgotten.insert(vm);
        known.versions.remove_all(vm);
        known.lost.remove(&vm);
        known.missed.remove(&vm);
        Ok(())
    }

    async fn apply_retention(&self, vm: VmId, now: OffsetDateTime) -> Result<usize, Failure> {
        let all: Vec<_> = self.read().versions.of(vm).cloned().collect();
        let versions: Vec<_> = all.iter().map(|indexed| &indexed.version).collect();
        let superfluous = retention::superfluous(self.retention, &versions, now);
        for indexed in all
            .iter()
            .filter(|i| superfluous.contains(&i.version.version))
        {
            self.drop_version(indexed).await?;
        }
        Ok(superfluous.len())
    }

    /// Index first: a file without an entry comes back at the next start, an entry without a file is a broken promise.
    async fn drop_version(&self, indexed: &Indexed) -> Result<(), Failure> {
        let TpmVersion { vm, version, .. } = indexed.version;
        let gone = self.store.commit(Txn::new().delete(key(vm, version))).await;
        let _ = gone.map_err(|error| crate::store_failure(&error))?;
        self.write().versions.remove(vm, version);
        self.blobs.remove(vm, &indexed.file).await
    }

    async fn index(&self, indexed: &Indexed) -> Result<(), Failure> {
        let TpmVersion { vm, version, .. } = indexed.version;
        let key = key(vm, version);
        let put = self.store.put_json(&key, indexed, Guard::Any).await;
        let _ = put.map_err(|error| crate::store_failure(&error))?;
        self.write().versions.put(indexed.clone());
        Ok(())
    }

    fn newest_indexed(&self, vm: VmId) -> Option<Indexed> {
        self.read().versions.newest(vm).cloned()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the reason `why` replaces the reason `known` of a version with the same content. What happened to the VM or
/// its TPM takes precedence over the last change of the bytes. A VM that stops is neither deleted nor without its TPM.
const fn replaces(why: VersionReason, known: VersionReason) -> bool {
    use VersionReason as Why;
    match why {
        Why::Written => matches!(known, Why::Disabled | Why::Deleted),
        Why::Disabled | Why::Deleted | Why::Migrated | Why::Recovered | Why::Restored => true,
        Why::Created
        | Why::Enabled
        | Why::Stopped
        | Why::Rolled
        | Why::Unlocked
        | Why::Granted
        | Why::Revoked
        | Why::Found
        | Why::Redefined => matches!(known, Why::Written | Why::Disabled | Why::Deleted),
    }
}

fn name_of(bundle: &TpmBundle) -> &str {
    bundle.metadata.spec.name.as_str()
}

fn spec_sha256(spec: &VmSpec) -> String {
    sha256(&serde_json::to_vec(spec).expect("a specification is JSON"))
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
