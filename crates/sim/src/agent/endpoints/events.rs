//! The stream of what happens on a simulated host: a snapshot, then changes, and facts as a sign of life.

use super::{Inner, Shared, line_of, speaks};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_api::agent::{AgentEvent, Telling};
use http::HeaderMap;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, Interval, interval_at};

/// What one reader is told.
struct Reader {
    inner: Shared,
    /// None: everything as it is, as an agent of before versions.
    telling: Option<Telling>,
    receiver: broadcast::Receiver<AgentEvent>,
    due: Interval,
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
        if !std::mem::take(&mut self.anew) {
            tokio::select! {
                event = self.receiver.recv() => match event {
                    Ok(event) => return Some(event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
                _ = self.due.tick() => {
                    let inner = self.inner.lock().expect("lock");
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
    let since = Instant::now().saturating_duration_since(first);
    let rounds = since.as_nanos() / inner.facts_every.as_nanos().max(1);
    first + inner.facts_every * (u32::try_from(rounds).unwrap_or(u32::MAX) + 1)
}
