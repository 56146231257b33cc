//! Facts of this host: versions, size, machine types, firmware, and whether another host's CPU can run here.

use crate::binding::{Connection, CpuComparison, compare_hypervisor_cpu, node_memory};
use crate::host::failed;
use crate::program::{Program, Programs};
use fleetward_hypervisor::{CpuVerdict, HypervisorFacts, Result};
use fleetward_model::host::{Accelerator, Confinement, Version};
use fleetward_model::{ByteSize, NicFilter};
use roxmltree::Document;
use virt::error::ErrorNumber;
use virt::nwfilter::NWFilter;

/// libvirt's word for what starts domains.
pub(crate) const fn virttype(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    }
}

/// What emulates TPMs here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TpmPrograms {
    pub(crate) swtpm: Option<Version>,
    pub(crate) libtpms: Option<Version>,
}

pub(crate) fn read(
    connection: &Connection,
    accelerator: Accelerator,
    tpm: TpmPrograms,
    reserve: ByteSize,
) -> Result<HypervisorFacts> {
    let libvirt = connection
        .get_lib_version()
        .map_err(failed("tell its version"))?;
    let qemu = connection
        .get_hyp_version()
        .map_err(failed("tell QEMU's version"))?;
    let node = connection
        .get_node_info()
        .map_err(failed("describe the host"))?;
    let capabilities = connection
        .get_capabilities()
        .map_err(failed("tell its capabilities"))?;
    // libvirt refuses to describe KVM where there is none; then nothing is on offer, which is true.
    let domain_capabilities = connection
        .get_domain_capabilities(
            None,
            Some("x86_64"),
            Some("q35"),
            Some(virttype(accelerator)),
            0,
        )
        .unwrap_or_default();
    let total = node_memory(connection)
        .map_err(failed("describe the host's memory"))?
        .unwrap_or(node.memory * 1024);
    let memory = ByteSize(total.saturating_sub(reserve.bytes()));
    Ok(HypervisorFacts {
        libvirt: version(u64::from(libvirt)),
        qemu: version(u64::from(qemu)),
        swtpm: tpm.swtpm,
        libtpms: tpm.libtpms,
        accelerator,
        cpus: node.cpus,
        arch: node.model.clone(),
        cpu_model: cpu_model(&capabilities).unwrap_or(node.model),
        memory,
        memory_available: memory_available(connection, memory, reserve),
        machines: machines(&capabilities),
        secure_boot: secure_boot(&domain_capabilities) && enrolled_firmware_installed(),
        confinement: confinement(&capabilities),
        filters: has_filter(connection, NicFilter::CleanTraffic),
    })
}

/// Whether libvirt knows that filter of network traffic, and has the programs that set it up.
fn has_filter(connection: &Connection, filter: NicFilter) -> bool {
    NWFilter::lookup_by_name(connection, filter.into_str()).is_ok()
        && ["ebtables", "iptables", "ip6tables"]
            .iter()
            .all(|program| Program::find(program).is_some())
}

/// `swtpm --version` says `TPM emulator version 0.7.1, Copyright ...`.
pub(crate) async fn swtpm_version(programs: &Programs) -> Option<Version> {
    let swtpm = programs.swtpm.as_ref()?;
    let output = swtpm.run(&["--version"]).await.ok()?;
    swtpm_version_in(&output)
}

fn swtpm_version_in(text: &str) -> Option<Version> {
    let (_, rest) = text.split_once("version ")?;
    rest.split([',', ' ', '\n']).next()?.parse().ok()
}

/// Whether a guest with that CPU could run here, live.
pub(crate) fn check_cpu(
    connection: &Connection,
    accelerator: Accelerator,
    cpu_xml: &str,
) -> Result<CpuVerdict> {
    let Ok(document) = Document::parse(cpu_xml) else {
        return Ok(CpuVerdict::Incompatible(
            "the CPU's description is not XML".into(),
        ));
    };
    // "maximum" is everything QEMU translates, decided by QEMU's version and machine type, which are compared apart.
    if document.root_element().attribute("mode") == Some("maximum") {
        return Ok(match accelerator {
            Accelerator::Tcg => CpuVerdict::Compatible,
            Accelerator::Kvm => CpuVerdict::Incompatible(
                "the guest's CPU is the translator's; this host runs guests with KVM".into(),
            ),
        });
    }
    match compare_hypervisor_cpu(connection, virttype(accelerator), cpu_xml) {
        Ok(CpuComparison::Fits) => Ok(CpuVerdict::Compatible),
        Ok(CpuComparison::Incompatible) => {
            Ok(CpuVerdict::Incompatible("the host's CPU differs".into()))
        }
        Err(error) if error.code() == ErrorNumber::CpuIncompatible => {
            Ok(CpuVerdict::Incompatible(error.message().to_owned()))
        }
        Err(error) => Err(failed("compare the CPU")(error)),
    }
}

/// libvirt packs versions as major * 1,000,000 + minor * 1,000 + patch.
fn version(packed: u64) -> Version {
    let part = |divisor: u64| u32::try_from(packed / divisor % 1000).unwrap_or(0);
    Version::new(part(1_000_000), part(1000), part(1))
}

/// Free now, and not promised: a guest that has been given memory may not have touched it yet.
fn memory_available(connection: &Connection, memory: ByteSize, reserve: ByteSize) -> ByteSize {
    let promised: u64 = connection
        .list_all_domains(virt_sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        .unwrap_or_default()
        .iter()
        .filter_map(|domain| domain.get_info().ok())
        .map(|info| info.max_mem * 1024)
        .sum();
    let unpromised = memory.bytes().saturating_sub(promised);
    let free = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| memory_free_in(&text))
        .unwrap_or(unpromised);
    ByteSize(free.saturating_sub(reserve.bytes()).min(unpromised))
}

fn memory_free_in(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Canonical q35 machine types, newest first as libvirt lists them.
fn machines(capabilities: &str) -> Vec<String> {
    let Ok(document) = Document::parse(capabilities) else {
        return Vec::new();
    };
    let mut machines: Vec<String> = document
        .descendants()
        .filter(|node| node.has_tag_name("machine") && is_x86_64(*node))
        .filter(|node| node.attribute("canonical").is_none())
        .filter_map(|node| node.text())
        .filter(|name| name.starts_with("pc-q35-"))
        .map(str::to_owned)
        .collect();
    let mut seen = std::collections::HashSet::new();
    machines.retain(|name| seen.insert(name.clone()));
    machines
}

fn is_x86_64(machine: roxmltree::Node<'_, '_>) -> bool {
    machine
        .ancestors()
        .any(|node| node.has_tag_name("arch") && node.attribute("name") == Some("x86_64"))
}

/// Whether libvirt would choose a firmware with Secure Boot and enrolled keys.
fn secure_boot(domain_capabilities: &str) -> bool {
    let Ok(document) = Document::parse(domain_capabilities) else {
        return false;
    };
    let offers = |element: &str, name: &str, wanted: &str| {
        document.descendants().any(|node| {
            node.has_tag_name("value")
                && node.text() == Some(wanted)
                && node.parent_element().is_some_and(|parent| {
                    parent.has_tag_name("enum")
                        && parent.attribute("name") == Some(name)
                        && parent
                            .parent_element()
                            .is_some_and(|owner| owner.has_tag_name(element))
                })
        })
    };
    offers("os", "firmware", "efi") && offers("loader", "secure", "yes")
}

/// Whether a firmware with Microsoft's keys is described where QEMU's packages do (docs/interop/firmware.json).
fn enrolled_firmware_installed() -> bool {
    ["/etc/qemu/firmware", "/usr/share/qemu/firmware"]
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .any(|text| is_enrolled(&text))
}

fn is_enrolled(descriptor: &str) -> bool {
    let Ok(descriptor) = serde_json::from_str::<serde_json::Value>(descriptor) else {
        return false;
    };
    let features = descriptor["features"].as_array();
    ["secure-boot", "enrolled-keys", "requires-smm"]
        .iter()
        .all(|wanted| features.is_some_and(|f| f.iter().any(|feature| feature == wanted)))
}

/// libvirt names the security drivers that it uses as `<secmodel>` of the host; `dac`, the Unix user, is always one.
fn confinement(capabilities: &str) -> Confinement {
    let Ok(document) = Document::parse(capabilities) else {
        return Confinement::None;
    };
    let uses = |name: &str| {
        document.descendants().any(|node| {
            node.has_tag_name("model")
                && node.text() == Some(name)
                && node
                    .parent_element()
                    .is_some_and(|parent| parent.has_tag_name("secmodel"))
        })
    };
    match (uses("apparmor"), uses("selinux")) {
        (true, _) => Confinement::Apparmor,
        (false, true) => Confinement::Selinux,
        (false, false) => Confinement::None,
    }
}

fn cpu_model(capabilities: &str) -> Option<String> {
    let document = Document::parse(capabilities).ok()?;
    let host = document
        .root_element()
        .children()
        .find(|node| node.has_tag_name("host"))?;
    let cpu = host.children().find(|node| node.has_tag_name("cpu"))?;
    let model = cpu.children().find(|node| node.has_tag_name("model"))?;
    model.text().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_unpacked() {
        assert_eq!(version(11_003_000), Version::new(11, 3, 0));
        let said = "TPM emulator version 0.7.1, Copyright (c) 2014-2021 IBM Corp.\n";
        assert_eq!(swtpm_version_in(said), Some(Version::new(0, 7, 1)));
    }

    #[test]
    fn machines_are_the_canonical_q35_ones_of_this_architecture() {
        let capabilities = "<capabilities><guest><arch name='i686'><machine>pc-q35-1.0</machine></arch></guest>\
            <guest><arch name='x86_64'><machine maxCpus='4096'>pc-q35-10.0</machine>\
            <machine canonical='pc-q35-10.0'>q35</machine><machine>pc-i440fx-10.0</machine>\
            <domain type='kvm'><machine>pc-q35-10.0</machine></domain></arch></guest></capabilities>";
        assert_eq!(machines(capabilities), ["pc-q35-10.0"]);
    }

    #[test]
    fn what_confines_vms_is_what_libvirt_uses_beside_the_user() {
        let host = |models: &[&str]| {
            let models: String = models
                .iter()
                .map(|model| format!("<secmodel><model>{model}</model><doi>0</doi></secmodel>"))
                .collect();
            format!(
                "<capabilities><host><cpu><model>apparmor</model></cpu>{models}</host></capabilities>"
            )
        };
        for (models, expected) in [
            (&["apparmor", "dac"][..], Confinement::Apparmor),
            (&["selinux", "dac"], Confinement::Selinux),
            (&["none", "dac"], Confinement::None),
            (&["dac"], Confinement::None),
        ] {
            assert_eq!(confinement(&host(models)), expected, "{models:?}");
        }
    }

    #[test]
    fn secure_boot_needs_uefi_and_a_secure_loader() {
        let with = |secure: &str| {
            format!(
                "<domainCapabilities><os supported='yes'><enum name='firmware'><value>efi</value></enum>\
                 <loader supported='yes'><enum name='secure'>{secure}</enum></loader></os></domainCapabilities>"
            )
        };
        assert!(secure_boot(&with("<value>yes</value><value>no</value>")));
        assert!(!secure_boot(&with("<value>no</value>")));
        assert!(is_enrolled(
            r#"{"features": ["acpi-s3", "enrolled-keys", "requires-smm", "secure-boot"]}"#
        ));
        assert!(!is_enrolled(
            r#"{"features": ["requires-smm", "secure-boot"]}"#
        ));
        assert!(!secure_boot(""));
    }
}
