//! The hypervisor traits implemented with libvirt, QEMU, swtpm and qemu-img. Only this crate links libvirt or starts
//! these programs.
//!
//! [`LibvirtHost`] implements all traits. Pure code (reading and writing a domain's XML, metadata, facts) is
//! separate from calls. Calls use one monitored connection; all unsafe code is in one module. This crate does not know
//! the fleet, its controller and network, jobs, or key protectors.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they like"
    )
)]

mod accelerator;
mod binding;
mod boot_order;
mod confined;
mod connection;
mod conversion;
mod copy;
mod descriptors;
mod disk_io;
mod disk_move;
mod disk_xml;
mod domain_edit;
mod domain_read;
mod domain_xml;
mod ek_certificate;
mod facts;
#[cfg(test)]
mod former;
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod host;
mod layers;
mod live;
mod metadata;
mod migration;
mod nic_xml;
mod observe;
mod overlay;
mod owner;
mod picture;
mod program;
mod qemu_process;
mod said;
mod screen;
mod storage_edit;
mod storage_live;
mod syscalls;
mod tpm;
mod tpm_command;
mod tpm_end;
mod tpm_library;
mod tpm_process;
mod tpm_questions;
mod tpm_state;
mod usage;
mod volumes;

pub use accelerator::probe_accelerator;
pub use conversion::{ConfinedConverter, ConversionLimits};
pub use ek_certificate::{EK_CERTIFICATE_TOOL, ek_certificate_tool_main};
pub use host::{LibvirtConfig, LibvirtHost};
pub use metadata::{NAMESPACE, PREFIX};
