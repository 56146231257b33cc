//! What a simulated host reports of a VM.

use super::Inner;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_model::network::NicObserved;
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::vm::{
    DiskObserved, DriveContent, DriveObserved, Noted, Presence, TpmLockout, TpmObserved, VmDefined,
    VmReport, protector_sha256,
};
use fleetward_model::{ByteSize, VmId};
use sha2::{Digest, Sha256};

/// Of a TPM that nobody has guessed at.
const NO_LOCKOUT: TpmLockout = TpmLockout {
    counted: 0,
    limit: 3,
    interval_seconds: 1000,
    guarded: false,
};

impl Inner {
    /// SHA-256 of the EK certificate of a VM's TPM, hex.
    fn ek_digest(&self, id: VmId) -> Option<String> {
        let given = self
            .parts
            .get(&id)
            .map(|parts| parts.ek_certificate.clone());
        let held = || {
            let metadata = &self
                .vms
                .get(&id)
                .filter(|_| self.custody.is_some())?
                .metadata;
            STANDARD.decode(metadata.ek_certificate.as_ref()?).ok()
        };
        let der = given.unwrap_or_else(held)?;
        Some(hex::encode(Sha256::digest(der)))
    }

    pub fn observed(&self, id: VmId) -> Option<VmReport> {
        let vm = self.vms.get(&id)?;
        let spec = &vm.metadata.spec;
        let seals = self.custody.is_some();
        let is_open = !seals || vm.metadata.key_protector.is_some();
        let guardians = self.tpms.get(&id).filter(|_| is_open);
        let guardians = guardians.cloned().unwrap_or_default();
        let there = vm.simulated_tpm.filter(|_| self.tpms.contains_key(&id));
        Some(VmReport {
            domain_name: vm.domain.clone(),
            defined: Some(VmDefined {
                cpus: vm.size().cpus,
                memory: vm.size().memory,
                settings: vm.size().settings,
                nics: Some(spec.nics.iter().map(NicObserved::from).collect()),
            }),
            newer: None,
            noted: Noted {
                secure_boot: vm.secure_boot.clone().or_else(|| {
                    // The variables of a simulated guest have no keys.
                    let written = vm.simulated_tpm?.variables;
                    written.map(|_| SecureBootObserved::of(CertificateState::Off))
                }),
                ..Noted::default()
            },
            id,
            name: spec.name.clone(),
            host: self.host.clone(),
            state: vm.state,
            reason: vm.reason.clone().into_owned(),
            cpus: vm.runs_with.unwrap_or(vm.size()).cpus,
            memory: vm.runs_with.unwrap_or(vm.size()).memory,
            settings: vm.runs_with.unwrap_or(vm.size()).settings,
            firmware: Some(spec.firmware),
            machine: "pc-q35-10.0".into(),
            accelerator: "qemu".into(),
            nics: Some(spec.nics.iter().map(NicObserved::from).collect()),
            disks: spec
                .disks
                .iter()
                .map(|disk| DiskObserved {
                    id: Some(disk.id.clone()),
                    serial: disk.serial.clone(),
                    presence: Presence::Here,
                    bases: Vec::new(),
                    bases_allocated: ByteSize(0),
                    target: disk.target.clone(),
                    bus: disk.bus,
                    pool: disk.pool.clone(),
                    pool_id: self
                        .facts
                        .pool(&disk.pool)
                        .map(|pool| pool.id.clone())
                        .unwrap_or_default(),
                    path: format!("/volumes/{}", disk.volume),
                    format: "qcow2".into(),
                    size: disk.size,
                    allocated: ByteSize::mib(1),
                })
                .collect(),
            drives: spec
                .drives
                .iter()
                .map(|drive| DriveObserved {
                    id: Some(drive.id.clone()),
                    target: drive.target.clone(),
                    image: drive.medium.as_ref().map(|medium| medium.image.clone()),
                    holds: drive.seed.then_some(DriveContent::FirstBoot),
                    path: None,
                    presence: Presence::Here,
                })
                .collect(),
            tpm: TpmObserved {
                enabled: spec.tpm,
                version: "2.0".into(),
                model: "tpm-crb".into(),
                state_present: self.tpms.contains_key(&id),
                state_sha256: match (self.parts.get(&id), there) {
                    (Some(parts), _) => Some(hex::encode(Sha256::digest(&parts.state))),
                    (None, Some(tpm)) if tpm.told => {
                        Some(hex::encode(Sha256::digest(tpm.state(id))))
                    }
                    (None, _) => None,
                },
                key_id: self.key_ids.get(&id).copied().filter(|_| spec.tpm),
                owner: guardians.first().cloned(),
                guardians,
                ek_certificate: self.ek_digest(id),
                protector_sha256: match self.is_former() {
                    true => None,
                    false => vm.metadata.key_protector.as_deref().map(protector_sha256),
                },
                lockout: there
                    .filter(|tpm| seals && tpm.tried && vm.state.stands_still())
                    .map(|_| NO_LOCKOUT),
                process: None,
            },
            metadata: Some(vm.metadata.clone()),
            observed: self.now(),
        })
    }
}
