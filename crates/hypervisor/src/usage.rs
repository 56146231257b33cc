//! What running domains use.

use fleetward_model::{ByteSize, VmId};
use std::time::Duration;

/// What a running domain has used. All but the memory are counters, which only grow during one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DomainUsage {
    pub id: VmId,
    /// Another number for each run of the domain on this host.
    pub run: u32,
    /// Processors that it has.
    pub cpus: u32,
    /// Time of processors that its process has taken.
    pub cpu_time: Duration,
    /// Of the host's, that its process has now.
    pub memory: Option<ByteSize>,
    /// Of all its disks and drives together.
    pub disks: Option<DiskCounters>,
    /// Of all its network cards together, as the guest sees it; none where none can be counted.
    pub nics: Option<NetCounters>,
}

/// Bytes and requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Bytes.
    pub read: u64,
    /// Bytes.
    pub written: u64,
    /// Reads and writes.
    pub requests: u64,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetCounters {
    pub received: u64,
    pub sent: u64,
}
