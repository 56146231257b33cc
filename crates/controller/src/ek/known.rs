//! The EK certificates that the fleet has seen: by SHA-256, with what they say of themselves and which authority's signature
//! holds.
//!
//! ```text
//!   a copy of a TPM is kept ──► its EK certificate is read and judged once ──► the store, and here
//!   a start ──► what is here is compared with the copies that are kept; what is missing is read from them
//! ```
//! So the list outlives VMs, and a lost database costs no more than reading the copies again.

use crate::fleet::Fleet;
use crate::world::World;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::tpm::TpmBundle;
use fleetward_model::certificate::Serial;
use fleetward_model::{Failure, HostName, VmName};
use fleetward_protector::ek::EkCertificate;
use fleetward_store::{Guard, Store, StoreExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

const PREFIX: &str = "ek/";

/// As it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Base64 of DER.
    certificate: String,
    /// SHA-256, hex, of the fleet's authority that issued it; none where no signature holds.
    #[serde(default)]
    authority: Option<String>,
    vm: VmName,
    #[serde(with = "time::serde::rfc3339")]
    seen: OffsetDateTime,
}

/// What is in memory of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownEk {
    pub(crate) serial: Serial,
    pub(crate) issuer: String,
    pub(crate) issuer_host: Option<HostName>,
    /// SHA-256, hex, of the fleet's authority that issued it.
    pub(crate) authority: Option<String>,
    pub(crate) first_vm: VmName,
    pub(crate) first_seen: OffsetDateTime,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct KnownEks {
    store: Arc<dyn Store>,
    known: RwLock<BTreeMap<String, Arc<KnownEk>>>,
}

impl KnownEks {
    pub(crate) async fn open(store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let mut known = BTreeMap::new();
        for (key, found) in store.list_json::<Record>(PREFIX).await?.0 {
            let read = read(&found.value);
            if let (Some(sha256), Some(read)) = (key.strip_prefix(PREFIX), read) {
                known.insert(sha256.to_owned(), Arc::new(read));
            }
        }
        Ok(Self {
            store,
            known: RwLock::new(known),
        })
    }

    pub(crate) fn of(&self, sha256: &str) -> Option<Arc<KnownEk>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(sha256).cloned()
    }

    /// By SHA-256, in their order.
    pub(crate) fn all(&self) -> Vec<(String, Arc<KnownEk>)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .iter()
            .map(|(sha256, one)| (sha256.clone(), Arc::clone(one)))
            .collect()
    }

    /// The certificate itself, DER.
    pub(crate) async fn certificate(&self, sha256: &str) -> Result<Option<Vec<u8>>, Failure> {
        let found = self.record(sha256).await?;
        Ok(found.and_then(|record| STANDARD.decode(record.certificate).ok()))
    }

    /// Notes a certificate, DER, that came with the TPM of a VM. One that is no certificate is passed over.
    async fn note(&self, fleet: &Fleet, der: &[u8], vm: &VmName) -> Result<(), Failure> {
        let sha256 = hex::encode(Sha256::digest(der));
        if self.of(&sha256).is_some() {
            return Ok(());
        }
        self.keep(
            sha256,
            Record {
                certificate: STANDARD.encode(der),
                authority: fleet.ek_authority_of(der),
                vm: vm.clone(),
                seen: OffsetDateTime::now_utc(),
            },
        )
        .await
    }

    /// An authority of that host has become known: what it issued was taken for a stranger's.
    pub(super) async fn judge_again(&self, fleet: &Fleet, host: &HostName) -> Result<(), Failure> {
        for (sha256, one) in self.all() {
            if one.authority.is_some() || one.issuer_host.as_ref() != Some(host) {
                continue;
            }
            let Some(record) = self.record(&sha256).await? else {
                continue;
            };
            let der = STANDARD.decode(&record.certificate).unwrap_or_default();
            if let Some(authority) = fleet.ek_authority_of(&der) {
                let authority = Some(authority);
                self.keep(
                    sha256,
                    Record {
                        authority,
                        ..record
                    },
                )
                .await?;
            }
        }
        Ok(())
    }

    async fn record(&self, sha256: &str) -> Result<Option<Record>, Failure> {
        let found = self.store.get_json::<Record>(&key(sha256)).await;
        let found = found.map_err(|error| crate::store_failure(&error))?;
        Ok(found.map(|found| found.value))
    }

    async fn keep(&self, sha256: String, record: Record) -> Result<(), Failure> {
        let Some(read) = read(&record) else {
            return Ok(());
        };
        let put = self
            .store
            .put_json(&key(&sha256), &record, Guard::Any)
            .await;
        let _ = put.map_err(|error| crate::store_failure(&error))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(sha256, Arc::new(read));
        Ok(())
    }
}

fn key(sha256: &str) -> String {
    format!("{PREFIX}{sha256}")
}

fn read(record: &Record) -> Option<KnownEk> {
    let der = STANDARD.decode(&record.certificate).ok()?;
    let read = EkCertificate::read(&der).ok()?;
    Some(KnownEk {
        serial: read.facts.serial,
        issuer: read.issuer,
        issuer_host: read.issuer_host,
        authority: record.authority.clone(),
        first_vm: record.vm.clone(),
        first_seen: record.seen,
    })
}

/// Notes the certificate of a TPM of which a copy was kept. The copy is good without that, so a failure is only logged.
pub(crate) async fn note(world: &World, bundle: &TpmBundle) {
    let Some(der) = bundle.ek_certificate.as_deref() else {
        return;
    };
    let Ok(der) = STANDARD.decode(der) else {
        return;
    };
    let vm = &bundle.metadata.spec.name;
    if let Err(failure) = world.known_eks.note(&world.fleet, &der, vm).await {
        tracing::warn!(%vm, because = failure.because, "an EK certificate was not noted");
    }
}

/// Reads from the kept copies what is not here.
pub(crate) async fn catch_up(world: Arc<World>, stop: CancellationToken) {
    for version in world.escrow.everything() {
        let noted = |sha256: &String| world.known_eks.of(sha256).is_some();
        if version.ek_sha256.as_ref().is_none_or(noted) {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            bundle = world.escrow.bundle(version.vm, version.version) => match bundle {
                Ok(bundle) => note(&world, &bundle).await,
                // The keeper says so where it matters.
                Err(failure) => tracing::debug!(because = failure.because, "a copy was not read"),
            },
        }
    }
}
