//! The run of a bulk request: begins jobs, so many at a time, follows them, and tells what becomes of each.
//!
//! ```text
//!   waiting ─┬─► begun ─┬─► ended: succeeded, failed, skipped (nothing to do)
//!            │          └─► left: stopped, or its host is away; its job goes on
//!            └─► not begun: stopped, or too many failures
//! ```
//! A run ends with whoever reads its answer: nothing more is begun then. Jobs belong to the engine and go on in any case,
//! also across a restart of the controller.

use crate::app::App;
use crate::bulks::Bulk;
use crate::http::lines::lines;
use crate::http::view;
use axum::response::Response;
use fleetward_api::bulk::{
    BulkEntry, BulkEvent, BulkSummary, How, NotBegun, PARALLEL, Submitted, Target,
};
use fleetward_api::controller::{Accepted, JobView, Outcome};
use fleetward_api::following::{Until, outcome};
use fleetward_model::{Failure, JobId};
use futures_util::{StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Targets that one line names.
const NAMED_IN_A_LINE: usize = 500;

/// Lines that wait to be read.
const WAITING_LINES: usize = 64;

/// What is asked of each.
pub(in crate::http) trait Each: Send + Sync + 'static {
    /// The job that does it; none where there is nothing to do.
    fn begin(&self, target: &Target) -> impl Future<Output = Result<Accepted, Failure>> + Send;

    /// Said of one whose job is done.
    fn done(&self, job: &JobView) -> String;

    /// Said of one that is as it should be already.
    fn already(&self) -> &'static str;
}

/// Begins the run; the answer is its lines.
pub(in crate::http) fn run<E: Each>(
    app: &App,
    each: E,
    targets: Vec<Target>,
    how: How,
) -> Response {
    let (events, told) = mpsc::channel(WAITING_LINES);
    let run = Run {
        app: app.clone(),
        bulk: app.bulks.begin(),
        each,
        parallel: match how.wait {
            true => how.parallel.unwrap_or(PARALLEL),
            false => 1,
        },
        wait: how.wait,
        max_failures: how.max_failures.unwrap_or(u32::MAX),
        jobs: how.jobs.into_iter().map(|s| (s.target, s.job)).collect(),
        failures: AtomicU32::new(0),
        events,
    };
    let stop = app.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = run.all(targets) => {}
        }
    });
    lines(app, ReceiverStream::new(told))
}

struct Run<E> {
    app: App,
    bulk: Bulk,
    each: E,
    parallel: u32,
    wait: bool,
    max_failures: u32,
    /// Submitted before this run.
    jobs: BTreeMap<Target, JobId>,
    failures: AtomicU32,
    events: mpsc::Sender<BulkEvent>,
}

impl<E: Each> Run<E> {
    async fn all(&self, targets: Vec<Target>) {
        self.tell(BulkEvent::Begun { bulk: self.bulk.id }).await;
        for targets in targets.chunks(NAMED_IN_A_LINE) {
            let targets = targets.to_vec();
            self.tell(BulkEvent::Selected { targets }).await;
        }
        let mut summary = BulkSummary::default();
        let mut ends = stream::iter(targets)
            .map(|target| self.one(target))
            .buffer_unordered(self.parallel as usize);
        while let Some(entry) = ends.next().await {
            summary.count(entry.outcome);
            self.tell(BulkEvent::Ended(Box::new(entry))).await;
        }
        self.tell(BulkEvent::Summary(summary)).await;
    }

    async fn one(&self, target: Target) -> BulkEntry {
        let job = match self.jobs.get(&target) {
            Some(job) => *job,
            None => match self.begin(&target).await {
                Ok(job) => job,
                Err(entry) => return *entry,
            },
        };
        let line = Submitted {
            target: target.clone(),
            job,
        };
        self.tell(BulkEvent::Submitted(line)).await;
        match self.wait {
            true => self.follow(target, job).await,
            false => BulkEntry::submitted(target, job),
        }
    }

    /// The job that does it; otherwise what became of the target without one.
    async fn begin(&self, target: &Target) -> Result<JobId, Box<BulkEntry>> {
        let not_begun = |why| Box::new(BulkEntry::not_begun(target.clone(), why));
        if self.bulk.stop.is_cancelled() || self.events.is_closed() {
            return Err(not_begun(NotBegun::Interrupted));
        }
        if self.failures.load(Ordering::Relaxed) >= self.max_failures {
            return Err(not_begun(NotBegun::TooManyFailures));
        }
        match self.each.begin(target).await {
            Ok(Accepted { job: Some(job) }) => Ok(job),
            Ok(Accepted { job: None }) => {
                let already = self.each.already();
                let entry = BulkEntry::new(target.clone(), Outcome::Skipped, already);
                Err(Box::new(entry))
            }
            Err(failure) => Err(Box::new(self.failed(target.clone(), &failure, None))),
        }
    }

    async fn follow(&self, target: Target, job: JobId) -> BulkEntry {
        let mut updates = match self.app.engine.watch(job).await {
            Ok(updates) => updates,
            Err(error) => return self.failed(target, &error.to_failure(), Some(job)),
        };
        loop {
            let next = tokio::select! {
                next = updates.next() => next,
                () = self.bulk.stop.cancelled() => return BulkEntry::left(target, job),
                () = self.events.closed() => return BulkEntry::left(target, job),
            };
            let view = match next {
                Some(Ok(job)) => view::job(&self.app.world, job),
                Some(Err(error)) => return self.failed(target, &error.to_failure(), Some(job)),
                None => return BulkEntry::left(target, job),
            };
            if !Until::Stuck.is_reached(&view) {
                let (target, view) = (target.clone(), Box::new(view));
                self.tell(BulkEvent::Progress { target, view }).await;
                continue;
            }
            return match outcome(view) {
                Ok(view) => BulkEntry::done(target, self.each.done(&view), &view),
                Err(failure) => self.failed(target, &failure, Some(job)),
            };
        }
    }

    fn failed(&self, target: Target, failure: &Failure, job: Option<JobId>) -> BulkEntry {
        self.failures.fetch_add(1, Ordering::Relaxed);
        BulkEntry::failed(target, failure, job)
    }

    /// Where nobody reads any longer, the run ends by itself.
    async fn tell(&self, event: BulkEvent) {
        let _ = self.events.send(event).await;
    }
}
