//! Paying debts: the step that somebody owed is carried out, with what was recorded of it.
//!
//! ```text
//!   the debtor's debts, oldest first ──► run or undo ── succeeded, or void ──► deleted, the ended job's step noted
//!                                              ├── unreachable ──► stop: the debtor is away again
//!                                              └── anything else ──► noted on the debt; later debts of the job wait
//! ```
//! A crash at any line leaves the debt, which is then paid again: steps and undos may be repeated.

use crate::context::{Core, ProgressReporter};
use crate::debt::{Debt, Owed, Settled};
use crate::engine::Engine;
use crate::kind::AnyStep;
use crate::ledger::{debt_key, job_key};
use crate::record::{Job, StepState};
use crate::{JobError, Recourse, StepError};
use fleetward_model::{ErrorCode, Failure, JobId};
use fleetward_store::{Outcome, StoreExt};
use futures_util::FutureExt;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

impl Engine {
    /// Pays what `debtor` owes, in the order in which it came to owe it. Debts whose payment failed before are tried again.
    ///
    /// Call when the debtor is back, and before anybody else asks anything of it. Only the leading engine pays; in another
    /// one, and for whoever owes nothing, nothing happens.
    pub async fn settle(&self, debtor: &str) -> Result<Settled, JobError> {
        let turn = self.shared.paying(debtor);
        let _turn = turn.lock().await;
        let mut failed: BTreeSet<JobId> = BTreeSet::new();
        loop {
            let debts = self.shared.options.debts.of(debtor);
            let Some(debt) = debts.into_iter().find(|debt| !failed.contains(&debt.job)) else {
                return Ok(match failed.is_empty() {
                    true => Settled::All,
                    false => Settled::Failed,
                });
            };
            match self.pay(&debt).await {
                Ok(()) => self.paid(&debt).await?,
                Err(error) if error.recourse == Recourse::Retry || error.is_absence() => {
                    tracing::info!(debtor, job = %debt.job, step = debt.step, %error, "the debt waits");
                    return Ok(Settled::Away);
                }
                Err(error) => {
                    tracing::warn!(debtor, job = %debt.job, step = debt.step, %error, "the debt cannot be paid");
                    failed.insert(debt.job);
                    self.note_failure(debt, error.failure).await?;
                }
            }
        }
    }

    async fn pay(&self, debt: &Debt) -> Result<(), StepError> {
        let unknown = || {
            let what = format!(
                "this version does not know step {} of {}",
                debt.step, debt.kind
            );
            StepError::fatal(Failure::new(ErrorCode::Internal, what))
        };
        let kind = self.shared.registry.kind(&debt.kind).ok_or_else(unknown)?;
        let step = kind.steps.iter().find(|s| s.info().name == debt.step);
        let step = step.ok_or_else(unknown)?.as_ref();
        let place = |place: &str| format!("job.{}.{}.pay.{place}", debt.kind, debt.step);
        fleetward_failpoint::hold(&place("before")).await;
        let carried_out = async {
            match debt.owed {
                Owed::Run => step.run(self.core_of(debt, step)).await.map(drop),
                Owed::Undo => step.undo(self.core_of(debt, step)).await,
            }
        };
        let stopped = || Err(JobError::ShutDown.into());
        let paid = tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => return stopped(),
            paid = AssertUnwindSafe(carried_out).catch_unwind() => paid,
        };
        fleetward_failpoint::hold(&place("after")).await;
        match paid {
            // something newer has happened there to what the debt is about
            Ok(Err(error)) if error.failure.code == ErrorCode::StaleGeneration => {
                tracing::info!(job = %debt.job, step = debt.step, "the debt is void");
                Ok(())
            }
            Ok(paid) => paid,
            Err(_) => Err(StepError::internal("the step panicked", &debt.step)),
        }
    }

    fn core_of(&self, debt: &Debt, step: &dyn AnyStep) -> Core {
        let step = step.info().name;
        Core {
            job: debt.job,
            input: debt.input.clone(),
            created_by: debt.created_by.clone(),
            step,
            attempt: debt.attempts + 1,
            generation: debt.generation,
            outputs: Arc::new(debt.outputs.clone()),
            owed: true,
            cancelled: CancellationToken::new(),
            progress: ProgressReporter {
                step,
                latest: Arc::new(watch::Sender::new(None)),
            },
            engine: self.shared.handle(),
        }
    }

    /// Deletes the debt, and says so in the record of its job, if that has ended and is still there. Of a job that is still
    /// under way only its runner writes the record; it looks when it ends.
    async fn paid(&self, debt: &Debt) -> Result<(), JobError> {
        let ledger = &self.shared.ledger;
        loop {
            let mut txn = self.shared.term()?.txn().delete(debt_key(debt));
            match ledger.store.get_json::<Job>(&job_key(debt.job)).await? {
                Some(found) => {
                    txn = txn.if_unchanged(job_key(debt.job), found.revision);
                    let mut job = found.value;
                    if job.state.has_ended() {
                        note_paid(&mut job, debt);
                        txn = txn.put_json(job_key(debt.job), &job)?;
                    }
                }
                None => txn = txn.if_absent(job_key(debt.job)),
            }
            if let Outcome::Committed { .. } = ledger.store.commit(txn).await? {
                break;
            }
            self.shared.term()?;
        }
        self.shared.options.debts.remove(debt);
        tracing::info!(debtor = debt.debtor.key, job = %debt.job, step = debt.step, "a debt was paid");
        fleetward_failpoint::hold(&format!("job.{}.{}.pay.recorded", debt.kind, debt.step)).await;
        Ok(())
    }

    async fn note_failure(&self, mut debt: Debt, failure: Failure) -> Result<(), JobError> {
        debt.attempts += 1;
        debt.failure = Some(failure);
        let key = debt_key(&debt);
        // dropped meanwhile by whoever gave it up
        let txn = self.shared.term()?.txn().if_present(&key);
        let written = self.shared.ledger.store.commit(txn.put_json(&key, &debt)?);
        match written.await? {
            Outcome::Committed { .. } => self.shared.options.debts.put(debt),
            Outcome::Conflict { .. } => {}
        }
        Ok(())
    }

    /// Forgets what `debtor` owes without paying it; how much that was. For a debtor that is gone for good.
    pub async fn drop_debts(&self, debtor: &str) -> Result<usize, JobError> {
        let debts = self.shared.options.debts.of(debtor);
        for debt in &debts {
            self.drop_debt(debt).await?;
        }
        Ok(debts.len())
    }

    pub(crate) async fn drop_debt(&self, debt: &Debt) -> Result<(), JobError> {
        let txn = fleetward_store::Txn::new().delete(debt_key(debt));
        let _ = self.shared.ledger.store.commit(txn).await?;
        self.shared.options.debts.remove(debt);
        Ok(())
    }
}

/// The step is as if nobody had been away.
pub(crate) fn note_paid(job: &mut Job, debt: &Debt) {
    let step = job.steps.iter_mut().find(|step| step.name == debt.step);
    if let Some(step) = step.filter(|step| step.state == StepState::Owed) {
        step.state = match debt.owed {
            Owed::Run => StepState::Done,
            Owed::Undo => StepState::Undone,
        };
        step.failure = None;
        step.failing_since = None;
        step.ended_at = Some(OffsetDateTime::now_utc());
    }
}
