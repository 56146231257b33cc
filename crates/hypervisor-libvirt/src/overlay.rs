//! Switches a running domain to overlays: libvirt's external snapshot of its disks, into existing files.
//!
//! Observed with libvirt 11.3 and QEMU 10.0: all disks switch in one QEMU transaction, in about 30 ms. libvirt then
//! names the overlays, and as elements `backingStore` the volumes below them, in the running and in the persistent
//! definition. From then on libvirt relies on these elements, so they must be removed: see [`crate::migration`], and
//! the definition that is written after every switch.

use crate::host::{failed, observe_state, wrong_state};
use fleetward_hypervisor::{DomainState, Result};
use fleetward_model::VmId;
use quick_xml::Writer;
use std::path::PathBuf;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;

/// See [`fleetward_hypervisor::Hypervisor::switch_to_overlays`].
pub(crate) fn switch(domain: &Domain, id: VmId, disks: &[(String, PathBuf)]) -> Result<()> {
    match observe_state(domain)? {
        DomainState::Running | DomainState::Paused { incoming: false } => {}
        state => return Err(wrong_state(id, state, "write on to overlays")),
    }
    let flags = virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        | virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
    DomainSnapshot::create_xml(domain, &SNAPSHOT.xml(disks), flags)
        .map(drop)
        .map_err(failed("let the domain write on to overlays"))
}

/// Files that the domain's disks are written to: what libvirt wants to hear of a snapshot and of a backup alike.
pub(crate) struct DiskFiles {
    /// The document's element, with its one attribute if it has one.
    pub(crate) root: (&'static str, Option<(&'static str, &'static str)>),
    /// The attribute of each disk beside its name.
    pub(crate) disk: (&'static str, &'static str),
    /// The element that names the file.
    pub(crate) file: &'static str,
}

const SNAPSHOT: DiskFiles = DiskFiles {
    root: ("domainsnapshot", None),
    disk: ("snapshot", "external"),
    file: "source",
};

impl DiskFiles {
    /// The document for these `(target, path)`, all of them qcow2.
    pub(crate) fn xml(&self, disks: &[(String, PathBuf)]) -> String {
        let mut out = Writer::new(Vec::new());
        out.create_element(self.root.0)
            .with_attributes(self.root.1)
            .write_inner_content(|out| {
                out.create_element("disks").write_inner_content(|out| {
                    for (target, path) in disks {
                        let path = path.to_string_lossy();
                        out.create_element("disk")
                            .with_attributes([("name", target.as_str()), self.disk])
                            .write_inner_content(|out| {
                                out.create_element("driver")
                                    .with_attribute(("type", "qcow2"))
                                    .write_empty()?;
                                out.create_element(self.file)
                                    .with_attribute(("file", &*path))
                                    .write_empty()?;
                                Ok(())
                            })?;
                    }
                    Ok(())
                })?;
                Ok(())
            })
            .expect("writing to memory");
        String::from_utf8(out.into_inner()).expect("written from strings")
    }
}
