//! The hypervisor port on libvirt, QEMU, swtpm and qemu-img: the only crate that links libvirt or starts these
//! programs.
//!
//! [`LibvirtHost`] implements all three traits of the port. Pure parts (a domain's XML written and read, metadata,
//! facts) stand apart from calls; calls go through one watched connection; what is unsafe is in one module.
//! It knows nothing of the fleet, its controller and network, of jobs, or of what a key protector is.

mod accelerator;
mod binding;
mod connection;
mod copy;
mod domain_edit;
mod domain_read;
mod domain_xml;
mod ek_certificate;
mod facts;
mod host;
mod layers;
mod metadata;
mod migration;
mod overlay;
mod owner;
mod program;
mod tpm;
mod tpm_state;
mod volumes;

pub use accelerator::probe_accelerator;
pub use ek_certificate::{EK_CERTIFICATE_TOOL, ek_certificate_tool_main};
pub use host::{LibvirtConfig, LibvirtHost};
pub use metadata::{NAMESPACE, PREFIX};
