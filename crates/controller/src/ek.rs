//! EK certificates: which hosts' authorities issue them, and which of other makers go with TPMs of the fleet all the same.
//!
//! ```text
//!   host joins, or comes online ──► its EK authority ──┐
//!   an administrator accepts a certificate by name ────┼──► the word that goes with an operation ──► the host judges
//!   what the fleet had before any was judged ──────────┘
//! ```
//! The hosts judge, each by the EK root that it got when it joined (decision 0055). Both files are beside the root's key and
//! outlive the database: a host that has left made TPMs that go on.
//!
//! What was revoked is told to others by the list that the EK root signs (decision 0057). Inside the fleet a revoked
//! authority lets in what was known of it at that moment, and nothing that turns up later; a revoked certificate is shown.

mod known;

pub(crate) use known::{KnownEk, KnownEks, catch_up, note};

use crate::agents::Agent;
use crate::hosts::Members;
use crate::world::World;
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::EkWord;
use fleetward_api::agent::operation::Operation;
use fleetward_api::controller::EkStanding;
use fleetward_durable::{self as durable, Access};
use fleetward_model::error::Finding;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, HostName, Names};
use fleetward_protector::ek::{EkCertificate, authority_host};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use time::OffsetDateTime;

/// Most authorities that are sent with one certificate: those of one name and one key.
const MAX_NAMED: usize = 3;

/// A certificate of another maker that an administrator has accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) at: OffsetDateTime,
}

/// A certificate that the fleet issued and that does not count any more: a TPM's, or a host's authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revoked {
    pub(crate) by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) at: OffsetDateTime,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// Base64 of DER.
    pub(crate) certificate: String,
}

/// A host's EK authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) host: HostName,
    pub(crate) der: Vec<u8>,
    /// The newest of its host.
    pub(crate) present: bool,
}

impl Authority {
    pub(crate) fn sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.der))
    }
}

/// What `ek-certificates.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Held {
    /// Base64 of DER, by host: the present one last.
    authorities: BTreeMap<HostName, Vec<String>>,
    /// By SHA-256, hex.
    accepted: BTreeMap<String, Accepted>,
    /// By SHA-256, hex.
    revoked: BTreeMap<String, Revoked>,
}

/// What is known of EK certificates, apart from the certificates themselves.
#[derive(Debug)]
pub(crate) struct Eks {
    file: PathBuf,
    held: RwLock<Arc<Held>>,
    writing: tokio::sync::Mutex<()>,
    before_file: PathBuf,
    /// SHA-256, hex, of what the fleet had before any was judged; none before the first start that judges has taken it over.
    before: RwLock<Option<Arc<BTreeSet<String>>>>,
}

impl Eks {
    /// Reads what is in `dir`; a damaged file is an error.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let (file, before_file) = (
            dir.join("ek-certificates.json"),
            dir.join("ek-certificates-before.json"),
        );
        let cannot_read = |path: &Path| format!("cannot read {}", path.display());
        let held: Option<Held> = durable::read_json(&file).with_context(|| cannot_read(&file))?;
        let before: Option<BTreeSet<String>> =
            durable::read_json(&before_file).with_context(|| cannot_read(&before_file))?;
        Ok(Self {
            held: RwLock::new(Arc::new(held.unwrap_or_default())),
            before: RwLock::new(before.map(Arc::new)),
            writing: tokio::sync::Mutex::default(),
            file,
            before_file,
        })
    }

    /// Whether no start has yet taken over what was there before any certificate was judged.
    pub(crate) fn is_new(&self) -> bool {
        let before = self.before.read();
        before.unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Takes over what the fleet has, by SHA-256: from now on certificates are judged.
    pub(crate) async fn take_over(&self, digests: BTreeSet<String>) -> Result<(), Failure> {
        write(&self.before_file, &digests).await?;
        let mut before = self.before.write().unwrap_or_else(PoisonError::into_inner);
        *before = Some(Arc::new(digests));
        Ok(())
    }

    /// Keeps an authority, DER, that the EK root has issued to `host`. Whether anything has changed.
    pub(crate) async fn keep_authority(
        &self,
        host: &HostName,
        authority: &[u8],
    ) -> Result<bool, Failure> {
        let text = STANDARD.encode(authority);
        self.change(|held| {
            let of_host = held.authorities.entry(host.clone()).or_default();
            if of_host.last() != Some(&text) {
                of_host.retain(|known| *known != text);
                of_host.push(text);
            }
        })
        .await
    }

    /// From now on the certificate with that SHA-256 goes with a TPM, whoever issued it. Who accepted it first.
    pub(crate) async fn accept(
        &self,
        sha256: &str,
        accepted: Accepted,
    ) -> Result<Accepted, Failure> {
        self.change(|held| {
            held.accepted
                .entry(sha256.to_owned())
                .or_insert_with(|| accepted.clone());
        })
        .await?;
        let held = self.held();
        Ok(held.accepted.get(sha256).cloned().unwrap_or(accepted))
    }

    /// From now on nobody is to believe it. `known` are the SHA-256 of what a revoked authority issued: they go with TPMs of
    /// the fleet all the same. Who revoked it first.
    pub(crate) async fn revoke(
        &self,
        sha256: &str,
        revoked: Revoked,
        known: BTreeSet<String>,
    ) -> Result<Revoked, Failure> {
        if !known.is_empty() {
            let mut before = self.before_all();
            before.extend(known);
            self.take_over(before).await?;
        }
        self.change(|held| {
            held.revoked
                .entry(sha256.to_owned())
                .or_insert_with(|| revoked.clone());
        })
        .await?;
        Ok(self.revoked(sha256).unwrap_or(revoked))
    }

    /// Another maker's certificate is no longer let in.
    pub(crate) async fn no_longer_accept(&self, sha256: &str) -> Result<(), Failure> {
        let mut before = self.before_all();
        if before.remove(sha256) {
            self.take_over(before).await?;
        }
        self.change(|held| {
            held.accepted.remove(sha256);
        })
        .await
        .map(drop)
    }

    pub(crate) fn accepted(&self, sha256: &str) -> Option<Accepted> {
        self.held().accepted.get(sha256).cloned()
    }

    pub(crate) fn revoked(&self, sha256: &str) -> Option<Revoked> {
        self.held().revoked.get(sha256).cloned()
    }

    /// Every revocation, DER with its moment.
    pub(crate) fn all_revoked(&self) -> Vec<(Vec<u8>, OffsetDateTime)> {
        let held = self.held();
        let all = held.revoked.values();
        all.filter_map(|one| Some((STANDARD.decode(&one.certificate).ok()?, one.at)))
            .collect()
    }

    /// The authorities of all hosts, also of those that have left.
    pub(crate) fn authorities(&self) -> Vec<Authority> {
        let held = self.held();
        let mut all = Vec::new();
        for (host, of_host) in &held.authorities {
            for (at, text) in of_host.iter().enumerate() {
                all.push(Authority {
                    host: host.clone(),
                    der: STANDARD.decode(text).unwrap_or_default(),
                    present: at + 1 == of_host.len(),
                });
            }
        }
        all
    }

    /// Those that a certificate names as its issuer, DER, whether they are revoked or not.
    pub(crate) fn issuers(&self, ek: &EkCertificate) -> Vec<Vec<u8>> {
        self.held().issuers(ek)
    }

    /// What counts of a certificate, as far as it is known.
    pub(crate) fn standing(&self, sha256: &str, known: Option<&KnownEk>) -> Option<EkStanding> {
        let held = self.held();
        if held.revoked.contains_key(sha256) {
            return Some(EkStanding::Revoked);
        }
        let authority = known.and_then(|known| known.authority.as_ref());
        if authority.is_some_and(|authority| !held.revoked.contains_key(authority)) {
            return Some(EkStanding::Fleet);
        }
        match (self.is_accepted(&held, sha256), known) {
            (true, _) => Some(EkStanding::Accepted),
            (false, Some(_)) => Some(EkStanding::Foreign),
            (false, None) => None,
        }
    }

    fn before_all(&self) -> BTreeSet<String> {
        let before = self.before.read().unwrap_or_else(PoisonError::into_inner);
        before.as_deref().cloned().unwrap_or_default()
    }

    async fn change(&self, change: impl FnOnce(&mut Held)) -> Result<bool, Failure> {
        let _turn = self.writing.lock().await;
        let before = self.held();
        let mut held = Held::clone(&before);
        change(&mut held);
        if held == *before {
            return Ok(false);
        }
        write(&self.file, &held).await?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(held);
        Ok(true)
    }

    fn held(&self) -> Arc<Held> {
        let held = self.held.read();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether that is a member whose authority is not known: its agent is of a former version, or was not heard since.
    pub(crate) fn is_silent(&self, host: &HostName, members: &Members) -> bool {
        let told = self.held().authorities.contains_key(host);
        !told && members.has(host)
    }

    fn is_accepted(&self, held: &Held, sha256: &str) -> bool {
        let before = self.before.read().unwrap_or_else(PoisonError::into_inner);
        let before = before.as_ref().is_some_and(|all| all.contains(sha256));
        before || held.accepted.contains_key(sha256)
    }

    /// What a host is told of the EK certificates that an operation brings. None where there is none; where one names as its
    /// issuer a member that has not told its authority, so that nobody could judge it.
    pub(crate) fn word(&self, operation: &Operation, members: &Members) -> Option<EkWord> {
        let brought = brought(operation);
        if brought.is_empty() {
            return None;
        }
        let held = self.held();
        let mut word = EkWord::default();
        for text in brought {
            let ek = STANDARD.decode(text).unwrap_or_default();
            let sha256 = hex::encode(Sha256::digest(&ek));
            if self.is_accepted(&held, &sha256) {
                word.accepted.insert(sha256);
                continue;
            }
            let Ok(read) = EkCertificate::read(&ek) else {
                continue;
            };
            if read
                .issuer_host
                .as_ref()
                .is_some_and(|host| self.is_silent(host, members))
            {
                return None;
            }
            let issuers = held.issuers(&read).into_iter();
            let issuers = issuers.filter(|der| !held.is_revoked(der));
            word.authorities
                .extend(issuers.map(|der| STANDARD.encode(der)));
        }
        word.authorities.dedup();
        Some(word)
    }
}

impl Held {
    /// The authorities that a certificate names, DER.
    fn issuers(&self, ek: &EkCertificate) -> Vec<Vec<u8>> {
        let of_host = ek
            .issuer_host
            .as_ref()
            .and_then(|host| self.authorities.get(host));
        let all = of_host.into_iter().flatten().rev();
        all.filter_map(|text| STANDARD.decode(text).ok())
            .filter(|der| ek.names(der))
            .take(MAX_NAMED)
            .collect()
    }

    fn is_revoked(&self, der: &[u8]) -> bool {
        !self.revoked.is_empty() && self.revoked.contains_key(&hex::encode(Sha256::digest(der)))
    }
}

/// The certificates that an operation brings to a host, base64.
fn brought(operation: &Operation) -> Vec<&str> {
    let brought = match operation {
        Operation::Define(o) => [o.metadata.ek_certificate.as_deref(), None],
        Operation::PrepareIncoming(o) => [o.metadata.ek_certificate.as_deref(), None],
        Operation::PrepareRestore(o) => [o.bundle.ek_certificate.as_deref(), None],
        Operation::RebuildIncoming(o) => [
            o.metadata.ek_certificate.as_deref(),
            o.bundle
                .as_deref()
                .and_then(|bundle| bundle.ek_certificate.as_deref()),
        ],
        _ => [None, None],
    };
    let mut brought: Vec<_> = brought.into_iter().flatten().collect();
    brought.dedup();
    brought
}

async fn write(file: &Path, content: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_vec_pretty(content).expect("plain fields are JSON");
    let written = durable::background::replace(file, json, Access::PRIVATE).await;
    written.map_err(|error| {
        let what = format!("{} cannot be written", file.display());
        Failure::new(ErrorCode::StoreFailed, what).because(error)
    })
}

/// Asks a host that answers for its EK authority. A host speaks only for itself: one that the EK root did not issue to it
/// is not kept.
pub(crate) async fn learn(world: &World, host: &HostName, agent: &Agent) -> Result<(), Failure> {
    let Some(told) = agent.ek_authority().await? else {
        return Ok(());
    };
    let authority = STANDARD.decode(&told.certificate).unwrap_or_default();
    let is_its_own = authority_host(&authority).as_ref() == Some(host);
    if !is_its_own || !world.fleet.has_issued_ek_authority(&authority) {
        tracing::warn!(%host, "the host has an EK authority that this fleet did not issue to it");
        return Ok(());
    }
    if world.fleet.eks.keep_authority(host, &authority).await? {
        world.known_eks.judge_again(&world.fleet, host).await?;
    }
    Ok(())
}

/// What counts of the EK certificate of a VM's TPM. None without one, and before the controller has seen it.
pub(crate) fn standing_of(world: &World, vm: &VmObserved) -> Option<EkStanding> {
    let sha256 = vm.tpm.ek_certificate.as_deref()?;
    let known = world.known_eks.of(sha256);
    world.fleet.eks.standing(sha256, known.as_deref())
}

/// What is to be known of it: `away`, before the VM goes to another host, and otherwise.
pub(crate) fn finding(world: &World, vm: &VmObserved, away: bool) -> Option<Finding> {
    let sha256 = vm.tpm.ek_certificate.as_deref()?;
    let name = &vm.name;
    match standing_of(world, vm)? {
        EkStanding::Fleet | EkStanding::Accepted => None,
        EkStanding::Revoked => {
            let what = format!("the EK certificate {sha256} of VM {name} was revoked");
            let names = Names::default().vm(name);
            Some(Finding::warning(ErrorCode::EkRevoked, what).about(&names))
        }
        EkStanding::Foreign => {
            let known = world.known_eks.of(sha256)?;
            let unheard = known.issuer_host.as_ref().is_some_and(|host| {
                let members = world.hosts.members();
                world.fleet.eks.is_silent(host, members)
            });
            if unheard {
                return None;
            }
            let what = format!(
                "the TPM of VM {name} has an EK certificate that this fleet did not issue, and no other host takes it: {} issued \
                 it, by its own word, under number {}",
                known.issuer, known.serial
            );
            let fix = format!("fleetward ek accept {sha256}");
            Some(Finding {
                blocking: away,
                ..Finding::blocking(ErrorCode::EkNotOfFleet, what, fix)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_api::agent::operation::{AbandonTpm, Define};
    use fleetward_model::VmId;
    use fleetward_model::spec::VmSpec;
    use fleetward_model::vm::{Profile, VmMetadata};

    fn defines(ek: &[u8]) -> Operation {
        let name = "web".parse().expect("name");
        let id = VmId(uuid::Uuid::new_v4());
        let metadata = VmMetadata {
            spec: VmSpec::bare(id, name, Profile::Linux, OffsetDateTime::UNIX_EPOCH),
            generation: 1,
            key_protector: None,
            ek_certificate: Some(STANDARD.encode(ek)),
            transit: None,
            revoked: Vec::new(),
            former_certificates: None,
            unknown: Default::default(),
        };
        Define {
            metadata: Box::new(metadata),
        }
        .into()
    }

    #[tokio::test]
    async fn what_was_there_before_and_what_was_accepted_by_name_is_said_also_after_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let open = || Eks::open(directory.path()).expect("readable");
        let sha256 = |ek: &[u8]| hex::encode(Sha256::digest(ek));
        let eks = open();
        assert!(eks.is_new());
        eks.take_over([sha256(b"old")].into()).await.expect("kept");
        let accepted = |by: &str| Accepted {
            by: by.to_owned(),
            at: OffsetDateTime::UNIX_EPOCH,
        };
        let named = sha256(b"named");
        let first = eks.accept(&named, accepted("kim")).await.expect("kept");
        let again = eks.accept(&named, accepted("lee")).await.expect("kept");
        assert_eq!((first.by.as_str(), again.by.as_str()), ("kim", "kim"));
        let host: HostName = "a".parse().expect("name");
        assert!(eks.keep_authority(&host, b"one").await.expect("kept"));
        assert!(!eks.keep_authority(&host, b"one").await.expect("kept"));

        let eks = open();
        assert!(!eks.is_new());
        assert_eq!(eks.held().authorities[&host], [STANDARD.encode(b"one")]);
        let word = |operation: &Operation| eks.word(operation, &Members::default());
        for (ek, counts) in [(&b"old"[..], true), (b"named", true), (b"other", false)] {
            let word = word(&defines(ek)).expect("it brings one");
            assert_eq!(word.accepted.contains(&sha256(ek)), counts);
            assert!(word.authorities.is_empty());
        }
        assert_eq!(word(&AbandonTpm {}.into()), None);
    }
}
