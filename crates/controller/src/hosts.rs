//! The hosts that have joined: stored in the store, read from memory, mirrored in files.
//!
//! The mirror (`DATA/hosts/<name>.json`) is beside the authority's files, so a controller that has lost its database
//! still knows which hosts to ask. It is written after the store and removed before it: a host in the store is in the
//! fleet.

use anyhow::Context;
use fleetward_durable::{self as durable, Access};
use fleetward_model::certificate::CertificateFacts;
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::vm::{Revocation, VmSummary};
use fleetward_model::{ErrorCode, Failure, GroupName, GuardianId, HostName};
use fleetward_store::{Guard, Outcome, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use time::OffsetDateTime;
use tokio::sync::watch;

/// A member of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    pub(crate) name: HostName,
    pub(crate) group: GroupName,
    /// `address:port` of its agent.
    pub(crate) address: String,
    /// The guardian it came with, which the authority vouches for.
    pub(crate) guardian: GuardianFacts,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) joined: OffsetDateTime,
    #[serde(default)]
    pub(crate) drained: bool,
    /// What its guardian was before each rotation, and before it was installed anew: all of them.
    #[serde(default)]
    pub(crate) former: Vec<GuardianId>,
    /// Those of `former` that VMs may still depend on.
    #[serde(default)]
    pub(crate) unsettled: Vec<GuardianId>,
    /// Its certificate, as the host itself last showed it; none if it joined before that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<CertificateFacts>,
}

impl HostRecord {
    /// Whether the VM's key was taken away from this host by name, before a rotation or after.
    pub(crate) fn is_revoked_for(&self, vm: &VmSummary) -> bool {
        self.is_among(&vm.revoked)
    }

    /// The same of revocations that are not, or not yet, on a VM.
    pub(crate) fn is_among(&self, revoked: &[Revocation]) -> bool {
        let is = |guardian: &GuardianId| revoked.iter().any(|r| r.guardian == *guardian);
        is(&self.guardian.id) || self.former.iter().any(is)
    }
}

/// All hosts.
#[derive(Debug)]
pub(crate) struct Hosts {
    store: Arc<dyn Store>,
    mirror: PathBuf,
    known: Arc<Members>,
}

/// The hosts of the fleet at any moment. It holds no store open.
#[derive(Debug)]
pub(crate) struct Members {
    known: RwLock<Known>,
    changed: watch::Sender<u64>,
}

impl Default for Members {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            changed: watch::Sender::new(0),
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    hosts: BTreeMap<HostName, Arc<HostRecord>>,
    groups: BTreeMap<GroupName, BTreeSet<HostName>>,
}

impl Known {
    fn put(&mut self, record: HostRecord) {
        self.remove(&record.name);
        let group = self.groups.entry(record.group.clone()).or_default();
        group.insert(record.name.clone());
        self.hosts.insert(record.name.clone(), Arc::new(record));
    }

    fn remove(&mut self, host: &HostName) {
        if let Some(former) = self.hosts.remove(host)
            && let Some(group) = self.groups.get_mut(&former.group)
        {
            group.remove(host);
        }
    }
}

impl Members {
    pub(crate) fn has(&self, host: &HostName) -> bool {
        self.read().hosts.contains_key(host)
    }

    pub(crate) fn all(&self) -> Vec<Arc<HostRecord>> {
        self.read().hosts.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|n| *n += 1);
    }
}

pub(crate) fn key(host: &HostName) -> String {
    format!("host/{host}")
}

impl Hosts {
    /// Reads the hosts, and takes those back that only the mirror knows.
    pub(crate) async fn open(store: Arc<dyn Store>, data: &Path) -> anyhow::Result<Self> {
        let mirror = data.join("hosts");
        durable::background::make_directory(&mirror, 0o700)
            .await
            .with_context(|| format!("cannot make {}", mirror.display()))?;
        durable::background::sweep(&mirror)
            .await
            .with_context(|| format!("cannot tidy {}", mirror.display()))?;
        let (stored, _) = store.list_json::<HostRecord>("host/").await?;
        let mut known: BTreeMap<_, _> = stored
            .into_iter()
            .map(|(_, found)| (found.value.name.clone(), found.value))
            .collect();
        let hosts = Self {
            store,
            mirror,
            known: Arc::default(),
        };
        for record in hosts.mirrored().await? {
            if !known.contains_key(&record.name) {
                tracing::warn!(host = %record.name, "taking back a host that the database does not know");
                let _ = hosts
                    .store
                    .put_json(&key(&record.name), &record, Guard::Absent)
                    .await?;
                known.insert(record.name.clone(), record);
            }
        }
        for record in known.values() {
            hosts.mirror(record).await;
        }
        hosts
            .known
            .change(|all| known.into_values().for_each(|record| all.put(record)));
        Ok(hosts)
    }

    pub(crate) fn members(&self) -> &Arc<Members> {
        &self.known
    }

    /// Wakes when a host joins, leaves or changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.known.changed.subscribe()
    }

    pub(crate) fn count(&self) -> usize {
        self.known.read().hosts.len()
    }

    pub(crate) fn all(&self) -> Vec<Arc<HostRecord>> {
        self.known.all()
    }

    /// The hosts of a group.
    pub(crate) fn of_group(&self, group: &GroupName) -> Vec<Arc<HostRecord>> {
        let known = self.known.read();
        let names = known.groups.get(group).into_iter().flatten();
        names
            .filter_map(|name| known.hosts.get(name).cloned())
            .collect()
    }

    /// How many hosts a group has.
    pub(crate) fn count_of(&self, group: &GroupName) -> usize {
        self.known.read().groups.get(group).map_or(0, BTreeSet::len)
    }

    pub(crate) fn find(&self, host: &HostName) -> Option<Arc<HostRecord>> {
        self.known.read().hosts.get(host).cloned()
    }

    /// As [`find`](Self::find), `HOST_NOT_FOUND` else.
    pub(crate) fn of(&self, host: &HostName) -> Result<Arc<HostRecord>, Failure> {
        let missing = || Failure::new(ErrorCode::HostNotFound, format!("no host {host}"));
        self.find(host).ok_or_else(missing)
    }

    /// Adds a host, in one transaction with `txn`.
    pub(crate) async fn add(&self, record: HostRecord, txn: Txn) -> Result<Outcome, StoreError> {
        let txn = txn.if_absent(key(&record.name));
        self.replace(record, txn).await
    }

    /// Puts a host in the place of the one of its name that was there before, in one transaction with `txn`.
    pub(crate) async fn replace(
        &self,
        record: HostRecord,
        txn: Txn,
    ) -> Result<Outcome, StoreError> {
        let txn = txn.put_json(key(&record.name), &record)?;
        let outcome = self.store.commit(txn).await?;
        if outcome.committed().is_some() {
            self.mirror(&record).await;
            self.known.change(|known| known.put(record));
        }
        Ok(outcome)
    }

    pub(crate) async fn set_drained(
        &self,
        host: &HostName,
        drained: bool,
    ) -> Result<HostRecord, Failure> {
        self.change(host, |record| record.drained = drained).await
    }

    /// The host's guardian is `guardian` from now on; VMs may still depend on the former one.
    pub(crate) async fn set_guardian(
        &self,
        host: &HostName,
        guardian: GuardianFacts,
    ) -> Result<HostRecord, Failure> {
        self.change(host, |record| {
            if record.guardian.id != guardian.id {
                let former = std::mem::replace(&mut record.guardian, guardian).id;
                record.former.push(former.clone());
                record.unsettled.push(former);
            }
        })
        .await
    }

    /// Nothing depends on `guardians` any more.
    pub(crate) async fn settle(
        &self,
        host: &HostName,
        guardians: &[GuardianId],
    ) -> Result<HostRecord, Failure> {
        self.change(host, |record| {
            record.unsettled.retain(|g| !guardians.contains(g));
        })
        .await
    }

    /// What the host presents now. Written only when it is another.
    pub(crate) async fn set_certificate(
        &self,
        host: &HostName,
        certificate: &CertificateFacts,
    ) -> Result<HostRecord, Failure> {
        let known = self.of(host)?;
        if known.certificate.as_ref() == Some(certificate) {
            return Ok(HostRecord::clone(&known));
        }
        self.change(host, |record| {
            record.certificate = Some(certificate.clone())
        })
        .await
    }

    async fn change(
        &self,
        host: &HostName,
        change: impl FnOnce(&mut HostRecord),
    ) -> Result<HostRecord, Failure> {
        let mut record = HostRecord::clone(&*self.of(host)?);
        change(&mut record);
        let put = self.store.put_json(&key(host), &record, Guard::Any).await;
        let _ = put.map_err(|error| crate::store_failure(&error))?;
        self.mirror(&record).await;
        self.known.change(|known| known.put(record.clone()));
        Ok(record)
    }

    pub(crate) async fn remove(&self, host: &HostName) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(
                ErrorCode::StoreFailed,
                format!("host {host} cannot be removed"),
            )
            .because(error)
        };
        let removed = durable::background::remove(&self.file(host)).await;
        removed.map_err(failed)?;
        let txn = Txn::new()
            .delete(key(host))
            .delete(crate::tokens::key(host));
        let _ = self
            .store
            .commit(txn)
            .await
            .map_err(|error| crate::store_failure(&error))?;
        self.known.change(|known| known.remove(host));
        Ok(())
    }

    fn file(&self, host: &HostName) -> PathBuf {
        self.mirror.join(format!("{host}.json"))
    }

    /// Failing here costs nothing but the ability to rebuild; the next start tries again.
    async fn mirror(&self, record: &HostRecord) {
        let written = async {
            let json = serde_json::to_vec_pretty(record)?;
            durable::background::replace(&self.file(&record.name), json, Access::PRIVATE).await
        };
        if let Err(error) = written.await {
            tracing::error!(host = %record.name, %error, "cannot mirror the host's record");
        }
    }

    async fn mirrored(&self) -> anyhow::Result<Vec<HostRecord>> {
        let mut found = Vec::new();
        let mut files = tokio::fs::read_dir(&self.mirror).await?;
        while let Some(file) = files.next_entry().await? {
            let path = file.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let text = tokio::fs::read(&path).await?;
            match serde_json::from_slice(&text) {
                Ok(record) => found.push(record),
                Err(error) => tracing::warn!(path = %path.display(), %error, "not a host's record"),
            }
        }
        Ok(found)
    }
}
