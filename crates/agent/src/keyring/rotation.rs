//! Replaces the host's own guardian with a new pair.
//!
//! ```text
//!   own ── make-successor ──► own + successor ── adopt ──► successor is own, former own is retired ── retire ──► on record
//!                                   │
//!                                discard ──► own
//! ```
//! The successor is beside the store (`successor.guardian`, `successor.json`) and is not used until it is adopted,
//! because the fleet's authority must endorse it first. A retired guardian still opens. It is never removed
//! automatically: TPMs in a history may open with no other guardian.

use super::store::Store;
use super::{Dependent, Keyring, KeyringError, Purpose};
use crate::failure::{Result, Trouble, chain};
use fleetward_durable::{self as durable, Access};
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::{GuardianFacts, GuardianStanding};
use fleetward_model::{ErrorCode, Failure, GuardianId, JobId, Names};
use fleetward_protector_open::LocalGuardian;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

const KEYS: &str = "successor.guardian";
const NOTE: &str = "successor.json";

/// Which guardian lies in `successor.guardian`, and for which job it was made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    job: JobId,
    id: GuardianId,
}

impl Keyring {
    /// Makes a successor for a job, or gives the one that was made for it. Takes a second when it makes one.
    pub(crate) fn make_successor(&self, job: JobId, purpose: &Purpose) -> Result<GuardianFacts> {
        let made = match self.store.successor().map_err(troubled)? {
            Some((note, guardian)) if note.job == job => guardian,
            _ => {
                let guardian = LocalGuardian::generate(&self.host, OffsetDateTime::now_utc())
                    .map_err(|error| troubled(KeyringError::Make(chain(&error))))?;
                self.record(AuditAction::MakeGuardian, None, guardian.id(), purpose)?;
                self.store
                    .keep_successor(job, &guardian)
                    .map_err(troubled)?;
                guardian
            }
        };
        Ok(made.public().facts(self.host.clone(), false, true))
    }

    /// Forgets the successor that was made for a job. What is the host's own stays.
    pub(crate) fn discard_successor(&self, job: JobId) -> Result<GuardianFacts> {
        if let Some((note, _)) = self.store.successor().map_err(troubled)?
            && note.job == job
        {
            self.store.forget_successor().map_err(troubled)?;
        }
        Ok(self.facts().swap_remove(0))
    }

    /// Makes the successor the host's own; the former own is retired and opens as before.
    pub(crate) fn adopt(&self, id: &GuardianId, purpose: &Purpose) -> Result<GuardianFacts> {
        if self.loaded().own().id() != id {
            let successor = self.store.successor().map_err(troubled)?;
            let Some((_, guardian)) = successor.filter(|(note, _)| note.id == *id) else {
                return Err(Trouble::refuse(
                    ErrorCode::GuardianNotFound,
                    format!("guardian {}", id.short()),
                    format!("host {} has no successor of that id", self.host),
                ));
            };
            self.record(AuditAction::RotateGuardian, None, id, purpose)?;
            self.store.replace_own(&guardian).map_err(troubled)?;
        }
        self.store.forget_successor().map_err(troubled)?;
        Ok(self.facts().swap_remove(0))
    }

    /// Records that nothing of this host depends on a former own guardian any more, or says what does.
    pub(crate) fn retire(
        &self,
        id: &GuardianId,
        dependents: &[Dependent],
        purpose: &Purpose,
    ) -> Result<GuardianFacts> {
        let mut facts = self.facts();
        let found = facts.iter().position(|g| g.id == *id);
        let Some(found) = found else {
            // Removed by an administrator since: it is as retired as can be.
            return Ok(facts.swap_remove(0));
        };
        let refuse = |because: String| -> Trouble {
            Failure::new(ErrorCode::GuardianInUse, format!("guardian {}", id.short()))
                .because(because)
                .about(&Names::default().host(&self.host))
                .into()
        };
        if facts[found].standing == GuardianStanding::Own {
            return Err(refuse(format!("it is host {}'s own", self.host)));
        }
        let depending: Vec<String> = dependents
            .iter()
            .filter(|d| d.removed.is_none() && d.guardians.contains(id))
            .map(ToString::to_string)
            .collect();
        if !depending.is_empty() {
            return Err(refuse(format!("wrapped for it: {}", depending.join(", "))));
        }
        self.record(AuditAction::RetireGuardian, None, id, purpose)?;
        Ok(facts.swap_remove(found))
    }
}

impl Store {
    fn successor(&self) -> Result<Option<(Note, LocalGuardian)>, KeyringError> {
        let path = self.path(NOTE);
        let note: Option<Note> =
            durable::read_json(&path).map_err(|source| KeyringError::File { path, source })?;
        let Some(note) = note else { return Ok(None) };
        let guardian = self.read_file(&self.path(KEYS))?;
        // Another one was about to be made when the agent was stopped.
        Ok((*guardian.id() == note.id).then_some((note, guardian)))
    }

    /// The keys first: a note without them would be an error for ever, keys without a note are overwritten.
    fn keep_successor(&self, job: JobId, guardian: &LocalGuardian) -> Result<(), KeyringError> {
        let _turn = self.lock()?;
        self.write_keys(KEYS, guardian)?;
        let path = self.path(NOTE);
        let note = Note {
            job,
            id: guardian.id().clone(),
        };
        durable::replace_json(&path, &note, Access::PRIVATE)
            .map_err(|source| KeyringError::File { path, source })
    }

    fn forget_successor(&self) -> Result<(), KeyringError> {
        let _turn = self.lock()?;
        for path in [self.path(NOTE), self.path(KEYS)] {
            durable::wipe(&path).map_err(|source| KeyringError::File { path, source })?;
        }
        Ok(())
    }
}

fn troubled(error: KeyringError) -> Trouble {
    Trouble::refuse(ErrorCode::Internal, "the guardian store", chain(&error))
}
