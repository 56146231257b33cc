//! Measures a controller from outside, with the hosts of a simulated fleet in this process.
//!
//! Processor time is the controller's own, so a machine that is busy with something else changes it little; times until an
//! answer are of the clock on the wall, and say how busy the machine was.

pub mod beside;
pub mod budget;
pub mod controller;
pub mod copies;
pub mod latencies;
pub mod lists;
pub mod process;

use crate::directory::Protectors;
use crate::fleet::RunningFleet;
use anyhow::{Context, Result, bail};
use beside::Beside;
use controller::Controller;
use copies::{Copies, TpmWrites};
use fleetward_api::controller::{Accepted, JobState, JobView, Status};
use fleetward_link::Client;
use http::Method;
use latencies::{Latencies, Summary};
use process::{Machine, MachineBegin, Usage, Watched, megabytes};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What is given up waiting for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
/// Requests of one kind end after this, however many they were to be.
const LONGEST_ROUND: Duration = Duration::from_secs(20);
/// Largest answer that is read.
pub(crate) const LARGEST: usize = 512 << 20;

/// How much is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Effort {
    /// How long the controller is looked at while nothing happens, and under changes.
    pub idle: Duration,
    /// Requests of each kind.
    pub requests: u32,
    /// VMs that are stopped and started.
    pub jobs: u32,
    /// Changes of VMs a second, for the time under changes; 0: that is left out.
    pub changes_per_second: f64,
    /// TPMs that are written each second, for as long; 0: that is left out.
    pub tpm_writes_per_second: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub commit: String,
    pub controller_version: String,
    pub machine: Machine,
    pub fleet: FleetSize,
    /// The controller started with hosts that it has never heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// Copies of TPMs that it had none of, of a fleet with real protectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_copies: Option<Copies>,
    pub idle: Usage,
    pub memory: Memory,
    pub requests: BTreeMap<String, Requests>,
    /// Commands that are asked beside each other, by name.
    pub beside: BTreeMap<String, Beside>,
    /// From the request to start a VM until it is accepted.
    pub job_submit: Summary,
    /// The same until its job has ended.
    pub job: Summary,
    /// From a change on a host until the controller shows it.
    pub event_to_visible: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub under_changes: Option<UnderChanges>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm_writes: Option<TpmWrites>,
    /// The same controller after kill -9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Start>,
    /// Megabytes of each file and directory of the controller's data; empty where they cannot be seen.
    pub files_mb: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FleetSize {
    pub hosts: u32,
    pub vms: u32,
    pub hosts_per_group: u32,
    pub shared_guardian: bool,
    pub protectors: Protectors,
}

impl FleetSize {
    pub fn of(fleet: &RunningFleet) -> Self {
        Self {
            hosts: fleet.plan.hosts,
            vms: fleet.plan.all_vms(),
            hosts_per_group: fleet.plan.hosts_per_group,
            shared_guardian: fleet.shared_guardian,
            protectors: fleet.protectors,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    pub resident_mb: f64,
    pub highest_mb: f64,
    pub descriptors: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Start {
    /// Until it tells the state of the fleet.
    pub first_answer_s: f64,
    /// Until it tells a VM rightly.
    pub first_right_answer_s: f64,
    /// Until every host is online.
    pub all_online_s: f64,
    /// Its processor time until then.
    pub cpu_seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Requests {
    #[serde(flatten)]
    pub times: Summary,
    /// Processor time of the controller for one, without what it uses anyway.
    pub cpu_ms: f64,
    /// Bytes of the largest answer.
    pub bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct UnderChanges {
    pub changes_per_second: f64,
    #[serde(flatten)]
    pub usage: Usage,
    pub event_to_visible: Summary,
}

/// Measures all of it. A controller that was started here is killed and started again at the end.
pub async fn run(
    controller: &mut Controller,
    fleet: &Arc<RunningFleet>,
    effort: &Effort,
    start: Option<Start>,
    say: impl Fn(&str),
) -> Result<Report> {
    let machine = MachineBegin::now()?;
    let status: Status = controller.client.get("/v1/status").await?;
    wait_online(&controller.client, fleet).await?;
    let first_copies = match fleet.protectors {
        Protectors::Sized => None,
        Protectors::Real => {
            say("first copies of TPMs");
            copies::first(controller, fleet).await?
        }
    };
    say("nothing happens");
    // What follows from coming online is over by then.
    sleep(effort.idle.min(Duration::from_secs(10))).await;
    let idle = controller.watched()?.over(effort.idle).await?;
    say("requests");
    let requests = ask(controller, fleet, effort.requests, LONGEST_ROUND, &idle).await?;
    say("commands beside each other");
    let beside = beside::measure(controller, fleet, effort.idle).await?;
    say("jobs");
    let (job_submit, job) = run_jobs(&controller.client, fleet, effort).await?;
    say("changes");
    let event_to_visible =
        changes_seen(&controller.client, fleet, effort.requests.min(200)).await?;
    let under_changes = match effort.changes_per_second > 0.0 {
        true => Some(under_changes(controller, fleet, effort).await?),
        false => None,
    };
    let rate = effort.tpm_writes_per_second;
    let tpm_writes = match rate > 0.0 {
        true => {
            say("guests write their TPMs");
            let writes =
                copies::while_guests_write(controller, fleet, rate, effort.idle, &idle).await?;
            Some(writes)
        }
        false => None,
    };
    let now = controller.watched()?.now()?;
    let memory = Memory {
        resident_mb: megabytes(now.resident),
        highest_mb: megabytes(now.highest),
        descriptors: now.descriptors,
    };
    let restart = match controller.is_ours() {
        true => {
            say("kill -9, and another start");
            controller.kill().await?;
            Some(time_start(controller, fleet).await?)
        }
        false => None,
    };
    let files = controller.data().map(process::sizes).transpose()?;
    Ok(Report {
        commit: String::new(),
        controller_version: status.version,
        machine: machine.end()?,
        fleet: FleetSize::of(fleet),
        start,
        first_copies,
        idle,
        memory,
        requests,
        beside,
        job_submit,
        job,
        event_to_visible,
        under_changes,
        tpm_writes,
        restart,
        files_mb: (files.unwrap_or_default().into_iter())
            .map(|(name, bytes)| (name, megabytes(bytes)))
            .collect(),
    })
}

/// Starts a controller that was started here and has ended, and times it.
pub async fn time_start(controller: &mut Controller, fleet: &RunningFleet) -> Result<Start> {
    let begin = Instant::now();
    controller.spawn()?;
    let some_vm = fleet.plan.vm_name(0);
    let (path, host) = (format!("/v1/vms/{some_vm}"), fleet.plan.host(0));
    // Side by side: who asks for a VM does not wait for who asks for all.
    let client = controller.client.clone();
    let any = until(&client, begin, "/v1/status", |_| true);
    let right = until(&client, begin, &path, |vm| vm["host"] == host.as_str());
    let both = async {
        match fleet.plan.vms {
            0 => Ok((any.await?, None)),
            _ => tokio::try_join!(any, async { right.await.map(Some) }),
        }
    };
    let ended = async {
        loop {
            if let Err(ended) = controller.still_runs() {
                return ended;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let (first, right) = tokio::select! {
        both = both => both?,
        ended = ended => return Err(ended),
    };
    wait_online(&controller.client, fleet).await?;
    Ok(Start {
        first_answer_s: first.as_secs_f64(),
        first_right_answer_s: right.unwrap_or(first).as_secs_f64(),
        all_online_s: begin.elapsed().as_secs_f64(),
        cpu_seconds: controller.watched()?.now()?.cpu,
    })
}

/// How long after `begin` it was that the controller's answer at `path` was the wanted one.
async fn until(
    client: &Client,
    begin: Instant,
    path: &str,
    is_wanted: impl Fn(&Value) -> bool,
) -> Result<Duration> {
    loop {
        let answer = client.get::<Value>(path).await;
        if answer.is_ok_and(|answer| is_wanted(&answer)) {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > PATIENCE {
            bail!("the controller does not answer {path} after {PATIENCE:?}");
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Until the controller says that every host is online.
pub async fn wait_online(client: &Client, fleet: &RunningFleet) -> Result<()> {
    let begin = Instant::now();
    loop {
        let status: Status = client.get("/v1/status").await?;
        if status.hosts_online >= fleet.plan.hosts && status.vms >= fleet.plan.all_vms() {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            bail!(
                "{} of {} hosts are online after {PATIENCE:?}",
                status.hosts_online,
                fleet.plan.hosts
            );
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The requests that are measured: a name, and the path of the one with that number.
type Question = (&'static str, fn(&RunningFleet, u32) -> String);

const QUESTIONS: &[Question] = &[
    ("status", |_, _| "/v1/status".to_owned()),
    ("vm", |fleet, at| format!("/v1/vms/{}", any_vm(fleet, at))),
    ("vms_page", |fleet, at| {
        format!("/v1/vms?limit=100&after={}", any_vm(fleet, at))
    }),
    ("vms_of_host", |fleet, at| {
        format!("/v1/vms?limit=100&host={}", any_host(fleet, at))
    }),
    ("host", |fleet, at| {
        format!("/v1/hosts/{}", any_host(fleet, at))
    }),
    ("hosts_page", |fleet, at| {
        format!("/v1/hosts?limit=100&after={}", any_host(fleet, at))
    }),
    ("jobs_page", |_, _| "/v1/jobs?limit=100".to_owned()),
    ("metrics", |_, _| "/metrics".to_owned()),
    ("check_vm", |fleet, at| {
        let to = any_host(fleet, at + 1);
        format!("/v1/check?vm={}&to={to}", any_vm(fleet, at))
    }),
    ("check_hosts_page", |fleet, at| {
        format!("/v1/check/hosts?limit=100&after={}", any_host(fleet, at))
    }),
];

/// Spread over the fleet, so that no cache helps.
pub(crate) fn any_vm(fleet: &RunningFleet, at: u32) -> String {
    let number = at.wrapping_mul(7919) % fleet.plan.all_vms().max(1);
    fleet.plan.vm_name(number).to_string()
}

fn any_host(fleet: &RunningFleet, at: u32) -> String {
    let number = at.wrapping_mul(7919) % fleet.plan.hosts.max(1);
    fleet.plan.host(number).to_string()
}

/// Requests of every kind: so many of each, or as many as that time allows.
pub async fn ask(
    controller: &Controller,
    fleet: &RunningFleet,
    count: u32,
    longest: Duration,
    idle: &Usage,
) -> Result<BTreeMap<String, Requests>> {
    let mut requests = BTreeMap::new();
    for (name, path) in QUESTIONS {
        let paths = (0..count).map(|at| path(fleet, at));
        let measured = ask_each(controller, paths, longest, idle).await;
        requests.insert((*name).to_owned(), measured.context(*name)?);
    }
    Ok(requests)
}

/// One request after the other.
async fn ask_each(
    controller: &Controller,
    paths: impl Iterator<Item = String>,
    longest: Duration,
    idle: &Usage,
) -> Result<Requests> {
    let mut times = Latencies::default();
    let mut bytes = 0;
    let begin = Instant::now();
    let before = controller.watched()?.now()?;
    for path in paths {
        let answer = async {
            let response = controller.client.request(Method::GET, &path).send().await?;
            response.bytes(LARGEST).await
        };
        let answer = times.time(answer).await.with_context(|| path.clone())?;
        bytes = bytes.max(answer.len());
        if begin.elapsed() > longest {
            break;
        }
    }
    let usage = controller.watched()?.now()?.since(&before);
    let anyway = idle.cpu_percent / 100.0 * usage.seconds;
    let times = times.summary();
    Ok(Requests {
        times,
        cpu_ms: (usage.cpu_seconds - anyway).max(0.0) * 1000.0 / times.count.max(1) as f64,
        bytes,
    })
}

/// Stops VMs and starts them again. The times are those of the starts.
async fn run_jobs(
    client: &Client,
    fleet: &RunningFleet,
    effort: &Effort,
) -> Result<(Summary, Summary)> {
    let (mut submit, mut whole) = (Latencies::default(), Latencies::default());
    for at in 0..effort.jobs.min(fleet.plan.all_vms()) {
        let vm = any_vm(fleet, at);
        let stop = format!("/v1/vms/{vm}/stop");
        let stopped: Accepted = client.post(&stop, &json!({ "force": true })).await?;
        ended(client, &stopped).await?;
        let begin = Instant::now();
        let start = format!("/v1/vms/{vm}/start");
        let started: Accepted = submit.time(client.post(&start, &json!({}))).await?;
        ended(client, &started).await?;
        whole.add(begin.elapsed());
    }
    Ok((submit.summary(), whole.summary()))
}

/// Until a job has ended well.
async fn ended(client: &Client, accepted: &Accepted) -> Result<()> {
    let Some(job) = accepted.job else {
        return Ok(());
    };
    let path = format!("/v1/jobs/{job}/events");
    let response = client.request(Method::GET, &path).send().await?;
    let mut lines = response.lines();
    while let Some(view) = lines.next_json::<JobView>().await? {
        if view.state == JobState::Done {
            return Ok(());
        }
        if view.state.has_ended() {
            bail!(
                "job {job} has ended as {:?}: {:?}",
                view.state,
                view.failure
            );
        }
    }
    bail!("job {job} is told no longer")
}

/// Changes VMs one after the other, and waits each time until the controller shows it.
pub async fn changes_seen(client: &Client, fleet: &RunningFleet, count: u32) -> Result<Summary> {
    let mut times = Latencies::default();
    let vms = fleet.plan.all_vms();
    for at in 0..count.min(vms) {
        let number = at.wrapping_mul(7919) % vms;
        let path = format!("/v1/vms/{}", fleet.plan.vm_name(number));
        let reason = format!("seen {at}");
        let begin = Instant::now();
        if !fleet.touch(number, reason.clone()) {
            continue;
        }
        while client.get::<Value>(&path).await?["reason"] != reason {
            if begin.elapsed() > PATIENCE {
                bail!("the controller does not show a change of {path}");
            }
            sleep(Duration::from_millis(1)).await;
        }
        times.add(begin.elapsed());
    }
    Ok(times.summary())
}

async fn under_changes(
    controller: &Controller,
    fleet: &Arc<RunningFleet>,
    effort: &Effort,
) -> Result<UnderChanges> {
    let change = crate::scenario::Change {
        per_second: effort.changes_per_second,
        what: crate::scenario::Changed::StateReason,
    };
    // Ends with this function.
    let mut changing = tokio::task::JoinSet::new();
    changing.spawn(crate::scenario::keep_changing(fleet.clone(), change));
    let (usage, event_to_visible) = tokio::join!(
        controller.watched()?.over(effort.idle),
        changes_to_an_end(&controller.client, fleet, effort.idle),
    );
    Ok(UnderChanges {
        changes_per_second: effort.changes_per_second,
        usage: usage?,
        event_to_visible: event_to_visible?,
    })
}

/// For that time, and at most 200 of them.
async fn changes_to_an_end(
    client: &Client,
    fleet: &RunningFleet,
    time: Duration,
) -> Result<Summary> {
    let count = u32::try_from(time.as_secs() * 10)
        .unwrap_or(200)
        .clamp(10, 200);
    changes_seen(client, fleet, count).await
}

/// Writes a report as JSON.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    fleetward_durable::replace(path, text.as_bytes(), fleetward_durable::Access::PUBLIC)
        .with_context(|| format!("cannot write {}", path.display()))
}

impl Controller {
    /// Its process.
    pub fn watched(&self) -> Result<Watched> {
        self.pid().map(Watched)
    }
}
