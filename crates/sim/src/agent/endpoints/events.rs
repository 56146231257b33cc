//! The stream of what happens on a simulated host: a snapshot, then changes, facts as a sign of life, and once a minute what the
//! host and its VMs use.

use super::{Inner, Shared, line_of, speaks};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_api::agent::{AgentEvent, LoadReport, Telling};
use http::HeaderMap;
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, Interval, interval_at};

/// As a real agent looks at what is used: once a minute, and sooner after a VM has changed.
const LOAD_EVERY: Duration = Duration::from_secs(60);
const LOAD_SOON: Duration = Duration::from_secs(10);

/// What one reader is told.
struct Reader {
    inner: Shared,
    /// None: everything as it is, as an agent of before versions.
    telling: Option<Telling>,
    receiver: broadcast::Receiver<AgentEvent>,
    due: Interval,
    /// When it is next told what is used: after the sign of life that follows. Not a timer of its own.
    load_due: Instant,
    load_told: Instant,
    load: Option<Box<LoadReport>>,
    /// Everything is told next: nothing was yet, or the reader was too slow for what changed.
    anew: bool,
}

pub(super) async fn events(State(inner): State<Shared>, headers: HeaderMap) -> Response {
    let reader = {
        let mut host = inner.lock().expect("lock");
        host.streams += 1;
        Reader {
            telling: host.answers_in(&headers).map(Telling::to_reader_of),
            receiver: host.events.subscribe(),
            due: interval_at(next_facts(&host), host.facts_every),
            load_due: next_load(&host),
            load_told: Instant::now(),
            load: None,
            anew: true,
            inner: inner.clone(),
        }
    };
    let lines = futures_util::stream::unfold(reader, async |mut reader| {
        let event = reader.next().await?;
        speaks(&reader.inner).await;
        let parts = match &mut reader.telling {
            Some(telling) => telling.tell(event),
            None => vec![event],
        };
        let lines: Vec<u8> = parts.iter().flat_map(line_of).collect();
        let lines = Ok::<_, std::convert::Infallible>(Bytes::from(lines));
        Some((lines, reader))
    });
    Body::from_stream(lines).into_response()
}

impl Reader {
    async fn next(&mut self) -> Option<AgentEvent> {
        if let Some(load) = self.load.take() {
            return Some(AgentEvent::Load { load });
        }
        if !std::mem::take(&mut self.anew) {
            tokio::select! {
                event = self.receiver.recv() => match event {
                    Ok(event) => {
                        if let AgentEvent::VmChanged { .. } = event {
                            self.load_due = self.load_due.min(self.load_told + LOAD_SOON);
                        }
                        return Some(event);
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
                _ = self.due.tick() => {
                    let inner = self.inner.lock().expect("lock");
                    let now = Instant::now();
                    if now >= self.load_due && inner.tells_load {
                        self.load_told = now;
                        self.load_due = now + LOAD_EVERY;
                        self.load = Some(Box::new(inner.load()));
                    }
                    return Some(AgentEvent::Facts {
                        facts: inner.facts_now(),
                        audit: inner.audit_head(),
                    });
                }
            }
        }
        let inner = self.inner.lock().expect("lock");
        Some(AgentEvent::Snapshot {
            facts: inner.facts_now(),
            vms: inner
                .vms
                .keys()
                .filter_map(|id| inner.observed(*id))
                .collect(),
            more: false,
        })
    }
}

/// A host reports at its own moments, whenever it is asked.
fn next_facts(inner: &Inner) -> Instant {
    let first = inner.begun + inner.facts_phase;
    next_of(first + inner.facts_every, inner.facts_every)
}

/// Hosts that begin together are spread over the whole minute.
fn next_load(inner: &Inner) -> Instant {
    let spread = LOAD_EVERY.div_duration_f64(inner.facts_every);
    let phase = inner.facts_phase.mul_f64(spread);
    next_of(inner.begun + LOAD_SOON + phase, LOAD_EVERY)
}

/// The first that is to come of moments that are `every` apart.
fn next_of(first: Instant, every: Duration) -> Instant {
    let Some(since) = Instant::now().checked_duration_since(first) else {
        return first;
    };
    let rounds = since.as_nanos() / every.as_nanos().max(1);
    first + every * (u32::try_from(rounds).unwrap_or(u32::MAX).saturating_add(1))
}
