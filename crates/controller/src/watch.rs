//! One task for each host: reads its event stream, updates the inventory, fetches audit records, looks after its
//! certificate.
//!
//! ```text
//!   dial ──► snapshot ──► events … ──► connection lost, or silence ──► pause ──► dial
//! ```
//!
//! Until the snapshot a host has one of a limited number of places ([`crate::dials`]).

use crate::agents::Events;
use crate::audit_follow::{self, AuditFollower};
use crate::certificates;
use crate::dials::{self, Call, Dials, Pauses};
use crate::world::World;
use fleetward_api::agent::AgentEvent;
use fleetward_model::{Failure, HostName};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Agents report their facts more often than this.
const SILENCE: Duration = Duration::from_secs(10);
/// Within which it is seen that a host's certificate is due, or that it does not know which certificates are refused.
const CERTIFICATE_WITHIN: Duration = Duration::from_secs(60);

/// The tasks of all hosts.
#[derive(Debug)]
pub(crate) struct Watchers {
    /// Where they run, each with its connection.
    runtime: Handle,
    stop: CancellationToken,
    dials: Arc<Dials>,
    tasks: Mutex<HashMap<HostName, Task>>,
}

#[derive(Debug, Clone)]
struct Task {
    stop: CancellationToken,
    /// Somebody waits for what the host says.
    preferred: CancellationToken,
}

impl Watchers {
    pub(crate) fn new(runtime: Handle, stop: CancellationToken) -> Self {
        Self {
            runtime,
            stop,
            dials: Arc::default(),
            tasks: Mutex::default(),
        }
    }

    /// Begins to watch a host, or begins anew.
    pub(crate) fn watch(&self, world: &Arc<World>, host: &HostName) {
        let task = Task {
            stop: self.stop.child_token(),
            preferred: CancellationToken::new(),
        };
        let mut tasks = self.lock();
        match tasks.insert(host.clone(), task.clone()) {
            Some(former) => former.stop.cancel(),
            None => dials::warn_of_files(tasks.len(), host),
        }
        drop(tasks);
        let (world, host, dials) = (Arc::clone(world), host.clone(), Arc::clone(&self.dials));
        self.runtime.spawn(async move {
            tokio::select! {
                () = task.stop.cancelled() => {}
                () = follow(&world, &host, &dials, &task.preferred) => {}
            }
        });
    }

    pub(crate) fn forget(&self, host: &HostName) {
        if let Some(task) = self.lock().remove(host) {
            task.stop.cancel();
        }
    }

    /// Calls the host before others that wait for their call.
    pub(crate) fn prefer(&self, host: &HostName) {
        if let Some(task) = self.lock().get(host) {
            task.preferred.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<HostName, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(
    world: &Arc<World>,
    host: &HostName,
    dials: &Arc<Dials>,
    preferred: &CancellationToken,
) {
    let (mut pauses, mut kind) = (Pauses::default(), Call::Hopeful);
    loop {
        let mut online = false;
        let ended = match call(world, host, dials, kind, preferred).await {
            Ok(begun) => listen(world, host, dials, begun, &mut online).await,
            Err(failure) => Err(failure),
        };
        world.inventory.lost(host);
        if let Err(failure) = &ended {
            world.inventory.refused_events(host, failure);
        }
        if online {
            (pauses, kind) = (Pauses::default(), Call::Hopeful);
            tracing::warn!(%host, reason = %reason(ended), "lost the host");
        } else {
            kind = Call::Repeated;
            tracing::debug!(%host, reason = %reason(ended), "the host does not answer");
        }
        tokio::time::sleep(pauses.next()).await;
    }
}

/// Dials, and waits for the first event.
async fn call(
    world: &World,
    host: &HostName,
    dials: &Dials,
    kind: Call,
    preferred: &CancellationToken,
) -> Result<(Events, Option<AgentEvent>), Failure> {
    let calling = async {
        let agent = world.agents.of(host)?;
        let mut events = agent.events(SILENCE).await?;
        let first = events.next().await?;
        Ok((events, first))
    };
    let place = async {
        tokio::select! {
            place = dials.place(kind) => place,
            place = async { preferred.cancelled().await; dials.place(Call::Preferred).await } => place,
        }
    };
    place.await.run(calling).await
}

/// Until the stream ends or breaks.
async fn listen(
    world: &Arc<World>,
    host: &HostName,
    dials: &Arc<Dials>,
    (events, first): (Events, Option<AgentEvent>),
    online: &mut bool,
) -> Result<(), Failure> {
    let Some(first) = first else { return Ok(()) };
    hear(world, host, first);
    *online = true;
    tracing::info!(%host, "the host is online");
    let hosts = world.hosts.count();
    let mut audit = Due::every(audit_follow::EVERY);
    let pace = dials::pace(CERTIFICATE_WITHIN, hosts);
    let mut certificate = Due::every(pace);
    world.fleet.certificates.begin(host);
    let mut first_look = pin!(tokio::time::sleep(dials::phase(pace, hosts)));
    let mut refused = world.fleet.certificates.refusals().changes();
    let mut log = AuditFollower::new(world, host);
    // One wait for the next event, whatever else there is to do meanwhile: its silence counts from the last one.
    let mut waiting = pin!(next(events));
    loop {
        tokio::select! {
            (events, event) = &mut waiting => {
                waiting.set(next(events));
                let Some(event) = event? else { return Ok(()) };
                if let AgentEvent::Facts { audit, .. } | AgentEvent::Alive { audit, .. } = &event {
                    log.heard(audit.clone()).await;
                }
                hear(world, host, event);
                if audit.is_now() {
                    log.tick().await;
                }
                if certificate.is_now() && is_behind(world, host) {
                    look_after_certificate(world, host, dials);
                }
            }
            () = &mut first_look, if !first_look.is_elapsed() => {
                look_after_certificate(world, host, dials);
            }
            Ok(()) = refused.changed() => look_after_certificate(world, host, dials),
        }
    }
}

async fn next(mut events: Events) -> (Events, Result<Option<AgentEvent>, Failure>) {
    let event = events.next().await;
    (events, event)
}

fn hear(world: &Arc<World>, host: &HostName, event: AgentEvent) {
    if let AgentEvent::Snapshot { facts, .. } | AgentEvent::Facts { facts, .. } = &event {
        world.agents.learn(host, facts.formats);
    }
    let now = OffsetDateTime::now_utc();
    if let AgentEvent::Load { load } = &event {
        world.loads.heard(&world.inventory, host, load, now);
    }
    let overtaken = world.inventory.apply(host, event, now);
    for vm in overtaken {
        let (world, host) = (Arc::clone(world), host.clone());
        tokio::spawn(async move { world.refresh(&host, vm).await });
    }
}

/// What is done for a host from time to time, each time when it says something: it does so every few seconds, and a timer of
/// its own would wake the controller as often again.
struct Due {
    next: Instant,
    period: Duration,
}

impl Due {
    fn every(period: Duration) -> Self {
        Self {
            next: Instant::now() + period,
            period,
        }
    }

    fn is_now(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next <= now;
        if due {
            self.next = now + self.period;
        }
        due
    }
}

fn is_behind(world: &World, host: &HostName) -> bool {
    let now = OffsetDateTime::now_utc();
    let record = world.hosts.find(host);
    record.is_some_and(|record| world.fleet.certificates.is_behind(&record, now))
}

fn look_after_certificate(world: &Arc<World>, host: &HostName, dials: &Arc<Dials>) {
    let (world, host, dials) = (Arc::clone(world), host.clone(), Arc::clone(dials));
    tokio::spawn(async move {
        let looking = certificates::keep(&world, &host);
        dials.place(Call::Hopeful).await.run(looking).await;
    });
}

fn reason(ended: Result<(), Failure>) -> String {
    match ended {
        Ok(()) => "the agent ended the stream".to_owned(),
        Err(failure) if failure.because.is_empty() => failure.what,
        Err(failure) => failure.because,
    }
}
