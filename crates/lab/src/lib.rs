//! Several real hypervisor hosts on one machine, for demonstrations, experiments and tests.
//!
//! Each lab host has its own network, mount, process, host name and IPC namespace, with its own libvirtd, QEMU, swtpm
//! and agent; nothing is simulated. All files of a lab are in one directory. Each host has a *process 1*: when it
//! dies, the kernel ends all processes of that host at once, as a power cut would, and releases its mounts and links.
//! So `down` also cleans up after a crash.
//!
//! ```text
//!            switch (a bridge in a network namespace of its own; nothing touches the machine's network)
//!          /        |         \
//!   controller    host a     host b ...          10.77.0.2, 10.77.0.11, 10.77.0.12 in every lab
//! ```
//!
//! The entry point is [`Lab`]. No service depends on this crate.

#![allow(
    clippy::disallowed_methods,
    reason = "a tool for tests: what it makes need not survive a crash"
)]

mod accelerator;
mod clock;
mod debian;
mod demo;
mod disk;
mod ending;
mod files;
mod fleet;
mod guest;
mod lab;
mod network;
mod node;
mod openvswitch;
mod process;
mod programs;
mod record;
mod serial;

pub use accelerator::Accelerator;
pub use demo::run_demo;
pub use ending::Leftovers;
pub use files::LabFiles;
pub use fleet::controller_address;
pub use guest::{GuestImage, ImageKind};
pub use lab::{HostOptions, Lab, Target, UpOptions, base_dir};
pub use node::{init_main, launch_main, spawn_main};
pub use process::ProcessId;
pub use record::{HostRecord, LabNetwork, LabRecord};
pub use serial::Tick;
