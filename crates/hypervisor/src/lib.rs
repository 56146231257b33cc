//! The interface to one host's hypervisor: the functions of libvirt, swtpm and the disk tools that the agent needs, as
//! traits.
//!
//! [`Hypervisor`] runs domains, [`Screens`] shows them, [`Volumes`] manages disk files, [`TpmFactory`] makes TPM state,
//! [`Converter`] converts disks from elsewhere. An implementation does
//! not know the fleet, jobs or key protectors: it gets key texts and file paths. Every operation is idempotent unless
//! its documentation says otherwise.

mod conversion;
mod domain;
mod error;
mod guest;
mod screen;
mod storage;
mod tpm;
mod usage;
mod volume;

pub mod conformance;

pub use conversion::{Conversion, ConversionError, ConversionProgress, Converted, Converter};
pub use domain::{
    CopyState, CpuVerdict, DeviceChange, DomainChange, DomainDefined, DomainDefinition,
    DomainObserved, DomainState, Hypervisor, HypervisorEvent, HypervisorFacts, MachineSeen,
    MigrationDisks, MigrationOutcome, MigrationProgress, MigrationRequest, NicDefinition,
    NicDeviceChange, NicSeen, SecretText, SharedHypervisor, StopReason,
};
pub use error::{Cause, Error, Result};
pub use guest::{GuestTold, NicAddresses, Shutdown};
pub use screen::{MAX_PIXELS, Picture, Screens};
pub use storage::{DiskDevice, DriveDevice, MoveState, StorageChange};
pub use tpm::{EkIssuer, EkPublic, MadeTpm, TpmAttention, TpmFactory};
pub use usage::{DiskCounters, DomainUsage, NetCounters};
pub use volume::{MAX_BASES, VolumeInfo, Volumes};
