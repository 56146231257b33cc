//! `fleetward secure-boot ...`

use super::Context;
use super::tpm::{carry_out, selection};
use super::vm::seconds;
use crate::args::{SecureBootChange, SecureBootCommand};
use crate::exit::{Exit, Stop};
use crate::{bulk, table};
use fleetward_api::bulk::{BulkRequest, How, VmAction};
use fleetward_api::controller::{SecureBootQuery, SecureBootRequest, SecureBootView};
use fleetward_api::verbs::{SecureBootStatus, VmBulk};

pub(super) async fn run(context: &Context, command: SecureBootCommand) -> Result<Exit, Stop> {
    match command {
        SecureBootCommand::Status { names, all } => {
            let query = SecureBootQuery {
                vms: names.iter().map(ToString::to_string).collect(),
                versions: all,
                ..SecureBootQuery::default()
            };
            let found: Vec<SecureBootView> = context
                .controller
                .list::<SecureBootStatus, _>(query, None)
                .await?;
            context
                .output
                .document(&found, || table::secure_boot(&found))?;
            Ok(Exit::Done)
        }
        SecureBootCommand::Enroll(args) => change(context, VmAction::SecureBootEnroll, args).await,
        SecureBootCommand::Restore(args) => {
            change(context, VmAction::SecureBootRestore, args).await
        }
    }
}

async fn change(
    context: &Context,
    action: impl Fn(SecureBootRequest) -> VmAction,
    args: SecureBootChange,
) -> Result<Exit, Stop> {
    let request = BulkRequest {
        action: action(SecureBootRequest {
            stop_and_restart: args.how.stop_and_restart,
            deadline_seconds: seconds(args.how.deadline)?,
        }),
        vms: selection(args.which),
        dry_run: true,
        how: How {
            parallel: u32::try_from(args.parallel).ok(),
            max_failures: args.max_failures,
            ..How::default()
        },
    };
    let plans = bulk::plans::<VmBulk>(context, &request).await?;
    match args.dry_run {
        true => bulk::dry_run(context, plans),
        false => carry_out(context, request, &plans, args.how.wait.no_wait).await,
    }
}
