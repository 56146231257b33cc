//! Rebuilding a VM whose host is lost, and ending its old copy when that host comes back.
//!
//! ```text
//!   here:      nothing ── RebuildIncoming ──► incoming, complete ── CommitIncoming ──► the VM
//!                 ▲                                 │
//!                 └───────── AbandonIncoming ───────┘
//!   old host:  the VM, as it believes ── Supersede ──► departed, stopped, its TPM in the history ── CleanUpDeparted ──► gone
//! ```
//! A rebuilt VM is an arrival without a source: the same mark keeps it from being the VM until it is committed, and
//! the same undo removes it. Disks are never removed, on either host: they may hold data that no copy has.

use super::Task;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::keyring::parse_protector;
use crate::record::TransitRecord;
use crate::tpm_judge;
use crate::variables;
use fleetward_api::agent::{IncomingDisk, Peer};
use fleetward_api::tpm::{BundleParts, TpmBundle};
use fleetward_hypervisor::DomainState;
use fleetward_model::host::DiskIo;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure};

impl Task<'_> {
    /// Puts together what a VM consists of; nothing is defined yet.
    pub(super) async fn rebuild_incoming(
        &self,
        metadata: &VmMetadata,
        bundle: Option<&TpmBundle>,
        former_states: &[String],
    ) -> Result<()> {
        let spec = &metadata.spec;
        self.require_same_vm(spec)?;
        match self.record.transit()? {
            Some(TransitRecord::Incoming(earlier)) if earlier.job == self.job => {}
            Some(TransitRecord::Incoming(earlier)) => {
                let job = earlier.job;
                return Err(self.wrong_state(format!("job {job} is bringing it here already")));
            }
            Some(TransitRecord::Departed { .. }) => {
                return Err(self.wrong_state("an earlier copy on this host is not cleaned up yet"));
            }
            None if self.record.committed()? == Some(self.job) => {
                return Ok(());
            }
            None => self.require_absent(spec).await?,
        }
        self.require_disks(metadata).await?;
        let parts = match bundle {
            Some(bundle) => Some(self.proved(metadata, bundle).await?),
            None if spec.tpm => {
                let what = format!("VM {}", spec.name);
                let because = "there is no copy of its TPM";
                return Err(Trouble::refuse(ErrorCode::TpmStateMissing, what, because));
            }
            None => None,
        };
        let disks: Vec<_> = spec
            .disks
            .iter()
            .map(|disk| IncomingDisk {
                target: disk.target.clone(),
                copy: false,
                io: DiskIo::default(),
            })
            .collect();
        // No other host may send anything into this arrival.
        let nobody = Peer {
            host: self.host.member.host.clone(),
            address: String::new(),
        };
        self.keep_incoming(metadata, &disks, false, &nobody, &[])?;
        if let Some(parts) = &parts {
            self.put_in_place(metadata, parts, former_states).await?;
        }
        if let Some(mut incoming) = self.record.incoming()? {
            incoming.complete = true;
            self.record
                .keep_transit(&TransitRecord::Incoming(Box::new(incoming)))?;
        }
        Ok(())
    }

    /// The copy is whole and of this VM, and a guardian of this host opens it: seen by starting a TPM on it.
    async fn proved(&self, metadata: &VmMetadata, bundle: &TpmBundle) -> Result<BundleParts> {
        let what = || format!("the copy of the TPM of VM {}", metadata.spec.name);
        let corrupt = |because: String| Trouble::refuse(ErrorCode::EscrowCorrupt, what(), because);
        if bundle.vm != self.vm {
            return Err(corrupt(format!("it is of VM {}", bundle.vm)));
        }
        let parts = bundle
            .check()
            .map_err(|problem| corrupt(problem.to_string()))?;
        let Some(protector) = &metadata.key_protector else {
            return Err(corrupt("it comes without a key protector".to_owned()));
        };
        let protector = self.judge_owner(
            parse_protector(protector, self.vm)?,
            metadata.spec.name.as_str(),
        )?;
        if let Some(ek) = &parts.ek_certificate {
            self.judge_ek(ek.clone(), metadata)?;
        }
        self.judge_ek_of(metadata)?;
        let purpose = self.purpose("the VM is rebuilt on this host");
        let keyring = &self.host.keyring;
        let secret = keyring.open_secret(&protector, self.vm, &purpose)?;
        self.progress(0, 0, "proving the TPM");
        self.host
            .tpms
            .prove_state(&parts.state, &secret)
            .await
            .attempt(what)?;
        Ok(parts)
    }

    /// Each disk is here, is nothing but a disk, and nobody uses it.
    async fn require_disks(&self, metadata: &VmMetadata) -> Result<()> {
        for disk in &metadata.spec.disks {
            let place = self.host.pools.volume(self.vm, disk)?;
            let what = || format!("disk {} of VM {}", disk.target, metadata.spec.name);
            let shown = place.display();
            if !place.exists() {
                return Err(Failure::new(ErrorCode::DiskMissing, what())
                    .because(format!("there is no {shown}"))
                    .fix(format!(
                        "copy the disk to host {} as {shown}, and try again",
                        self.host.member.host
                    ))
                    .into());
            }
            let volumes = &self.host.volumes;
            if volumes.in_use(&place).await.attempt(what)? {
                let because = format!("{shown} is locked: a copy of the VM still runs somewhere");
                return Err(Trouble::refuse(ErrorCode::VmNotLost, what(), because));
            }
            if volumes.is_frozen(&place).await.attempt(what)? {
                return Err(Failure::new(ErrorCode::DiskMissing, what())
                    .because(format!(
                        "other VMs build on {shown} since it was cloned, and the VM went on in another file: the copy is \
                         older than that"
                    ))
                    .fix(format!(
                        "recover from a newer version; this lists them: fleetward tpm history {}",
                        metadata.spec.name
                    ))
                    .into());
            }
            volumes.inspect_volume(&place).await.attempt(what)?;
            volumes.adopt(&place).await.attempt(what)?;
        }
        Ok(())
    }

    async fn put_in_place(
        &self,
        metadata: &VmMetadata,
        parts: &BundleParts,
        former_states: &[String],
    ) -> Result<()> {
        if let Some(variables) = &parts.uefi_variables {
            variables::write(self.host, self.vm, variables)?;
        }
        if let Some(text) = &metadata.key_protector {
            let protector = parse_protector(text, self.vm)?;
            let protector = self.judge_owner(protector, metadata.spec.name.as_str())?;
            self.record.keep_protector(&protector)?;
        }
        if let Some(ek) = &parts.ek_certificate {
            let ek = self.judge_ek(ek.clone(), metadata)?;
            self.record.keep_ek_certificate(&ek)?;
        }
        // Nothing was here before the arrival was marked, so what is here now is of an earlier attempt.
        self.host
            .tpms
            .replace_state(self.vm, &parts.state)
            .await
            .attempt(|| format!("putting the TPM of VM {} in place", metadata.spec.name))?;
        tpm_judge::learn(self.host, self.vm, former_states)?;
        tpm_judge::accept(self.host, self.vm, &parts.state)
    }

    /// The VM was rebuilt elsewhere while this host was away: its copy here ends, and never starts again.
    pub(super) async fn supersede(&self) -> Result<()> {
        if let Some(TransitRecord::Incoming(_)) = self.record.transit()? {
            return Err(self.wrong_state("it is arriving here"));
        }
        let Some(domain) = self.look().await? else {
            return Ok(());
        };
        // The mark is written first: from here on nothing starts the copy, even after a crash.
        self.record
            .keep_transit(&TransitRecord::Departed { job: self.job })?;
        match domain.state {
            DomainState::Running | DomainState::Paused { .. } => {
                tracing::warn!(vm = %self.vm, "a copy ran here of a VM that was rebuilt elsewhere; it is ended");
                self.destroy().await?;
            }
            DomainState::Stopped(_) => {}
        }
        self.drop_secret().await?;
        if self.tpm_state_present().await? {
            let protector = self.record.protector()?;
            self.keep_in_history(protector.as_deref()).await?;
        }
        Ok(())
    }
}
