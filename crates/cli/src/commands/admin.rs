//! `fleetward admin create`: a client certificate whose private key never leaves this machine.

use super::Context;
use crate::args::AdminCommand;
use crate::controller::causes;
use crate::exit::{Exit, Stop};
use crate::messages;
use fleetward_api::controller::{AdminRequest, Role};
use fleetward_api::verbs::AdminCertify;
use fleetward_link::{FleetTrust, KeyRequest};
use fleetward_model::{ErrorCode, Failure, HostName};
use serde_json::json;
use std::error::Error;
use std::path::Path;

pub(super) async fn run(context: &Context, command: AdminCommand) -> Result<Exit, Stop> {
    match command {
        AdminCommand::Create { name, role, out } => create(context, name, role, &out).await,
    }
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
