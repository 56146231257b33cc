//! All hosts of a prepared fleet, in this process.

use crate::agent::{FakeAgent, FakeVm, Given, Peers};
use crate::directory::{Directory, Fleet, Member, Protectors};
use crate::plan::{FleetPlan, MADE};
use anyhow::{Context, Result};
use fleetward_model::host::Confinement;
use fleetward_model::{ByteSize, GuardianId, KeyId};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often the agent of a real host reports its facts.
pub const FACTS_EVERY: Duration = Duration::from_secs(3);

/// The hosts, in the order of the plan. They answer until their process ends.
#[derive(Debug)]
pub struct RunningFleet {
    pub plan: FleetPlan,
    pub hosts: Vec<FakeAgent>,
    pub shared_guardian: bool,
    pub protectors: Protectors,
}

impl RunningFleet {
    /// Every host that has joined listens at its address when this returns.
    pub async fn start(directory: &Directory, fleet: &Fleet) -> Result<Self> {
        let plan = &fleet.plan;
        let trust = directory.trust()?;
        let mut members = Vec::with_capacity(plan.hosts as usize);
        for host in 0..plan.hosts {
            members.push(directory.member(plan, host)?);
        }
        let guardians: Vec<GuardianId> = members
            .iter()
            .map(|member| member.public.guardian.id.clone())
            .collect();
        let peers = Peers::default();
        let mut random = fastrand::Rng::with_seed(plan.random_seed);
        let mut hosts = Vec::with_capacity(members.len());
        for (host, member) in (0..plan.hosts).zip(members) {
            let Member {
                credential,
                public,
                secrets,
            } = member;
            let (custody, tpms) = match fleet.protectors {
                Protectors::Sized => (None, None),
                Protectors::Real => {
                    let tpms = directory.tpms(plan, host)?;
                    let missing = || format!("repeat prepare: TPMs of host {}", plan.host(host));
                    let custody = secrets.with_context(missing)?.custody(&public)?;
                    (Some(Arc::new(custody)), Some(tpms.with_context(missing)?))
                }
            };
            let ek = CertificateDer::from_pem_slice(public.ek_certificate.as_bytes())
                .context("the EK certificate of a host")?
                .to_vec();
            let agent = FakeAgent::new(
                plan.host(host),
                public.group,
                public.guardian,
                credential,
                trust.clone(),
                plan.address(host),
            );
            agent.meets(&peers);
            let wrapped_for = plan.guardians_of(host, |host| guardians[host as usize].clone());
            agent.look(|inner| {
                inner.ek_authority = Some(ek);
                inner.facts_every = FACTS_EVERY;
                inner.facts_phase = FACTS_EVERY.mul_f64(random.f64());
                inner.facts.cpus = 64;
                inner.facts.memory = ByteSize::gib(1024);
                inner.facts.memory_available = ByteSize::gib(512);
                inner.facts.confinement = Some(Confinement::None);
                for pool in &mut inner.facts.pools {
                    let name = format!("{} {}", inner.host, pool.name);
                    pool.id = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string();
                }
                inner.custody = custody;
                inner.record_join(MADE);
                let mut tpms = tpms.into_iter().flatten();
                for (id, mut vm) in plan.vms_of(host) {
                    let sealed = tpms.next();
                    inner.key_ids.insert(id, KeyId(id.0));
                    if let Some(sealed) = sealed {
                        inner.key_ids.insert(id, sealed.key_id);
                        vm.has_sealed(&sealed);
                        inner.made.insert(id, sealed);
                    }
                    for disk in &vm.metadata.spec.disks {
                        inner.volumes.insert(disk.volume.clone());
                    }
                    inner.tpms.insert(id, wrapped_for.clone());
                    inner.vms.insert(id, vm);
                }
            });
            agent.listen().await.with_context(|| {
                format!("host {} cannot listen on {}", agent.host, agent.address)
            })?;
            hosts.push(agent);
        }
        let plan = plan.clone();
        Ok(Self {
            plan,
            hosts,
            shared_guardian: fleet.shared_guardian,
            protectors: fleet.protectors,
        })
    }

    /// No host answers any more.
    pub fn stop(&self) {
        self.hosts.iter().for_each(FakeAgent::cut);
    }

    /// The host on which the plan put a VM. It may have moved since.
    pub fn first_host_of(&self, number: u32) -> &FakeAgent {
        &self.hosts[(number / self.plan.vms.max(1)) as usize]
    }

    /// Changes something that a host sees of a VM, and tells of it; false where the VM is not on that host any more.
    pub fn touch(&self, number: u32, reason: String) -> bool {
        self.change(number, |vm| vm.reason = Cow::Owned(reason))
    }

    /// The guest writes its TPM, and its host tells of it.
    pub fn write_tpm(&self, number: u32) -> bool {
        self.change(number, FakeVm::write_tpm)
    }

    /// The guest writes its UEFI variables and its TPM, and its host tells of the latter.
    pub fn write_variables(&self, number: u32) -> bool {
        self.change(number, FakeVm::write_variables)
    }

    /// How often guests have written their TPMs, all together.
    pub fn tpm_writes(&self) -> u64 {
        let of_host = |host: &FakeAgent| {
            host.look(|inner| {
                let tpms = inner.vms.values().filter_map(|vm| vm.simulated_tpm);
                tpms.map(|tpm| u64::from(tpm.writes)).sum::<u64>()
            })
        };
        self.hosts.iter().map(of_host).sum()
    }

    /// Copies of TPMs that all hosts gave.
    pub fn given(&self) -> Given {
        let hosts = self.hosts.iter();
        hosts.fold(Given::default(), |sum, host| {
            let given = host.look(|inner| inner.given);
            Given {
                copies: sum.copies + given.copies,
                bytes: sum.bytes + given.bytes,
                without_variables: sum.without_variables + given.without_variables,
            }
        })
    }

    fn change(&self, number: u32, change: impl FnOnce(&mut FakeVm)) -> bool {
        let id = self.plan.vm_id(number);
        self.first_host_of(number).look(|inner| {
            let Some(vm) = inner.vms.get_mut(&id) else {
                return false;
            };
            change(vm);
            inner.tell(id);
            true
        })
    }
}
