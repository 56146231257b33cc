//! The agent of one host. It owns the host's guardian keys, carries out the controller's operations on the host's VMs,
//! and moves VMs to and from other hosts.
//!
//! | module | owns |
//! |---|---|
//! | [`config`], [`layout`] | `agent.toml`; paths |
//! | [`join`], [`rejoin`], [`membership`] | joining a fleet, and coming back to it; the stored membership |
//! | `certificate` | renewing the host's certificate; certificates that are refused |
//! | [`keyring`], [`audit`] | guardians and every use of their keys |
//! | `operation` | operations on VMs, one file per family |
//! | `fence`, `record` | what this host stores of a VM besides libvirt's definition |
//! | `arrivals`, `transfer` | tunnels from other hosts |
//! | `variables` | UEFI variables, in a directory that QEMU may write |
//! | `firmware` | what a VM's firmware says on its console until it has started a guest |
//! | `bundle` | a VM's TPM with its key protector as one document, for the controller's escrow |
//! | `tpm_watch` | detecting that a guest has changed its TPM |
//! | `observe`, `questions`, `console`, `server` | what the controller sees and asks |
//! | `conversions` | conversions of images from elsewhere, for the controller |
//! | `pools`, `images`, `seeds`, `tpm_pool` | directories of volumes, cached images, media for first boots, TPMs made in advance |
//! | [`run`], [`hardening`] | the running process |
//!
//! The agent does not know the controller's store, other hosts' keys, or libvirt (it uses the traits of
//! `fleetward-hypervisor`).

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they like"
    )
)]

mod arrivals;
pub mod audit;
mod boot;
mod bundle;
mod certificate;
pub mod config;
mod confinement;
mod console;
mod conversions;
mod crash;
mod ek;
pub mod failure;
mod fence;
mod firmware;
mod flash;
mod guest;
pub mod hardening;
mod history;
mod host;
mod images;
pub mod join;
pub mod keyring;
pub mod layout;
mod load;
mod machines;
pub mod membership;
mod networks;
mod observe;
mod operation;
mod pools;
mod questions;
mod record;
pub mod rejoin;
pub mod run;
mod screen;
mod seeds;
mod server;
mod tpm_judge;
mod tpm_pool;
mod tpm_process;
mod tpm_watch;
mod transfer;
mod variables;

pub use config::Config;
pub use host::Machinery;
pub use run::{Agent, RunError};
