//! Joins the hosts of a plan to a controller, through its real API: a token for each over the controller's socket, then
//! the request that a host makes. Repeating it joins the hosts that are missing.

use crate::custody::{self, SealedTpm};
use crate::directory::{Directory, Fleet, Member, MemberPublic, Protectors, Secrets};
use crate::guardians::Guardians;
use crate::plan::FleetPlan;
use anyhow::{Context, Result};
use fleetward_api::controller::{JoinReply, JoinRequest, TokenRequest, TokenView};
use fleetward_link::{Client, ClientTls, JoinToken, KeyRequest};
use fleetward_model::guardian::GuardianFacts;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::path::Path;
use std::sync::Arc;
use time::OffsetDateTime;

/// Hosts that join at the same time: a controller takes few strangers at once from one address.
const AT_ONCE: usize = 4;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// Hosts that joined now.
    pub now: u32,
    /// Hosts that had joined before.
    pub before: u32,
}

/// Joins what is missing of `fleet`, and keeps it in `path`. `progress` hears how many hosts have joined.
pub async fn prepare(
    controller: &Client,
    fleet: &Fleet,
    path: &Path,
    progress: impl Fn(u32),
) -> Result<(Directory, Joined)> {
    let directory = Directory::begin(path, fleet)?;
    let plan = &fleet.plan;
    let missing: Vec<u32> = (0..plan.hosts)
        .filter(|host| !directory.has(plan, *host))
        .collect();
    let now = u32::try_from(missing.len()).unwrap_or(u32::MAX);
    let guardians = Arc::new(match fleet.shared_guardian && now > 0 {
        true => tokio::task::spawn_blocking(Guardians::shared).await??,
        false => Guardians::Own,
    });
    let joins = missing.into_iter().map(|host| {
        let (guardians, directory) = (guardians.clone(), directory.clone());
        async move {
            let name = plan.host(host);
            let joined = join(controller, &directory, fleet, host, guardians).await;
            joined.with_context(|| format!("host {name} has not joined"))
        }
    });
    let mut joins = stream::iter(joins).buffer_unordered(AT_ONCE);
    let mut done = 0;
    while joins.try_next().await?.is_some() {
        done += 1;
        progress(done);
    }
    drop(joins);
    let before = plan.hosts - now;
    if fleet.protectors == Protectors::Real {
        seal_tpms(&directory, plan).await?;
    }
    Ok((directory, Joined { now, before }))
}

/// Seals the TPMs of all hosts that have not done so.
async fn seal_tpms(directory: &Directory, plan: &FleetPlan) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let sealings = (0..plan.hosts).map(|host| {
        let (directory, plan) = (directory.clone(), plan.clone());
        async move {
            let sealed = tokio::task::spawn_blocking(move || seal_host(&directory, &plan, host));
            sealed.await?
        }
    });
    let mut sealings = stream::iter(sealings).buffer_unordered(cores);
    while sealings.try_next().await?.is_some() {}
    Ok(())
}

fn seal_host(directory: &Directory, plan: &FleetPlan, host: u32) -> Result<()> {
    if directory.tpms(plan, host)?.is_some() {
        return Ok(());
    }
    let Member {
        public, secrets, ..
    } = directory.member(plan, host)?;
    let none = || format!("host {} has joined without its keys", plan.host(host));
    let own = secrets.with_context(none)?.custody(&public)?;
    let others = plan.guardian_hosts(host).filter(|other| *other != host);
    let others = others.map(|other| Ok(directory.member(plan, other)?.public.guardian));
    let others: Vec<GuardianFacts> = others.collect::<Result<_>>()?;
    let recipients = custody::guardians(&others)?;
    let tpms = plan.vms_of(host).map(|(vm, _)| own.make(vm, &recipients));
    let tpms: Vec<SealedTpm> = tpms.collect::<Result<_>>()?;
    directory.keep_tpms(plan, host, &tpms)
}

async fn join(
    controller: &Client,
    directory: &Directory,
    fleet: &Fleet,
    host: u32,
    guardians: Arc<Guardians>,
) -> Result<()> {
    let plan = &fleet.plan;
    let name = plan.host(host);
    let own = tokio::task::spawn_blocking(move || guardians.make(&name)).await??;
    let guardian = own.public().facts(plan.host(host), true, true);
    let request = TokenRequest {
        host: plan.host(host),
        group: plan.group(host),
        ttl_seconds: 600,
        reinstalled: false,
    };
    let token: TokenView = controller.post("/v1/host-tokens", &request).await?;
    let parsed = JoinToken::parse(&token.token, OffsetDateTime::now_utc())?;
    let key = KeyRequest::generate()?;
    let ek_key = rcgen::KeyPair::generate()?;
    let body = JoinRequest {
        token: token.token,
        host_csr: key.csr_pem().to_owned(),
        ek_csr: rcgen::CertificateParams::default()
            .serialize_request(&ek_key)?
            .pem()?,
        guardian: guardian.clone(),
        address: plan.address(host).to_string(),
        clock: Some(OffsetDateTime::now_utc()),
    };
    let stranger = Client::tls(parsed.controller, ClientTls::join(parsed.authority));
    let reply: JoinReply = stranger.post("/v1/join", &body).await?;
    directory.keep_authority(&reply.authority_certificate)?;
    let member = Member {
        credential: key.into_credential(&reply.host_certificate)?,
        public: MemberPublic {
            group: reply.group,
            guardian,
            ek_certificate: reply.ek_certificate,
        },
        secrets: (fleet.protectors == Protectors::Real).then_some(Secrets {
            guardian: own,
            ek: ek_key,
        }),
    };
    directory.keep(plan, host, &member)
}
