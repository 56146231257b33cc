//! What hosts and VMs use now. What is not known, or was told too long ago, is a dash.

use super::layout::{Rows, Widths};
use super::vms::{foreign_name, state_word};
use super::{NONE, moment};
use fleetward_api::controller::{HostView, Usage, VmView};
use fleetward_model::ByteSize;

pub(crate) fn vms(vms: &[VmView], widths: &mut Widths) -> String {
    let mut table = Rows::new(&[
        "NAME", "STATE", "HOST", ">CPU", ">MEMORY", ">OF", ">DISK", ">NET",
    ]);
    for vm in vms {
        let usage = vm.usage.as_ref();
        table.add([
            match vm.managed {
                true => vm.name.to_string(),
                false => foreign_name(vm),
            },
            state_word(vm),
            vm.host.to_string(),
            known(usage, cpu),
            known(usage, memory),
            vm.memory_bytes.to_string(),
            known(usage, disk),
            known(usage, net),
        ]);
    }
    table.part(widths)
}

pub(crate) fn hosts(hosts: &[HostView]) -> String {
    let mut table = Rows::new(&[
        "NAME", "GROUP", "STATE", ">VMS", ">CPU", ">MEMORY", ">OF", ">STORAGE", ">DISK", ">NET",
    ]);
    for host in hosts {
        let (usage, facts) = (host.usage.as_ref(), host.facts.as_ref());
        table.add([
            host.name.to_string(),
            host.group.to_string(),
            host.state.into_str().to_owned(),
            host.vms.to_string(),
            known(usage, cpu),
            known(usage, memory),
            facts.map_or_else(|| NONE.to_owned(), |facts| facts.memory.to_string()),
            known(usage, |usage| usage.storage_bytes.map(size)),
            known(usage, disk),
            known(usage, net),
        ]);
    }
    table.text()
}

/// In one line: `CPU 12 %, memory 1.9 GiB, disk 1.2 MiB/s, network 3 KiB/s, at ...`.
pub(super) fn line(usage: &Usage) -> String {
    let words = [
        ("CPU", cpu(usage)),
        ("memory", memory(usage)),
        ("disk", disk(usage)),
        ("network", net(usage)),
    ];
    let words = words.into_iter().map(|(name, value)| {
        let value = value.unwrap_or_else(|| NONE.to_owned());
        format!("{name} {value}")
    });
    let words: Vec<_> = words.collect();
    format!("{} ({})", words.join(", "), moment(usage.at))
}

fn known(usage: Option<&Usage>, figure: impl Fn(&Usage) -> Option<String>) -> String {
    usage.and_then(figure).unwrap_or_else(|| NONE.to_owned())
}

fn cpu(usage: &Usage) -> Option<String> {
    Some(format!("{:.0} %", usage.cpu_percent?))
}

fn memory(usage: &Usage) -> Option<String> {
    usage.memory_bytes.map(size)
}

/// Read and written together.
fn disk(usage: &Usage) -> Option<String> {
    let read = usage.disk_read_bytes_per_second?;
    Some(rate(
        read.saturating_add(usage.disk_written_bytes_per_second?),
    ))
}

/// Received and sent together.
fn net(usage: &Usage) -> Option<String> {
    let received = usage.net_received_bytes_per_second?;
    Some(rate(
        received.saturating_add(usage.net_sent_bytes_per_second?),
    ))
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn rate(bytes: u64) -> String {
    format!("{}/s", ByteSize(bytes))
}
