//! The keys of jobs in the store, and the transactions on them.
//!
//! ```text
//!   jobs/<id>               the record; after the submission only the leading engine writes it
//!   job-cancels/<id>        a cancel asked for, by whom
//!   job-progress/<id>       the latest progress, at most once a second
//!   job-locks/<resource>    the job that holds it
//!   debts/<debtor>/<job>/<step>   a step that somebody who was away owes
//!   job-engine/owner        the leading engine, on its lease
//!   job-engine/generation   what is added to revisions to make generations
//! ```
//!
//! Every write of a leading engine is conditional on its owner entry being unchanged, so that an engine
//! that lost its lease without noticing can change nothing.

use crate::JobError;
use crate::debt::Debt;
use crate::record::{CancelRequest, Job, JobFilter, Progress};
use fleetward_model::JobId;
use fleetward_model::job::JobState;
use fleetward_store::{Outcome, Revision, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(crate) const JOBS: &str = "jobs/";
pub(crate) const CANCELS: &str = "job-cancels/";
pub(crate) const DEBTS: &str = "debts/";
pub(crate) const OWNER: &str = "job-engine/owner";
const GENERATION: &str = "job-engine/generation";

pub(crate) fn job_key(id: JobId) -> String {
    format!("{JOBS}{id}")
}

pub(crate) fn cancel_key(id: JobId) -> String {
    format!("{CANCELS}{id}")
}

pub(crate) fn progress_key(id: JobId) -> String {
    format!("job-progress/{id}")
}

fn lock_key(resource: &str) -> String {
    format!("job-locks/{resource}")
}

pub(crate) fn debt_key(debt: &Debt) -> String {
    format!("{DEBTS}{}/{}/{}", debt.debtor.key, debt.job, debt.step)
}

/// Who holds a lock.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    job: JobId,
}

/// The store, as the engine uses it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    pub(crate) store: Arc<dyn Store>,
}

/// The right to run jobs: the owner entry as this engine wrote it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    pub(crate) owner: Revision,
    /// Added to revisions to make generations.
    pub(crate) generation_base: u64,
}

impl Term {
    /// A transaction that does nothing once another engine leads.
    pub(crate) fn txn(self) -> Txn {
        Txn::new().if_unchanged(OWNER, self.owner)
    }
}

impl Ledger {
    /// Records a new job and takes its locks, or finds the same job submitted before.
    pub(crate) async fn submit(&self, mut job: Job) -> Result<JobId, JobError> {
        loop {
            let key = job_key(job.id);
            let mut txn = Txn::new().if_absent(&key);
            job.held.clear();
            for resource in &job.resources {
                let lock = lock_key(resource);
                let held = self.store.get_json::<Holder>(&lock).await?;
                match (held, job.parent) {
                    // the parent keeps it, so the parent's lock must still be there
                    (Some(held), Some(parent)) if held.value.job == parent => {
                        txn = txn.if_unchanged(lock, held.revision);
                    }
                    // whoever holds it: the transaction refuses and says who
                    _ => {
                        txn = txn
                            .if_absent(&lock)
                            .put_json(lock, &Holder { job: job.id })?;
                        job.held.push(resource.clone());
                    }
                }
            }
            match self.store.commit(txn.put_json(&key, &job)?).await? {
                Outcome::Committed { .. } => return Ok(job.id),
                Outcome::Conflict {
                    key: at,
                    current: Some(entry),
                } if at == key => {
                    let there: Job = entry.json()?;
                    let same = there.kind == job.kind && there.input == job.input;
                    return if same {
                        Ok(job.id)
                    } else {
                        Err(JobError::IdTaken { id: job.id })
                    };
                }
                Outcome::Conflict {
                    key: at,
                    current: Some(entry),
                } => {
                    let holder: Holder = entry.json()?;
                    let resource = at.trim_start_matches("job-locks/").to_owned();
                    // a parent's lock that was taken in between: look again
                    if job.parent != Some(holder.job) {
                        return Err(JobError::Busy {
                            resource,
                            by: holder.job,
                        });
                    }
                }
                // a lock went away in between: look again
                Outcome::Conflict { current: None, .. } => {}
            }
        }
    }

    /// The record with its revision, and the progress beside it.
    pub(crate) async fn job(&self, id: JobId) -> Result<Option<(Job, Revision)>, JobError> {
        let Some(found) = self.store.get_json::<Job>(&job_key(id)).await? else {
            return Ok(None);
        };
        let mut job = found.value;
        job.progress = self.progress(id).await?;
        Ok(Some((job, found.revision)))
    }

    async fn progress(&self, id: JobId) -> Result<Option<Progress>, StoreError> {
        Ok(self
            .store
            .get_json(&progress_key(id))
            .await?
            .map(|found| found.value))
    }

    /// All records that this program can read, and the revision they were read at.
    pub(crate) async fn jobs(&self) -> Result<(Vec<(Job, Revision)>, Revision), StoreError> {
        let mut jobs = Vec::new();
        let mut range = fleetward_store::Range::prefix(JOBS).limit(500);
        loop {
            let page = self.store.list(range.clone()).await?;
            for entry in &page.entries {
                match entry.json::<Job>() {
                    Ok(job) => jobs.push((job, entry.mod_revision)),
                    Err(error) => tracing::warn!(key = entry.key, %error, "unreadable job record"),
                }
            }
            match range.following(&page) {
                Some(next) => range = next,
                None => return Ok((jobs, page.revision)),
            }
        }
    }

    pub(crate) async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, JobError> {
        let (jobs, _) = self.jobs().await?;
        let mut jobs: Vec<Job> = jobs
            .into_iter()
            .map(|(job, _)| job)
            .filter(|job| filter.matches(job))
            .collect();
        jobs.sort_by_key(|job| (std::cmp::Reverse(job.created_at), job.id));
        jobs.truncate(filter.limit.unwrap_or(usize::MAX));
        for job in jobs.iter_mut().filter(|job| !job.state.has_ended()) {
            job.progress = self.progress(job.id).await?;
        }
        Ok(jobs)
    }

    /// Asks for a cancel. Asking twice is asking once.
    pub(crate) async fn cancel(&self, id: JobId, request: &CancelRequest) -> Result<(), JobError> {
        loop {
            let (job, revision) = self.job(id).await?.ok_or(JobError::NotFound { id })?;
            let (key, state) = (cancel_key(id), job.state);
            match state {
                JobState::Undoing => return Ok(()),
                // an earlier request has had its way
                JobState::Undone if job.cancel.is_some() => return Ok(()),
                JobState::Pending | JobState::Running if !job.past_return => {}
                _ => return Err(JobError::NotCancellable { id, state }),
            }
            let txn = Txn::new()
                .if_unchanged(job_key(id), revision)
                .if_absent(&key);
            match self.store.commit(txn.put_json(&key, request)?).await? {
                Outcome::Committed { .. } => return Ok(()),
                Outcome::Conflict { key: at, .. } if at == key => return Ok(()),
                Outcome::Conflict { .. } => {}
            }
        }
    }

    pub(crate) async fn cancel_request(
        &self,
        id: JobId,
    ) -> Result<Option<CancelRequest>, StoreError> {
        Ok(self
            .store
            .get_json(&cancel_key(id))
            .await?
            .map(|found| found.value))
    }

    /// Puts the terminal record of `job` into `txn`, with everything that goes with it.
    pub(crate) fn end(txn: Txn, job: &Job) -> Result<Txn, StoreError> {
        let txn = txn
            .put_json(job_key(job.id), job)?
            .delete(cancel_key(job.id))
            .delete(progress_key(job.id));
        Ok(job
            .held
            .iter()
            .fold(txn, |txn, resource| txn.delete(lock_key(resource))))
    }

    /// Forgets an ended job that is still as it was read.
    pub(crate) async fn forget(&self, id: JobId, revision: Revision) -> Result<(), StoreError> {
        let txn = Txn::new()
            .if_unchanged(job_key(id), revision)
            .delete(job_key(id));
        self.store.commit(txn).await.map(drop)
    }

    /// All debts that this program can read.
    pub(crate) async fn debts(&self) -> Result<Vec<Debt>, StoreError> {
        let mut debts = Vec::new();
        let mut range = fleetward_store::Range::prefix(DEBTS).limit(500);
        loop {
            let page = self.store.list(range.clone()).await?;
            for entry in &page.entries {
                match entry.json::<Debt>() {
                    Ok(debt) => debts.push(debt),
                    Err(error) => tracing::error!(key = entry.key, %error, "unreadable debt"),
                }
            }
            match range.following(&page) {
                Some(next) => range = next,
                None => return Ok(debts),
            }
        }
    }

    pub(crate) async fn generation_base(&self) -> Result<u64, StoreError> {
        Ok(self
            .store
            .get_json(GENERATION)
            .await?
            .map_or(0, |found| found.value))
    }

    /// Makes all generations to come larger than `above`. Before any engine starts.
    pub(crate) async fn raise_generation(&self, above: u64) -> Result<(), JobError> {
        let base = self.generation_base().await?;
        let reached = base.saturating_add(self.store.revision().await?.0);
        if reached < above {
            let raised = base + (above - reached);
            let _ = self
                .store
                .put_json(GENERATION, &raised, fleetward_store::Guard::Any)
                .await?;
        }
        Ok(())
    }
}
