//! The stream of what happens on a simulated host: a snapshot, then changes, and facts as a sign of life.

use super::{Inner, Shared, line_of};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_api::agent::AgentEvent;
use fleetward_model::host::HostFacts;
use http::HeaderMap;
use time::OffsetDateTime;

pub(super) async fn events(State(inner): State<Shared>, headers: HeaderMap) -> Response {
    let (formats, first, receiver) = {
        let mut inner = inner.lock().expect("lock");
        inner.streams += 1;
        let vms = inner
            .vms
            .keys()
            .filter_map(|id| inner.observed(*id))
            .collect();
        let facts = facts_now(&inner);
        (
            inner.answers_in(&headers),
            AgentEvent::Snapshot {
                facts,
                vms,
                more: false,
            },
            inner.events.subscribe(),
        )
    };
    let lines = futures_util::stream::unfold(
        (Some(first), receiver, inner),
        move |(first, mut receiver, inner)| async move {
            let event = match first {
                Some(first) => first,
                None => {
                    match tokio::time::timeout(std::time::Duration::from_secs(2), receiver.recv())
                        .await
                    {
                        Ok(event) => event.ok()?,
                        Err(_) => {
                            let inner = inner.lock().expect("lock");
                            AgentEvent::Facts {
                                facts: facts_now(&inner),
                                audit: inner.audit_head(),
                            }
                        }
                    }
                }
            };
            let parts = match formats {
                Some(formats) => event.readable_with(formats).in_parts(formats),
                None => vec![event],
            };
            let lines: Vec<u8> = parts.iter().flat_map(line_of).collect();
            let lines = Ok::<_, std::convert::Infallible>(Bytes::from(lines));
            Some((lines, (None, receiver, inner)))
        },
    );
    Body::from_stream(lines).into_response()
}

fn facts_now(inner: &Inner) -> Box<HostFacts> {
    Box::new(HostFacts {
        clock: OffsetDateTime::now_utc(),
        ..inner.facts.clone()
    })
}
