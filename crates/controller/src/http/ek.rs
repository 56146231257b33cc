//! EK certificates: those of other makers that are accepted.

use super::Answer;
use crate::app::App;
use crate::audit::Act;
use crate::ek::Accepted;
use axum::Json;
use axum::extract::{Path, State};
use fleetward_api::controller::EkAccepted;
use fleetward_link::Peer;
use fleetward_model::audit::AuditAction;
use fleetward_model::{ErrorCode, Failure};
use time::OffsetDateTime;

serves! {
    EkAccept => ek_accept,
}

/// A SHA-256 in hex digits; colons between the bytes and upper case, as other programs print them, are understood.
fn digest(text: &str) -> Result<String, Failure> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    match digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        true => Ok(digits),
        false => {
            let what = "that is no SHA-256 of a certificate";
            let because = "it has 64 hex digits; the refusal EK_NOT_OF_FLEET names it";
            Err(Failure::new(ErrorCode::InvalidArgument, what).because(because))
        }
    }
}

async fn ek_accept(
    State(app): State<App>,
    peer: Peer,
    Path(sha256): Path<String>,
) -> Answer<Json<EkAccepted>> {
    let sha256 = digest(&sha256)?;
    let why = format!("EK certificate with SHA-256 {sha256}");
    app.record(Act::new(&peer, AuditAction::AcceptEk, why))
        .await?;
    let accepted = Accepted {
        by: peer.to_string(),
        at: OffsetDateTime::now_utc(),
    };
    let Accepted { by, at } = app.world.fleet.eks.accept(&sha256, accepted).await?;
    Ok(Json(EkAccepted { sha256, by, at }))
}
