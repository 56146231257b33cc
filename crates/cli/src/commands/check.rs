//! `fleetward check`, and `fleetward vm migrate --check`.

use super::Context;
use crate::args::CheckArgs;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{
    CheckQuery, CheckView, HostCheckQuery, HostCheckView, require_pairs,
};
use fleetward_api::verbs::{FleetCheck, FleetStatus, HostCheck};
use fleetward_model::{ErrorCode, Failure, HostName, VmName};

pub(super) async fn run(context: &Context, args: CheckArgs) -> Result<Exit, Stop> {
    let CheckArgs {
        vm, to, offline, ..
    } = args;
    if args.by_host {
        let query = HostCheckQuery {
            group: args.group,
            limit: None,
            after: args.after,
        };
        let asked = context.controller.list::<HostCheck, _>(query, args.limit);
        let hosts: Vec<HostCheckView> = asked.await?;
        context
            .output
            .document(&hosts, || table::checked_hosts(&hosts))?;
        return Ok(Exit::Done);
    }
    match (vm, to) {
        (Some(vm), Some(to)) => moves(context, &[vm], &to, offline).await,
        (Some(vm), None) => {
            let checks = checks(context, Some(vm), None, offline).await?;
            context
                .output
                .document(&checks, || table::findings(&checks))?;
            Ok(Exit::Done)
        }
        (None, to) => {
            let status = context.controller.call::<FleetStatus>([], &()).await?;
            let hosts = if to.is_some() { 1 } else { status.hosts };
            require_pairs(status.vms as usize, hosts as usize)?;
            let checks = checks(context, None, to, offline).await?;
            context
                .output
                .document(&checks, || table::check_matrix(&checks))?;
            Ok(Exit::Done)
        }
    }
}

/// One VM or all against one host or all.
async fn checks(
    context: &Context,
    vm: Option<VmName>,
    to: Option<HostName>,
    offline: bool,
) -> Result<Vec<CheckView>, Failure> {
    let query = CheckQuery {
        vm,
        to,
        offline,
        ..CheckQuery::default()
    };
    context.controller.list::<FleetCheck, _>(query, None).await
}

/// Whether each VM can move to `to`. One that cannot makes the command fail with the reason.
pub(super) async fn moves(
    context: &Context,
    names: &[VmName],
    to: &HostName,
    offline: bool,
) -> Result<Exit, Stop> {
    let mut found = Vec::new();
    for name in names {
        found.extend(checks(context, Some(name.clone()), Some(to.clone()), offline).await?);
    }
    context
        .output
        .document(&found, || table::findings(&found))?;
    let mut refused = found.into_iter().filter(|check| !check.possible);
    match (refused.next(), names.len()) {
        (None, _) => Ok(Exit::Done),
        (Some(check), 1) => Err(refusal(check).into()),
        (Some(_), _) => Ok(Exit::SomeFailed),
    }
}

fn refusal(check: CheckView) -> Failure {
    let what = if check.from == check.to {
        messages::not_startable(&check.vm, &check.to)
    } else {
        messages::not_movable(&check.vm, &check.from, &check.to)
    };
    let code = check.code.unwrap_or(ErrorCode::CheckUnavailable);
    let failure = Failure::from_findings(what.clone(), check.findings);
    let mut failure = failure.unwrap_or_else(|| Failure::new(code, what));
    // They are on stdout already.
    failure.findings.clear();
    failure
}
