//! The public interface of the engine: submit, inspect, cancel, wait. `leader` elects the leading engine, `runner`
//! runs jobs.

use crate::debt::DebtBook;
use crate::kind::Registry;
use crate::leader;
use crate::ledger::{Ledger, Term, job_key};
use crate::observe::{self, JobUpdates};
use crate::record::{CancelRequest, Job, JobFilter, Progress, StepRecord, StepState};
use crate::{JobError, JobKind, KindInfo};
use fleetward_model::job::JobState;
use fleetward_model::{ErrorCode, Failure, JobId};
use fleetward_store::{Outcome, Store, Txn};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

/// Times and limits of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// After this long without a sign of life another engine may take over.
    pub lease: Duration,
    pub backoff: Backoff,
    pub patience: Patience,
    /// How long a job stands still whose next attempt will most likely fail as the last one did.
    pub lasting_pause: Duration,
    /// How long a cancelled step may take to stop before it is dropped.
    pub cancel_grace: Duration,
    /// How often progress is written to the store, at most.
    pub progress_every: Duration,
    /// Jobs running at once; children do not count, their parents do.
    pub running: usize,
    pub retention: Retention,
    /// Where the engine keeps at hand who owes what.
    pub debts: Arc<DebtBook>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            backoff: Backoff {
                first: Duration::from_millis(500),
                most: Duration::from_secs(30),
            },
            patience: Patience {
                forward: Duration::from_secs(12),
                owed: Duration::from_secs(5),
            },
            lasting_pause: Duration::from_secs(60),
            cancel_grace: Duration::from_secs(30),
            progress_every: Duration::from_secs(1),
            running: 256,
            retention: Retention {
                age: Duration::from_secs(30 * 24 * 3600),
                keep: 1000,
            },
            debts: Arc::default(),
        }
    }
}

/// How long somebody who does not answer is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// By a step before the point of no return, if it says nothing shorter itself; then the job turns back.
    pub forward: Duration,
    /// By a step or an undo that may be owed or left out; then it is.
    pub owed: Duration,
}

/// Pauses between attempts: doubled each time, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
}

impl Backoff {
    /// The pause after `failures` failures in a row (1 for the first).
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.most)
    }
}

/// How long ended jobs are remembered: while younger than `age`, or among the last `keep`.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub age: Duration,
    pub keep: usize,
}

/// Who submits, and under which id.
#[derive(Debug, Clone)]
pub struct Submission {
    by: String,
    id: Option<JobId>,
    parent: Option<JobId>,
}

impl Submission {
    /// A fresh job of `by`.
    pub fn by(by: impl Into<String>) -> Self {
        Self {
            by: by.into(),
            id: None,
            parent: None,
        }
    }

    /// Under an id of the caller's choice: submitting the same again finds the first.
    pub fn with_id(mut self, id: JobId) -> Self {
        self.id = Some(id);
        self
    }

    /// As a child of `parent`, with an id that follows from parent and name.
    pub fn child_of(mut self, parent: JobId, name: &str) -> Self {
        self.parent = Some(parent);
        self.with_id(child_id(parent, name))
    }
}

/// The same for the same parent and name, in every process.
pub(crate) fn child_id(parent: JobId, name: &str) -> JobId {
    JobId(Uuid::new_v5(&parent.0, name.as_bytes()))
}

/// Runs jobs. Clones are handles on the same engine; when the last is dropped the engine stops, its
/// jobs resumable.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    /// Absent in the engine's own handles, which must not keep it alive.
    _alive: Option<Arc<DropGuard>>,
}

pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) registry: Registry,
    pub(crate) options: EngineOptions,
    pub(crate) stop: CancellationToken,
    pub(crate) leads: AtomicBool,
    pub(crate) live: Mutex<HashMap<JobId, Arc<watch::Sender<Option<Progress>>>>>,
    leader: Mutex<Option<JoinHandle<()>>>,
    /// The term in which this engine leads.
    term: Mutex<Option<Term>>,
    /// Whose debts are being paid: one at a time for each.
    paying: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Engine {
    /// Starts an engine on `store`. It takes the lead as soon as no other has it, resumes all jobs that
    /// have not ended, and runs new ones. Call within a tokio runtime.
    pub fn start(store: Arc<dyn Store>, registry: Registry, options: EngineOptions) -> Self {
        Self::start_after(std::future::ready(()), store, registry, options)
    }

    /// As [`start`](Self::start); it takes no lead before `ready`. Jobs that are submitted until then are kept.
    pub fn start_after(
        ready: impl Future<Output = ()> + Send + 'static,
        store: Arc<dyn Store>,
        registry: Registry,
        options: EngineOptions,
    ) -> Self {
        let shared = Arc::new(Shared {
            ledger: Ledger { store },
            registry,
            options,
            stop: CancellationToken::new(),
            leads: AtomicBool::new(false),
            live: Mutex::default(),
            leader: Mutex::default(),
            term: Mutex::default(),
            paying: Mutex::default(),
        });
        let leads = Arc::clone(&shared);
        let leader = tokio::spawn(async move {
            tokio::select! {
                () = leads.stop.cancelled() => return,
                () = ready => {}
            }
            leader::lead(leads).await;
        });
        *lock(&shared.leader) = Some(leader);
        let alive = Arc::new(shared.stop.clone().drop_guard());
        Self {
            shared,
            _alive: Some(alive),
        }
    }

    /// Submits a job and takes its locks.
    ///
    /// Durable when it returns. Fails with [`JobError::Busy`] where another job holds a lock.
    pub async fn submit<K: JobKind>(
        &self,
        input: &K::Input,
        by: impl Into<String>,
    ) -> Result<JobId, JobError> {
        self.submit_as::<K>(input, Submission::by(by)).await
    }

    /// As [`submit`](Self::submit); with an id of the caller's choice it may be repeated.
    pub async fn submit_as<K: JobKind>(
        &self,
        input: &K::Input,
        submission: Submission,
    ) -> Result<JobId, JobError> {
        if self.shared.stop.is_cancelled() {
            return Err(JobError::ShutDown);
        }
        let kind = self.shared.registry.kind(K::NAME);
        let kind = kind.ok_or_else(|| JobError::UnknownKind {
            kind: K::NAME.to_owned(),
        })?;
        let steps = kind.steps.iter().map(|step| StepRecord {
            name: step.info().name.to_owned(),
            state: StepState::Pending,
            attempts: 0,
            undo_attempts: 0,
            started_at: None,
            ended_at: None,
            output: None,
            failure: None,
            failing_since: None,
            debtor: None,
            forgone: None,
        });
        let bad_input = |source| JobError::BadInput {
            kind: K::NAME,
            source,
        };
        let mut resources = K::locks(input);
        resources.sort();
        resources.dedup();
        let job = Job {
            id: submission.id.unwrap_or_else(|| JobId(Uuid::new_v4())),
            kind: K::NAME.to_owned(),
            input: serde_json::to_value(input).map_err(bad_input)?,
            created_by: submission.by,
            parent: submission.parent,
            resources,
            held: Vec::new(),
            state: JobState::Pending,
            created_at: OffsetDateTime::now_utc(),
            started_at: None,
            ended_at: None,
            steps: steps.collect(),
            past_return: false,
            failure: None,
            waiting: None,
            cancel: None,
            progress: None,
        };
        self.shared.ledger.submit(job).await
    }

    /// The job as it is now.
    pub async fn get(&self, id: JobId) -> Result<Job, JobError> {
        let (mut job, _) = self
            .shared
            .ledger
            .job(id)
            .await?
            .ok_or(JobError::NotFound { id })?;
        self.shared.add_live_progress(&mut job);
        Ok(job)
    }

    /// The jobs that match, newest first.
    pub async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>, JobError> {
        let mut jobs = self.shared.ledger.list(filter).await?;
        jobs.iter_mut()
            .for_each(|job| self.shared.add_live_progress(job));
        Ok(jobs)
    }

    /// Asks that the job stops and takes back what it did. It may be too late even so: a job that ends
    /// done was past its point of no return.
    ///
    /// Fails with [`JobError::NotCancellable`] where that is known already.
    pub async fn cancel(&self, id: JobId, by: &str) -> Result<(), JobError> {
        let request = CancelRequest {
            by: by.to_owned(),
            at: OffsetDateTime::now_utc(),
        };
        self.shared.ledger.cancel(id, &request).await
    }

    /// The job as it is now and each time it changes, until it has ended.
    pub async fn watch(&self, id: JobId) -> Result<JobUpdates, JobError> {
        observe::follow(&self.shared, id).await
    }

    /// Waits until the job has ended.
    pub async fn wait(&self, id: JobId) -> Result<Job, JobError> {
        let mut updates = self.watch(id).await?;
        while let Some(job) = updates.next().await {
            let job = job?;
            if job.state.has_ended() {
                return Ok(job);
            }
        }
        Err(JobError::NotFound { id })
    }

    /// Gives up a job that can neither go on nor back, and its children: it ends as failed and its locks are free, whatever
    /// is left behind. What is owed of it stays owed; of a job that has ended already, that is dropped.
    pub async fn give_up(&self, id: JobId, by: &str) -> Result<Job, JobError> {
        let ledger = &self.shared.ledger;
        let children = JobFilter {
            active: Some(true),
            parent: Some(id),
            ..JobFilter::default()
        };
        for child in ledger.list(&children).await? {
            Box::pin(self.give_up(child.id, by)).await?;
        }
        let debts = self.shared.options.debts.of_job(id);
        loop {
            let (mut job, revision) = ledger.job(id).await?.ok_or(JobError::NotFound { id })?;
            let txn = Txn::new().if_unchanged(job_key(id), revision);
            let had_ended = job.state.has_ended();
            let txn = if had_ended {
                if debts.is_empty() {
                    return Ok(job);
                }
                for debt in &debts {
                    note_dropped(&mut job, &debt.step, by);
                }
                txn.put_json(job_key(id), &job)?
            } else {
                end_half_way(&mut job, by);
                Ledger::end(txn, &job)?
            };
            if let Outcome::Committed { .. } = ledger.store.commit(txn).await? {
                if had_ended {
                    for debt in &debts {
                        self.drop_debt(debt).await?;
                    }
                }
                return Ok(job);
            }
        }
    }

    /// Every kind of job with every step.
    pub fn kinds(&self) -> Vec<KindInfo> {
        self.shared.registry.kinds()
    }

    /// Whether this engine runs the jobs.
    pub fn is_leader(&self) -> bool {
        self.shared.leads.load(Ordering::Relaxed)
    }

    /// Stops at once: steps at work are dropped, their jobs stay as after a crash and are resumed by
    /// the next engine, and the lead is given up.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        let leader = lock(&self.shared.leader).take();
        if let Some(leader) = leader
            && let Err(error) = leader.await
        {
            tracing::error!(%error, "the job engine ended badly");
        }
    }

    /// Makes all generations to come larger than `above`: for a store that starts anew below hosts
    /// that remember. Before any engine is started on it.
    pub async fn raise_generation(store: &Arc<dyn Store>, above: u64) -> Result<(), JobError> {
        Ledger {
            store: Arc::clone(store),
        }
        .raise_generation(above)
        .await
    }
}

impl Shared {
    /// A handle for the engine's own use.
    pub(crate) fn handle(self: &Arc<Self>) -> Engine {
        Engine {
            shared: Arc::clone(self),
            _alive: None,
        }
    }

    /// The term in which this engine leads, if it does.
    pub(crate) fn term(&self) -> Result<Term, JobError> {
        lock(&self.term).ok_or(JobError::NotLeading)
    }

    pub(crate) fn set_term(&self, term: Option<Term>) {
        self.leads.store(term.is_some(), Ordering::Relaxed);
        *lock(&self.term) = term;
    }

    /// Held while the debts of `debtor` are being paid.
    pub(crate) fn paying(&self, debtor: &str) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.paying)
            .entry(debtor.to_owned())
            .or_default()
            .clone()
    }

    pub(crate) fn live(
        &self,
    ) -> MutexGuard<'_, HashMap<JobId, Arc<watch::Sender<Option<Progress>>>>> {
        lock(&self.live)
    }

    fn add_live_progress(&self, job: &mut Job) {
        if let Some(latest) = self
            .live()
            .get(&job.id)
            .and_then(|live| live.borrow().clone())
        {
            job.progress = Some(latest);
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("kinds", &self.shared.registry)
            .field("leads", &self.is_leader())
            .finish_non_exhaustive()
    }
}

fn end_half_way(job: &mut Job, by: &str) {
    job.state = JobState::Failed;
    job.ended_at = Some(OffsetDateTime::now_utc());
    let why = job.waiting.take().map(|waiting| waiting.reason);
    let last = why.or(job.failure.as_ref().map(|failure| failure.what.clone()));
    job.failure = Some(
        Failure::new(
            ErrorCode::Internal,
            format!("{} {} was given up half-way by {by}", job.kind, job.id),
        )
        .because(last.unwrap_or_default())
        .fix(format!(
            "see in its steps what it has left behind: fleetward job show {}",
            job.id
        )),
    );
}

fn note_dropped(job: &mut Job, step: &str, by: &str) {
    if let Some(step) = job.steps.iter_mut().find(|record| record.name == step) {
        let what = format!("{by} gave it up");
        step.state = StepState::Failed;
        step.failure = Some(Failure::new(ErrorCode::Cancelled, what));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
