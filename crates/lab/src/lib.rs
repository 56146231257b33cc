//! Several real hypervisor hosts on one machine, for trying out, for the demo and for tests.
//!
//! Each lab host is a network, mount, process, host name and IPC namespace of its own with its own libvirtd,
//! QEMU, swtpm and agent; nothing is simulated. All of a lab lies in one directory and hangs on a few
//! *process 1*s: when such a process dies, the kernel ends everything of that host at once, which is what a
//! power cut does, and releases its mounts and links. So `down` cannot forget anything, whoever crashed.
//!
//! ```text
//!            switch (a bridge in a network namespace of its own; nothing touches the machine's network)
//!          /        |         \
//!   controller    host a     host b ...          10.77.0.2, 10.77.0.11, 10.77.0.12 in every lab
//! ```
//!
//! The entry is [`Lab`]. No service depends on this crate.

mod accelerator;
mod demo;
mod ending;
mod files;
mod fleet;
mod guest;
mod lab;
mod network;
mod node;
mod process;
mod programs;
mod record;
mod serial;

pub use accelerator::Accelerator;
pub use demo::run_demo;
pub use ending::Leftovers;
pub use files::LabFiles;
pub use fleet::controller_address;
pub use guest::GuestImage;
pub use lab::{HostOptions, Lab, Target, UpOptions, base_dir};
pub use node::{init_main, launch_main, spawn_main};
pub use process::ProcessId;
pub use record::{HostRecord, LabRecord};
pub use serial::Tick;
