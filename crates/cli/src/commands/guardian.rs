//! `fleetward guardian ...`

use super::{Context, grants};
use crate::args::{Format, GuardianCommand, ListFormat};
use crate::exit::{Exit, Stop};
use crate::table;
use fleetward_api::controller::GuardianView;
use fleetward_api::lists::GuardianQuery;
use fleetward_api::verbs::GuardianList;
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName, certutil};

pub(super) async fn run(context: &Context, command: GuardianCommand) -> Result<Exit, Stop> {
    let Context {
        controller, output, ..
    } = context;
    match command {
        GuardianCommand::List { host, format, rows } => {
            let query = GuardianQuery {
                host: host.clone(),
                after: rows.after,
                limit: None,
            };
            let mut certificates: Vec<GuardianView> = controller
                .list::<GuardianList, _>(query, rows.limit)
                .await?;
            certificates.retain(|row| host.as_ref().is_none_or(|host| &row.host == host));
            let output = match format {
                None => *output,
                Some(ListFormat::Table) => output.with_format(Format::Table),
                Some(ListFormat::Json) => output.with_format(Format::Json),
                Some(ListFormat::Yaml) => output.with_format(Format::Yaml),
                Some(ListFormat::Certutil) => {
                    output.text(&certutil::listing(certificates.iter().map(entry)))?;
                    return Ok(Exit::Done);
                }
            };
            output.document(&certificates, || table::guardians(&certificates))?;
        }
        GuardianCommand::Show { id } => {
            let all = controller.list::<GuardianList, _>(GuardianQuery::default(), None);
            let certificates = of_one(all.await?, &id)?;
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

fn entry(row: &GuardianView) -> certutil::Entry<'_> {
    certutil::Entry {
        role: row.role,
        serial: &row.serial,
        sha1: &row.sha1,
        sha256: &row.sha256,
        subject: &row.subject,
        issuer: &row.issuer,
        not_before: row.not_before,
        not_after: row.not_after,
        has_private_key: row.has_private_key,
        host: &row.host,
    }
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
