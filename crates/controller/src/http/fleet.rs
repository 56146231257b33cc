//! The fleet itself: status, joining, tokens, administrators, rebuilding the inventory.

use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::{Answer, view};
use crate::admins::{self, Meant};
use crate::app::App;
use crate::audit::{Act, CONTROLLER};
use crate::expulsion;
use crate::hosts::HostRecord;
use crate::tokens::{self, utc};
use crate::world::World;
use axum::Json;
use axum::extract::{Path, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::controller::{
    AdminCertificate, AdminReply, AdminRevoked, JoinReply, RebuildView, RejoinReply, Status,
    TokenRequest, TokenView,
};
use fleetward_api::verbs;
use fleetward_link::{AdminName, Identity, MemberCertificate, Peer, certificate_pem};
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::preflight::CLOCK_LIMIT;
use fleetward_model::{ErrorCode, Failure, GroupName, HostName, Names};
use fleetward_protector::Guardian;
use fleetward_protector::possession::RejoinProof;
use std::time::Duration;
use time::OffsetDateTime;

serves! {
    FleetStatus => status,
    HostInvite => host_token,
    HostJoin => join,
    HostReadmit => host_rejoin_token,
    HostRejoin => rejoin,
    AdminCertify => admin,
    AdminList => admin_list,
    AdminRevoke => admin_revoke,
    FleetRebuild => rebuild,
}

/// How long a rebuild waits for hosts.
const REBUILD_PATIENCE: Duration = Duration::from_secs(10);

async fn status(State(app): State<App>) -> Json<Status> {
    Json(view::status(&app))
}

async fn host_token(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::HostInvite>,
) -> Answer<Json<TokenView>> {
    let world = &app.world;
    let host = request.host.clone();
    if host.as_str() == CONTROLLER {
        let what = format!("no host can be called {CONTROLLER}");
        return Err(Failure::new(ErrorCode::InvalidArgument, what)
            .fix("choose another name")
            .into());
    }
    match world.hosts.find(&host) {
        None => {}
        Some(_) if !request.reinstalled => {
            let failure = already_joined(format!("host {host} has joined already"));
            let fix = format!(
                "another machine: choose another name; the same one, installed anew: fleetward host token {host} --reinstalled"
            );
            return Err(failure.fix(fix).into());
        }
        Some(known) => require_reinstalled(world, &known, &request.group)?,
    }
    let why = format!("host {host}, group {}", request.group);
    let now = OffsetDateTime::now_utc();
    let made = tokens::make(
        &*world.store,
        world.fleet.trust(),
        &app.advertise,
        request,
        false,
        now,
    )
    .await?;
    app.record(Act::new(&peer, AuditAction::MakeToken, why))
        .await?;
    Ok(Json(made))
}

/// Certificates, tokens and grants have a beginning and an end, and each machine judges them by its own clock.
fn check_clock(host: &HostName, clock: OffsetDateTime, now: OffsetDateTime) -> Result<(), Failure> {
    let apart = (clock - now).abs();
    if apart <= CLOCK_LIMIT {
        return Ok(());
    }
    let what = format!("host {host} cannot join with its clock");
    Err(Failure::new(ErrorCode::ClocksApart, what).because(format!(
        "it says {}, and the controller's {}: they are {} s apart, at most {} s are allowed",
        utc(clock),
        utc(now),
        apart.whole_seconds(),
        CLOCK_LIMIT.whole_seconds()
    )))
}

async fn join(
    State(app): State<App>,
    Asked(request): Asked<verbs::HostJoin>,
) -> Answer<Json<JoinReply>> {
    let world = &app.world;
    let now = OffsetDateTime::now_utc();
    let usable = tokens::look_up(&*world.store, world.fleet.trust(), &request.token, now).await?;
    let (host, group) = (usable.record.host.clone(), usable.record.group.clone());
    if usable.record.rejoin {
        return Err(for_another_way(&host, "rejoin").into());
    }
    if let Some(clock) = request.clock {
        check_clock(&host, clock, now)?;
    }
    require_address(&host, &request.address)?;
    let guardian = GuardianFacts {
        host: host.clone(),
        own: true,
        standing: fleetward_model::guardian::GuardianStanding::Own,
        ..request.guardian
    };
    if let Some(other) = world
        .hosts
        .all()
        .iter()
        .find(|h| h.guardian.id == guardian.id)
    {
        return Err(already_joined(format!(
            "this machine has joined already, as host {}",
            other.name
        ))
        .into());
    }
    if let Some(former) = world.expulsions.guardians().get(&guardian.id) {
        let what = format!("this machine was expelled from the fleet, as host {former}");
        return Err(Failure::new(ErrorCode::HostExpelled, what)
            .because(format!(
                "it has guardian {}, which is refused for good",
                guardian.id.short()
            ))
            .about(&Names::default().host(&host))
            .into());
    }
    // whatever is wrong with the request shows before the token is used up
    world.fleet.endorse(&guardian, &host, &group, now)?;
    let host_certificate =
        world
            .fleet
            .certify(&request.host_csr, &Identity::Host(host.clone()), now)?;
    let ek_authority = world
        .fleet
        .certify_ek_authority(&request.ek_csr, &host, now)?;

    let mut record = HostRecord {
        name: host.clone(),
        group: group.clone(),
        address: request.address,
        guardian,
        joined: now,
        drained: false,
        former: Vec::new(),
        unsettled: Vec::new(),
        certificate: MemberCertificate::from_pem(&host_certificate)
            .ok()
            .map(|certificate| certificate.facts),
    };
    let endorsed = record.guardian.id.clone();
    let added = match world.hosts.find(&host) {
        Some(known) if usable.record.reinstalled => {
            require_reinstalled(world, &known, &group)?;
            // What was taken away from the host by name stays taken away.
            record.former = known.former.clone();
            record.former.push(known.guardian.id.clone());
            app.watchers.forget(&host);
            world.audit.retire(&host, now).await?;
            world.hosts.replace(record, usable.use_up()?).await?
        }
        known => {
            // A chain under the name of no host is of one that left, and a crash kept it from being put aside.
            if known.is_none() {
                require_nothing_lost(world, &host)?;
                world.inventory.forget_host(&host).await?;
                world.audit.retire(&host, now).await?;
            }
            world.hosts.add(record, usable.use_up()?).await?
        }
    };
    if added.committed().is_none() {
        return Err(Failure::new(
            ErrorCode::TokenUsed,
            format!("the join token of host {host} is not accepted"),
        )
        .because("it was used at the same moment, or the host has joined")
        .about(&Names::default().host(&host))
        .into());
    }
    world.fleet.eks.keep_authority(&host, &ek_authority).await?;
    for act in [
        Act::new(
            format!("host:{host}"),
            AuditAction::Join,
            format!("join token, group {group}"),
        ),
        Act {
            guardian: Some(endorsed),
            ..Act::new(
                CONTROLLER,
                AuditAction::Endorse,
                format!("host {host} joined group {group}"),
            )
        },
    ] {
        app.record(act).await?;
    }
    tracing::info!(%host, %group, "a host joined");
    app.watchers.watch(world, &host);
    Ok(Json(JoinReply {
        host,
        group,
        fleet: world.fleet.id(),
        host_certificate,
        authority_certificate: world.fleet.trust().to_pem(),
        ek_certificate: certificate_pem(&ek_authority),
        ek_root_certificate: world.fleet.ek_root_pem(),
    }))
}

/// A token for a host that is a member and has no good certificate. Of one that answers nothing is wrong.
async fn host_rejoin_token(
    State(app): State<App>,
    peer: Peer,
    Path(host): Path<String>,
    Asked(request): Asked<verbs::HostReadmit>,
) -> Answer<Json<TokenView>> {
    let world = &app.world;
    let host: HostName = super::parsed("host's name", &host)?;
    let known = world.hosts.of(&host);
    let known = known.map_err(|missing| expulsion::told(world, &host, missing))?;
    let host = &known.name;
    if world.inventory.seen(host).answers {
        let until = known.certificate.as_ref().map(|one| one.not_after);
        let until = until.map_or_else(String::new, |end| format!(", good until {}", utc(end)));
        return Err(already_joined(format!("host {host} needs no way back"))
            .because(format!(
                "it answers: it has a certificate{until}, which is renewed by itself"
            ))
            .fix(format!("fleetward host show {host}"))
            .into());
    }
    let wanted = TokenRequest {
        host: host.clone(),
        group: known.group.clone(),
        ttl_seconds: request.ttl_seconds,
        reinstalled: false,
    };
    let (trust, now) = (world.fleet.trust(), OffsetDateTime::now_utc());
    let made = tokens::make(&*world.store, trust, &app.advertise, wanted, true, now).await?;
    let why = format!("host {host} comes back");
    app.record(Act::new(&peer, AuditAction::MakeToken, why))
        .await?;
    Ok(Json(made))
}

/// Another certificate for a host that is a member. It proves itself with the guardian that the fleet knows.
async fn rejoin(
    State(app): State<App>,
    Asked(request): Asked<verbs::HostRejoin>,
) -> Answer<Json<RejoinReply>> {
    let world = &app.world;
    let now = OffsetDateTime::now_utc();
    let usable = tokens::look_up(&*world.store, world.fleet.trust(), &request.token, now).await?;
    let host = usable.record.host.clone();
    if !usable.record.rejoin {
        return Err(for_another_way(&host, "join").into());
    }
    check_clock(&host, request.clock, now)?;
    require_address(&host, &request.address)?;
    let known = world.hosts.of(&host)?;
    let guardian = Guardian::from_facts(&known.guardian).map_err(|error| {
        let what = format!("the guardian of host {host} cannot be used");
        Failure::new(ErrorCode::Internal, what).because(error)
    })?;
    let proof = RejoinProof::new(&request.token, &request.host_csr);
    let signature = STANDARD.decode(&request.proof).unwrap_or_default();
    if request.guardian != known.guardian.id || !proof.is_signed_by(&guardian, &signature) {
        let what = format!("this machine is not the host {host} that the fleet knows");
        return Err(Failure::new(ErrorCode::TokenInvalid, what)
            .because(format!(
                "it does not prove that it has guardian {}",
                known.guardian.id.short()
            ))
            .fix(format!(
                "if it was installed anew: fleetward host token {host} --group {} --reinstalled",
                known.group
            ))
            .into());
    }
    let host_certificate =
        world
            .fleet
            .certify(&request.host_csr, &Identity::Host(host.clone()), now)?;
    let certificate = MemberCertificate::from_pem(&host_certificate).ok();
    let record = HostRecord {
        address: request.address,
        certificate: certificate.map(|certificate| certificate.facts),
        ..HostRecord::clone(&known)
    };
    let changed = world.hosts.replace(record, usable.use_up()?).await?;
    if changed.committed().is_none() {
        return Err(Failure::new(
            ErrorCode::TokenUsed,
            format!("the token of host {host} is not accepted"),
        )
        .because("it was used at the same moment")
        .fix(format!("fleetward host rejoin {host}"))
        .into());
    }
    let why = format!("host {host} came back with a token");
    app.record(Act::new(
        format!("host:{host}"),
        AuditAction::CertifyHost,
        why,
    ))
    .await?;
    tracing::info!(%host, "a host came back");
    world.agents.reconnect(&host);
    app.watchers.watch(world, &host);
    Ok(Json(RejoinReply {
        host,
        host_certificate,
    }))
}

async fn admin(
    State(app): State<App>,
    peer: Peer,
    Asked(request): Asked<verbs::AdminCertify>,
) -> Answer<Json<AdminReply>> {
    let fleet = &app.world.fleet;
    let name: AdminName = super::parsed("administrator's name", request.name.as_str())?;
    let role = request.role;
    let why = format!("{name}, {role}");
    let identity = Identity::Admin {
        name: name.clone(),
        role,
    };
    let certificate = fleet.certify(&request.csr, &identity, OffsetDateTime::now_utc())?;
    let store = &*app.world.store;
    admins::remember(store, &certificate, name, role, &peer.to_string()).await?;
    app.record(Act::new(&peer, AuditAction::CertifyAdmin, why))
        .await?;
    Ok(Json(AdminReply {
        certificate,
        authority_certificate: fleet.trust().to_pem(),
    }))
}

async fn admin_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::AdminList>,
) -> Answer<Rows<AdminCertificate>> {
    let page = Page::new(query.limit, query.after)?;
    let world = &app.world;
    let certificates = &world.fleet.certificates;
    let all = admins::list(&*world.store, certificates, OffsetDateTime::now_utc()).await?;
    Ok(Rows(page.of_listed(all)?))
}

async fn admin_revoke(
    State(app): State<App>,
    peer: Peer,
    Path(name): Path<String>,
    Asked(request): Asked<verbs::AdminRevoke>,
) -> Answer<Json<AdminRevoked>> {
    let world = &app.world;
    let meant = Meant {
        name: super::parsed("administrator's name", &name)?,
        serial: request.serial,
        unlisted: request.unlisted,
    };
    let certificates = &world.fleet.certificates;
    let now = OffsetDateTime::now_utc();
    let planned = admins::plan_revocation(&*world.store, certificates, &meant, now).await?;
    let (revoked, entry) = planned;
    let numbers: Vec<_> = revoked
        .iter()
        .map(|one| one.certificate.serial.as_str())
        .collect();
    let which = match &meant.serial {
        Some(_) => "one certificate",
        None => "all that were made until now",
    };
    let why = format!("{name}, {which}: {}", numbers.join(", "));
    app.record(Act::new(&peer, AuditAction::RevokeAdmin, why))
        .await?;
    certificates
        .refuse(entry.into_iter().collect(), now)
        .await?;
    Ok(Json(AdminRevoked { name, revoked }))
}

async fn rebuild(State(app): State<App>, peer: Peer) -> Answer<Json<RebuildView>> {
    let world = &app.world;
    app.record(Act::new(&peer, AuditAction::Rebuild, "asked for"))
        .await?;
    let hosts = world.hosts.all();
    let before: Vec<_> = hosts
        .iter()
        .map(|host| world.inventory.seen(&host.name).snapshots)
        .collect();
    world.inventory.forget_vms();
    for host in &hosts {
        app.watchers.watch(world, &host.name);
    }
    let answered = || {
        let now = hosts
            .iter()
            .map(|host| world.inventory.seen(&host.name).snapshots);
        now.zip(&before)
            .map(|(now, before)| now > *before)
            .collect::<Vec<_>>()
    };
    let mut changes = world.inventory.changes();
    let all = async { while answered().contains(&false) && changes.changed().await.is_ok() {} };
    // hosts that stay silent are named below
    let _ = tokio::time::timeout(REBUILD_PATIENCE, all).await;
    let mut warnings = Vec::new();
    let answered = answered();
    for (host, answered) in hosts.iter().zip(&answered) {
        if !answered {
            warnings.push(format!(
                "host {} does not answer; its VMs appear when it does",
                host.name
            ));
        }
        warnings.extend(world.inventory.contradictions(&host.name));
    }
    Ok(Json(RebuildView {
        hosts_asked: hosts.len() as u32,
        hosts_answered: answered.iter().filter(|answered| **answered).count() as u32,
        vms: world.inventory.managed() as u32,
        warnings,
    }))
}

/// Only a host that is silent can have been installed anew, and it stays in its group.
fn require_reinstalled(
    world: &World,
    known: &HostRecord,
    group: &GroupName,
) -> Result<(), Failure> {
    let HostRecord { name, .. } = known;
    if world.inventory.seen(name).answers {
        return Err(already_joined(format!("host {name} has joined already"))
            .because("it answers, and still has its guardian and its VMs")
            .about(&Names::default().host(name)));
    }
    if known.group != *group {
        let what = format!("host {name} is of group {}, not {group}", known.group);
        return Err(
            Failure::new(ErrorCode::InvalidArgument, what).fix(format!("--group {}", known.group))
        );
    }
    Ok(())
}

fn already_joined(what: String) -> Failure {
    Failure::new(ErrorCode::AlreadyJoined, what)
}

/// VMs of an expelled host are known by its name: another machine gets that name when they are rebuilt or given up.
fn require_nothing_lost(world: &World, host: &HostName) -> Result<(), Failure> {
    let left = world.inventory.vms_on(host).into_iter();
    let left: Vec<_> = left.filter(|vm| vm.is_managed()).collect();
    let Some(first) = left.first() else {
        return Ok(());
    };
    let names: Vec<_> = left.iter().map(|vm| vm.name.as_str()).collect();
    let group = first.metadata.as_ref().map(|metadata| &metadata.spec.group);
    let hosts = world.hosts.all().into_iter();
    let mut others = hosts
        .filter(|other| group == Some(&other.group) && world.inventory.seen(&other.name).online);
    let rebuild = match others.next() {
        Some(to) => format!("fleetward vm recover {} --to {}", first.name, to.name),
        None => "rebuild them when a host of their group answers".to_owned(),
    };
    let what = format!("another machine cannot be host {host} yet");
    Err(Failure::new(ErrorCode::HostNotEmpty, what)
        .because(format!(
            "VMs that were lost with the host of that name are neither rebuilt nor deleted: {}",
            names.join(", ")
        ))
        .fix(format!("{rebuild}; or choose another name for the machine")))
}

/// The token is good, and for the other of the two commands.
fn for_another_way(host: &HostName, command: &str) -> Failure {
    let what = format!("the token of host {host} is for another command");
    Failure::new(ErrorCode::TokenInvalid, what).fix(format!("fleetward-agent {command}"))
}

fn require_address(host: &HostName, address: &str) -> Result<(), Failure> {
    if is_address(address) {
        return Ok(());
    }
    let what = format!("host {host} cannot be reached at {:?}", clip(address));
    Err(Failure::new(ErrorCode::InvalidArgument, what)
        .because("that is no address:port")
        .fix("set advertise, for example to \"192.0.2.11:7443\", in the agent's configuration"))
}

fn is_address(text: &str) -> bool {
    text.len() <= 300
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
        && text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0)
        })
}

fn clip(text: &str) -> String {
    text.chars().take(60).collect()
}
