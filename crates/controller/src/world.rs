//! State that handlers and job steps share: what is known of the fleet, and the clients for its agents.

use crate::agents::Agents;
use crate::alerts::Alerts;
use crate::api_tokens::ApiTokens;
use crate::audit::Audit;
use crate::ek::KnownEks;
use crate::escrow::Escrow;
use crate::expulsion::Expulsions;
use crate::fleet::Fleet;
use crate::holders::Holders;
use crate::hosts::{HostRecord, Hosts};
use crate::images::Images;
use crate::inventory::Inventory;
use crate::load::Loads;
use crate::people::People;
use crate::templates::Templates;
use crate::work::Reservation;
use fleetward_api::agent::CancelRequest;
use fleetward_api::tpm::TpmVersion;
use fleetward_jobs::{DebtBook, Job};
use fleetward_model::error::Finding;
use fleetward_model::fit::{
    HostOffer, Needs, Reserved, TpmWriter, agent_knows, host_fits, host_still_fits,
};
use fleetward_model::guardian::{EndorsedGuardian, MANY_GUARDIANS, TrustMode};
use fleetward_model::host::{Formats, HostFacts, HostState};
use fleetward_model::placement::{Candidate, Choice, place};
use fleetward_model::preflight::Side;
use fleetward_model::vm::{Revocation, VmObserved, VmSummary, protector_sha256};
use fleetward_model::{ErrorCode, Failure, GroupName, GuardianId, HostName, JobId, VmId, VmName};
use fleetward_protector::KeyProtector;
use fleetward_store::Store;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::time::Instant;

/// The shared parts.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) expulsions: Expulsions,
    pub(crate) api_tokens: ApiTokens,
    pub(crate) people: People,
    pub(crate) alerts: Alerts,
    pub(crate) inventory: Inventory,
    pub(crate) agents: Agents,
    pub(crate) images: Images,
    pub(crate) templates: Templates,
    pub(crate) audit: Audit,
    pub(crate) escrow: Escrow,
    pub(crate) known_eks: KnownEks,
    pub(crate) holders: Holders,
    pub(crate) loads: Loads,
    /// What hosts that were away still have to do.
    pub(crate) debts: Arc<DebtBook>,
    /// Whether jobs grant keys by themselves.
    pub(crate) trust: TrustMode,
}

impl World {
    pub(crate) fn state_of(&self, host: &HostRecord) -> HostState {
        match (self.inventory.seen(&host.name).online, host.drained) {
            (false, _) => HostState::Unreachable,
            (true, true) => HostState::Drained,
            (true, false) => HostState::Online,
        }
    }

    /// Chooses a host; what jobs under way will take counts as taken, and so does what `planned` arrivals will.
    pub(crate) fn place(
        &self,
        needs: &Needs,
        choice: &Choice,
        planned: &[Reservation],
    ) -> Result<HostName, Failure> {
        let hosts = self.hosts.all();
        let seen: Vec<_> = hosts
            .iter()
            .map(|host| self.inventory.seen(&host.name))
            .collect();
        let mut reservations = self.holders.reservations();
        reservations.extend_from_slice(planned);
        let candidates: Vec<_> = hosts
            .iter()
            .zip(&seen)
            .map(|(host, seen)| {
                let coming = arrivals(&reservations, &host.name, needs.vm).count();
                Candidate {
                    offer: HostOffer {
                        name: &host.name,
                        group: &host.group,
                        state: self.state_of(host),
                        facts: seen.facts.as_deref(),
                        reserved: reserved(&reservations, &host.name, needs.vm),
                    },
                    vms: (self.inventory.count_on(&host.name) + coming) as u32,
                }
            })
            .collect();
        place(needs, choice, &candidates)
    }

    /// What wrote the VM's TPM last, as far as is known: what its host has now, or what the newest copy was written by, where that
    /// is of the very state that is there, or newer than what its host went back to.
    pub(crate) fn tpm_writer(&self, vm: &VmObserved) -> Option<TpmWriter> {
        if !vm.tpm.enabled {
            return None;
        }
        let now = TpmWriter::of(&vm.host, self.inventory.seen(&vm.host).facts.as_deref());
        let newest = self.escrow.newest(vm.id);
        let Some(kept) = newest.filter(|kept| kept.libtpms.is_some()) else {
            return Some(now);
        };
        let of_this_state =
            vm.state.stands_still() && vm.tpm.state_sha256.as_ref() == Some(&kept.state_sha256);
        Some(match of_this_state || kept.libtpms > now.libtpms {
            true => self.writer_of(&kept),
            false => now,
        })
    }

    /// What wrote a kept version of a TPM.
    pub(crate) fn writer_of(&self, version: &TpmVersion) -> TpmWriter {
        match version.libtpms {
            Some(_) => TpmWriter {
                host: version.host.clone(),
                swtpm: version.swtpm,
                libtpms: version.libtpms,
            },
            None => {
                let seen = self.inventory.seen(&version.host);
                TpmWriter::of(&version.host, seen.facts.as_deref())
            }
        }
    }

    /// Refuses, with every reason, where `host` cannot take a VM with these needs.
    pub(crate) fn require_fit(
        &self,
        what: String,
        needs: &Needs,
        host: &HostName,
    ) -> Result<(), Failure> {
        self.require(what, needs, host, host_fits)
    }

    /// The same for a VM that is there already and is to change.
    pub(crate) fn require_still_fit(
        &self,
        what: String,
        needs: &Needs,
        host: &HostName,
    ) -> Result<(), Failure> {
        self.require(what, needs, host, host_still_fits)
    }

    fn require(
        &self,
        what: String,
        needs: &Needs,
        host: &HostName,
        fits: fn(&Needs, &HostOffer<'_>) -> Vec<Finding>,
    ) -> Result<(), Failure> {
        let record = self.hosts.of(host)?;
        let seen = self.inventory.seen(host);
        let offer = HostOffer {
            name: &record.name,
            group: &record.group,
            state: self.state_of(&record),
            facts: seen.facts.as_deref(),
            reserved: reserved(&self.holders.reservations(), host, needs.vm),
        };
        Failure::from_findings(what, fits(needs, &offer)).map_or(Ok(()), Err)
    }

    /// Refuses what the agent of a host cannot do, before a job for it begins.
    pub(crate) fn require_formats(&self, host: &HostName, needed: Formats) -> Result<(), Failure> {
        let Some(facts) = self.inventory.seen(host).facts else {
            return Ok(());
        };
        match agent_knows(facts.formats, needed, host) {
            None => Ok(()),
            Some(finding) => Err(Failure::new(finding.code, finding.what).fix(finding.fix)),
        }
    }

    /// The recipients of a new key for a VM on `host`; every job that makes a TPM uses this. With automatic trust: the
    /// hosts of the group, `host` first, up to the limit of a key protector. With manual trust: only `host`. Guardians
    /// whose access to the VM was revoked are excluded.
    pub(crate) fn recipients_for_new_key(
        &self,
        group: &GroupName,
        host: &HostName,
        revoked: &[Revocation],
        now: OffsetDateTime,
    ) -> Result<Vec<EndorsedGuardian>, Failure> {
        let mut members = self.allowed(group, host, revoked, now);
        match self.trust {
            TrustMode::Auto => members.truncate(MANY_GUARDIANS),
            TrustMode::Manual => members.retain(|member| member.name == *host),
        }
        self.endorse_all(&members, now)
    }

    /// The recipients of a VM's present key when it moves to `host`; the same as for a new key with automatic trust.
    pub(crate) fn recipients_of(
        &self,
        vm: &VmSummary,
        host: &HostName,
        now: OffsetDateTime,
    ) -> Result<Vec<EndorsedGuardian>, Failure> {
        let mut members = self.allowed(&vm.spec.group, host, &vm.revoked, now);
        members.truncate(MANY_GUARDIANS);
        self.endorse_all(&members, now)
    }

    /// The recipients of the key that replaces a VM's present one: the guardians in `had_it` without revoked ones. A
    /// host that lost the key with a former guardian and has it with its present guardian was granted it by name
    /// since.
    pub(crate) fn remaining_recipients(
        &self,
        vm: &VmSummary,
        host: &HostName,
        had_it: &[GuardianId],
        now: OffsetDateTime,
    ) -> Result<Vec<EndorsedGuardian>, Failure> {
        let mut members = self.allowed(&vm.spec.group, host, &[], now);
        members.retain(|member| {
            let guardian = &member.guardian.id;
            had_it.contains(guardian) && !vm.is_revoked(guardian)
        });
        self.endorse_all(&members, now)
    }

    /// The hosts of a group that a key may be wrapped for, `first` in front. Excludes hosts whose guardian has
    /// expired, and hosts that lost the key by name, with any guardian that they had.
    fn allowed(
        &self,
        group: &GroupName,
        first: &HostName,
        revoked: &[Revocation],
        now: OffsetDateTime,
    ) -> Vec<Arc<HostRecord>> {
        let mut hosts = self.hosts.of_group(group);
        hosts.retain(|host| {
            host.guardian.not_after().is_some_and(|end| end > now) && !host.is_among(revoked)
        });
        hosts.sort_by_key(|host| host.name != *first);
        hosts
    }

    fn endorse_all(
        &self,
        hosts: &[Arc<HostRecord>],
        now: OffsetDateTime,
    ) -> Result<Vec<EndorsedGuardian>, Failure> {
        let endorse = |host: &Arc<HostRecord>| {
            self.fleet
                .endorse(&host.guardian, &host.name, &host.group, now)
        };
        hosts.iter().map(endorse).collect()
    }

    /// A job has ended: its VM is free, and whoever looks after VMs hears of it.
    pub(crate) fn release(&self, job: JobId) {
        if let Some(vm) = self.holders.remove(job) {
            self.inventory.released(vm);
        }
    }

    /// How many hosts a group has.
    pub(crate) fn members_of(&self, group: &GroupName) -> usize {
        self.hosts.count_of(group)
    }

    /// Takes note of a key protector that a host has just written for a VM.
    pub(crate) fn note_protector(&self, host: &HostName, vm: VmId, text: &str) {
        let Ok(protector) = KeyProtector::from_base64(text) else {
            return; // the host's next report tells
        };
        let inspection = protector.inspect();
        self.inventory.amend(host, vm, |vm| {
            vm.tpm.key_id = Some(inspection.binding.key_id);
            vm.tpm.owner = Some(inspection.owner.id().clone());
            vm.tpm.guardians = inspection.guardian_ids();
            vm.tpm.protector_sha256 = Some(protector_sha256(text));
        });
    }

    /// Whether a new VM can have a name. What is remembered may be older than the host's own word, so that is asked for.
    pub(crate) async fn require_name(&self, name: &VmName) -> Result<(), Failure> {
        self.require_name_for(name, None).await
    }

    /// Whether a name is free, or `own`'s already.
    pub(crate) async fn require_name_for(
        &self,
        name: &VmName,
        own: Option<VmId>,
    ) -> Result<(), Failure> {
        while let Some((host, vm)) = self.inventory.named(name, own) {
            let begun = Instant::now();
            let asked = async { self.agents.of(&host)?.vm(vm).await };
            match asked.await {
                Ok(None) => self.inventory.answer(&host, vm, None, begun),
                Ok(Some(_)) | Err(_) => {
                    let what = format!("there is a VM {name} already, on host {host}");
                    return Err(Failure::new(ErrorCode::NameTaken, what));
                }
            }
        }
        let keeper = self.debts.keeper(&crate::work::name_lock(name));
        let own = own.map(crate::debts::subject);
        match keeper.filter(|keeper| keeper.subject != own) {
            None => Ok(()),
            Some(keeper) => {
                let host = keeper.key;
                let what =
                    format!("a VM on host {host} has the name {name} again when that host is back");
                Err(Failure::new(ErrorCode::NameTaken, what)
                    .because("a change of that VM was taken back while the host did not answer")
                    .fix(format!(
                        "choose another name, or wait for the host: fleetward host show {host}"
                    )))
            }
        }
    }

    /// Removes content that no image and no template needs any more, here and in the hosts' caches.
    pub(crate) async fn drop_content(self: &Arc<Self>, contents: Vec<String>) {
        for sha256 in contents {
            if self.templates.holds(&sha256) || self.images.holds(&sha256) {
                continue;
            }
            let removed = fleetward_durable::background::remove(&self.images.file(&sha256)).await;
            if let Err(error) = removed {
                tracing::warn!(sha256, %error, "content that nobody needs stays");
            }
            let world = self.clone();
            tokio::spawn(async move {
                for host in world.hosts.all() {
                    let deleted =
                        async { world.agents.of(&host.name)?.delete_image(&sha256).await };
                    if let Err(error) = deleted.await {
                        tracing::info!(host = %host.name, error = %error.what, "the content stays in the host's cache");
                    }
                }
            });
        }
    }

    /// Asks the hosts to end what a job that was given up still does to its VM. A host that cannot be told ends it when
    /// something else is asked for the VM.
    pub(crate) async fn stop_operations(&self, job: &Job) {
        let Some(vm) = crate::work::about_job(job).vm else {
            return;
        };
        for host in self.hosts.all() {
            if self.inventory.seen(&host.name).answers
                && let Ok(agent) = self.agents.of(&host.name)
            {
                agent.cancel(&CancelRequest { job: job.id, vm }).await;
            }
        }
    }

    /// Asks a host for one VM, so that the next read shows what a job did, a read after a crash too. What it cannot tell
    /// now its events will.
    pub(crate) async fn refresh(&self, host: &HostName, vm: VmId) {
        if !self.inventory.seen(host).answers {
            return;
        }
        let begun = Instant::now();
        let asked = async { self.agents.of(host)?.vm(vm).await };
        match asked.await {
            Ok(detail) => {
                self.inventory.answer(host, vm, detail.map(|d| d.vm), begun);
                let now = OffsetDateTime::now_utc();
                if let Err(error) = self.inventory.flush_of(host, now).await {
                    tracing::warn!(%error, "cannot write the inventory");
                }
            }
            Err(error) => tracing::debug!(%host, %vm, error = %error.what, "cannot refresh the VM"),
        }
    }
}

/// What is reserved on a host, without what is reserved for `vm` itself.
fn reserved(reservations: &[Reservation], host: &HostName, vm: Option<VmId>) -> Reserved {
    let mut sum = Reserved::default();
    for one in arrivals(reservations, host, vm) {
        sum.memory.0 += one.memory.0;
        for (pool, size) in &one.space {
            sum.space.entry(pool.clone()).or_default().0 += size.0;
        }
    }
    sum
}

fn arrivals<'a>(
    reservations: &'a [Reservation],
    host: &'a HostName,
    vm: Option<VmId>,
) -> impl Iterator<Item = &'a Reservation> {
    let others = move |one: &&Reservation| one.vm.is_none() || one.vm != vm;
    reservations
        .iter()
        .filter(move |one| one.host == *host)
        .filter(others)
}

/// A host with what was last seen of it, for as long as a check takes.
#[derive(Debug)]
pub(crate) struct HostFactsNow {
    record: Arc<HostRecord>,
    seen: crate::inventory::Seen,
    members: usize,
    reservations: Vec<Reservation>,
}

impl HostFactsNow {
    pub(crate) fn of(world: &World, host: &HostName) -> Result<Self, Failure> {
        let record = world.hosts.of(host)?;
        Ok(Self {
            seen: world.inventory.seen(host),
            members: world.members_of(&record.group),
            reservations: world.holders.reservations(),
            record,
        })
    }

    /// As a check of that VM sees it.
    pub(crate) fn side(&self, vm: VmId) -> Side<'_> {
        Side {
            name: &self.record.name,
            group: &self.record.group,
            reachable: self.seen.online,
            drained: self.record.drained,
            facts: self.seen.facts.as_deref(),
            reported: self.seen.reported,
            former: &self.record.former,
            reserved: reserved(&self.reservations, &self.record.name, Some(vm)),
        }
    }

    pub(crate) fn facts(&self) -> Option<&HostFacts> {
        self.seen.facts.as_deref()
    }

    pub(crate) fn online(&self) -> bool {
        self.seen.online
    }

    /// How many hosts its group has.
    pub(crate) fn members(&self) -> usize {
        self.members
    }
}
