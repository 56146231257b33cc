//! Profiles: a guest's default hardware, and the requirements of its installer.
//!
//! Windows 11's requirements: 64-bit CPU with two or more cores, 4 GiB of memory, 64 GiB of storage,
//! UEFI with Secure Boot, TPM 2.0 (Microsoft, "Windows 11 requirements"). Windows Server's, with Desktop Experience: 2 GiB
//! of memory, 32 GB of storage; TPM and Secure Boot for certain features (Microsoft, "Hardware requirements for Windows
//! Server").

use crate::error::Finding;
use crate::machine::Clock;
use crate::vm::{DiskBus, NicModel, Profile};
use crate::{ByteSize, ErrorCode};

/// What the person asked for; none means "what the profile says".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub cpus: Option<u32>,
    pub memory: Option<ByteSize>,
    /// Virtual size of the system disk when it is known: given, or the image's.
    pub disk: Option<ByteSize>,
    pub tpm: bool,
    pub secure_boot: bool,
}

/// The hardware a VM is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    pub cpus: u32,
    pub memory: ByteSize,
    pub disk: ByteSize,
    pub tpm: bool,
    pub secure_boot: bool,
}

/// What the profile makes of the devices around a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    pub disk_bus: DiskBus,
    /// Network card model; `e1000e` has a driver on the Windows installer's medium.
    pub network: NicModel,
    /// The bus of drives. Windows' installer has a driver for SATA and none for virtio; kernels of cloud images have those
    /// for virtio only.
    pub drive_bus: DiskBus,
    /// Hyper-V enlightenments: what makes Windows fast under KVM and TCG alike.
    pub hyperv: bool,
    /// Windows keeps the hardware clock in local time.
    pub clock: Clock,
}

/// Largest number of virtual CPUs of one VM.
pub const MAX_CPUS: u32 = 288;
/// Smallest and largest memory.
pub const MEMORY: (ByteSize, ByteSize) = (ByteSize::mib(64), ByteSize::gib(4096));
/// Smallest and largest disk.
pub const DISK: (ByteSize, ByteSize) = (ByteSize::mib(1), ByteSize::gib(65536));

impl Profile {
    pub const fn devices(self) -> Devices {
        match self {
            Self::Windows11 | Self::WindowsServer => Devices {
                disk_bus: DiskBus::Sata,
                network: NicModel::E1000e,
                drive_bus: DiskBus::Sata,
                hyperv: true,
                clock: Clock::Local,
            },
            Self::Linux => Devices {
                disk_bus: DiskBus::Virtio,
                network: NicModel::Virtio,
                drive_bus: DiskBus::Scsi,
                hyperv: false,
                clock: Clock::Utc,
            },
        }
    }

    /// The devices of a VM whose installer is given the drivers for virtio on a medium beside its own.
    pub const fn devices_with_drivers(self) -> Devices {
        Devices {
            disk_bus: DiskBus::Virtio,
            network: NicModel::Virtio,
            ..self.devices()
        }
    }

    /// Whether its installer needs drivers from a medium before it sees virtio devices.
    pub const fn lacks_drivers(self) -> bool {
        match self {
            Self::Windows11 | Self::WindowsServer => true,
            Self::Linux => false,
        }
    }

    /// Whether it requires a TPM.
    pub const fn requires_tpm(self) -> bool {
        match self {
            Self::Windows11 => true,
            Self::WindowsServer | Self::Linux => false,
        }
    }

    const fn defaults(self) -> (u32, ByteSize, ByteSize) {
        match self {
            Self::Windows11 | Self::WindowsServer => (2, ByteSize::gib(4), ByteSize::gib(64)),
            Self::Linux => (1, ByteSize::gib(1), ByteSize::gib(10)),
        }
    }

    /// The hardware for what was asked, or every requirement it misses.
    ///
    /// # Errors
    /// Findings: [`ErrorCode::InvalidArgument`] for sizes out of range, [`ErrorCode::ProfileRefuses`] for requirements.
    pub fn resolve(self, asked: Asked) -> Result<Hardware, Vec<Finding>> {
        let (cpus, memory, disk) = self.defaults();
        let hardware = Hardware {
            cpus: asked.cpus.unwrap_or(cpus),
            memory: asked.memory.unwrap_or(memory),
            disk: asked.disk.unwrap_or(disk),
            tpm: asked.tpm,
            secure_boot: asked.secure_boot,
        };
        let mut findings = out_of_range(hardware);
        match self {
            Self::Windows11 => findings.extend(windows_11_requirements(hardware)),
            Self::WindowsServer => findings.extend(windows_server_requirements(hardware)),
            Self::Linux => {}
        }
        if findings.is_empty() {
            Ok(hardware)
        } else {
            Err(findings)
        }
    }
}

fn out_of_range(hardware: Hardware) -> Vec<Finding> {
    let mut findings = Vec::new();
    if hardware.cpus == 0 || hardware.cpus > MAX_CPUS {
        findings.push(Finding::blocking(
            ErrorCode::InvalidArgument,
            format!("{} CPUs asked for; a VM has 1 to {MAX_CPUS}", hardware.cpus),
            "--cpus 2",
        ));
    }
    for (what, option, value, (low, high)) in [
        ("memory", "--memory 4G", hardware.memory, MEMORY),
        ("disk", "--disk 64G", hardware.disk, DISK),
    ] {
        if value < low || value > high {
            findings.push(Finding::blocking(
                ErrorCode::InvalidArgument,
                format!("{value} of {what} asked for; a VM has {low} to {high}"),
                option,
            ));
        }
    }
    findings
}

fn windows_server_requirements(hardware: Hardware) -> Vec<Finding> {
    let (memory, disk) = (ByteSize::gib(2), ByteSize::gib(32));
    let refuse = |missing, requirement, fix| refuse("Windows Server", missing, requirement, fix);
    [
        refuse(
            hardware.memory < memory,
            format!("at least 2 GiB of memory, not {}", hardware.memory),
            "--memory 2G",
        ),
        refuse(
            hardware.disk < disk,
            format!("a disk of at least 32 GiB, not {}", hardware.disk),
            "--disk 32G",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn refuse(system: &str, missing: bool, requirement: String, fix: &str) -> Option<Finding> {
    missing.then(|| {
        let what = format!("{system} requires {requirement}");
        Finding::blocking(ErrorCode::ProfileRefuses, what, fix)
    })
}

fn windows_11_requirements(hardware: Hardware) -> Vec<Finding> {
    let refuse = |missing, requirement, fix| refuse("Windows 11", missing, requirement, fix);
    [
        refuse(!hardware.tpm, "a TPM 2.0".into(), "leave out --no-tpm"),
        refuse(
            !hardware.secure_boot,
            "UEFI with Secure Boot".into(),
            "leave out --no-secure-boot",
        ),
        refuse(
            hardware.cpus < 2,
            format!("at least 2 virtual CPUs, not {}", hardware.cpus),
            "--cpus 2",
        ),
        refuse(
            hardware.memory < ByteSize::gib(4),
            format!("at least 4 GiB of memory, not {}", hardware.memory),
            "--memory 4G",
        ),
        refuse(
            hardware.disk < ByteSize::gib(64),
            format!("a disk of at least 64 GiB, not {}", hardware.disk),
            "--disk 64G",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::VariantArray;

    const ASKED: Asked = Asked {
        cpus: None,
        memory: None,
        disk: None,
        tpm: true,
        secure_boot: true,
    };

    #[test]
    fn windows_11_gets_what_its_installer_wants_without_being_asked() {
        let hardware = Profile::Windows11.resolve(ASKED).expect("defaults suffice");
        assert_eq!(
            (hardware.cpus, hardware.memory, hardware.disk),
            (2, ByteSize::gib(4), ByteSize::gib(64))
        );
    }

    #[test]
    fn windows_11_names_every_requirement_that_is_missed() {
        let asked = Asked {
            cpus: Some(1),
            memory: Some(ByteSize::gib(2)),
            disk: Some(ByteSize::gib(32)),
            tpm: false,
            secure_boot: false,
        };
        let findings = Profile::Windows11.resolve(asked).expect_err("refused");
        assert_eq!(findings.len(), 5);
        assert!(findings.iter().all(|f| f.code == ErrorCode::ProfileRefuses));
        assert!(Profile::Linux.resolve(asked).is_ok());
    }

    #[test]
    fn windows_server_needs_less_and_no_tpm() {
        let asked = Asked {
            cpus: Some(1),
            memory: Some(ByteSize::gib(2)),
            disk: Some(ByteSize::gib(32)),
            tpm: false,
            secure_boot: false,
        };
        assert!(Profile::WindowsServer.resolve(asked).is_ok());
        let smaller = Asked {
            memory: Some(ByteSize::gib(1)),
            disk: Some(ByteSize::gib(31)),
            ..asked
        };
        let findings = Profile::WindowsServer
            .resolve(smaller)
            .expect_err("refused");
        assert_eq!(findings.len(), 2);
        assert!(findings.iter().all(|f| f.what.contains("Windows Server")));
    }

    /// A system disk that no installer sees cannot be installed on.
    #[test]
    fn drivers_are_for_those_whose_installer_lacks_them() {
        for &profile in Profile::VARIANTS {
            let (own, given) = (profile.devices(), profile.devices_with_drivers());
            assert_eq!(profile.lacks_drivers(), own.disk_bus == DiskBus::Sata);
            assert_eq!(given.disk_bus, DiskBus::Virtio);
            assert_eq!(
                given.drive_bus, own.drive_bus,
                "the drivers are read from it"
            );
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused_in_every_profile() {
        for &profile in Profile::VARIANTS {
            let asked = Asked {
                cpus: Some(0),
                memory: Some(ByteSize(1)),
                disk: Some(ByteSize(0)),
                ..ASKED
            };
            let findings = profile.resolve(asked).expect_err("refused");
            assert!(
                findings
                    .iter()
                    .filter(|f| f.code == ErrorCode::InvalidArgument)
                    .count()
                    == 3
            );
        }
    }
}
