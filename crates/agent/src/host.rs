//! The state of one host that operations, answers and tunnels share. It is built once, at start.

use crate::arrivals::Arrivals;
use crate::audit::AuditLog;
use crate::boot::Boot;
use crate::certificate::Certificates;
use crate::config::Config;
use crate::conversions::Conversions;
use crate::crash::Restarts;
use crate::ek::EkCertifier;
use crate::failure::chain;
use crate::fence::Fence;
use crate::firmware::Consoles;
use crate::guest::Guests;
use crate::images::Images;
use crate::keyring::Keyring;
use crate::layout::Layout;
use crate::machines::Machines;
use crate::membership::{Member, Membership};
use crate::networks::Networks;
use crate::observe::Observer;
use crate::operation::table::OperationTable;
use crate::pools::{Pools, exposure};
use crate::record::VmRecord;
use crate::screen::Screens;
use crate::seeds::Seeds;
use crate::tpm_judge::Proofs;
use crate::tpm_pool::{PoolSizes, TpmPool};
use crate::tpm_process::TpmProcesses;
use fleetward_hypervisor::{
    Converter, DomainState, Error as HypervisorError, SharedHypervisor, TpmFactory, Volumes,
};
use fleetward_link::tunnel::TunnelDialer;
use fleetward_link::{FleetTrust, LiveCredential, Refusals};
use fleetward_model::VmId;
use fleetward_protector::AuthorityKey;
use std::sync::Arc;

/// What the agent drives: domains, disk files and TPM state of one host.
#[derive(Clone)]
pub struct Machinery {
    pub hypervisor: SharedHypervisor,
    pub volumes: Arc<dyn Volumes>,
    pub tpms: Arc<dyn TpmFactory>,
    pub converter: Arc<dyn Converter>,
    /// The kernel's id of the host's present boot.
    pub boot_id: String,
}

/// Everything of one host.
pub(crate) struct Host {
    pub config: Config,
    pub layout: Layout,
    pub member: Member,
    pub hypervisor: SharedHypervisor,
    pub volumes: Arc<dyn Volumes>,
    pub tpms: Arc<dyn TpmFactory>,
    pub keyring: Keyring,
    pub authority: AuthorityKey,
    pub ek: EkCertifier,
    pub audit: Arc<AuditLog>,
    pub fence: Fence,
    pub pools: Pools,
    pub networks: Networks,
    pub images: Images,
    pub conversions: Conversions,
    pub seeds: Seeds,
    pub tpm_pool: TpmPool,
    pub proofs: Proofs,
    pub tpm_processes: TpmProcesses,
    /// Running VMs that do not answer.
    pub machines: Machines,
    pub operations: OperationTable,
    pub observer: Observer,
    pub arrivals: Arrivals,
    pub boot: Boot,
    pub guests: Guests,
    pub restarts: Restarts,
    pub screens: Screens,
    pub consoles: Consoles,
    pub credential: LiveCredential,
    pub trust: FleetTrust,
    pub refusals: Refusals,
    pub certificates: Certificates,
    pub dialer: TunnelDialer,
    /// What an administrator should know.
    pub warnings: Vec<String>,
}

impl Host {
    pub(crate) fn new(
        config: Config,
        membership: Membership,
        keyring: Keyring,
        audit: Arc<AuditLog>,
        refusals: Refusals,
        machinery: Machinery,
    ) -> Arc<Self> {
        let layout = Layout::new(&config);
        let credential = LiveCredential::new(membership.credential);
        let mut warnings = Vec::new();
        let in_clear = keyring.lying_in_clear();
        if !in_clear.is_empty() {
            let cure = if keyring.has_credential() {
                "they could not be sealed: see the agent's log, and start it again"
            } else {
                "give the service a credential fleetward-guardian-key to seal them"
            };
            warnings.push(format!(
                "private keys of this host's guardians lie unencrypted in {} (mode 0600): {}; {cure}",
                layout.guardians().display(),
                in_clear.join(", ")
            ));
        }
        for (what, path) in [("data_dir", &config.data_dir), ("run_dir", &config.run_dir)] {
            warnings.extend(exposure(what, path));
        }
        if let Some(directory) = layout.own_nvram() {
            warnings.extend(exposure("nvram_dir", directory));
        }
        // Pools are looked at with each report; here for the log.
        for pool in &config.pools {
            if let Some(warning) = exposure(&format!("pool {}", pool.name), &pool.path) {
                tracing::warn!("{warning}");
            }
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Arc::new(Self {
            fence: Fence::new(layout.generations()),
            pools: Pools::new(config.pools.clone()),
            networks: Networks::new(config.networks.clone(), config.default_network.clone()),
            images: Images::new(layout.images(), machinery.volumes.clone()),
            conversions: Conversions::new(layout.conversions(), machinery.converter),
            seeds: Seeds::new(layout.seeds()),
            proofs: Proofs::default(),
            tpm_processes: TpmProcesses::default(),
            machines: Machines::default(),
            tpm_pool: TpmPool::new(
                layout.tpm_pool(),
                PoolSizes {
                    at_once: config.tpm_pool_size,
                    at_rest: config.tpm_pool_at_rest,
                },
            ),
            operations: OperationTable::default(),
            observer: Observer::new(),
            arrivals: Arrivals::default(),
            boot: Boot::open(
                layout.boot(),
                &machinery.boot_id,
                time::OffsetDateTime::now_utc(),
            ),
            guests: Guests::default(),
            restarts: Restarts::default(),
            screens: Screens::default(),
            consoles: Consoles::default(),
            dialer: TunnelDialer::new(credential.clone(), membership.trust.clone())
                .with_refusals(refusals.clone())
                .with_timeout(std::time::Duration::from_secs(5)),
            member: membership.member,
            trust: membership.trust,
            authority: membership.authority,
            ek: membership.ek.published_at(config.ek_address.clone()),
            hypervisor: machinery.hypervisor,
            volumes: machinery.volumes,
            tpms: machinery.tpms,
            layout,
            config,
            keyring,
            audit,
            credential,
            refusals,
            certificates: Certificates::default(),
            warnings,
        })
    }

    pub(crate) fn record(&self, vm: VmId) -> VmRecord {
        VmRecord::of(&self.layout, vm)
    }

    /// After an operation, or when a VM's process has ended: no secret stays for a VM that does not run here.
    pub(crate) async fn tidy_after(&self, vm: VmId) {
        let record = self.record(vm);
        let arriving = match record.incoming() {
            Ok(incoming) => incoming.is_some(),
            Err(_) => true,
        };
        if !arriving {
            self.drop_unneeded_secret(vm).await;
        }
        record.tidy();
    }

    async fn drop_unneeded_secret(&self, vm: VmId) {
        let needed = match self.hypervisor.inspect(vm).await {
            Ok(domain) => match domain.state {
                DomainState::Running | DomainState::Paused { .. } => true,
                DomainState::Stopped(_) => false,
            },
            Err(HypervisorError::NoDomain(_)) => false,
            // libvirt does not answer, so it keeps no secret that we could drop; the next look drops it.
            Err(_) => return,
        };
        if !needed && let Err(error) = self.hypervisor.drop_secret(vm).await {
            tracing::warn!(%vm, error = %chain(&error), "a secret could not be dropped");
        }
    }

    /// Drops the secrets of all VMs that do not run: after a start of the agent or of libvirt.
    pub(crate) async fn drop_unneeded_secrets(&self) {
        let loaded = match self.hypervisor.loaded_secrets().await {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the loaded secrets are not known");
                return;
            }
        };
        for vm in loaded {
            if !self.operations.is_busy(vm) {
                self.tidy_after(vm).await;
            }
        }
    }
}
