//! One task for each host: reads its event stream, updates the inventory, fetches audit records, looks after its
//! certificate.
//!
//! ```text
//!   dial ──► snapshot ──► events … ──► connection lost, or silence ──► pause ──► dial
//! ```

use crate::certificates;
use crate::world::World;
use fleetward_api::agent::AgentEvent;
use fleetward_model::{Failure, HostName};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// Agents report their facts more often than this.
const SILENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const AUDIT_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked whether a host's certificate is due, and whether it knows which certificates are refused.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(60);

/// The tasks of all hosts.
#[derive(Debug)]
pub(crate) struct Watchers {
    stop: CancellationToken,
    tasks: Mutex<HashMap<HostName, CancellationToken>>,
}

impl Watchers {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            tasks: Mutex::default(),
        }
    }

    /// Begins to watch a host, or begins anew.
    pub(crate) fn watch(&self, world: &Arc<World>, host: &HostName) {
        let stop = self.stop.child_token();
        if let Some(former) = self.lock().insert(host.clone(), stop.clone()) {
            former.cancel();
        }
        let (world, host) = (Arc::clone(world), host.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(&world, &host) => {}
            }
        });
    }

    pub(crate) fn forget(&self, host: &HostName) {
        if let Some(stop) = self.lock().remove(host) {
            stop.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<HostName, CancellationToken>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(world: &Arc<World>, host: &HostName) {
    let mut pause = FIRST_PAUSE;
    loop {
        let before = world.inventory.seen(host).snapshots;
        let ended = listen(world, host).await;
        world.inventory.lost(host);
        if let Err(failure) = &ended {
            world.inventory.refused_events(host, failure);
        }
        if world.inventory.seen(host).snapshots > before {
            pause = FIRST_PAUSE;
            tracing::warn!(%host, reason = %reason(ended), "lost the host");
        } else {
            tracing::debug!(%host, reason = %reason(ended), "the host does not answer");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Until the stream ends or breaks.
async fn listen(world: &Arc<World>, host: &HostName) -> Result<(), Failure> {
    let agent = world.agents.of(host)?;
    let mut events = agent.events(SILENCE).await?;
    let mut audit = tokio::time::interval(AUDIT_EVERY);
    let mut certificate = tokio::time::interval(CERTIFICATE_EVERY);
    let mut refused = world.fleet.certificates.refusals().changes();
    let mut online = false;
    loop {
        tokio::select! {
            event = events.next() => {
                let Some(event) = event? else { return Ok(()) };
                if let AgentEvent::Snapshot { facts, .. } | AgentEvent::Facts { facts } = &event {
                    world.agents.learn(host, facts.formats);
                }
                world.inventory.apply(host, event, OffsetDateTime::now_utc());
                if !std::mem::replace(&mut online, true) {
                    tracing::info!(%host, "the host is online");
                }
            }
            _ = certificate.tick() => look_after_certificate(world, host),
            Ok(()) = refused.changed() => look_after_certificate(world, host),
            _ = audit.tick() => {
                let (world, host) = (Arc::clone(world), host.clone());
                tokio::spawn(async move { fetch_audit(&world, &host).await });
            }
        }
    }
}

fn look_after_certificate(world: &Arc<World>, host: &HostName) {
    let (world, host) = (Arc::clone(world), host.clone());
    tokio::spawn(async move { certificates::keep(&world, &host).await });
}

/// Fetches the audit records that are new on a host.
pub(crate) async fn fetch_audit(world: &World, host: &HostName) {
    let fetched = async {
        let after = world.audit.position(host).await;
        let agent = world.agents.of(host)?;
        let head = world.audit.head().await;
        // an agent that cannot say what it has witnessed still tells its records; whoever verifies hears of it
        if let Ok(Some(seen)) = agent.witness(head.as_ref()).await {
            let taken = world.audit.take_witness(host, &seen).await;
            taken.map_err(|error| crate::store_failure(&error))?;
        }
        let records = agent.audit_after(after).await?;
        let taken = world.audit.take(host, records).await;
        taken.map_err(|error| crate::store_failure(&error))
    };
    if let Err(error) = fetched.await {
        tracing::debug!(%host, error = %error.what, because = %error.because, "cannot fetch the host's audit log");
    }
}

fn reason(ended: Result<(), Failure>) -> String {
    match ended {
        Ok(()) => "the agent ended the stream".to_owned(),
        Err(failure) if failure.because.is_empty() => failure.what,
        Err(failure) => failure.because,
    }
}
