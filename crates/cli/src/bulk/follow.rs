//! Follows the answer to a bulk request to its end, across lost connections and restarts of the controller.
//!
//! ```text
//!   send ─► lines ─┬─► summary
//!     ▲            ├─► cut off: what has not ended is asked for again, with the jobs that are known
//!     └────────────┘
//!                  └─► Ctrl-C: the controller is told to stop, and says what goes on
//! ```

use crate::commands::Context;
use crate::controller::Controller;
use crate::exit::Stop;
use crate::progress::Task;
use crate::{interrupt, messages};
use fleetward_api::bulk::{BulkEntry, BulkEvent, NotBegun, Submitted, Target};
use fleetward_api::following::goes_on;
use fleetward_api::verbs::{BulkStop, Verb};
use fleetward_model::error::Class;
use fleetward_model::{Failure, JobId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a controller may be away before a request is given up (its jobs go on).
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(500);

/// How long the controller may take to end its answer after Ctrl-C.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What is asked for when an answer was cut off.
pub(crate) struct Again {
    pub(crate) rest: Vec<Target>,
    pub(crate) jobs: Vec<Submitted>,
}

/// How an answer ended.
enum End {
    Summary,
    Cut(Option<Failure>),
    Interrupted,
}

/// What became of each, in the order of the request. `tell` gets each as it ends.
///
/// # Errors
/// The request was refused.
pub(crate) async fn follow<V>(
    context: &Context,
    request: impl Fn(Option<Again>) -> V::Request,
    tell: impl Fn(&BulkEntry) -> Result<(), Stop>,
) -> Result<Vec<BulkEntry>, Stop>
where
    V: for<'a> Verb<Path<'a> = [&'a str; 0], Answer = BulkEvent>,
{
    let interrupt = interrupt::on_ctrl_c();
    let mut seen = Seen::default();
    let mut told = false;
    loop {
        let again = seen.again();
        if again.as_ref().is_some_and(|again| again.rest.is_empty()) {
            break;
        }
        let lost = match listen::<V>(context, &request(again), &interrupt, &mut seen, &tell).await?
        {
            End::Summary => break,
            End::Interrupted => {
                seen.end_rest(&tell, |target, job| match job {
                    Some(job) => BulkEntry::left(target, job),
                    None => BulkEntry::not_begun(target, NotBegun::Interrupted),
                })?;
                break;
            }
            End::Cut(lost) => lost,
        };
        if let Some(failure) = lost {
            if seen.heard.elapsed() > PATIENCE {
                seen.end_rest(&tell, |target, job| {
                    let failure = match job {
                        Some(job) => failure.clone().fix(goes_on(job)),
                        None => failure.clone(),
                    };
                    BulkEntry::failed(target, &failure, job)
                })?;
                break;
            }
            if !told {
                context.progress.remark(messages::BULK_CONNECTION_LOST);
                told = true;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(seen.into_entries())
}

async fn listen<V>(
    context: &Context,
    request: &V::Request,
    interrupt: &CancellationToken,
    seen: &mut Seen,
    tell: &impl Fn(&BulkEntry) -> Result<(), Stop>,
) -> Result<End, Stop>
where
    V: for<'a> Verb<Path<'a> = [&'a str; 0], Answer = BulkEvent>,
{
    let controller = &context.controller;
    let mut events = match controller.follow::<V>([], request).await {
        Ok(events) => events,
        Err(failure) if seen.begun && failure.code.class() == Class::Unreachable => {
            return Ok(match interrupt.is_cancelled() {
                true => End::Interrupted,
                false => End::Cut(Some(failure)),
            });
        }
        Err(failure) => return Err(failure.into()),
    };
    let mut bulk = None;
    let mut deadline = None;
    loop {
        let last_words = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            next = events.next() => next,
            () = interrupt.cancelled(), if deadline.is_none() => {
                if !stop(controller, bulk.as_deref()).await {
                    return Ok(End::Interrupted);
                }
                deadline = Some(Instant::now() + LAST_WORDS);
                continue;
            }
            () = last_words => return Ok(End::Interrupted),
        };
        match next {
            Ok(Some(BulkEvent::Begun { bulk: id })) => {
                bulk = Some(id.to_string());
                seen.begun = true;
            }
            Ok(Some(BulkEvent::Summary(_))) => return Ok(End::Summary),
            Ok(Some(event)) => seen.take(context, event, tell)?,
            Ok(None) if deadline.is_some() => return Ok(End::Interrupted),
            Ok(None) => return Ok(End::Cut(None)),
            Err(failure) if failure.code.class() == Class::Unreachable => {
                return Ok(match deadline {
                    Some(_) => End::Interrupted,
                    None => End::Cut(Some(failure)),
                });
            }
            Err(failure) => return Err(failure.into()),
        }
        seen.heard = Instant::now();
    }
}

/// Whether the controller was told to begin nothing more.
async fn stop(controller: &Controller, bulk: Option<&str>) -> bool {
    match bulk {
        Some(bulk) => controller.call::<BulkStop>([bulk], &()).await.is_ok(),
        None => false,
    }
}

/// What was heard so far.
struct Seen {
    begun: bool,
    heard: Instant,
    order: Vec<Target>,
    jobs: BTreeMap<Target, JobId>,
    tasks: BTreeMap<Target, Task>,
    ended: BTreeMap<Target, BulkEntry>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            begun: false,
            heard: Instant::now(),
            order: Vec::new(),
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }
}

impl Seen {
    fn take(
        &mut self,
        context: &Context,
        event: BulkEvent,
        tell: &impl Fn(&BulkEntry) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        match event {
            BulkEvent::Selected { targets } => {
                let known: std::collections::BTreeSet<_> = self.order.iter().cloned().collect();
                let new = targets.into_iter().filter(|target| !known.contains(target));
                self.order.extend(new);
            }
            BulkEvent::Submitted(Submitted { target, job }) => {
                self.jobs.insert(target.clone(), job);
                let task = context.progress.task(target.as_str());
                self.tasks.insert(target, task);
            }
            BulkEvent::Progress { target, view } => {
                if let Some(task) = self.tasks.get(&target) {
                    task.job(&view);
                }
            }
            BulkEvent::Ended(entry) => {
                self.tasks.remove(&entry.target);
                tell(&entry)?;
                self.ended.insert(entry.target.clone(), *entry);
            }
            BulkEvent::Planned(_) | BulkEvent::Begun { .. } | BulkEvent::Summary(_) => {}
        }
        Ok(())
    }

    fn rest(&self) -> impl Iterator<Item = &Target> {
        let all = self.order.iter();
        all.filter(|target| !self.ended.contains_key(target))
    }

    /// What is still to be asked for; none where the answer ended before it named all, and so before anything was begun.
    fn again(&mut self) -> Option<Again> {
        if self.jobs.is_empty() && self.ended.is_empty() {
            self.order.clear();
            return None;
        }
        let job = |target: &Target| {
            let job = *self.jobs.get(target)?;
            let target = target.clone();
            Some(Submitted { target, job })
        };
        Some(Again {
            rest: self.rest().cloned().collect(),
            jobs: self.rest().filter_map(job).collect(),
        })
    }

    fn end_rest(
        &mut self,
        tell: &impl Fn(&BulkEntry) -> Result<(), Stop>,
        entry: impl Fn(Target, Option<JobId>) -> BulkEntry,
    ) -> Result<(), Stop> {
        self.tasks.clear();
        for target in self.rest().cloned().collect::<Vec<_>>() {
            let entry = entry(target.clone(), self.jobs.get(&target).copied());
            tell(&entry)?;
            self.ended.insert(target, entry);
        }
        Ok(())
    }

    fn into_entries(mut self) -> Vec<BulkEntry> {
        let order = self.order.into_iter();
        order
            .filter_map(|target| self.ended.remove(&target))
            .collect()
    }
}
