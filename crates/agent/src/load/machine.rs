//! What the host itself has used, as its kernel counts it.
//!
//! Of disks and network cards those are counted that are devices: what is built of them (partitions, RAID, bridges, the cards of
//! VMs) would count everything twice.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Sectors of `/proc/diskstats`, whatever the disk has.
const SECTOR: u64 = 512;

/// What the kernel has counted since it started, and its memory now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MachineCounters {
    /// Ticks of all processors in which they worked, and all ticks.
    pub(super) cpu: Option<(u64, u64)>,
    /// Bytes in use, without caches that can be given up.
    pub(super) memory: Option<u64>,
    /// Bytes read, bytes written, requests.
    pub(super) disks: Option<[u64; 3]>,
    /// Bytes received, bytes sent.
    pub(super) nics: Option<[u64; 2]>,
}

/// Reads them. What cannot be read is not known.
pub(super) fn read() -> MachineCounters {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    MachineCounters {
        cpu: processors(&text("/proc/stat")),
        memory: memory(&text("/proc/meminfo")),
        disks: disks(&text("/proc/diskstats"), &devices("/sys/block")),
        nics: nics(&text("/proc/net/dev"), &devices("/sys/class/net")),
    }
}

/// The names below a directory of the kernel that are devices.
fn devices(class: &str) -> HashSet<String> {
    let Ok(entries) = Path::new(class).read_dir() else {
        return HashSet::new();
    };
    let entries = entries.filter_map(Result::ok);
    let devices = entries.filter(|entry| entry.path().join("device").exists());
    devices
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// `user nice system idle iowait irq softirq steal`; what guests take is in the first two.
fn processors(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map_while(|number| number.parse().ok())
        .collect();
    let [_, _, _, idle, waiting, ..] = ticks[..] else {
        return None;
    };
    let all = ticks.iter().copied().fold(0, u64::saturating_add);
    Some((all.saturating_sub(idle.saturating_add(waiting)), all))
}

fn memory(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let number = line.trim_start_matches(':').split_whitespace().next()?;
        number.parse::<u64>().ok()
    };
    let used = kib("MemTotal")?.checked_sub(kib("MemAvailable")?)?;
    used.checked_mul(1024)
}

/// The sum over all lines that are of a device; none where there is no device.
fn sum<const N: usize>(lines: impl Iterator<Item = Option<[u64; N]>>) -> Option<[u64; N]> {
    let add = |mut sum: [u64; N], of: [u64; N]| {
        for (sum, of) in sum.iter_mut().zip(of) {
            *sum = sum.saturating_add(of);
        }
        sum
    };
    lines.flatten().reduce(add)
}

/// `major minor name reads merged sectors ms writes merged sectors ...`
fn disks(diskstats: &str, devices: &HashSet<String>) -> Option<[u64; 3]> {
    let of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        devices.contains(*fields.get(2)?).then_some(())?;
        let read = number(5)?.saturating_mul(SECTOR);
        let written = number(9)?.saturating_mul(SECTOR);
        Some([read, written, number(3)?.saturating_add(number(7)?)])
    };
    sum(diskstats.lines().map(of))
}

/// `name: bytes packets errs drop fifo frame compressed multicast bytes ...`
fn nics(dev: &str, devices: &HashSet<String>) -> Option<[u64; 2]> {
    let of = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        devices.contains(name.trim()).then_some(())?;
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        let number = |at: usize| numbers.get(at)?.parse::<u64>().ok();
        Some([number(0)?, number(8)?])
    };
    sum(dev.lines().map(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let stat = "cpu  100 5 40 800 50 1 2 2 60 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(processors(stat), Some((150, 1000)));
        let meminfo = "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:   600 kB\n";
        assert_eq!(memory(meminfo), Some(400 * 1024));
        let diskstats = " 253 0 vda 10 0 80 5 20 0 160 9 0 0 0\n 253 1 vda1 10 0 80 5 20 0 160 9\n 7 0 loop0 1 0 8 0 0 0 0 0\n";
        let found = disks(diskstats, &names(&["vda", "sr0"]));
        assert_eq!(found, Some([80 * 512, 160 * 512, 30]));
        let dev = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 9 9 0 0 0 0 0 0 9 9\n  eth0: 100 1 0 0 0 0 0 0 200 2\n eth1:7 1 0 0 0 0 0 0 8 2\n";
        assert_eq!(nics(dev, &names(&["eth0", "eth1"])), Some([107, 208]));
    }

    #[test]
    fn what_cannot_be_read_is_not_known() {
        for text in [
            "",
            "cpu",
            "cpu  1 2",
            "MemTotal: 5 kB",
            "eth0: x",
            " 1 2 vda 3",
        ] {
            let devices = names(&["vda", "eth0"]);
            assert_eq!(processors(text), None, "{text}");
            assert_eq!(memory(text), None, "{text}");
            assert_eq!(disks(text, &devices), None, "{text}");
            assert_eq!(nics(text, &devices), None, "{text}");
        }
    }

    #[test]
    fn this_machine_has_processors_and_memory() {
        let found = read();
        assert!(found.cpu.is_some_and(|(_, all)| all > 0), "{found:?}");
        assert!(found.memory.is_some_and(|used| used > 0), "{found:?}");
    }
}
