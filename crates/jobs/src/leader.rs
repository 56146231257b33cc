//! Leader election: one of the engines on a store holds the owner entry, with a lease, and runs the jobs.
//!
//! ```text
//!   waiting ── owner entry gone, taken ──► leading ── lease lost ──► waiting
//!      └───────────── engine stops ─────────► over ◄── engine stops ────┘ (the lead is given up)
//! ```

use crate::engine::Shared;
use crate::ledger::{CANCELS, JOBS, Ledger, OWNER, Term, job_key};
use crate::plan;
use crate::record::{CancelRequest, Job, Waiting};
use crate::runner::{CancelSignal, Runner, Stopped};
use fleetward_model::JobId;
use fleetward_store::{Change, Event, LeaseId, Outcome, Revision, StoreError, Txn};
use futures_util::StreamExt;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// What the owner entry says, for people.
#[derive(Debug, Serialize)]
struct Owner {
    engine: Uuid,
    pid: u32,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
}

/// Takes the lead whenever it is free, until the engine stops.
pub(crate) async fn lead(shared: Arc<Shared>) {
    let owner = Owner {
        engine: Uuid::new_v4(),
        pid: std::process::id(),
        since: OffsetDateTime::now_utc(),
    };
    while !shared.stop.is_cancelled() {
        let pause = match take_lead(&shared, &owner).await {
            Ok(Some((term, lease))) => {
                tracing::info!(engine = %owner.engine, "leads");
                Leader::new(&shared, term).serve(lease).await;
                tracing::info!(engine = %owner.engine, "leads no longer");
                Duration::ZERO
            }
            Ok(None) => match owner_gone(&shared).await {
                Ok(()) => Duration::ZERO,
                Err(_) => Duration::from_secs(1),
            },
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::error!(%error, "cannot take the lead");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn take_lead(shared: &Shared, owner: &Owner) -> Result<Option<(Term, LeaseId)>, StoreError> {
    let store = &shared.ledger.store;
    if store.get(OWNER).await?.is_some() {
        return Ok(None);
    }
    let lease = store.lease_grant(shared.options.lease).await?;
    let value = serde_json::to_vec(owner).map_err(|e| StoreError::Encode {
        key: OWNER.into(),
        source: Arc::new(e),
    })?;
    let txn = Txn::new().if_absent(OWNER).put_leased(OWNER, value, lease);
    match store.commit(txn).await? {
        Outcome::Committed { revision } => {
            let generation_base = shared.ledger.generation_base().await?;
            // before any job runs: from here on the memory is the first to know
            shared.options.debts.load(shared.ledger.debts().await?);
            Ok(Some((
                Term {
                    owner: revision,
                    generation_base,
                },
                lease,
            )))
        }
        Outcome::Conflict { .. } => {
            store.lease_revoke(lease).await?;
            Ok(None)
        }
    }
}

/// Waits until the owner entry may be gone.
async fn owner_gone(shared: &Shared) -> Result<(), StoreError> {
    let store = &shared.ledger.store;
    let mut changes = store.watch(OWNER, store.revision().await?.next()).await?;
    if store.get(OWNER).await?.is_none() {
        return Ok(());
    }
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return Ok(()),
            // a look now and then, should the news have been missed
            () = tokio::time::sleep(shared.options.lease) => return Ok(()),
            change = changes.next() => match change.transpose()? {
                Some(change) if change.events.iter().all(|e| matches!(e, Event::Put(_))) => {}
                _ => return Ok(()),
            },
        }
    }
}

struct Leader {
    shared: Arc<Shared>,
    term: Term,
    stop: CancellationToken,
    tasks: JoinSet<JobId>,
    running: HashMap<JobId, (Arc<CancelSignal>, AbortHandle)>,
    slots: Arc<Semaphore>,
}

impl Leader {
    fn new(shared: &Arc<Shared>, term: Term) -> Self {
        Self {
            shared: Arc::clone(shared),
            term,
            stop: shared.stop.child_token(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            slots: Arc::new(Semaphore::new(shared.options.running)),
        }
    }

    /// Runs jobs until the lease or the engine ends.
    async fn serve(mut self, lease: LeaseId) {
        let alive = tokio::spawn(keep_alive(
            Arc::clone(&self.shared),
            lease,
            self.stop.clone(),
        ));
        self.shared.set_term(Some(self.term));
        while !self.stop.is_cancelled() {
            if let Err(error) = self.follow().await {
                tracing::warn!(%error, "lost sight of the jobs: looking again");
                if matches!(error, StoreError::Closed) {
                    self.stop.cancel();
                }
                tokio::time::sleep(self.shared.options.backoff.first).await;
            }
        }
        self.shared.set_term(None);
        self.tasks.shutdown().await;
        self.shared.live().clear();
        alive.abort();
        // its hold on the store ends only with it, and whoever shuts down may want to open that again
        let _ = alive.await;
        if let Err(error) = self.shared.ledger.store.lease_revoke(lease).await {
            tracing::debug!(%error, "the lead runs out by itself");
        }
    }

    /// Starts what has not ended, then follows submissions and cancels.
    async fn follow(&mut self) -> Result<(), StoreError> {
        let store = Arc::clone(&self.shared.ledger.store);
        let (mut jobs, revision) = self.shared.ledger.jobs().await?;
        jobs.sort_by_key(|(job, _)| job.created_at);
        for (job, revision) in jobs {
            self.see(job, revision).await?;
        }
        let mut submissions = store.watch(JOBS, revision.next()).await?;
        let mut cancels = store.watch(CANCELS, revision.next()).await?;
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                change = submissions.next() => {
                    let change = change.ok_or(StoreError::Closed)??;
                    self.jobs_changed(change).await?;
                }
                change = cancels.next() => self.cancels_changed(change.ok_or(StoreError::Closed)??),
                ended = self.tasks.join_next(), if !self.tasks.is_empty() => match ended {
                    Some(Ok(id)) => self.forget(id),
                    // given up: removed when the record said so
                    Some(Err(error)) if error.is_cancelled() => {}
                    Some(Err(error)) => tracing::error!(%error, "a job's runner ended badly"),
                    None => {}
                },
                _ = prune.tick() => {
                    if let Err(error) = prune_ended(&self.shared).await {
                        tracing::warn!(%error, "cannot prune ended jobs");
                    }
                }
            }
        }
    }

    async fn jobs_changed(&mut self, change: Change) -> Result<(), StoreError> {
        for event in change.events {
            if let Event::Put(entry) = event {
                match entry.json::<Job>() {
                    // any later version is an echo of a runner's own writes, perhaps one already ended
                    Ok(job) if entry.version == 1 || job.state.has_ended() => {
                        self.see(job, entry.mod_revision).await?;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(key = entry.key, %error, "unreadable job record"),
                }
            }
        }
        Ok(())
    }

    fn cancels_changed(&self, change: Change) {
        for event in change.events {
            if let Event::Put(entry) = event
                && let Some(Ok(id)) = entry.key.strip_prefix(CANCELS).map(str::parse)
            {
                match entry.json::<CancelRequest>() {
                    Ok(request) => self.cancel(id, request),
                    Err(error) => tracing::warn!(key = entry.key, %error, "unreadable cancel"),
                }
            }
        }
    }

    fn cancel(&self, id: JobId, request: CancelRequest) {
        if let Some((signal, _)) = self.running.get(&id) {
            tracing::info!(job = %id, by = request.by, "cancel asked for");
            signal.fire(request);
        }
    }

    /// Starts a job that is not running yet; drops one that was given up.
    async fn see(&mut self, job: Job, revision: Revision) -> Result<(), StoreError> {
        let id = job.id;
        if job.state.has_ended() {
            if let Some((_, task)) = self.running.get(&id) {
                task.abort();
                self.forget(id);
            }
            return Ok(());
        }
        if self.running.contains_key(&id) {
            return Ok(());
        }
        let kind = self
            .shared
            .registry
            .kind(&job.kind)
            .filter(|kind| plan::fits(&job, kind));
        let Some(kind) = kind.cloned() else {
            return self.set_aside(job, revision).await;
        };
        let signal = Arc::new(CancelSignal::default());
        // asked for before this look; of what is asked for later the watch tells
        if let Some(request) = self.shared.ledger.cancel_request(id).await? {
            signal.fire(request);
        }
        let progress = Arc::new(watch::Sender::new(None));
        self.shared.live().insert(id, Arc::clone(&progress));
        let slots = job.parent.is_none().then(|| Arc::clone(&self.slots));
        let runner = Runner {
            shared: Arc::clone(&self.shared),
            term: self.term,
            stop: self.stop.clone(),
            kind,
            job,
            revision,
            cancel: Arc::clone(&signal),
            progress,
            failures: 0,
            away_since: None,
        };
        let task = self
            .tasks
            .spawn(run_in_slot(runner, slots, Arc::clone(&signal), id));
        self.running.insert(id, (signal, task));
        Ok(())
    }

    fn forget(&mut self, id: JobId) {
        self.running.remove(&id);
        self.shared.live().remove(&id);
    }

    /// A job this program does not know stays as it is, for one that does, and says so.
    async fn set_aside(&self, mut job: Job, revision: Revision) -> Result<(), StoreError> {
        let reason = format!(
            "this version does not know {} jobs with these steps",
            job.kind
        );
        if job
            .waiting
            .as_ref()
            .is_some_and(|waiting| waiting.reason == reason)
        {
            return Ok(());
        }
        tracing::error!(job = %job.id, kind = job.kind, "unknown kind of job set aside");
        let now = OffsetDateTime::now_utc();
        job.waiting = Some(Waiting {
            reason,
            since: now,
            next_attempt_at: now,
            lasting: true,
        });
        let key = job_key(job.id);
        let txn = self
            .term
            .txn()
            .if_unchanged(&key, revision)
            .put_json(&key, &job)?;
        self.shared.ledger.store.commit(txn).await.map(drop)
    }
}

/// Runs a job once there is room for it; a cancel need not wait for that.
async fn run_in_slot(
    runner: Runner,
    slots: Option<Arc<Semaphore>>,
    cancel: Arc<CancelSignal>,
    id: JobId,
) -> JobId {
    let _slot = match slots {
        Some(slots) => tokio::select! {
            slot = slots.acquire_owned() => slot.ok(),
            () = cancel.fired() => None,
        },
        None => None,
    };
    if let Err(Stopped) = runner.run().await {
        tracing::debug!(job = %id, "left for the next engine");
    }
    id
}

/// Keeps the lease, or calls the term off while the lease still lasts.
async fn keep_alive(shared: Arc<Shared>, lease: LeaseId, stop: CancellationToken) {
    let ttl = shared.options.lease;
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(ttl / 3).await;
        match shared.ledger.store.lease_keep_alive(lease).await {
            Ok(()) => last = Instant::now(),
            Err(error) => {
                tracing::warn!(%error, "cannot keep the lead alive");
                let gone = matches!(error, StoreError::LeaseGone { .. } | StoreError::Closed);
                if gone || last.elapsed() > ttl / 2 {
                    stop.cancel();
                    return;
                }
            }
        }
    }
}

/// Forgets ended jobs that are neither young nor among the latest; a child stays while its parent may
/// still ask for it.
pub(crate) async fn prune_ended(shared: &Shared) -> Result<usize, StoreError> {
    let ledger: &Ledger = &shared.ledger;
    let (jobs, _) = ledger.jobs().await?;
    let active: Vec<JobId> = jobs
        .iter()
        .filter(|(job, _)| !job.state.has_ended())
        .map(|(job, _)| job.id)
        .collect();
    let mut ended: Vec<_> = jobs
        .into_iter()
        .filter_map(|(job, revision)| {
            let ended_at = job.ended_at.filter(|_| job.state.has_ended())?;
            Some((ended_at, job.id, job.parent, revision))
        })
        .collect();
    ended.sort_by_key(|(ended_at, ..)| std::cmp::Reverse(*ended_at));
    // By a clock of 2040 all of them would be old: they are by that of the last one.
    let last = ended.first().map(|(ended_at, ..)| *ended_at);
    let now = OffsetDateTime::now_utc();
    let oldest = last.map_or(now, |last| last.min(now)) - shared.options.retention.age;
    let mut pruned = 0;
    for (ended_at, id, parent, revision) in ended.into_iter().skip(shared.options.retention.keep) {
        if ended_at < oldest && !parent.is_some_and(|parent| active.contains(&parent)) {
            ledger.forget(id, revision).await?;
            pruned += 1;
        }
    }
    Ok(pruned)
}
