//! `fleetward ek ...`: certificates of TPMs' endorsement keys.

use super::Context;
use crate::args::EkCommand;
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{
    EkAuthorityView, EkCertificateView, EkRevocationList, EkRevokeRequest,
};
use fleetward_api::lists::{EkQuery, LibraryQuery};
use fleetward_api::verbs::{EkAccept, EkAuthorities, EkCrl, EkList, EkRevoke, EkShow};
use fleetward_durable::{Access, ensure_directory};
use fleetward_model::{ErrorCode, Failure, ek};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use serde_json::json;
use std::path::Path;

pub(super) async fn run(context: &Context, command: EkCommand) -> Result<Exit, Stop> {
    let controller = &context.controller;
    let output = &context.output;
    match command {
        EkCommand::List {
            serial,
            issuer,
            vm,
            standing,
            rows,
        } => {
            let query = EkQuery {
                serial,
                issuer,
                vm,
                standing,
                after: rows.after,
                ..EkQuery::default()
            };
            let all: Vec<EkCertificateView> =
                controller.list::<EkList, _>(query, rows.limit).await?;
            output.document(&all, || table::ek_certificates(&all))?;
        }
        EkCommand::Show { sha256, pem } => {
            let found = controller.call::<EkShow>([sha256.as_str()], &()).await?;
            match pem && output.is_table() {
                true => output.text(&found.chain)?,
                false => output.document(&found, || table::ek_certificate(&found.view))?,
            }
        }
        EkCommand::Authorities { pem, rows } => {
            let query = LibraryQuery {
                after: rows.after,
                ..LibraryQuery::default()
            };
            let all: Vec<EkAuthorityView> = controller
                .list::<EkAuthorities, _>(query, rows.limit)
                .await?;
            match pem && output.is_table() {
                true => {
                    let all = all.iter().map(|one| one.certificate.as_str());
                    output.text(&all.collect::<String>())?;
                }
                false => output.document(&all, || table::ek_authorities(&all))?,
            }
        }
        EkCommand::Crl { out } => {
            let list = controller.call::<EkCrl>([], &()).await?;
            match (out, output.is_table()) {
                (Some(file), _) => {
                    write(&file, list.crl.as_bytes())?;
                    let written = json!({
                        "file": file, "entries": list.entries, "next_update": list.next_update,
                    });
                    output.success(&written, || {
                        messages::ek_crl_written(&file.display(), &list)
                    })?;
                }
                (None, true) => output.text(&list.crl)?,
                (None, false) => output.document(&list, String::new)?,
            }
        }
        EkCommand::Publish { out } => {
            let query = LibraryQuery::default();
            let all: Vec<EkAuthorityView> =
                controller.list::<EkAuthorities, _>(query, None).await?;
            let list = controller.call::<EkCrl>([], &()).await?;
            publish(&out, &all, &list)?;
            let written = json!({
                "directory": out, "authorities": all.len(), "entries": list.entries, "next_update": list.next_update,
            });
            output.success(&written, || {
                messages::ek_published(&out.display(), all.len(), &list)
            })?;
        }
        EkCommand::Accept { sha256 } => {
            let accepted = controller.call::<EkAccept>([sha256.as_str()], &()).await?;
            output.success(&accepted, || messages::ek_accepted(&accepted))?;
        }
        EkCommand::Revoke { sha256, reason } => {
            confirm(context.yes, &messages::confirm_revoke_ek(&sha256))?;
            let request = EkRevokeRequest { reason };
            let revoked = controller
                .call::<EkRevoke>([sha256.as_str()], &request)
                .await?;
            output.success(&revoked, || messages::ek_revoked(&revoked))?;
        }
    }
    Ok(Exit::Done)
}

/// The list of revoked certificates last: whoever finds it finds the certificates that it is about.
fn publish(
    directory: &Path,
    authorities: &[EkAuthorityView],
    list: &EkRevocationList,
) -> Result<(), Failure> {
    ensure_directory(directory, 0o755).map_err(|error| unwritten(directory, &error))?;
    let unreadable = |error: rustls::pki_types::pem::Error| {
        Failure::new(ErrorCode::Internal, "what the controller sent is no PEM").because(error)
    };
    for authority in authorities {
        let name = match authority.host {
            Some(_) => ek::authority_file(&authority.sha256),
            None => ek::ROOT_FILE.to_owned(),
        };
        let der = CertificateDer::from_pem_slice(authority.certificate.as_bytes());
        write(&directory.join(name), &der.map_err(unreadable)?)?;
    }
    let der = CertificateRevocationListDer::from_pem_slice(list.crl.as_bytes());
    write(&directory.join(ek::CRL_FILE), &der.map_err(unreadable)?)
}

fn write(file: &Path, content: &[u8]) -> Result<(), Failure> {
    fleetward_durable::replace(file, content, Access::PUBLIC)
        .map_err(|error| unwritten(file, &error))
}

fn unwritten(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        ErrorCode::InvalidArgument,
        format!("cannot write {}", path.display()),
    )
    .because(error)
    .fix("give a place that can be written: --out PATH")
}
