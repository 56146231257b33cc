//! Follows one job: its record from the store, and live progress if this engine runs it.

use crate::JobError;
use crate::engine::Shared;
use crate::ledger::{job_key, progress_key};
use crate::record::{Job, Progress};
use fleetward_model::JobId;
use fleetward_store::{Event, Revision, StoreError, Watch};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use std::sync::Arc;
use tokio::sync::watch;

/// A job each time it changes; ends behind its terminal state. See [`Engine::watch`](crate::Engine::watch).
pub type JobUpdates = BoxStream<'static, Result<Job, JobError>>;

struct Follower {
    shared: Arc<Shared>,
    job: Job,
    /// Of the record last seen; what the watch replays below it is old.
    revision: Revision,
    records: Watch,
    stored_progress: Watch,
    live: Option<watch::Receiver<Option<Progress>>>,
    first: bool,
    over: bool,
}

pub(crate) async fn follow(shared: &Arc<Shared>, id: JobId) -> Result<JobUpdates, JobError> {
    let store = &shared.ledger.store;
    let found = shared
        .ledger
        .job(id)
        .await?
        .ok_or(JobError::NotFound { id })?;
    let from = store.revision().await?.next();
    let records = store.watch(&job_key(id), from).await?;
    let stored_progress = store.watch(&progress_key(id), from).await?;
    // what was written between the first look and the beginning of the watches
    let (job, revision) = shared.ledger.job(id).await?.unwrap_or(found);
    let follower = Follower {
        shared: Arc::clone(shared),
        job,
        revision,
        records,
        stored_progress,
        live: None,
        first: true,
        over: false,
    };
    Ok(stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Some((item, follower))
    })
    .boxed())
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Job, JobError>> {
        if self.over {
            return None;
        }
        let changed = if std::mem::take(&mut self.first) {
            Ok(true)
        } else {
            self.change().await
        };
        match changed {
            Ok(there) => {
                self.over = !there || self.job.state.has_ended();
                there.then(|| Ok(self.job.clone()))
            }
            Err(error) => {
                self.over = true;
                Some(Err(error.into()))
            }
        }
    }

    /// Waits for a change; false when the job is no longer there.
    async fn change(&mut self) -> Result<bool, StoreError> {
        loop {
            if self.live.is_none() {
                self.live = self
                    .shared
                    .live()
                    .get(&self.job.id)
                    .map(|live| live.subscribe());
            }
            tokio::select! {
                biased;
                change = self.records.next() => {
                    let Some(change) = change.transpose()? else { return Ok(false) };
                    let Some(event) = change.events.into_iter().next_back() else { continue };
                    let Event::Put(entry) = event else { return Ok(false) };
                    if entry.mod_revision <= self.revision {
                        continue;
                    }
                    self.revision = entry.mod_revision;
                    let progress = self.job.progress.take();
                    self.job = entry.json()?;
                    let step = self.job.current_step().map(|step| step.name.as_str());
                    self.job.progress = progress.filter(|p| Some(p.step.as_str()) == step);
                    return Ok(true);
                }
                latest = live_change(&mut self.live) => {
                    match latest {
                        Some(progress) => {
                            if self.take(progress) {
                                return Ok(true);
                            }
                        }
                        None => self.live = None,
                    }
                }
                change = self.stored_progress.next() => {
                    let Some(change) = change.transpose()? else { return Ok(false) };
                    if let Some(Event::Put(entry)) = change.events.into_iter().next_back()
                        && self.take(entry.json()?)
                    {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Takes what is news: the stored progress lags behind the live one.
    fn take(&mut self, progress: Progress) -> bool {
        let news = self
            .job
            .progress
            .as_ref()
            .is_none_or(|known| known.at < progress.at);
        if news {
            self.job.progress = Some(progress);
        }
        news
    }
}

/// The next live progress; `None` when the job is no longer run here; never without a subscription.
async fn live_change(live: &mut Option<watch::Receiver<Option<Progress>>>) -> Option<Progress> {
    let Some(receiver) = live else {
        return std::future::pending().await;
    };
    loop {
        receiver.changed().await.ok()?;
        let latest = receiver.borrow_and_update().clone();
        if latest.is_some() {
            return latest;
        }
    }
}
