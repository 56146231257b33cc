//! Debts: what a job could not do because the party it concerns was away, written down to be done when it is back.
//!
//! ```text
//!   a step's undo, or a step past the point of no return
//!     ── its debtor is away for longer than the patience ──► owed (the debt is written, the job goes on to its end)
//!     ── the debtor is back: Engine::settle ──► paid (the debt is deleted)
//!                                         └──► failed (waiting does not help: the reason is on the debt)
//! ```
//! A debt carries everything that is needed to carry it out: the job's record may be pruned before the debtor is back. It
//! keeps the generation of the attempt that found nobody, so that whoever fences by generations refuses a debt that
//! something newer has made void.
//!
//! Refuses to know: who debtors are. They are text; the steps name them.

use crate::ledger::Ledger;
use fleetward_model::{Failure, JobId};
use fleetward_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use time::OffsetDateTime;
use tokio::sync::watch;

/// What becomes of a step, or of an undo, when the party it must ask stays away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// The job waits: nothing else would be safe.
    Wait,
    /// The party owes it, and the job goes on without.
    Owe(Debtor),
    /// It is left undone for good; the text says what stays different, for people.
    Forgo(String),
}

/// Who may owe a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debtor {
    /// Who: one segment of a store key.
    pub key: String,
    /// What it is about, as the job's kind names resources: `vm/<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What the debtor has of the subject is only waiting to be removed, and counts for nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removes: bool,
    /// What is owed is what the job was for: it ends as failed, not as done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub half_way: bool,
    /// Resources that stay taken until the debt is paid, as the job's locks name them: a name that its owner gets back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keeps: Vec<String>,
}

impl Debtor {
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            subject: None,
            removes: false,
            half_way: false,
            keeps: Vec::new(),
        }
    }

    /// The debt is about `subject`, which stays what it is meanwhile.
    #[must_use]
    pub fn about(self, subject: impl Into<String>) -> Self {
        Self {
            subject: Some(subject.into()),
            ..self
        }
    }

    /// Paying the debt removes what the debtor has of `subject`.
    #[must_use]
    pub fn removing(self, subject: impl Into<String>) -> Self {
        Self {
            removes: true,
            ..self.about(subject)
        }
    }

    /// Without this step the job has not done what it was for.
    #[must_use]
    pub fn half_way(self) -> Self {
        Self {
            half_way: true,
            ..self
        }
    }

    /// Nobody else gets `resource` before the debt is paid.
    #[must_use]
    pub fn keeping(mut self, resource: impl Into<String>) -> Self {
        self.keeps.push(resource.into());
        self
    }
}

/// Which half of a step is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owed {
    /// The step itself, past the point of no return.
    Run,
    Undo,
}

/// One step that is owed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Debt {
    pub debtor: Debtor,
    pub job: JobId,
    pub kind: String,
    pub step: String,
    pub owed: Owed,
    pub input: Value,
    /// What the job's steps had handed on.
    pub outputs: BTreeMap<String, Value>,
    pub created_by: String,
    /// Of the attempt that found nobody.
    pub generation: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Times it was tried to pay it.
    #[serde(default)]
    pub attempts: u32,
    /// Why paying it failed although the debtor answered. Waiting does not cure it.
    #[serde(default)]
    pub failure: Option<Failure>,
}

impl Debt {
    fn id(&self) -> (String, u64, JobId, String) {
        let (debtor, step) = (self.debtor.key.clone(), self.step.clone());
        (debtor, self.generation, self.job, step)
    }
}

/// How far paying came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Nothing is owed any more.
    All,
    /// What is left failed for reasons that waiting does not cure.
    Failed,
    /// The debtor is away again.
    Away,
}

/// All debts, in memory: what the store holds, never less.
///
/// Shared by the engine, which keeps it, and by whoever must know at any moment whether something is owed.
#[derive(Debug)]
pub struct DebtBook {
    /// By debtor, then in the order in which they were made.
    debts: Mutex<BTreeMap<(String, u64, JobId, String), Debt>>,
    changed: watch::Sender<u64>,
}

impl Default for DebtBook {
    fn default() -> Self {
        Self {
            debts: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl DebtBook {
    /// What `debtor` owes, in the order in which it must be paid.
    pub fn of(&self, debtor: &str) -> Vec<Debt> {
        let debts = self.lock();
        let mine = debts.values().filter(|debt| debt.debtor.key == debtor);
        mine.cloned().collect()
    }

    pub fn all(&self) -> Vec<Debt> {
        self.lock().values().cloned().collect()
    }

    /// What is owed of one job.
    pub fn of_job(&self, job: JobId) -> Vec<Debt> {
        let debts = self.lock();
        debts.values().filter(|d| d.job == job).cloned().collect()
    }

    /// Whether `debtor` owes anything that it has not failed to pay.
    pub fn holds_up(&self, debtor: &str) -> bool {
        let debts = self.lock();
        debts
            .values()
            .any(|debt| debt.debtor.key == debtor && debt.failure.is_none())
    }

    /// Whether `debtor` owes anything about `subject`, failed or not.
    pub fn concerns(&self, debtor: &str, subject: &str) -> bool {
        let debts = self.lock();
        debts.values().any(|debt| {
            debt.debtor.key == debtor && debt.debtor.subject.as_deref() == Some(subject)
        })
    }

    /// Whether all that `debtor` has of `subject` waits to be removed.
    pub fn removes(&self, debtor: &str, subject: &str) -> bool {
        let debts = self.lock();
        debts.values().any(|debt| {
            let of = &debt.debtor;
            of.removes && of.key == debtor && of.subject.as_deref() == Some(subject)
        })
    }

    /// Whose debt keeps `resource` taken.
    pub fn keeper(&self, resource: &str) -> Option<Debtor> {
        let debts = self.lock();
        let keeps = |debt: &&Debt| debt.debtor.keeps.iter().any(|kept| kept == resource);
        debts.values().find(keeps).map(|debt| debt.debtor.clone())
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Fires with each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Reads what the store has, for whoever must know before an engine leads.
    pub async fn read(&self, store: &Arc<dyn Store>) -> Result<(), StoreError> {
        let ledger = Ledger {
            store: Arc::clone(store),
        };
        self.load(ledger.debts().await?);
        Ok(())
    }

    /// Everything there is, as the store has it.
    pub(crate) fn load(&self, debts: Vec<Debt>) {
        *self.lock() = debts.into_iter().map(|debt| (debt.id(), debt)).collect();
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn put(&self, debt: Debt) {
        self.lock().insert(debt.id(), debt);
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn remove(&self, debt: &Debt) {
        self.lock().remove(&debt.id());
        self.changed.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, u64, JobId, String), Debt>> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
