//! Conversions of images, by a host that does not look at them.

use super::Shared;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use fleetward_api::agent::{ConversionLine, ConverterState};
use fleetward_model::Failure;
use futures_util::StreamExt;
use std::convert::Infallible;
use std::time::Duration;

/// How this host converts images.
#[derive(Debug)]
pub struct FakeConversion {
    pub unable: Option<String>,
    pub room: u64,
    pub busy: u32,
    /// What becomes of any file.
    pub disk: Vec<u8>,
    pub fails: Option<Failure>,
    /// Half of the disk comes.
    pub cut: bool,
    /// Stays at 42 per cent.
    pub waits: bool,
    /// Queries and files.
    pub asked: Vec<(String, Vec<u8>)>,
}

impl Default for FakeConversion {
    fn default() -> Self {
        Self {
            unable: None,
            room: 1 << 40,
            busy: 0,
            disk: Vec::new(),
            fails: None,
            cut: false,
            waits: false,
            asked: Vec::new(),
        }
    }
}

pub(super) async fn converter(State(inner): State<Shared>) -> Response {
    let inner = inner.lock().expect("lock");
    let FakeConversion {
        unable, room, busy, ..
    } = &inner.conversion;
    let (unable, room, busy) = (unable.clone(), *room, *busy);
    Json(ConverterState { unable, room, busy }).into_response()
}

pub(super) async fn convert(
    State(inner): State<Shared>,
    RawQuery(query): RawQuery,
    body: Bytes,
) -> Response {
    let line = |line: &ConversionLine| {
        let text = serde_json::to_string(line).expect("JSON");
        Bytes::from(text + "\n")
    };
    let first = line(&ConversionLine::Progress {
        step: "convert".to_owned(),
        permille: 420,
    });
    let rest = {
        let mut inner = inner.lock().expect("lock");
        let conversion = &mut inner.conversion;
        let asked = (query.unwrap_or_default(), body.to_vec());
        conversion.asked.push(asked);
        match &conversion.fails {
            Some(failure) => vec![line(&ConversionLine::Failed {
                failure: failure.clone(),
            })],
            None => {
                let (disk, found) = (&conversion.disk, vec!["vhdx".to_owned()]);
                let size = disk.len() as u64;
                let sent = if conversion.cut {
                    disk.len() / 2
                } else {
                    disk.len()
                };
                let disk = Bytes::copy_from_slice(&disk[..sent]);
                vec![line(&ConversionLine::Done { size, found }), disk]
            }
        }
    };
    let rest = async move {
        while inner.lock().expect("lock").conversion.waits {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Bytes::from(rest.concat())
    };
    let pieces = futures_util::stream::iter([first]).chain(futures_util::stream::once(rest));
    Body::from_stream(pieces.map(Ok::<_, Infallible>)).into_response()
}
