//! `fleetward guardian ...`

use super::{Context, grants};
use crate::args::GuardianCommand;
use crate::exit::{Exit, Stop};
use crate::table;
use fleetward_api::controller::GuardianView;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName};

pub(super) async fn run(context: &Context, command: GuardianCommand) -> Result<Exit, Stop> {
    let Context {
        controller, output, ..
    } = context;
    match command {
        GuardianCommand::List { host } => {
            let mut certificates = controller.guardians().await?;
            certificates.retain(|row| host.as_ref().is_none_or(|host| &row.host == host));
            output.document(&certificates, || table::guardians(&certificates))?;
        }
        GuardianCommand::Show { id } => {
            let certificates = of_one(controller.guardians().await?, &id)?;
            output.document(&certificates, || table::guardian(&certificates))?;
        }
        GuardianCommand::Grant(args) => return grants::grant(context, args).await,
        GuardianCommand::Revoke { vm, from, wait } => {
            return grants::revoke(context, vm, from, wait).await;
        }
        GuardianCommand::Rotate(args) => return grants::rotate(context, args).await,
    }
    Ok(Exit::Done)
}

/// The certificates of the one guardian whose id begins with `text`, on one host: an imported guardian is on several.
fn of_one(mut certificates: Vec<GuardianView>, text: &str) -> Result<Vec<GuardianView>, Failure> {
    let wanted = text.to_ascii_lowercase();
    certificates.retain(|row| row.guardian.as_str().starts_with(&wanted));
    let Some(first) = certificates.first() else {
        return Err(Failure::new(
            ErrorCode::GuardianNotFound,
            format!("there is no guardian {text:?}"),
        ));
    };
    let (guardian, host): (GuardianId, HostName) = (first.guardian.clone(), first.host.clone());
    if certificates.iter().any(|row| row.guardian != guardian) {
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("several guardians begin with {text:?}"),
        )
        .fix("write more of the id"));
    }
    certificates.retain(|row| row.host == host);
    Ok(certificates)
}
