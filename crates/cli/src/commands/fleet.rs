//! `fleetward status`, `fleetward controller rebuild`.

use super::Context;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::verbs::{FleetRebuild, FleetStatus};

pub(super) async fn status(context: &Context) -> Result<Exit, Stop> {
    let status = context.controller.call::<FleetStatus>([], &()).await?;
    context
        .output
        .document(&status, || table::status(&status))?;
    Ok(Exit::Done)
}

pub(super) async fn rebuild(context: &Context) -> Result<Exit, Stop> {
    let report = context.controller.call::<FleetRebuild>([], &()).await?;
    context.output.document(&report, || {
        let mut text = messages::rebuilt(report.vms, report.hosts_answered, report.hosts_asked);
        for warning in &report.warnings {
            text.push_str("\nwarning: ");
            text.push_str(warning);
        }
        text
    })?;
    Ok(Exit::Done)
}
