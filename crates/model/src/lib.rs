//! The domain types of Fleetward: names, ids, sizes, VMs and hosts, the table of state transitions, findings and error
//! codes, and the pure rules over them (profiles, placement, preflight).
//!
//! This crate uses no I/O, clocks, randomness or async code. Times and random values are arguments.

pub mod admission;
pub mod audit;
pub mod boot;
pub mod certificate;
pub mod certutil;
pub mod change;
pub mod clone;
pub mod disk;
pub mod ek;
pub mod error;
pub mod fit;
pub mod fix;
pub mod foreign;
pub mod guardian;
pub mod guest;
pub mod host;
pub mod id;
pub mod image;
pub mod job;
pub mod keys;
mod labels;
pub mod load;
pub mod machine;
pub mod name;
pub mod network;
pub mod placement;
pub mod preflight;
pub mod profile;
pub mod retention;
pub mod role;
pub mod secure_boot;
pub mod size;
pub mod spec;
pub mod text;
pub mod tpm_state;
pub mod vm;

pub use error::{ErrorCode, Failure};
pub use fix::Names;
pub use id::{GuardianId, JobId, KeyId, VmId};
pub use labels::Labels;
pub use name::{
    AlertTargetName, DeviceId, GroupName, HostName, ImageName, LabelKey, NameError, NetworkName,
    PoolName, TemplateName, TokenName, UserName, VmName,
};
pub use network::{Mac, NicFilter, NicLink, VlanId};
pub use size::ByteSize;
