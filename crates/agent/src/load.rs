//! What this host and its VMs use: counters are read once a minute, and sooner after a VM has changed; the controller is told
//! rates.
//!
//! Rates are made here: this process's clock never jumps, and it knows when a VM's counters begin anew.

mod machine;

use crate::host::Host;
use fleetward_api::agent::{AgentEvent, LoadReport, VmLoad};
use fleetward_hypervisor::{DomainUsage, HypervisorEvent};
use fleetward_model::VmId;
use fleetward_model::load::Load;
use machine::MachineCounters;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(60);

/// The same when a VM has changed, or has not been measured twice.
const SOON: Duration = Duration::from_secs(10);

/// Counters of one moment.
struct Look {
    at: Instant,
    machine: MachineCounters,
    vms: HashMap<VmId, DomainUsage>,
}

/// Looks and tells until `stop`.
pub(crate) async fn watch(host: Arc<Host>, stop: CancellationToken) {
    let mut events = host.hypervisor.events();
    let mut before: Option<Look> = None;
    let mut due = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
            event = events.recv() => {
                match (event, &before) {
                    (Ok(HypervisorEvent::Changed(_)) | Err(RecvError::Lagged(_)), Some(before)) => {
                        due = due.min(before.at + SOON).max(Instant::now());
                    }
                    (Err(RecvError::Closed), _) => return,
                    (Ok(_) | Err(RecvError::Lagged(_)), _) => {}
                }
                continue;
            }
        }
        let now = look(&host).await;
        let measured = before.as_ref();
        let is_new = |(id, vm): (&VmId, &DomainUsage)| {
            let former = measured.and_then(|before| before.vms.get(id));
            former.is_none_or(|former| former.run != vm.run)
        };
        let anew = measured.is_none() || now.vms.iter().any(is_new);
        if host.observer.has_reader() {
            let report = report(&host, measured, &now);
            let load = Box::new(report);
            host.observer.announce(AgentEvent::Load { load });
        }
        due = now.at + if anew { SOON } else { EVERY };
        before = Some(now);
    }
}

async fn look(host: &Host) -> Look {
    let vms = match host.hypervisor.usage().await {
        Ok(vms) => vms,
        Err(error) => {
            tracing::debug!(%error, "what VMs use is not known");
            Vec::new()
        }
    };
    let machine = tokio::task::spawn_blocking(machine::read).await;
    Look {
        at: Instant::now(),
        machine: machine.unwrap_or_default(),
        vms: vms.into_iter().map(|vm| (vm.id, vm)).collect(),
    }
}

fn report(host: &Host, before: Option<&Look>, now: &Look) -> LoadReport {
    let since = before.map(|before| (before, now.at - before.at));
    let machine = since.map(|(before, elapsed)| (&before.machine, elapsed));
    let own = Load {
        storage: host.pools.used(),
        ..of_machine(machine, &now.machine)
    };
    let vms = now.vms.values().map(|vm| {
        let before = since.and_then(|(before, elapsed)| Some((before.vms.get(&vm.id)?, elapsed)));
        VmLoad {
            id: vm.id,
            load: of_vm(before, vm),
        }
    });
    let mut vms: Vec<_> = vms.collect();
    vms.sort_unstable_by_key(|vm| vm.id);
    LoadReport { host: own, vms }
}

/// A rate; none where the counter has begun anew.
fn per_second(before: u64, now: u64, elapsed: Duration) -> Option<u64> {
    let (grown, ms) = (now.checked_sub(before)?, elapsed.as_millis());
    let rate = u128::from(grown).checked_mul(1000)?.checked_div(ms)?;
    u64::try_from(rate).ok()
}

/// A part of a whole, thousandths.
fn share(part: u128, whole: u128) -> Option<u64> {
    let share = part
        .checked_mul(u128::from(Load::WHOLE))?
        .checked_div(whole)?;
    u64::try_from(share)
        .ok()
        .map(|share| share.min(Load::WHOLE))
}

fn of_machine(before: Option<(&MachineCounters, Duration)>, now: &MachineCounters) -> Load {
    let memory = now.memory;
    let Some((before, elapsed)) = before else {
        return Load {
            memory,
            ..Load::default()
        };
    };
    let rates = |before: Option<&[u64]>, now: Option<&[u64]>, at: usize| {
        per_second(*before?.get(at)?, *now?.get(at)?, elapsed)
    };
    let disks = |at| {
        let [before, now] = [before, now].map(|of| of.disks.as_ref().map(<[_; 3]>::as_slice));
        rates(before, now, at)
    };
    let nics = |at| {
        let [before, now] = [before, now].map(|of| of.nics.as_ref().map(<[_; 2]>::as_slice));
        rates(before, now, at)
    };
    let cpu = || {
        let ((busy, all), (busy_now, all_now)) = (before.cpu?, now.cpu?);
        let busy = busy_now.checked_sub(busy)?;
        share(busy.into(), all_now.checked_sub(all)?.into())
    };
    Load {
        cpu: cpu(),
        memory,
        storage: None,
        read: disks(0),
        written: disks(1),
        requests: disks(2),
        received: nics(0),
        sent: nics(1),
    }
}

fn of_vm(before: Option<(&DomainUsage, Duration)>, now: &DomainUsage) -> Load {
    let memory = now.memory.map(fleetward_model::ByteSize::bytes);
    let same_run = before.filter(|(before, _)| before.run == now.run);
    let Some((before, elapsed)) = same_run else {
        return Load {
            memory,
            ..Load::default()
        };
    };
    let cpu = || {
        let used = now.cpu_time.checked_sub(before.cpu_time)?;
        let could = elapsed.as_nanos().checked_mul(now.cpus.into())?;
        share(used.as_nanos(), could)
    };
    let disks = before.disks.as_ref().zip(now.disks.as_ref());
    let disks = |of: fn(&fleetward_hypervisor::DiskCounters) -> u64| {
        disks.and_then(|(before, now)| per_second(of(before), of(now), elapsed))
    };
    let nics = before.nics.as_ref().zip(now.nics.as_ref());
    let nics = |of: fn(&fleetward_hypervisor::NetCounters) -> u64| {
        nics.and_then(|(before, now)| per_second(of(before), of(now), elapsed))
    };
    Load {
        cpu: cpu(),
        memory,
        storage: None,
        read: disks(|disks| disks.read),
        written: disks(|disks| disks.written),
        requests: disks(|disks| disks.requests),
        received: nics(|nics| nics.received),
        sent: nics(|nics| nics.sent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_hypervisor::{DiskCounters, NetCounters};
    use fleetward_model::ByteSize;

    const MINUTE: Duration = Duration::from_secs(60);

    fn vm(run: u32, seconds: u64, bytes: u64) -> DomainUsage {
        DomainUsage {
            id: VmId(uuid::Uuid::from_u128(7)),
            run,
            cpus: 2,
            cpu_time: Duration::from_secs(seconds),
            memory: Some(ByteSize(5)),
            disks: Some(DiskCounters {
                read: bytes,
                written: 2 * bytes,
                requests: bytes / 100,
            }),
            nics: Some(NetCounters {
                received: 3 * bytes,
                sent: 4 * bytes,
            }),
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let load = of_vm(Some((&vm(3, 100, 6000), MINUTE)), &vm(3, 160, 12_000));
        let expected = Load {
            cpu: Some(500), // one of two processors
            memory: Some(5),
            storage: None,
            read: Some(100),
            written: Some(200),
            requests: Some(1),
            received: Some(300),
            sent: Some(400),
        };
        assert_eq!(load, expected);
        let more = of_vm(Some((&vm(3, 0, 0), MINUTE)), &vm(3, 10_000, 0));
        assert_eq!(more.cpu, Some(Load::WHOLE), "never more than all");
    }

    #[test]
    fn counters_that_began_anew_make_no_rate() {
        let only_memory = Load {
            memory: Some(5),
            ..Load::default()
        };
        let now = vm(4, 160, 12_000);
        assert_eq!(of_vm(None, &now), only_memory, "seen for the first time");
        // it was started again, or has come back from another host
        assert_eq!(of_vm(Some((&vm(3, 100, 6000), MINUTE)), &now), only_memory);
        // the same run says less than before
        assert_eq!(
            of_vm(Some((&vm(4, 200, 20_000), MINUTE)), &now),
            only_memory
        );
        // nothing lies between
        let at_once = of_vm(Some((&vm(4, 160, 12_000), Duration::ZERO)), &now);
        assert_eq!(at_once, only_memory);
        // a device went away, and with it its part of the sum
        let without = DomainUsage {
            disks: Some(DiskCounters::default()),
            ..vm(4, 220, 18_000)
        };
        let load = of_vm(Some((&now, MINUTE)), &without);
        assert_eq!((load.read, load.sent), (None, Some(400)));
    }

    #[test]
    fn a_machines_figures_are_known_each_by_itself() {
        let at = |ticks: u64, disks| MachineCounters {
            cpu: Some((ticks / 4, ticks)),
            memory: Some(9),
            disks,
            nics: None,
        };
        let before = at(1000, Some([0, 600, 60]));
        let load = of_machine(Some((&before, MINUTE)), &at(2000, Some([60, 1200, 0])));
        let expected = Load {
            cpu: Some(250),
            memory: Some(9),
            read: Some(1),
            written: Some(10),
            ..Load::default()
        };
        assert_eq!(load, expected);
        let first = of_machine(None, &before);
        assert_eq!((first.cpu, first.memory), (None, Some(9)));
    }
}
