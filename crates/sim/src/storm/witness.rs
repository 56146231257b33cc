//! Who asks all the while: which hosts are shown unreachable, and how long answers take.
//!
//! The list is asked for again and again, so a host that is shown unreachable between two looks is missed. Such a host is found
//! by what it saw itself: the controller has begun to read its events anew.

use super::{Claims, Strength};
use crate::fleet::RunningFleet;
use crate::measure::controller::Controller;
use crate::measure::latencies::{Latencies, Summary};
use crate::measure::{LARGEST, any_vm, lists};
use anyhow::Result;
use fleetward_api::lists::Row;
use fleetward_link::Client;
use fleetward_model::HostName;
use http::Method;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// From one look at the hosts to the next.
const LOOKS: Duration = Duration::from_millis(100);
/// From one question to the next.
const QUESTIONS: Duration = Duration::from_millis(20);

/// What was seen during a storm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// Hosts that were there the whole time, and were shown unreachable.
    pub falsely_lost: usize,
    /// Hosts that were there the whole time, and were called again.
    pub called_again: usize,
    pub answers: Answers,
}

/// Answers to what is asked all the while.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answers {
    pub vm: Summary,
    pub vms_page: Summary,
    /// Requests that were not answered, since the first one that was.
    pub failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
}

/// Asks until it is ended.
pub(super) struct Witness {
    hosts: Arc<Mutex<Hosts>>,
    asked: Arc<Mutex<Asked>>,
    tasks: JoinSet<()>,
    /// How often each host's events were begun to be read, when this began.
    streams: HashMap<HostName, u64>,
}

#[derive(Default)]
struct Hosts {
    /// Shown unreachable at the last look; none before the first answer.
    unreachable: Option<BTreeSet<HostName>>,
    /// Were not at one look, and were at the next.
    fell: BTreeSet<HostName>,
}

#[derive(Default)]
struct Asked {
    vm: Latencies,
    vms_page: Latencies,
    failed: u64,
    first_failure: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    name: HostName,
}

impl Row for Named {
    fn cursor(&self) -> String {
        self.name.to_string()
    }
}

impl Witness {
    pub(super) fn begin(controller: &Controller, fleet: &Arc<RunningFleet>) -> Self {
        let (hosts, asked) = (Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        let client = controller.another_client();
        tasks.spawn(look(client, Arc::clone(&hosts)));
        let client = controller.another_client();
        tasks.spawn(ask(client, fleet.clone(), Arc::clone(&asked)));
        Self {
            hosts,
            asked,
            tasks,
            streams: streams(fleet),
        }
    }

    /// Returns when the hosts that are shown unreachable are as `wanted`, with the seconds that it took; none after `limit`.
    pub(super) async fn until(
        &self,
        limit: Duration,
        wanted: impl Fn(&BTreeSet<HostName>) -> bool,
    ) -> Option<f64> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            let shown = lock(&self.hosts).unreachable.as_ref().is_some_and(&wanted);
            if shown {
                return Some(begin.elapsed().as_secs_f64());
            }
            sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// What was seen; `away` are the hosts that were not there all the time.
    pub(super) fn end(
        mut self,
        fleet: &RunningFleet,
        away: &BTreeSet<HostName>,
        restarted: bool,
        strength: &Strength,
        claims: &mut Claims,
    ) -> Seen {
        self.tasks.abort_all();
        let fell = &lock(&self.hosts).fell;
        let lost: Vec<String> = fell
            .difference(away)
            .map(|host| format!("host {host}"))
            .collect();
        claims.require_none(&lost, "was there the whole time and was shown unreachable");
        // A controller that has started anew calls everybody, once.
        let due = u64::from(restarted);
        let began = streams(fleet).into_iter().filter(|(host, count)| {
            let before = self.streams.get(host).copied().unwrap_or_default();
            !away.contains(host) && *count > before + due
        });
        let mut again: Vec<String> = began.map(|(host, _)| format!("host {host}")).collect();
        again.sort();
        claims.require_none(&again, "was there the whole time and was called again");
        let answers = lock(&self.asked).answers();
        answers.judge(strength, claims);
        Seen {
            falsely_lost: lost.len(),
            called_again: again.len(),
            answers,
        }
    }
}

impl Asked {
    fn answers(&self) -> Answers {
        Answers {
            vm: self.vm.summary(),
            vms_page: self.vms_page.summary(),
            failed: self.failed,
            first_failure: self.first_failure.clone(),
        }
    }
}

impl Answers {
    fn judge(&self, strength: &Strength, claims: &mut Claims) {
        claims.require(self.failed == 0, || {
            let first = self.first_failure.as_deref().unwrap_or_default();
            format!(
                "{} requests were not answered, the first: {first}",
                self.failed
            )
        });
        let limit = strength.answers_within.as_secs_f64() * 1000.0;
        for (what, times) in [("a VM", self.vm), ("100 VMs of the list", self.vms_page)] {
            claims.require(times.count > 0, || format!("{what} was never shown"));
            claims.require(times.p99_ms <= limit, || {
                format!(
                    "showing {what} took {:.0} ms (p99), at most {limit:.0}",
                    times.p99_ms
                )
            });
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn streams(fleet: &RunningFleet) -> HashMap<HostName, u64> {
    let hosts = fleet.hosts.iter();
    let streams = hosts.map(|host| (host.host.clone(), host.look(|inner| inner.streams)));
    streams.collect()
}

/// A controller that does not answer yet is asked again.
async fn look(client: Client, hosts: Arc<Mutex<Hosts>>) {
    loop {
        let shown = lists::all::<Named>(&client, "/v1/hosts?state=unreachable&").await;
        if let Ok(shown) = shown {
            let now: BTreeSet<HostName> = shown.into_iter().map(|host| host.name).collect();
            let mut hosts = lock(&hosts);
            if let Some(before) = hosts.unreachable.take() {
                let fell: Vec<_> = now.difference(&before).cloned().collect();
                hosts.fell.extend(fell);
            }
            hosts.unreachable = Some(now);
        }
        sleep(LOOKS).await;
    }
}

async fn ask(client: Client, fleet: Arc<RunningFleet>, asked: Arc<Mutex<Asked>>) {
    for at in 0.. {
        let vm = any_vm(&fleet, at);
        let begin = Instant::now();
        let shown = read(&client, &format!("/v1/vms/{vm}")).await;
        let shown = shown.map(|()| begin.elapsed());
        let begin = Instant::now();
        let listed = read(&client, &format!("/v1/vms?limit=100&after={vm}")).await;
        let listed = listed.map(|()| begin.elapsed());
        lock(&asked).note(shown, listed);
        sleep(QUESTIONS).await;
    }
}

impl Asked {
    fn note(&mut self, shown: Result<Duration>, listed: Result<Duration>) {
        for (times, answer) in [(&mut self.vm, shown), (&mut self.vms_page, listed)] {
            match answer {
                Ok(time) => times.add(time),
                // It starts.
                Err(_) if times.is_empty() => {}
                Err(error) => {
                    self.failed += 1;
                    let first = self.first_failure.get_or_insert_default();
                    if first.is_empty() {
                        *first = format!("{error:#}");
                    }
                }
            }
        }
    }
}

async fn read(client: &Client, path: &str) -> Result<()> {
    let response = client.request(Method::GET, path).send().await?;
    response.bytes(LARGEST).await?;
    Ok(())
}
