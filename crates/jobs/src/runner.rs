//! Runs one job: carries out the decisions of `plan`, and records each before and after.
//!
//! The runner is the only writer of its job's record. If a write shows that the record has changed (another engine
//! leads, or an administrator gave the job up), it stops and writes nothing more.

use crate::context::{Core, ProgressReporter};
use crate::debt::{Absence, Debt, Debtor, Owed};
use crate::engine::Shared;
use crate::kind::{AnyKind, AnyStep};
use crate::ledger::{DEBTS, Ledger, Term, debt_key, job_key, progress_key};
use crate::plan::{self, Next};
use crate::record::{CancelRequest, Job, Progress, StepState, Waiting};
use crate::{Recourse, StepError};
use fleetward_model::job::JobState;
use fleetward_model::{ErrorCode, Failure};
use fleetward_store::{Outcome, Revision, Txn};
use futures_util::FutureExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Failures in a row that waiting does not cure, after which the job stands still.
const LASTING_AFTER: u32 = 3;

/// What was met with longer ago has nothing to do with what is met with now.
const SAME_ABSENCE: Duration = Duration::from_secs(60);

/// The leader's word to a runner that a cancel was asked for.
#[derive(Debug, Default)]
pub(crate) struct CancelSignal {
    token: CancellationToken,
    request: OnceLock<CancelRequest>,
}

impl CancelSignal {
    pub(crate) fn fire(&self, request: CancelRequest) {
        self.request.get_or_init(|| request);
        self.token.cancel();
    }

    pub(crate) async fn fired(&self) {
        self.token.cancelled().await;
    }
}

/// The runner may not go on: the lead is lost, the engine stops, or the job was given up.
#[derive(Debug)]
pub(crate) struct Stopped;

pub(crate) struct Runner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) term: Term,
    pub(crate) stop: CancellationToken,
    pub(crate) kind: Arc<AnyKind>,
    pub(crate) job: Job,
    pub(crate) revision: Revision,
    pub(crate) cancel: Arc<CancelSignal>,
    pub(crate) progress: Arc<watch::Sender<Option<Progress>>>,
    /// Attempts failed in a row, for the pauses between them.
    pub(crate) failures: u32,
    /// When the job first met with somebody who is away.
    pub(crate) away_since: Option<OffsetDateTime>,
}

impl Runner {
    /// Runs the job to its end.
    pub(crate) async fn run(mut self) -> Result<(), Stopped> {
        loop {
            let cancelled = self.cancel.token.is_cancelled();
            match plan::next(&self.job, &self.kind, cancelled) {
                Next::Run(step) => self.forward(step).await?,
                Next::TurnBack => {
                    self.turn_back(StepError::cancelled().failure);
                    self.save().await?;
                }
                Next::Undo(step) => self.backward(step).await?,
                Next::Finish(state) => return self.finish(state).await,
            }
        }
    }

    async fn forward(&mut self, index: usize) -> Result<(), Stopped> {
        let kind = Arc::clone(&self.kind);
        let step = kind.steps[index].as_ref();
        let now = OffsetDateTime::now_utc();

        self.job.state = JobState::Running;
        self.job.started_at.get_or_insert(now);
        self.job.past_return |= kind.is_forward_only();
        self.job.waiting = None;
        if !step.applies(self.core(step, 0, 0, CancellationToken::new())) {
            return self.skip(index).await;
        }
        let record = &mut self.job.steps[index];
        record.state = StepState::Running;
        record.attempts += 1;
        record.started_at.get_or_insert(now);
        let attempt = record.attempts;
        let cancellable = !self.job.past_return;
        let signal = if cancellable {
            self.cancel.token.clone()
        } else {
            CancellationToken::new()
        };
        let generation = self.save().await?;
        if let Some(debtor) = self.owes_already(step, Owed::Run) {
            return self.owe(index, debtor, Owed::Run, generation).await;
        }
        self.hold(step, "before").await;

        tracing::info!(
            job = %self.job.id, kind = self.job.kind, state = ?self.job.state, step = step.info().name, attempt, generation,
            "step begins"
        );
        let core = self.core(step, attempt, generation, signal.clone());
        let tried = self.attempt(step.run(core), &signal).await?;
        self.hold(step, "after").await;

        match tried {
            Ok(output) => {
                let record = &mut self.job.steps[index];
                record.state = StepState::Done;
                record.output = Some(output);
                record.ended_at = Some(OffsetDateTime::now_utc());
                record.failure = None;
                record.failing_since = None;
                self.job.past_return |= kind.crossing() == Some(index);
                self.failures = 0;
                self.save().await?;
                self.hold(step, "recorded").await;
                Ok(())
            }
            Err(error) => self.forward_failed(index, step, generation, error).await,
        }
    }

    /// There is nothing to do in this job.
    async fn skip(&mut self, index: usize) -> Result<(), Stopped> {
        let kind = Arc::clone(&self.kind);
        let step = kind.steps[index].as_ref();
        let now = OffsetDateTime::now_utc();
        let record = &mut self.job.steps[index];
        record.state = StepState::Skipped;
        record.started_at = Some(now);
        record.ended_at = Some(now);
        self.job.past_return |= kind.crossing() == Some(index);
        self.save().await?;
        self.hold(step, "recorded").await;
        Ok(())
    }

    /// Turns back, lets somebody who is away owe the step, or waits and tries again.
    async fn forward_failed(
        &mut self,
        index: usize,
        step: &dyn AnyStep,
        generation: u64,
        error: StepError,
    ) -> Result<(), Stopped> {
        let now = OffsetDateTime::now_utc();
        self.note_absence(&error);
        let record = &mut self.job.steps[index];
        let since = *record.failing_since.get_or_insert(now);
        record.failure = Some(error.failure.clone());
        let first_past_return = self.kind.crossing().map(|crossing| crossing + 1) == Some(index);
        if self.job.past_return && error.recourse == Recourse::GoBack && first_past_return {
            tracing::warn!(job = %self.job.id, step = step.info().name, %error, "goes back");
            let record = &mut self.job.steps[index];
            record.state = StepState::Failed;
            record.ended_at = Some(now);
            self.job.past_return = false;
            self.turn_back(error.failure);
            self.failures = 0;
            return self.save().await.map(drop);
        }
        if self.job.past_return && self.gives_up_waiting(since, &error) {
            match step.absence(
                self.core(step, 0, generation, CancellationToken::new()),
                Owed::Run,
            ) {
                Absence::Wait => {}
                Absence::Owe(debtor) => {
                    return self.owe(index, debtor, Owed::Run, generation).await;
                }
                Absence::Forgo(what) => return self.forgo(index, what, StepState::Skipped).await,
            }
        }
        let record = &mut self.job.steps[index];
        let patience = match error.is_absence() {
            true => step.retry_for().min(self.shared.options.patience.forward),
            false => step.retry_for(),
        };
        let patience_over = now - since >= patience;
        let turn_back = !self.job.past_return
            && (self.cancel.token.is_cancelled()
                || error.recourse != Recourse::Retry
                || patience_over);
        tracing::warn!(job = %self.job.id, step = step.info().name, %error, turn_back, "step failed");
        if turn_back {
            record.state = StepState::Failed;
            record.ended_at = Some(now);
            self.turn_back(error.failure);
            self.failures = 0;
            self.save().await?;
            return Ok(());
        }
        let cancel = (!self.job.past_return).then(|| Arc::clone(&self.cancel));
        self.wait(since, &error, cancel).await
    }

    async fn backward(&mut self, index: usize) -> Result<(), Stopped> {
        let kind = Arc::clone(&self.kind);
        let step = kind.steps[index].as_ref();
        self.job.waiting = None;
        let record = &mut self.job.steps[index];
        if record.state != StepState::Undoing {
            record.state = StepState::Undoing;
            record.failing_since = None;
        }
        record.undo_attempts += 1;
        let attempt = record.undo_attempts;
        let generation = self.save().await?;
        if let Some(debtor) = self.owes_already(step, Owed::Undo) {
            return self.owe(index, debtor, Owed::Undo, generation).await;
        }
        self.hold(step, "undo.before").await;

        let never = CancellationToken::new();
        tracing::info!(
            job = %self.job.id, kind = self.job.kind, step = step.info().name, attempt, generation, "undo begins"
        );
        let core = self.core(step, attempt, generation, never.clone());
        let tried = self.attempt(step.undo(core), &never).await?;
        self.hold(step, "undo.after").await;

        let now = OffsetDateTime::now_utc();
        let record = &mut self.job.steps[index];
        match tried {
            Ok(()) => {
                record.state = StepState::Undone;
                record.ended_at = Some(now);
                record.failing_since = None;
                self.failures = 0;
                self.save().await?;
                self.hold(step, "undo.recorded").await;
                Ok(())
            }
            Err(error)
                if error.recourse == Recourse::GoForward
                    && kind.last_before_return() == Some(index) =>
            {
                // the plan runs the step once more, which finds its effect there and hands it on
                tracing::info!(job = %self.job.id, step = step.info().name, %error, "goes forward");
                record.failing_since = None;
                self.job.state = JobState::Running;
                self.job.past_return = true;
                self.job.failure = None;
                self.failures = 0;
                self.save().await?;
                Ok(())
            }
            Err(error) => {
                tracing::warn!(job = %self.job.id, step = step.info().name, %error, "undo failed");
                record.failure = Some(error.failure.clone());
                let since = *record.failing_since.get_or_insert(now);
                self.note_absence(&error);
                if self.gives_up_waiting(since, &error) {
                    let core = self.core(step, 0, generation, never);
                    match step.absence(core, Owed::Undo) {
                        Absence::Wait => {}
                        Absence::Owe(debtor) => {
                            return self.owe(index, debtor, Owed::Undo, generation).await;
                        }
                        Absence::Forgo(what) => {
                            return self.forgo(index, what, StepState::Undone).await;
                        }
                    }
                }
                self.wait(since, &error, None).await
            }
        }
    }

    fn note_absence(&mut self, error: &StepError) {
        let now = OffsetDateTime::now_utc();
        if error.is_absence() && self.away_since.is_none_or(|met| now - met >= SAME_ABSENCE) {
            self.away_since = Some(now);
        }
    }

    /// Somebody has been away for so long that the job goes on without, if the step lets it.
    ///
    /// It counts from the first time that the job met with it, in whatever step: a job that turned back for somebody who is
    /// away does not begin to wait for them anew with each undo.
    fn gives_up_waiting(&mut self, since: OffsetDateTime, error: &StepError) -> bool {
        if !error.is_absence() {
            return false;
        }
        let now = OffsetDateTime::now_utc();
        let met = self.away_since.filter(|met| now - *met < SAME_ABSENCE);
        let since = met.map_or(since, |met| met.min(since));
        now - since >= self.shared.options.patience.owed
    }

    /// Who owes this step because it owes an earlier one: what is owed is done in the order of the job.
    fn owes_already(&self, step: &dyn AnyStep, half: Owed) -> Option<Debtor> {
        let owing = |key: &str| {
            let of = |record: &crate::StepRecord| {
                record.state == StepState::Owed
                    && record.debtor.as_ref().is_some_and(|d| d.key == key)
            };
            self.job.steps.iter().any(of)
        };
        if !self
            .job
            .steps
            .iter()
            .any(|record| record.state == StepState::Owed)
        {
            return None;
        }
        match step.absence(self.core(step, 0, 0, CancellationToken::new()), half) {
            Absence::Owe(debtor) if owing(&debtor.key) => Some(debtor),
            Absence::Owe(_) | Absence::Wait | Absence::Forgo(_) => None,
        }
    }

    /// Writes the debt down, in one transaction with the record that goes on without.
    async fn owe(
        &mut self,
        index: usize,
        debtor: Debtor,
        owed: Owed,
        generation: u64,
    ) -> Result<(), Stopped> {
        let kind = Arc::clone(&self.kind);
        let step = kind.steps[index].as_ref();
        let now = OffsetDateTime::now_utc();
        tracing::warn!(job = %self.job.id, step = step.info().name, debtor = debtor.key, ?owed, "owed");
        let debt = Debt {
            debtor: debtor.clone(),
            job: self.job.id,
            kind: self.job.kind.clone(),
            step: step.info().name.to_owned(),
            owed,
            input: self.job.input.clone(),
            outputs: self.outputs(),
            created_by: self.job.created_by.clone(),
            generation,
            since: now,
            attempts: 0,
            failure: None,
        };
        let record = &mut self.job.steps[index];
        record.state = StepState::Owed;
        record.ended_at = Some(now);
        record.failing_since = None;
        if debtor.half_way {
            self.job.failure = record.failure.clone();
        }
        record.debtor = Some(debtor);
        self.job.waiting = None;
        self.failures = 0;
        // The memory knows first: whoever asks in between finds the debtor in debt, as it is about to be.
        self.shared.options.debts.put(debt.clone());
        let txn = self.own_txn().put_json(job_key(self.job.id), &self.job);
        let txn = txn.and_then(|txn| txn.put_json(debt_key(&debt), &debt));
        let written = match txn {
            Ok(txn) => self.commit(txn).await,
            Err(error) => {
                tracing::error!(job = %self.job.id, %error, "cannot write the debt");
                Err(Stopped)
            }
        };
        match written {
            Ok(revision) => self.revision = revision,
            Err(stopped) => {
                self.shared.options.debts.remove(&debt);
                return Err(stopped);
            }
        }
        self.hold(step, "owed").await;
        Ok(())
    }

    /// Leaves it undone for good, and says what that leaves different.
    async fn forgo(&mut self, index: usize, what: String, as_if: StepState) -> Result<(), Stopped> {
        tracing::warn!(job = %self.job.id, step = self.job.steps[index].name, what, "left out");
        let record = &mut self.job.steps[index];
        record.state = as_if;
        record.ended_at = Some(OffsetDateTime::now_utc());
        record.failing_since = None;
        record.forgone = Some(what);
        self.job.past_return |=
            self.job.state == JobState::Running && self.kind.crossing() == Some(index);
        self.job.waiting = None;
        self.failures = 0;
        self.save().await.map(drop)
    }

    /// From here the job takes back what it did; a cancel explains itself by who asked for it.
    fn turn_back(&mut self, failure: Failure) {
        let request = self.cancel.request.get().cloned();
        self.job.failure = Some(match &request {
            Some(request) => {
                let what = format!("{} {} was cancelled", self.job.kind, self.job.id);
                Failure::new(ErrorCode::Cancelled, what)
                    .because(format!("{} asked for it", request.by))
            }
            None => failure,
        });
        self.job.cancel = request;
        self.job.state = JobState::Undoing;
        self.job.waiting = None;
    }

    /// Records why nothing happens, and pauses.
    async fn wait(
        &mut self,
        since: OffsetDateTime,
        error: &StepError,
        cancel: Option<Arc<CancelSignal>>,
    ) -> Result<(), Stopped> {
        self.failures += 1;
        // An agent may take what passes for what lasts: some attempts in a row decide.
        let lasting = error.recourse != Recourse::Retry && self.failures >= LASTING_AFTER;
        let pause = match lasting {
            true => self.shared.options.lasting_pause,
            false => self.shared.options.backoff.pause(self.failures),
        };
        self.job.waiting = Some(Waiting {
            reason: error.to_string(),
            since,
            next_attempt_at: OffsetDateTime::now_utc() + pause,
            lasting,
        });
        self.save().await?;
        let cancelled = async {
            match &cancel {
                Some(signal) => signal.fired().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => Err(Stopped),
            () = cancelled => Ok(()),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    async fn finish(&mut self, state: JobState) -> Result<(), Stopped> {
        self.job.state = state;
        self.job.waiting = None;
        self.job.ended_at = Some(OffsetDateTime::now_utc());
        loop {
            let mut txn = self.own_txn();
            // What was paid while the job was under way is noted here. A debt that is paid between this look and the
            // commit makes the commit fail, and this look is taken again.
            for index in self.owed_steps() {
                match self.debt_of(index).await? {
                    Some((key, revision)) => txn = txn.if_unchanged(key, revision),
                    None => self.note_paid(index),
                }
            }
            let ended = Ledger::end(txn, &self.job);
            let txn = ended.map_err(|error| {
                tracing::error!(job = %self.job.id, %error, "cannot record the job's end");
                Stopped
            })?;
            match self.commit_unless(txn, DEBTS).await? {
                Some(_) => break,
                None => tracing::debug!(job = %self.job.id, "a debt was paid meanwhile"),
            }
        }
        tracing::info!(job = %self.job.id, kind = self.job.kind, ?state, "job ended");
        Ok(())
    }

    fn owed_steps(&self) -> Vec<usize> {
        let steps = self.job.steps.iter().enumerate();
        let owed = steps.filter(|(_, step)| step.state == StepState::Owed);
        owed.map(|(index, _)| index).collect()
    }

    /// The debt that a step is, where it has not been paid yet.
    async fn debt_of(&self, index: usize) -> Result<Option<(String, Revision)>, Stopped> {
        let record = &self.job.steps[index];
        let Some(debtor) = &record.debtor else {
            return Ok(None);
        };
        let key = format!("{DEBTS}{}/{}/{}", debtor.key, self.job.id, record.name);
        for failures in 1.. {
            match self.shared.ledger.store.get(&key).await {
                Ok(found) => return Ok(found.map(|entry| (key, entry.mod_revision))),
                Err(error) if error.is_transient() => {
                    self.pause(self.shared.options.backoff.pause(failures))
                        .await?;
                }
                Err(error) => {
                    tracing::error!(job = %self.job.id, %error, "cannot read a debt");
                    return Err(Stopped);
                }
            }
        }
        Err(Stopped)
    }

    fn note_paid(&mut self, index: usize) {
        let back = self.job.failure.is_some() && !self.job.past_return;
        let record = &mut self.job.steps[index];
        record.state = match back {
            true => StepState::Undone,
            false => StepState::Done,
        };
        record.failure = None;
    }

    /// Awaits `work`, storing progress meanwhile. A panic becomes a failure; a step that does not heed
    /// a cancel is dropped when the grace is over.
    async fn attempt<T>(
        &mut self,
        work: impl Future<Output = Result<T, StepError>>,
        cancelled: &CancellationToken,
    ) -> Result<Result<T, StepError>, Stopped> {
        let work = AssertUnwindSafe(work).catch_unwind();
        let stop = self.stop.clone();
        let grace = self.shared.options.cancel_grace;
        let out_of_grace = async {
            cancelled.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        tokio::pin!(work, out_of_grace);
        let every = self.shared.options.progress_every;
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stored = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Stopped),
                done = &mut work => return Ok(done.unwrap_or_else(|panic| {
                    Err(StepError::internal("the step panicked", panic_text(&*panic)))
                })),
                () = &mut out_of_grace => return Ok(Err(StepError::cancelled())),
                _ = tick.tick() => self.store_progress(&mut stored).await,
            }
        }
    }

    /// Losing a progress report is no harm: the next one follows.
    async fn store_progress(&self, stored: &mut Option<OffsetDateTime>) {
        let Some(latest) = self.progress.borrow().clone() else {
            return;
        };
        if *stored == Some(latest.at) {
            return;
        }
        let txn = self.own_txn().put_json(progress_key(self.job.id), &latest);
        let written = match txn {
            Ok(txn) => self.shared.ledger.store.commit(txn).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(_) => *stored = Some(latest.at),
            Err(error) => tracing::debug!(job = %self.job.id, %error, "progress not stored"),
        }
    }

    fn core(
        &self,
        step: &dyn AnyStep,
        attempt: u32,
        generation: u64,
        cancelled: CancellationToken,
    ) -> Core {
        let step = step.info().name;
        Core {
            job: self.job.id,
            input: self.job.input.clone(),
            created_by: self.job.created_by.clone(),
            step,
            attempt,
            generation,
            outputs: Arc::new(self.outputs()),
            owed: false,
            cancelled,
            progress: ProgressReporter {
                step,
                latest: Arc::clone(&self.progress),
            },
            engine: self.shared.handle(),
        }
    }

    /// What the steps have handed on.
    fn outputs(&self) -> BTreeMap<String, Value> {
        let output =
            |record: &crate::StepRecord| Some((record.name.clone(), record.output.clone()?));
        self.job.steps.iter().filter_map(output).collect()
    }

    /// A transaction on this job that does nothing once somebody else was there.
    fn own_txn(&self) -> Txn {
        self.term
            .txn()
            .if_unchanged(job_key(self.job.id), self.revision)
    }

    /// Writes the record; the generation that belongs to this write.
    async fn save(&mut self) -> Result<u64, Stopped> {
        match self.own_txn().put_json(job_key(self.job.id), &self.job) {
            Ok(txn) => {
                self.revision = self.commit(txn).await?;
                Ok(self.term.generation_base + self.revision.0)
            }
            Err(error) => {
                tracing::error!(job = %self.job.id, %error, "cannot write the job's record");
                Err(Stopped)
            }
        }
    }

    /// Commits `txn`, which writes this job's record, waiting while the store cannot be written.
    async fn commit(&self, txn: Txn) -> Result<Revision, Stopped> {
        // no key has this prefix
        self.commit_unless(txn, "\0").await?.ok_or(Stopped)
    }

    /// The same; none where what was in the way is a key with `prefix`.
    async fn commit_unless(&self, txn: Txn, prefix: &str) -> Result<Option<Revision>, Stopped> {
        let key = job_key(self.job.id);
        for failures in 1.. {
            match self.shared.ledger.store.commit(txn.clone()).await {
                Ok(Outcome::Committed { revision }) => return Ok(Some(revision)),
                // an attempt that seemed to fail may have reached the disk
                Ok(Outcome::Conflict {
                    key: at,
                    current: Some(entry),
                }) if failures > 1
                    && at == key
                    && entry.json().ok().as_ref() == Some(&self.unlive()) =>
                {
                    return Ok(Some(entry.mod_revision));
                }
                Ok(Outcome::Conflict { key, .. }) if key.starts_with(prefix) => return Ok(None),
                Ok(Outcome::Conflict { key, .. }) => {
                    tracing::warn!(job = %self.job.id, key, "somebody else has the job: stopping");
                    return Err(Stopped);
                }
                Err(error) if error.is_transient() => {
                    if failures == 1 {
                        tracing::error!(job = %self.job.id, %error, "cannot write the job's record: waiting");
                    }
                    self.pause(self.shared.options.backoff.pause(failures))
                        .await?;
                }
                Err(error) => {
                    tracing::error!(job = %self.job.id, %error, "cannot write the job's record");
                    return Err(Stopped);
                }
            }
        }
        Err(Stopped)
    }

    /// The job as the store would give it back.
    fn unlive(&self) -> Job {
        Job {
            progress: None,
            ..self.job.clone()
        }
    }

    async fn pause(&self, pause: Duration) -> Result<(), Stopped> {
        tokio::select! {
            () = self.stop.cancelled() => Err(Stopped),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    /// A place where tests kill the program.
    async fn hold(&self, step: &dyn AnyStep, place: &str) {
        let (kind, step) = (self.kind.name, step.info().name);
        fleetward_failpoint::hold(&format!("job.{kind}.{step}.{place}")).await;
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}
