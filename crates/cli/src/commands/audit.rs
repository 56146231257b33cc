//! `fleetward audit`

use super::Context;
use crate::args::AuditArgs;
use crate::exit::{Exit, Stop};
use crate::messages;
use crate::table::{self, Widths};
use fleetward_api::controller::AuditQuery;
use fleetward_api::verbs::{AuditList, AuditVerify};
use fleetward_model::{ErrorCode, Failure};
use time::format_description::well_known::Rfc3339;

pub(super) async fn run(context: &Context, args: AuditArgs) -> Result<Exit, Stop> {
    if args.verify {
        return verify(context).await;
    }
    let since = args
        .since
        .map(|at| at.format(&Rfc3339))
        .transpose()
        .map_err(|error| {
            Failure::new(ErrorCode::InvalidArgument, "--since is out of range").because(error)
        })?;
    let query = AuditQuery {
        vm: args.vm,
        since,
        after: args.rows.after,
        limit: None,
    };
    // Records as they are: fields are added over time, and all of them are evidence.
    let controller = &context.controller;
    let mut pages = controller.pages::<AuditList, serde_json::Value>(query, args.rows.limit);
    let (mut listing, mut widths) = (context.output.listing(), Widths::default());
    while let Some(records) = pages.next().await? {
        listing.page(&records, || table::audit(&records, &mut widths))?;
    }
    listing.end()?;
    Ok(Exit::Done)
}

/// The verdict is intact only if everything was checked and is valid. All mismatches and all hosts that do not answer
/// are named.
async fn verify(context: &Context) -> Result<Exit, Stop> {
    let verdict = context.controller.call::<AuditVerify>([], &()).await?;
    context
        .output
        .document(&verdict, || messages::audit_verdict(&verdict))?;
    if verdict.intact && verdict.not_compared.is_empty() {
        return Ok(Exit::Done);
    }
    if !verdict.intact && (verdict.broken.is_some() || verdict.not_compared.is_empty()) {
        return Err(Failure::new(
            ErrorCode::AuditBroken,
            "the audit log is not as it was written",
        )
        .because(verdict.broken.unwrap_or_default())
        .into());
    }
    Err(Failure::new(
        ErrorCode::HostUnreachable,
        "the audit log could not be checked as a whole",
    )
    .because(messages::audit_not_compared(&verdict.not_compared))
    .fix("see that the hosts answer, and verify again: fleetward host list")
    .into())
}
