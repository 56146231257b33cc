//! The agent: one host's part of a fleet. It owns the host's guardian keys, carries out what the controller asks of the
//! host's VMs, and moves VMs to and from other hosts.
//!
//! | module | owns |
//! |---|---|
//! | [`config`], [`layout`] | `agent.toml`; where things lie |
//! | [`join`], [`membership`] | becoming and being a member of a fleet |
//! | [`keyring`], [`audit`] | guardians and every use of their keys |
//! | `operation` | what is done to VMs, one file per family |
//! | `fence`, `record` | what this host remembers of a VM besides libvirt's definition |
//! | `arrivals`, `transfer` | tunnels from other hosts |
//! | `bundle` | a VM's TPM as one piece, for the controller's escrow |
//! | `tpm_watch` | that a guest has changed its TPM |
//! | `observe`, `questions`, `console`, `server` | what the controller sees and asks |
//! | `pools`, `images`, `tpm_pool` | what VMs are made of |
//! | [`run`], [`hardening`] | the running process |
//!
//! Refuses to know: the controller's store, other hosts' keys, libvirt (it drives the port of `fleetward-hypervisor`).

mod arrivals;
pub mod audit;
mod bundle;
pub mod config;
mod console;
mod durable;
pub mod failure;
mod fence;
pub mod hardening;
mod history;
mod host;
mod images;
pub mod join;
pub mod keyring;
pub mod layout;
pub mod membership;
mod observe;
mod operation;
mod pools;
mod questions;
mod record;
pub mod run;
mod server;
mod tpm_pool;
mod tpm_watch;
mod transfer;

pub use config::Config;
pub use host::Machinery;
pub use run::{Agent, RunError};
