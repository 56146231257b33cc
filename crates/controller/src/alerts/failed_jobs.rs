//! Jobs that failed, each until one of its kind has succeeded for the same object, or for a day.

use super::book::Condition;
use crate::work;
use fleetward_jobs::{Engine, Job, JobError, JobFilter, JobState};
use fleetward_model::error::Finding;
use fleetward_model::{ErrorCode, JobId, Names};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use time::{Duration, OffsetDateTime};

const KEPT: Duration = Duration::DAY;
/// More at the same time are not known apart from the oldest.
const MOST: usize = 1000;
/// Jobs that are read at a start.
const READ: usize = 1000;

/// By kind and object.
#[derive(Debug, Default)]
pub(crate) struct FailedJobs(Mutex<BTreeMap<(String, String), Failed>>);

#[derive(Debug)]
struct Failed {
    job: JobId,
    at: OffsetDateTime,
    what: String,
}

impl FailedJobs {
    /// Reads what ended before the start.
    pub(super) async fn read(&self, engine: &Engine) -> Result<(), JobError> {
        let filter = JobFilter {
            active: Some(false),
            limit: Some(READ),
            ..JobFilter::default()
        };
        let mut jobs = engine.list(&filter).await?;
        jobs.sort_by_key(|job| job.ended_at);
        jobs.iter().for_each(|job| self.note(job));
        Ok(())
    }

    /// Takes note of a job that has ended. One that somebody cancelled did what it was told; one that another job began is
    /// that one's matter.
    pub(crate) fn note(&self, job: &Job) {
        if job.parent.is_some() {
            return;
        }
        let key = (job.kind.clone(), work::about_job(job).target);
        let at = job.ended_at.unwrap_or(job.created_at);
        let mut known = self.lock();
        match &job.failure {
            _ if job.state == JobState::Done => drop(known.remove(&key)),
            Some(failure) if job.state.has_ended() && job.cancel.is_none() => {
                let what = format!("{}: {}: {}", failure.code, failure.what, failure.because);
                let failed = Failed {
                    job: job.id,
                    at,
                    what,
                };
                if known.get(&key).is_none_or(|before| before.at <= at) {
                    known.insert(key, failed);
                }
                while known.len() > MOST {
                    let oldest = known.iter().min_by_key(|(_, failed)| failed.at);
                    let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                        break;
                    };
                    known.remove(&oldest);
                }
            }
            Some(_) | None => {}
        }
    }

    pub(super) fn failed(&self, now: OffsetDateTime) -> Vec<Condition> {
        let mut known = self.lock();
        known.retain(|_, failed| now - failed.at < KEPT);
        let conditions = known.iter().map(|((kind, target), failed)| {
            let what = format!("job {kind} of {target} failed: {}", failed.what);
            let finding = Finding::usual(ErrorCode::JobFailed, what);
            let finding = finding.about(&Names::default().job(failed.job));
            Condition {
                key: format!("{}/job/{kind}/{target}", finding.code),
                code: finding.code,
                subject: format!("job {kind} of {target}"),
                host: None,
                message: finding.what,
                fix: finding.fix,
                at_once: true,
            }
        });
        conditions.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Failed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
