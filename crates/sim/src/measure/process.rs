//! What the kernel says of a process and of the machine: processor time, memory, descriptors, bytes written.

use anyhow::{Context, Result};
use procfs::process::Process;
use procfs::{Current, CurrentSI, KernelStats, LoadAverage, ticks_per_second};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Watched(pub i32);

/// A process at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    /// Seconds, user and system.
    pub cpu: f64,
    pub resident: u64,
    /// The most that was ever resident.
    pub highest: u64,
    pub descriptors: usize,
    /// Bytes that it has had written to disks.
    written: u64,
}

/// What a process did between two moments.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Usage {
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// Of one core.
    pub cpu_percent: f64,
    pub written_mb_per_second: f64,
}

impl Watched {
    pub fn now(self) -> Result<Moment> {
        let look = || -> procfs::ProcResult<Moment> {
            let process = Process::new(self.0)?;
            let (stat, status) = (process.stat()?, process.status()?);
            let ticks = (stat.utime + stat.stime) as f64;
            Ok(Moment {
                at: Instant::now(),
                cpu: ticks / ticks_per_second() as f64,
                resident: status.vmrss.unwrap_or(0) * 1024,
                highest: status.vmhwm.unwrap_or(0) * 1024,
                descriptors: process.fd_count()?,
                written: process.io()?.write_bytes,
            })
        };
        look().with_context(|| format!("cannot look at the controller, process {}", self.0))
    }

    /// What it does during that time.
    pub async fn over(self, time: Duration) -> Result<Usage> {
        let before = self.now()?;
        tokio::time::sleep(time).await;
        Ok(self.now()?.since(&before))
    }
}

impl Moment {
    pub fn since(&self, before: &Self) -> Usage {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        let cpu_seconds = self.cpu - before.cpu;
        Usage {
            seconds,
            cpu_seconds,
            cpu_percent: 100.0 * cpu_seconds / seconds,
            written_mb_per_second: megabytes(self.written - before.written) / seconds,
        }
    }
}

pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The machine, and what else it did meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Processes that wanted a core at the end, over one and five minutes.
    pub load: [f32; 2],
    /// Share of all processor time that the machine's own host took away.
    pub stolen_percent: f64,
}

/// The machine's counters at the begin.
#[derive(Debug)]
pub struct MachineBegin(procfs::CpuTime);

impl MachineBegin {
    pub fn now() -> Result<Self> {
        Ok(Self(KernelStats::current()?.total))
    }

    pub fn end(&self) -> Result<Machine> {
        let (before, after) = (&self.0, KernelStats::current()?.total);
        let all = |time: &procfs::CpuTime| {
            let stolen = time.steal.unwrap_or(0);
            let waits = time.idle + time.iowait.unwrap_or(0);
            let rest = time.irq.unwrap_or(0) + time.softirq.unwrap_or(0);
            (
                time.user + time.nice + time.system + waits + rest + stolen,
                stolen,
            )
        };
        let ((all_before, stolen_before), (all_after, stolen_after)) = (all(before), all(&after));
        let stolen = (stolen_after - stolen_before) as f64;
        let load = LoadAverage::current()?;
        let info = procfs::CpuInfo::current()?;
        Ok(Machine {
            cpu: info.model_name(0).unwrap_or("unknown").to_owned(),
            cores: info.num_cores(),
            kernel: procfs::sys::kernel::Version::current().map_or_else(
                |_| "unknown".to_owned(),
                |version| format!("{}.{}.{}", version.major, version.minor, version.patch),
            ),
            load: [load.one, load.five],
            stolen_percent: 100.0 * stolen / ((all_after - all_before) as f64).max(1.0),
        })
    }
}

/// Bytes of all files below a directory, by the name of what is directly in it.
pub fn sizes(directory: &Path) -> Result<std::collections::BTreeMap<String, u64>> {
    let mut sizes = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let size = size_of(&entry.path())?;
        sizes.insert(entry.file_name().to_string_lossy().into_owned(), size);
    }
    Ok(sizes)
}

fn size_of(path: &Path) -> std::io::Result<u64> {
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut size = 0;
    for entry in std::fs::read_dir(path)? {
        size += size_of(&entry?.path())?;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_a_process_works_is_seen() {
        let own = Watched(std::process::id() as i32);
        let before = own.now().expect("this process");
        let begin = Instant::now();
        let mut sum = 0_u64;
        while begin.elapsed() < Duration::from_millis(200) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let usage = own.now().expect("this process").since(&before);
        assert!(usage.cpu_seconds > 0.02, "{usage:?}");
        assert!(usage.cpu_percent < 1000.0, "{usage:?}");
        assert!(own.now().expect("this process").resident > 1 << 20);
    }
}
