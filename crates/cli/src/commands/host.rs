//! `fleetward host ...`

use super::Context;
use crate::args::{HostCommand, Wait};
use crate::bulk;
use crate::confirm::confirm;
use crate::exit::{Exit, Stop, say};
use crate::{interrupt, messages, table, wait};
use fleetward_api::controller::{
    Accepted, DrainAnswer, DrainQuery, ExpelQuery, HostView, RejoinTokenRequest, TokenRequest,
    TokenView, VmQuery, VmView,
};
use fleetward_api::lists::HostQuery;
use fleetward_api::verbs::{
    HostDrain, HostExpel, HostInvite, HostList, HostReadmit, HostRemove, HostResume, HostShow,
    VmList,
};
use fleetward_model::guardian::GuardianStanding;
use fleetward_model::{ErrorCode, Failure, GroupName, GuardianId, HostName, VmName};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) async fn run(context: &Context, command: HostCommand) -> Result<Exit, Stop> {
    let Context {
        controller, output, ..
    } = context;
    match command {
        HostCommand::Token {
            name,
            group,
            ttl,
            reinstalled,
        } => token(context, name, group, ttl, reinstalled).await?,
        HostCommand::Rejoin { name, ttl } => {
            let request = RejoinTokenRequest {
                ttl_seconds: seconds(ttl)?,
            };
            let made = controller
                .call::<HostReadmit>([name.as_str()], &request)
                .await?;
            show_token(context, &made, messages::REJOIN_HINT)?;
        }
        HostCommand::List {
            group,
            state,
            usage,
            rows,
        } => {
            let query = HostQuery {
                group,
                state,
                after: rows.after,
                limit: None,
                usage,
            };
            let hosts: Vec<HostView> = controller.list::<HostList, _>(query, rows.limit).await?;
            output.document(&hosts, || match usage {
                true => table::usage::hosts(&hosts),
                false => table::hosts(&hosts),
            })?;
        }
        HostCommand::Show { name } => {
            let host = controller.call::<HostShow>([name.as_str()], &()).await?;
            output.document(&host, || table::host(&host))?;
        }
        HostCommand::Drain {
            name,
            dry_run: true,
            ..
        } => {
            let query = DrainQuery { dry_run: true };
            let answer = controller
                .call::<HostDrain>([name.as_str()], &query)
                .await?;
            return bulk::dry_run(context, answer.plan);
        }
        HostCommand::Drain { name, wait, .. } => drain(context, &name, wait).await?,
        HostCommand::Resume { name } => {
            let host = controller.call::<HostResume>([name.as_str()], &()).await?;
            output.success(&host, || messages::host_resumed(&name))?;
        }
        HostCommand::Remove {
            name,
            force: true,
            dry_run,
        } => expel(context, &name, dry_run).await?,
        HostCommand::Remove { name, .. } => {
            confirm(context.yes, &messages::confirm_remove_host(&name))?;
            remove(context, &name).await?;
        }
    }
    Ok(Exit::Done)
}

/// Expels a host, after what that comes to was shown.
async fn expel(context: &Context, name: &HostName, dry_run: bool) -> Result<(), Stop> {
    let Context {
        controller, output, ..
    } = context;
    let ask = async |dry_run: bool| {
        let query = ExpelQuery { dry_run };
        controller.call::<HostExpel>([name.as_str()], &query).await
    };
    let would = ask(true).await?;
    if dry_run {
        output.document(&would, || messages::host_would_be_expelled(&would))?;
        return Ok(());
    }
    confirm(context.yes, &messages::confirm_expel(&would))?;
    let done = ask(false).await?;
    output.success(&done, || messages::host_expelled(&done))?;
    Ok(())
}

/// Removes a host, and tells which keys its guardians still open: that it is gone does not take them away.
async fn remove(context: &Context, name: &HostName) -> Result<(), Stop> {
    let Context {
        controller, output, ..
    } = context;
    let host = controller.call::<HostShow>([name.as_str()], &()).await?;
    // All is asked before: what fails afterwards would look as if the host were still there.
    let vms: Vec<VmView> = controller
        .list::<VmList, _>(VmQuery::default(), None)
        .await?;
    controller.call::<HostRemove>([name.as_str()], &()).await?;
    let facts = host.facts.into_iter();
    let guardians: Vec<GuardianId> = facts
        .flat_map(|facts| facts.guardians)
        .filter(|guardian| guardian.standing != GuardianStanding::Imported)
        .map(|guardian| guardian.id)
        .collect();
    let open = guardians.iter().map(|guardian| {
        let opens = |vm: &&VmView| vm.tpm.guardians.contains(guardian);
        let names: Vec<&VmName> = vms.iter().filter(opens).map(|vm| &vm.name).collect();
        (guardian, names)
    });
    let open: Vec<_> = open.filter(|(_, names)| !names.is_empty()).collect();
    let still_open: BTreeMap<_, _> = open.iter().cloned().collect();
    let document = json!({ "removed": name, "still_open": still_open });
    output.success(&document, || messages::host_removed(name))?;
    for (guardian, names) in &open {
        say(&messages::keys_still_open(name, guardian, names));
    }
    Ok(())
}

async fn drain(context: &Context, name: &HostName, wait: Wait) -> Result<(), Stop> {
    let Context {
        controller,
        output,
        progress,
        ..
    } = context;
    let query = DrainQuery::default();
    let DrainAnswer { job, .. } = controller
        .call::<HostDrain>([name.as_str()], &query)
        .await?;
    let accepted = Accepted { job };
    if let Some(job) = job {
        if wait.no_wait {
            output.document(&accepted, || job.to_string())?;
            return Ok(());
        }
        let interrupt = interrupt::on_ctrl_c();
        wait::for_job(controller, progress, &interrupt, name.as_str(), job).await?;
    }
    let host = controller.call::<HostShow>([name.as_str()], &()).await?;
    // What Fleetward did not make it does not move either: whoever is about to switch the host off must know of it.
    let query = VmQuery {
        host: Some(name.clone()),
        ..VmQuery::default()
    };
    let left = controller.list::<VmList, VmView>(query, None).await?;
    let foreign: Vec<&VmView> = left.iter().filter(|vm| !vm.managed).collect();
    output.success(&host, || messages::host_drained(name, &foreign))?;
    Ok(())
}

/// The token alone goes to stdout, so that a script can pass it on.
async fn token(
    context: &Context,
    host: HostName,
    group: GroupName,
    ttl: Duration,
    reinstalled: bool,
) -> Result<(), Stop> {
    let ttl_seconds = seconds(ttl)?;
    let request = TokenRequest {
        host,
        group,
        ttl_seconds,
        reinstalled,
    };
    let made = context.controller.call::<HostInvite>([], &request).await?;
    show_token(context, &made, messages::JOIN_HINT)
}

fn show_token(context: &Context, made: &TokenView, hint: &str) -> Result<(), Stop> {
    context.output.document(made, || made.token.clone())?;
    if context.output.is_table() && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        say(hint);
    }
    Ok(())
}

fn seconds(ttl: Duration) -> Result<u32, Failure> {
    u32::try_from(ttl.as_secs()).map_err(|_| {
        Failure::new(
            ErrorCode::InvalidArgument,
            "a token is not good for that long",
        )
        .fix("--ttl 7d or less")
    })
}
