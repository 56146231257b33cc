//! A record of the audit log, and the hash chain over records: every use of a key, in order, on one host.
//!
//! ```text
//!   genesis ◄── record 1 ◄── record 2 ◄── … each carries the hash of the one before
//! ```
//! `hash` is SHA-256 over the record's canonical JSON without `hash` itself: fields in the order of the type, no white
//! space. A record [`AuditAction::CloseLog`] follows an earlier one than the one before it: it is the one place where a
//! chain goes on over a gap, says by whom and why, and is never passed over in silence. A changed, removed or exchanged record breaks the chain at that place. A cut at the end does not; it is
//! found by comparison with a later `seq` that another machine stores (the controller keeps copies).

use crate::{GuardianId, HostName, JobId, VmId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

/// `previous` of the first record of a host.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What was done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[derive(strum::IntoStaticStr, strum::Display)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum AuditAction {
    /// A guardian's keys were made.
    MakeGuardian,
    /// A host became a member of a fleet and pinned its authority.
    Join,
    /// A TPM and its key were made and sealed.
    MakeTpm,
    /// A VM's TPM got a new key: its state was encrypted anew, and the new key was sealed.
    Roll,
    /// A key protector was opened, so that the VM can run here.
    Open,
    /// A TPM key was wrapped for one more guardian.
    Grant,
    /// A guardian's wrapping of a TPM key was taken away.
    Revoke,
    /// A host that is not the owner of a key protector signed it and so became the owner.
    TakeOver,
    /// A guardian's successor became a host's own guardian.
    RotateGuardian,
    /// A former guardian, which nothing depends on any more, was retired.
    RetireGuardian,
    /// An earlier key protector was put back.
    PutProtector,
    /// A VM's TPM state was removed or moved into the history.
    RemoveTpm,
    /// A guardian's private keys left the host in PFX files.
    ExportPfx,
    /// A guardian's private keys were brought to the host in PFX files.
    ImportPfx,
    /// A guardian's private keys were removed from the host.
    RemoveGuardian,
    /// A damaged log was closed by an administrator of the host, and a new one begun: the record follows the last good one,
    /// and what came between is not in the chain. Each is shown by whoever verifies.
    CloseLog,
    /// Controller: a join token was made.
    MakeToken,
    /// Controller: the fleet's authority vouched for a host's guardian.
    Endorse,
    /// Controller: an administrator got a certificate.
    CertifyAdmin,
    /// Controller: a host got another certificate.
    CertifyHost,
    /// Controller: an administrator's certificates were revoked.
    RevokeAdmin,
    /// Controller: an API token was made for a program.
    MakeApiToken,
    /// Controller: an API token was revoked.
    RevokeApiToken,
    /// Controller: a person got a name, a role and a password.
    AddUser,
    /// Controller: a person got another role or password.
    SetUser,
    /// Controller: a person may not log in any more.
    RemoveUser,
    /// Controller: a person logged in.
    LogIn,
    /// Controller: a person logged out, of all sessions.
    LogOut,
    /// Controller: somebody added a target for alerts. The record does not say the path of an address, nor a secret.
    AddAlertTarget,
    /// Controller: somebody had a test sent to a target for alerts.
    TestAlertTarget,
    /// Controller: somebody removed a target for alerts.
    RemoveAlertTarget,
    /// Controller: a host was taken out of the fleet at once, and its certificates and keys were revoked.
    ExpelHost,
    /// Controller: a host was taken out of the fleet.
    RemoveHost,
    /// Controller: somebody said which of several hosts that claim a VM is right.
    SettleVm,
    /// Controller: somebody removed all that was kept of the TPM of a VM that is not there any more.
    ForgetTpm,
    /// Controller: somebody accepted the EK certificate of a TPM that the fleet did not make.
    AcceptEk,
    /// Controller: somebody revoked an EK certificate or an EK authority, or no longer accepts one of another maker.
    RevokeEk,
    /// Controller: somebody started a job.
    SubmitJob,
    /// Controller: somebody cancelled a job.
    CancelJob,
    /// A job ended half-way, or what a host owed of it was dropped, because an administrator said so.
    GiveUpJob,
    /// Controller: the inventory was read anew from the hosts.
    Rebuild,
    /// Controller: somebody opened the screen of a VM.
    OpenScreen,
    /// Controller: a screen that somebody opened was closed, or ended.
    CloseScreen,
    /// Controller: somebody opened the serial console of a VM.
    OpenConsole,
    /// Controller: a console that somebody opened was closed, or ended.
    CloseConsole,
    /// Controller: somebody took a picture of the screen of a VM.
    TakeScreenshot,
    /// Controller: somebody typed into a VM. The record does not say what.
    TypeKeys,
}

/// What happened, before it has a place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    pub time: OffsetDateTime,
    pub host: HostName,
    /// Who asked: `controller`, `local:0`, `agent`.
    pub actor: String,
    pub action: AuditAction,
    pub vm: Option<VmId>,
    /// The guardian whose key was used, or for whom a key was wrapped.
    pub guardian: Option<GuardianId>,
    /// Why it was allowed.
    pub reason: String,
    pub job: Option<JobId>,
}

/// One line of a host's audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Counts from 1, without gaps.
    pub seq: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    pub host: HostName,
    pub actor: String,
    pub action: AuditAction,
    #[serde(default)]
    pub vm: Option<VmId>,
    #[serde(default)]
    pub guardian: Option<GuardianId>,
    pub reason: String,
    #[serde(default)]
    pub job: Option<JobId>,
    /// Hash of the record before, [`GENESIS`] for the first.
    pub previous: String,
    /// SHA-256 of all of the above, 64 hex digits.
    pub hash: String,
}

impl AuditRecord {
    /// Gives an event its place after `last`.
    pub fn chain(last: Option<&Self>, event: AuditEvent) -> Self {
        let mut record = Self {
            seq: last.map_or(1, |last| last.seq + 1),
            time: event.time,
            host: event.host,
            actor: event.actor,
            action: event.action,
            vm: event.vm,
            guardian: event.guardian,
            reason: event.reason,
            job: event.job,
            previous: last.map_or_else(|| GENESIS.to_owned(), |last| last.hash.clone()),
            hash: String::new(),
        };
        record.hash = record.expected_hash();
        record
    }

    /// What `hash` must be for the other fields.
    pub fn expected_hash(&self) -> String {
        let unhashed = Self {
            hash: String::new(),
            ..self.clone()
        };
        let json = serde_json::to_vec(&unhashed).expect("plain fields are JSON");
        hex::encode(Sha256::digest(json))
    }
}

/// Where and why a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditBreak {
    #[error("record {seq} of host {host} was changed: its hash does not fit")]
    Changed { host: HostName, seq: u64 },
    #[error(
        "after record {after} of host {host} comes record {found}: records are missing or out of order"
    )]
    Missing {
        host: HostName,
        after: u64,
        found: u64,
    },
    #[error(
        "record {seq} of host {host} does not follow from the one before it: that one was changed or replaced"
    )]
    Unlinked { host: HostName, seq: u64 },
    #[error("record {seq} is of host {found} in the chain of host {host}")]
    OtherHost {
        host: HostName,
        found: HostName,
        seq: u64,
    },
}

impl AuditBreak {
    /// The record that was changed, or is missing, or does not belong there.
    pub const fn seq(&self) -> u64 {
        match self {
            Self::Changed { seq, .. } | Self::OtherHost { seq, .. } => *seq,
            Self::Missing { after, .. } => *after + 1,
            // the one before it was replaced
            Self::Unlinked { seq, .. } => seq.saturating_sub(1),
        }
    }
}

/// Checks the records of one host, oldest first, naming the first that does not fit.
///
/// `before` is the last record known to be good, none when `records` start with the host's first.
pub fn verify<'a>(
    before: Option<&'a AuditRecord>,
    records: impl IntoIterator<Item = &'a AuditRecord>,
) -> Result<(), AuditBreak> {
    let mut last = before;
    for record in records {
        let host = &last.unwrap_or(record).host;
        if record.host != *host {
            return Err(AuditBreak::OtherHost {
                host: host.clone(),
                found: record.host.clone(),
                seq: record.seq,
            });
        }
        let after = last.map_or(0, |last| last.seq);
        if record.action == AuditAction::CloseLog && record.seq > after {
            if record.hash != record.expected_hash() {
                return Err(AuditBreak::Changed {
                    host: host.clone(),
                    seq: record.seq,
                });
            }
            last = Some(record);
            continue;
        }
        if record.seq != after + 1 {
            return Err(AuditBreak::Missing {
                host: host.clone(),
                after,
                found: record.seq,
            });
        }
        if record.hash != record.expected_hash() {
            return Err(AuditBreak::Changed {
                host: host.clone(),
                seq: record.seq,
            });
        }
        let previous = last.map_or(GENESIS, |last| last.hash.as_str());
        if record.previous != previous {
            return Err(AuditBreak::Unlinked {
                host: host.clone(),
                seq: record.seq,
            });
        }
        last = Some(record);
    }
    Ok(())
}

/// What of a chain was closed over damage, for people: one sentence a closing.
pub fn closings<'a>(records: impl IntoIterator<Item = &'a AuditRecord>) -> Vec<String> {
    let closed = records.into_iter();
    let closed = closed.filter(|record| record.action == AuditAction::CloseLog);
    closed
        .map(|record| {
            let at = record.time.truncate_to_second().format(&Rfc3339);
            format!(
                "the log of host {} was damaged, and closed by {} at {}: {}",
                record.host,
                record.actor,
                at.unwrap_or_else(|_| record.time.to_string()),
                record.reason
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostName {
        "host-a".parse().expect("name")
    }

    fn chain(length: u64) -> Vec<AuditRecord> {
        let mut records: Vec<AuditRecord> = Vec::new();
        for n in 0..length {
            let event = AuditEvent {
                time: OffsetDateTime::UNIX_EPOCH,
                host: host(),
                actor: "controller".into(),
                action: AuditAction::Open,
                vm: None,
                guardian: None,
                reason: format!("start {n}"),
                job: None,
            };
            records.push(AuditRecord::chain(records.last(), event));
        }
        records
    }

    #[test]
    fn an_untouched_chain_holds_whole_and_in_parts() {
        let records = chain(5);
        assert_eq!(verify(None, &records), Ok(()));
        assert_eq!(verify(Some(&records[1]), &records[2..]), Ok(()));
    }

    #[test]
    fn a_changed_record_is_named() {
        let mut records = chain(5);
        records[2].reason = "nothing to see".into();
        assert_eq!(
            verify(None, &records),
            Err(AuditBreak::Changed {
                host: host(),
                seq: 3
            })
        );
        // Mending its hash moves the break to the next one.
        records[2].hash = records[2].expected_hash();
        assert_eq!(
            verify(None, &records),
            Err(AuditBreak::Unlinked {
                host: host(),
                seq: 4
            })
        );
    }

    #[test]
    fn removed_and_exchanged_records_are_named() {
        let mut removed = chain(5);
        removed.remove(1);
        assert_eq!(
            verify(None, &removed),
            Err(AuditBreak::Missing {
                host: host(),
                after: 1,
                found: 3
            })
        );
        let mut exchanged = chain(5);
        exchanged.swap(2, 3);
        assert!(matches!(
            verify(None, &exchanged),
            Err(AuditBreak::Missing {
                after: 2,
                found: 4,
                ..
            })
        ));
    }

    #[test]
    fn a_chain_goes_on_over_a_gap_only_where_it_was_closed_and_says_so() {
        let records = chain(5);
        let mut event = AuditEvent {
            time: OffsetDateTime::UNIX_EPOCH,
            host: host(),
            actor: "local:0".into(),
            action: AuditAction::CloseLog,
            vm: None,
            guardian: None,
            reason: "the disk".into(),
            job: None,
        };
        // Record 5 was damaged on the host; a copy of it may be elsewhere.
        let mut closing = AuditRecord::chain(Some(&records[3]), event.clone());
        closing.seq = 6;
        closing.hash = closing.expected_hash();
        event.action = AuditAction::Open;
        let next = AuditRecord::chain(Some(&closing), event);
        for copied in [&records[..4], &records[..]] {
            let all: Vec<_> = copied.iter().chain([&closing, &next]).collect();
            assert_eq!(verify(None, all.iter().copied()), Ok(()));
            assert_eq!(closings(all).len(), 1);
        }
        assert_eq!(closings(&records), Vec::<String>::new());
        closing.actor = "nobody".into();
        let all = records[..4].iter().chain([&closing]);
        assert!(verify(None, all).is_err(), "its hash is checked, too");
    }

    #[test]
    fn a_record_survives_its_json() {
        let record = chain(1).remove(0);
        let json = serde_json::to_string(&record).expect("json");
        let read: AuditRecord = serde_json::from_str(&json).expect("json");
        assert_eq!(read.expected_hash(), record.hash);
    }
}
