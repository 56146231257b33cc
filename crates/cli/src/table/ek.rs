//! EK certificates and their authorities.

use super::*;
use fleetward_api::controller::{EkAuthorityView, EkCertificateView, EkDecision};

pub(crate) fn ek_certificates(certificates: &[EkCertificateView]) -> String {
    let mut table = Rows::new(&[
        "SERIAL",
        "STANDING",
        "ISSUED BY",
        "VMS",
        "FIRST SEEN",
        "SHA256",
    ]);
    for one in certificates {
        table.add([
            one.serial.to_string(),
            <&str>::from(one.standing).to_owned(),
            ek_issuer(one),
            listed(&one.vms),
            moment(one.first_seen),
            one.sha256.clone(),
        ]);
    }
    table.text()
}

pub(crate) fn ek_certificate(one: &EkCertificateView) -> String {
    let mut sheet = Sheet::default();
    sheet.add("SHA-256", &one.sha256);
    sheet.add("Serial number", &one.serial);
    sheet.add("Issued by", ek_issuer(one));
    sheet.add("Standing", <&str>::from(one.standing));
    if let Some(accepted) = &one.accepted {
        sheet.add("Accepted", decision(accepted));
    }
    if let Some(revoked) = &one.revoked {
        sheet.add("Revoked", decision(revoked));
    }
    sheet.add("VMs", listed(&one.vms));
    sheet.add(
        "First seen",
        format!("{}, of VM {}", moment(one.first_seen), one.first_vm),
    );
    sheet.text()
}

pub(crate) fn ek_authorities(authorities: &[EkAuthorityView]) -> String {
    let mut table = Rows::new(&["OF", "STANDING", "SERIAL", "SHA256"]);
    for one in authorities {
        let standing = match (&one.revoked, one.issues) {
            (Some(_), _) => "revoked",
            (None, true) => "issues",
            (None, false) => "former",
        };
        table.add([
            one.host.as_ref().map_or_else(
                || "the fleet (root)".to_owned(),
                |host| format!("host {host}"),
            ),
            standing.to_owned(),
            one.serial.to_string(),
            one.sha256.clone(),
        ]);
    }
    table.text()
}

/// A host is named only where its authority's signature holds, or an authority of the fleet is said to have issued it.
fn ek_issuer(one: &EkCertificateView) -> String {
    match (&one.issuer_host, one.standing) {
        (Some(host), EkStanding::Fleet | EkStanding::Revoked) => format!("host {host}"),
        _ => plain::line(&one.issuer).into_owned(),
    }
}

fn decision(decision: &EkDecision) -> String {
    let why = match decision.reason.is_empty() {
        true => String::new(),
        false => format!(": {}", plain::line(&decision.reason)),
    };
    format!("by {}, {}{why}", decision.by, moment(decision.at))
}

fn listed(names: &[impl ToString]) -> String {
    match names.is_empty() {
        true => NONE.to_owned(),
        false => names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}
