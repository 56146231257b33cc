//! Two hosts and a VM that fit each other, for tests to spoil one thing at a time.

use crate::guardian::{CertificateFacts, CertificateRole, GuardianFacts};
use crate::host::{
    Accelerator, Confinement, Formats, HostFacts, HypervisorVersions, PoolFacts, Version,
};
use crate::vm::{
    DiskBus, DiskObserved, DiskSpec, Firmware, FirmwareKind, Profile, TpmObserved, VmObserved,
    VmSpec, VmState, VmSummary,
};
use crate::{ByteSize, GroupName, GuardianId, PoolName, VmId};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

pub(crate) const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn guardian(host: &str) -> GuardianFacts {
    let certificate = |role| CertificateFacts {
        role,
        serial: "01".into(),
        sha1: String::new(),
        sha256: String::new(),
        subject: host.into(),
        issuer: String::new(),
        not_before: NOW - Duration::days(1),
        not_after: NOW + Duration::days(3650),
        der_base64: String::new(),
    };
    let mut digest = [0; 32];
    digest[..host.len()].copy_from_slice(host.as_bytes());
    GuardianFacts {
        id: GuardianId::from_digest(digest),
        host: host.parse().expect("name"),
        own: true,
        standing: crate::guardian::GuardianStanding::Own,
        has_private_key: true,
        certificates: vec![
            certificate(CertificateRole::Signing),
            certificate(CertificateRole::Encryption),
        ],
    }
}

pub(crate) fn facts(host: &str) -> HostFacts {
    HostFacts {
        host: host.parse().expect("name"),
        group: GroupName::default(),
        versions: HypervisorVersions {
            libvirt: Version::new(11, 3, 0),
            qemu: Version::new(10, 0, 2),
            swtpm: Some(Version::new(0, 7, 1)),
            libtpms: Some(Version::new(0, 9, 2)),
            agent: "0.1.0".into(),
        },
        accelerator: Accelerator::Tcg,
        cpus: 4,
        arch: "x86_64".into(),
        cpu_model: "EPYC".into(),
        memory: ByteSize::gib(32),
        memory_available: ByteSize::gib(16),
        machines: vec!["pc-q35-10.0".into()],
        secure_boot: true,
        confinement: Some(Confinement::Apparmor),
        networks: Vec::new(),
        default_network: Default::default(),
        pools: vec![PoolFacts {
            io: Default::default(),
            name: PoolName::default(),
            id: format!("pool of {host}"),
            path: "/var/lib/fleetward/volumes".into(),
            capacity: ByteSize::gib(1000),
            available: ByteSize::gib(500),
        }],
        guardians: vec![guardian(host)],
        clock: NOW,
        tpm_pool: 4,
        tpm_pool_most: Some(4),
        boot: None,
        histories: Vec::new(),
        formats: Formats::KNOWN,
        warnings: Vec::new(),
    }
}

pub(crate) fn vm(host: &str) -> VmObserved {
    let id = VmId(Uuid::from_u128(7));
    let owner = guardian(host).id;
    let firmware = Firmware {
        kind: FirmwareKind::Uefi,
        secure_boot: true,
    };
    let name = "web".parse().expect("name");
    let spec = VmSpec {
        firmware,
        disks: vec![DiskSpec::new(
            "vda",
            DiskBus::Virtio,
            PoolName::default(),
            format!("{id}-vda.qcow2"),
            ByteSize::gib(10),
        )],
        ..VmSpec::bare(id, name, Profile::Linux, NOW)
    };
    VmObserved {
        domain_name: None,
        defined: None,
        id,
        name: spec.name.clone(),
        host: host.parse().expect("name"),
        state: VmState::Running,
        reason: "booted".into(),
        cpus: spec.cpus,
        memory: spec.memory,
        firmware: Some(firmware),
        settings: Default::default(),
        machine: "pc-q35-10.0".into(),
        accelerator: "qemu".into(),
        nics: None,
        drives: Vec::new(),
        disks: vec![DiskObserved {
            id: None,
            serial: None,
            presence: Default::default(),
            target: "vda".into(),
            bus: DiskBus::Virtio,
            pool: PoolName::default(),
            pool_id: format!("pool of {host}"),
            path: format!("/var/lib/fleetward/volumes/{id}-vda.qcow2"),
            format: "qcow2".into(),
            size: ByteSize::gib(10),
            allocated: ByteSize::gib(1),
            bases: Vec::new(),
            bases_allocated: ByteSize(0),
        }],
        tpm: TpmObserved {
            enabled: true,
            version: "2.0".into(),
            model: "tpm-crb".into(),
            state_present: true,
            state_sha256: None,
            key_id: None,
            owner: Some(owner.clone()),
            guardians: vec![owner],
            ek_certificate: None,
            protector_sha256: None,
            lockout: None,
            process: None,
        },
        newer: None,
        noted: Default::default(),
        metadata: Some(VmSummary {
            spec,
            generation: 1,
            transit: None,
            revoked: Vec::new(),
            unknown: Default::default(),
        }),
        observed: NOW,
    }
}
