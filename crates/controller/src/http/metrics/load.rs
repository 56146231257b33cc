//! What each host uses. Of VMs there is nothing here: eight series for each of 100,000 VMs would be more than Prometheus takes
//! from one place; `GET /v1/vms?usage=true` has them.

use super::{Labels, family};
use crate::world::World;
use fleetward_model::load::Load;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// A gauge for a figure: its name, what it says, which one it is.
type Figure = (&'static str, &'static str, fn(&Load) -> Option<u64>);

const FIGURES: [Figure; 7] = [
    (
        "fleetward_host_memory_used_bytes",
        "Memory of a host that is in use, without caches",
        |load| load.memory,
    ),
    (
        "fleetward_host_storage_used_bytes",
        "What is taken in the file systems of a host's pools",
        |load| load.storage,
    ),
    (
        "fleetward_host_disk_read_bytes_per_second",
        "Bytes that a host's disks read",
        |load| load.read,
    ),
    (
        "fleetward_host_disk_written_bytes_per_second",
        "Bytes that a host's disks write",
        |load| load.written,
    ),
    (
        "fleetward_host_disk_requests_per_second",
        "Reads and writes of a host's disks",
        |load| load.requests,
    ),
    (
        "fleetward_host_network_received_bytes_per_second",
        "Bytes that a host's network cards receive",
        |load| load.received,
    ),
    (
        "fleetward_host_network_sent_bytes_per_second",
        "Bytes that a host's network cards send",
        |load| load.sent,
    ),
];

/// A host that has not told lately has no sample.
pub(super) fn register(registry: &mut Registry, world: &World) {
    let hosts = world.hosts.all().into_iter();
    let loads: Vec<(Labels, Load)> = hosts
        .filter_map(|host| {
            let (load, _) = world.loads.of_host(&world.inventory, &host.name)?;
            Some((vec![("host", host.name.to_string())], load))
        })
        .collect();
    let cpu = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for (labels, load) in &loads {
        if let Some(used) = load.cpu {
            let ratio = used as f64 / Load::WHOLE as f64;
            cpu.get_or_create(labels).set(ratio);
        }
    }
    let about = "How much of its processors a host uses, 0 to 1";
    registry.register("fleetward_host_cpu_used_ratio", about, cpu);
    for (name, about, of) in FIGURES {
        let known = loads.iter().filter_map(|(labels, load)| {
            let value = i64::try_from(of(load)?).ok()?;
            Some((labels.clone(), value))
        });
        family(registry, name, about, known);
    }
}
