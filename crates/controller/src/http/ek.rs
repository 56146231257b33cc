//! EK certificates: which there are, what counts of them, and the two decisions of administrators.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use crate::app::App;
use crate::audit::Act;
use crate::ek::{Accepted, KnownEk, Revoked};
use crate::world::World;
use axum::Json;
use axum::extract::{Path, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::controller::{
    EkAccepted, EkAuthorityView, EkCertificateDetail, EkCertificateView, EkDecision,
    EkRevocationList, EkRevoked, EkStanding,
};
use fleetward_api::verbs;
use fleetward_link::{Peer, certificate_pem, pem};
use fleetward_model::audit::AuditAction;
use fleetward_model::{ErrorCode, Failure, HostName, VmName};
use fleetward_protector::ek::{CRL_LIFETIME, EkCertificate};
use std::collections::{BTreeSet, HashMap};
use time::OffsetDateTime;

/// Characters of a reason.
const MAX_REASON: usize = 200;

serves! {
    EkList => ek_list,
    EkShow => ek_show,
    EkAccept => ek_accept,
    EkRevoke => ek_revoke,
    EkAuthorities => ek_authorities,
    EkCrl => ek_crl,
}

/// A SHA-256 in hex digits; colons between the bytes and upper case, as other programs print them, are understood.
fn digest(text: &str) -> Result<String, Failure> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    match digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        true => Ok(digits),
        false => {
            let what = "that is no SHA-256 of a certificate";
            let because = "it has 64 hex digits; fleetward ek list shows them";
            Err(Failure::new(ErrorCode::InvalidArgument, what).because(because))
        }
    }
}

async fn ek_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::EkList>,
) -> Answer<Rows<EkCertificateView>> {
    let page = Page::new(query.limit, query.after)?;
    let world = &app.world;
    let vms = vms_by_certificate(world);
    let all = world.known_eks.all().into_iter();
    let rows = all
        .map(|(sha256, known)| view(world, sha256, &known, &vms))
        .filter(|row| {
            query
                .serial
                .as_ref()
                .is_none_or(|serial| row.serial == *serial)
        })
        .filter(|row| query.issuer.is_none() || row.issuer_host == query.issuer)
        .filter(|row| {
            query
                .standing
                .is_none_or(|standing| row.standing == standing)
        })
        .filter(|row| query.vm.as_ref().is_none_or(|vm| row.vms.contains(vm)));
    Ok(Rows(page.of_named(rows)))
}

async fn ek_show(
    State(app): State<App>,
    Path(sha256): Path<String>,
) -> Answer<Json<EkCertificateDetail>> {
    let sha256 = digest(&sha256)?;
    let world = &app.world;
    let known = world
        .known_eks
        .of(&sha256)
        .ok_or_else(|| unknown(&sha256))?;
    let der = world.known_eks.certificate(&sha256).await?;
    let der = der.ok_or_else(|| unknown(&sha256))?;
    let mut chain = certificate_pem(&der);
    let authorities = world.fleet.eks.authorities();
    let issuer = authorities
        .iter()
        .find(|authority| Some(authority.sha256()) == known.authority);
    if let Some(issuer) = issuer {
        chain.push_str(&certificate_pem(&issuer.der));
        chain.push_str(&world.fleet.ek_root_pem());
    }
    let view = view(world, sha256, &known, &vms_by_certificate(world));
    Ok(Json(EkCertificateDetail { view, chain }))
}

async fn ek_authorities(
    State(app): State<App>,
    Asked(query): Asked<verbs::EkAuthorities>,
) -> Answer<Rows<EkAuthorityView>> {
    let page = Page::new(query.limit, query.after)?;
    let world = &app.world;
    let member = |host: &HostName| world.hosts.of(host).is_ok();
    let of_hosts = world.fleet.eks.authorities().into_iter();
    let of_hosts = of_hosts.map(|one| {
        let issues = one.present && member(&one.host);
        authority_view(world, one.der, Some(one.host), issues)
    });
    let root = authority_view(world, world.fleet.ek_root().to_vec(), None, true);
    let all: Option<Vec<_>> = [root].into_iter().chain(of_hosts).collect();
    let all = all.ok_or_else(|| {
        let what = "an EK authority that is kept cannot be read";
        Failure::new(ErrorCode::StoreFailed, what)
    })?;
    Ok(Rows(page.of_listed(all)?))
}

async fn ek_crl(State(app): State<App>) -> Answer<Json<EkRevocationList>> {
    let now = OffsetDateTime::now_utc();
    let (der, entries) = app.world.fleet.ek_revocation_list(now)?;
    Ok(Json(EkRevocationList {
        crl: pem("X509 CRL", &der),
        entries,
        next_update: now + CRL_LIFETIME,
    }))
}

/// The VMs whose TPM has it, by SHA-256.
fn vms_by_certificate(world: &World) -> HashMap<String, Vec<VmName>> {
    let mut vms: HashMap<String, Vec<VmName>> = HashMap::new();
    for vm in world.inventory.vms() {
        if let Some(sha256) = &vm.tpm.ek_certificate {
            vms.entry(sha256.clone()).or_default().push(vm.name.clone());
        }
    }
    vms
}

fn view(
    world: &World,
    sha256: String,
    known: &KnownEk,
    vms: &HashMap<String, Vec<VmName>>,
) -> EkCertificateView {
    let eks = &world.fleet.eks;
    EkCertificateView {
        serial: known.serial.clone(),
        issuer: known.issuer.clone(),
        issuer_host: known.issuer_host.clone(),
        standing: eks
            .standing(&sha256, Some(known))
            .unwrap_or(EkStanding::Foreign),
        accepted: eks.accepted(&sha256).map(|accepted| EkDecision {
            by: accepted.by,
            at: accepted.at,
            reason: String::new(),
        }),
        revoked: eks.revoked(&sha256).map(decision),
        vms: vms.get(&sha256).cloned().unwrap_or_default(),
        first_vm: known.first_vm.clone(),
        first_seen: known.first_seen,
        sha256,
    }
}

fn decision(revoked: Revoked) -> EkDecision {
    EkDecision {
        by: revoked.by,
        at: revoked.at,
        reason: revoked.reason,
    }
}

fn authority_view(
    world: &World,
    der: Vec<u8>,
    host: Option<HostName>,
    issues: bool,
) -> Option<EkAuthorityView> {
    let read = EkCertificate::read(&der).ok()?;
    let sha256 = hex::encode(read.sha256);
    let revoked = world.fleet.eks.revoked(&sha256).map(decision);
    Some(EkAuthorityView {
        issues: issues && revoked.is_none(),
        revoked,
        serial: read.facts.serial,
        subject: read.subject,
        certificate: certificate_pem(&der),
        host,
        sha256,
    })
}

fn unknown(sha256: &str) -> Failure {
    let what = format!("the fleet has never seen a certificate with SHA-256 {sha256}");
    Failure::new(ErrorCode::EkNotFound, what)
}

async fn ek_revoke(
    State(app): State<App>,
    peer: Peer,
    Path(sha256): Path<String>,
    Asked(request): Asked<verbs::EkRevoke>,
) -> Answer<Json<EkRevoked>> {
    let sha256 = digest(&sha256)?;
    let world = &app.world;
    let eks = &world.fleet.eks;
    let reason = request.reason;
    if reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control) {
        let what = format!("the reason has more than {MAX_REASON} characters, or a line end");
        return Err(Failure::new(ErrorCode::InvalidArgument, what).into());
    }
    let vms = vms_by_certificate(world);
    let authority = eks.authorities().into_iter();
    let authority = authority
        .map(|one| (one.sha256(), one))
        .find(|(its, _)| *its == sha256);
    // What it issued, as far as it is known.
    let issued: BTreeSet<String> = match &authority {
        Some(_) => {
            let all = world.known_eks.all().into_iter();
            all.filter(|(_, known)| known.authority.as_ref() == Some(&sha256))
                .map(|(sha256, _)| sha256)
                .collect()
        }
        None => BTreeSet::new(),
    };
    let (certificate, listed) = match &authority {
        Some((_, authority)) => (authority.der.clone(), true),
        None => {
            let known = world
                .known_eks
                .of(&sha256)
                .ok_or_else(|| unknown(&sha256))?;
            let der = world.known_eks.certificate(&sha256).await?;
            let der = der.ok_or_else(|| unknown(&sha256))?;
            (der, known.authority.is_some())
        }
    };
    let why = match &authority {
        Some((_, one)) => format!(
            "EK authority of host {} with SHA-256 {sha256}: {reason}",
            one.host
        ),
        None => format!("EK certificate with SHA-256 {sha256}: {reason}"),
    };
    app.record(Act::new(&peer, AuditAction::RevokeEk, why))
        .await?;
    let revoked = Revoked {
        by: peer.to_string(),
        at: OffsetDateTime::now_utc(),
        reason,
        certificate: STANDARD.encode(certificate),
    };
    let affected = [sha256.clone()];
    let affected = affected.iter().chain(&issued);
    let affected = affected.filter_map(|sha256| vms.get(sha256)).flatten();
    let mut affected: Vec<_> = affected.cloned().collect();
    affected.sort();
    let revoked = match listed {
        true => eks.revoke(&sha256, revoked, issued).await?,
        false => {
            eks.no_longer_accept(&sha256).await?;
            revoked
        }
    };
    Ok(Json(EkRevoked {
        sha256,
        decision: decision(revoked),
        listed,
        vms: affected,
    }))
}

async fn ek_accept(
    State(app): State<App>,
    peer: Peer,
    Path(sha256): Path<String>,
) -> Answer<Json<EkAccepted>> {
    let sha256 = digest(&sha256)?;
    let why = format!("EK certificate with SHA-256 {sha256}");
    app.record(Act::new(&peer, AuditAction::AcceptEk, why))
        .await?;
    let accepted = Accepted {
        by: peer.to_string(),
        at: OffsetDateTime::now_utc(),
    };
    let Accepted { by, at } = app.world.fleet.eks.accept(&sha256, accepted).await?;
    Ok(Json(EkAccepted { sha256, by, at }))
}
