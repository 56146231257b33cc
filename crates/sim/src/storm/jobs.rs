//! Many jobs at once: each stops a VM of its own. What was submitted is held against the controller's list of jobs, and against
//! what the hosts say that was done.

use super::witness::Witness;
use super::{Claims, Seen, Strength, same};
use crate::fleet::RunningFleet;
use crate::measure::controller::Controller;
use crate::measure::latencies::{Latencies, Summary};
use crate::measure::{PATIENCE, lists};
use anyhow::Result;
use fleetward_api::controller::{Accepted, JobState, JobView};
use fleetward_link::{Client, ClientError};
use fleetward_model::{Failure, JobId, VmId};
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const KIND: &str = "vm-stop";
/// What a host is asked for by such a job.
const OPERATION: &str = "stop";

/// Jobs that were submitted at once.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobStorm {
    pub submitted: usize,
    pub accepted: usize,
    /// Ended well, each once.
    pub done: usize,
    /// From each request until its job was accepted.
    pub submit: Summary,
    /// From the first request until the last job had ended.
    pub seconds: f64,
    /// What hosts say that they did for these jobs.
    pub performed: usize,
    #[serde(flatten)]
    pub seen: Seen,
}

pub(super) async fn storm(
    controller: &Controller,
    fleet: &Arc<RunningFleet>,
    strength: &Strength,
    claims: &mut Claims,
) -> Result<JobStorm> {
    let (all, jobs) = (
        fleet.plan.all_vms(),
        strength.jobs.min(fleet.plan.all_vms()),
    );
    let vms: Vec<u32> = (0..jobs).map(|at| spread(at, jobs, all)).collect();
    let witness = Witness::begin(controller, fleet);
    let begin = Instant::now();
    let client = controller.another_client();
    let (accepted, refused, submit) = submit(&client, fleet, &vms).await;
    claims.require_none(&refused, "was not accepted");
    let in_time = wait_for_all(&client, begin).await?;
    claims.require_within(in_time, PATIENCE, "all jobs end");
    let seconds = begin.elapsed().as_secs_f64();

    let listed: Vec<JobView> = lists::all(&client, &format!("/v1/jobs?kind={KIND}&")).await?;
    let (done, wrong) = judge_list(&accepted, &listed);
    claims.require_none(&wrong, "after all were submitted at once");
    let performed = performed(fleet);
    claims.require_none(
        &judge_performed(&accepted, &performed),
        "by the hosts' own records",
    );
    let same = same::wait(&client, fleet, strength.within).await?;
    claims.require_none(&same.differences, "after the jobs");
    Ok(JobStorm {
        submitted: vms.len(),
        accepted: accepted.len(),
        done,
        submit,
        seconds,
        performed: performed
            .iter()
            .filter(|(job, _)| accepted.contains_key(job))
            .count(),
        seen: witness.end(fleet, &BTreeSet::new(), false, strength, claims),
    })
}

/// The VM of the job with that number: each another one, all over the fleet.
fn spread(at: u32, jobs: u32, all: u32) -> u32 {
    let place = u64::from(at) * u64::from(all) / u64::from(jobs.max(1));
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// Submits all of them at once. The jobs that were accepted, by id, with their VMs; and what was not.
async fn submit(
    client: &Client,
    fleet: &RunningFleet,
    vms: &[u32],
) -> (BTreeMap<JobId, VmId>, Vec<String>, Summary) {
    let requests = vms.iter().map(|number| async move {
        let (name, begin) = (fleet.plan.vm_name(*number), Instant::now());
        let path = format!("/v1/vms/{name}/stop");
        let answer: Result<Accepted, _> = client.post(&path, &json!({ "force": true })).await;
        match answer {
            Ok(Accepted { job: Some(job) }) => {
                Ok((job, fleet.plan.vm_id(*number), begin.elapsed()))
            }
            Ok(Accepted { job: None }) => Err(format!("the job for VM {name} (nothing to do)")),
            Err(error) => Err(format!("the job for VM {name} ({})", plain(&error))),
        }
    });
    let (mut accepted, mut refused, mut times) =
        (BTreeMap::new(), Vec::new(), Latencies::default());
    for answer in join_all(requests).await {
        match answer {
            Ok((job, vm, time)) => {
                times.add(time);
                if accepted.insert(job, vm).is_some() {
                    refused.push(format!("the job {job}, whose id another one has,"));
                }
            }
            Err(what) => refused.push(what),
        }
    }
    (accepted, refused, times.summary())
}

/// What the controller said, where it said something.
fn plain(error: &ClientError) -> String {
    if let ClientError::Status { body, .. } = error
        && let Ok(failure) = serde_json::from_slice::<Failure>(body)
    {
        return format!("{}: {}", failure.code.as_str(), failure.what);
    }
    error.to_string()
}

/// Until no job of the kind is under way, with the seconds since `begin`; none: not in time.
async fn wait_for_all(client: &Client, begin: Instant) -> Result<Option<f64>> {
    let path = format!("/v1/jobs?kind={KIND}&active=true&limit=1");
    while begin.elapsed() < PATIENCE {
        let active: Vec<JobView> = client.get(&path).await?;
        if active.is_empty() {
            return Ok(Some(begin.elapsed().as_secs_f64()));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(None)
}

/// How many ended well, and what is wrong with the list.
fn judge_list(accepted: &BTreeMap<JobId, VmId>, listed: &[JobView]) -> (usize, Vec<String>) {
    let mut found: BTreeMap<JobId, Vec<&JobView>> = BTreeMap::new();
    for job in listed {
        found.entry(job.id).or_default().push(job);
    }
    let (mut done, mut wrong) = (0, Vec::new());
    for job in accepted.keys() {
        match found.remove(job).as_deref() {
            Some([view]) if view.state == JobState::Done => done += 1,
            Some([view]) => {
                wrong.push(format!("job {job} is {:?}: {:?}", view.state, view.failure))
            }
            Some(views) => wrong.push(format!("job {job} is listed {} times", views.len())),
            None => wrong.push(format!("job {job} was accepted and is not listed")),
        }
    }
    (done, wrong)
}

/// The jobs of the kind for which hosts did something, each as often as they did, with the VM.
fn performed(fleet: &RunningFleet) -> Vec<(JobId, VmId)> {
    let of_host = |all: &[(&str, JobId, VmId)]| {
        let stops = all.iter().filter(|(name, ..)| *name == OPERATION);
        stops.map(|(_, job, vm)| (*job, *vm)).collect::<Vec<_>>()
    };
    let hosts = fleet.hosts.iter();
    hosts
        .flat_map(|host| host.look(|inner| of_host(&inner.performed)))
        .collect()
}

/// What was not done, done twice, or done to another VM.
fn judge_performed(accepted: &BTreeMap<JobId, VmId>, performed: &[(JobId, VmId)]) -> Vec<String> {
    let mut by_job: BTreeMap<JobId, Vec<VmId>> = BTreeMap::new();
    for (job, vm) in performed {
        by_job.entry(*job).or_default().push(*vm);
    }
    let mut wrong = Vec::new();
    for (job, vm) in accepted {
        match by_job.remove(job).as_deref() {
            Some([done]) if done == vm => {}
            Some([done]) => wrong.push(format!(
                "job {job} was for VM {vm} and was done to VM {done}"
            )),
            Some(done) => wrong.push(format!("job {job} was done {} times", done.len())),
            None => wrong.push(format!("job {job} was not done")),
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn job(number: u128) -> JobId {
        JobId(Uuid::from_u128(number))
    }

    fn vm(number: u128) -> VmId {
        VmId(Uuid::from_u128(number))
    }

    #[test]
    fn every_job_has_a_vm_of_its_own() {
        for (jobs, all) in [(200, 200), (2000, 25_000), (7, 10), (1, 5)] {
            let vms: BTreeSet<u32> = (0..jobs).map(|at| spread(at, jobs, all)).collect();
            assert_eq!(vms.len(), jobs as usize);
            assert!(vms.iter().all(|vm| *vm < all));
        }
    }

    #[test]
    fn what_hosts_did_twice_not_at_all_or_to_another_vm_is_named() {
        let accepted = BTreeMap::from([(job(1), vm(1)), (job(2), vm(2)), (job(3), vm(3))]);
        let good = [
            (job(3), vm(3)),
            (job(1), vm(1)),
            (job(2), vm(2)),
            (job(9), vm(9)),
        ];
        assert_eq!(judge_performed(&accepted, &good), [""; 0]);
        let bad = [(job(1), vm(1)), (job(1), vm(1)), (job(2), vm(3))];
        let wrong = judge_performed(&accepted, &bad);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(wrong[0].contains("done 2 times"), "{wrong:?}");
        assert!(wrong[1].contains("done to VM"), "{wrong:?}");
        assert!(wrong[2].contains("not done"), "{wrong:?}");
    }
}
