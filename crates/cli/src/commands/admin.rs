//! `fleetward admin ...`: client certificates, whose private keys never leave the machine on which they are made.

use super::Context;
use crate::args::AdminCommand;
use crate::confirm::confirm;
use crate::controller::causes;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{AdminCertificate, AdminRequest, RevokeAdminRequest, Role};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::{AdminCertify, AdminList, AdminRevoke};
use fleetward_link::{FleetTrust, KeyRequest};
use fleetward_model::certificate::Serial;
use fleetward_model::{ErrorCode, Failure, HostName};
use serde_json::json;
use std::error::Error;
use std::path::Path;

pub(super) async fn run(context: &Context, command: AdminCommand) -> Result<Exit, Stop> {
    match command {
        AdminCommand::Create { name, role, out } => create(context, name, role, &out).await,
        AdminCommand::List { rows } => {
            let query = LibraryQuery {
                after: rows.after,
                ..LibraryQuery::default()
            };
            let all: Vec<AdminCertificate> = context
                .controller
                .list::<AdminList, _>(query, rows.limit)
                .await?;
            context.output.document(&all, || table::admins(&all))?;
            Ok(Exit::Done)
        }
        AdminCommand::Revoke {
            name,
            serial,
            unlisted,
        } => revoke(context, name, serial, unlisted).await,
    }
}

async fn revoke(
    context: &Context,
    name: HostName,
    serial: Option<Serial>,
    unlisted: bool,
) -> Result<Exit, Stop> {
    confirm(
        context.yes,
        &messages::confirm_revoke_admin(&name, serial.as_ref()),
    )?;
    let request = RevokeAdminRequest { serial, unlisted };
    let answer = context
        .controller
        .call::<AdminRevoke>([name.as_str()], &request)
        .await?;
    context
        .output
        .success(&answer, || messages::admin_revoked(&answer))?;
    Ok(Exit::Done)
}

async fn create(
    context: &Context,
    name: HostName,
    role: Role,
    directory: &Path,
) -> Result<Exit, Stop> {
    let failed = |what: &'static str| {
        move |error: &dyn Error| Failure::new(ErrorCode::Internal, what).because(causes(error))
    };
    let unwritable = |error: &dyn Error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("cannot write to {}", directory.display()),
        )
        .because(causes(error))
        .fix("--out DIR, a directory that can be written")
    };
    // Before the certificate is made, so that none is made in vain.
    fleetward_durable::ensure_directory(directory, 0o755).map_err(|error| unwritable(&error))?;
    let certificate_file = directory.join(format!("{name}.pem"));
    let authority_file = directory.join("fleet-ca.pem");
    if certificate_file.exists() {
        return Err(Failure::new(
            ErrorCode::NameTaken,
            format!("{} exists already", certificate_file.display()),
        )
        .fix("choose another name or --out DIR")
        .into());
    }

    let request =
        KeyRequest::generate().map_err(|error| failed("cannot make a private key")(&error))?;
    let reply = context
        .controller
        .call::<AdminCertify>(
            [],
            &AdminRequest {
                name: name.clone(),
                role,
                csr: request.csr_pem().to_owned(),
            },
        )
        .await?;
    let trust = FleetTrust::from_pem(&reply.authority_certificate)
        .map_err(|error| failed("the controller's authority cannot be used")(&error))?;
    request
        .into_credential(&with_authority(
            reply.certificate,
            &reply.authority_certificate,
        ))
        .map_err(|error| failed("the controller's certificate cannot be used")(&error))?
        .store(&certificate_file)
        .map_err(|error| unwritable(&error))?;
    trust
        .store(&authority_file)
        .map_err(|error| unwritable(&error))?;

    let files = json!({ "name": name, "certificate": certificate_file, "key": certificate_file, "authority": authority_file });
    context.output.document(&files, || {
        messages::admin_created(
            &name,
            [&certificate_file.display(), &authority_file.display()],
        )
    })?;
    Ok(Exit::Done)
}

/// A chain ends with the authority; what the controller gives may be the certificate alone.
fn with_authority(mut chain: String, authority: &str) -> String {
    if chain.matches("BEGIN CERTIFICATE").count() < 2 {
        chain.push_str(authority);
    }
    chain
}
