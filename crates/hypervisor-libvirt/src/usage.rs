//! What running domains use, in two questions.
//!
//! ```text
//!   processor time, network: libvirt knows them ──────────────────────────► always, of all
//!   disks, memory: libvirt asks QEMU ── only those that answer, on a connection of its own ──► or none, after a few seconds
//! ```

use crate::binding::stats::DomainStats;
use crate::binding::{self, stats};
use crate::connection::Libvirt;
use crate::host::failed;
use fleetward_hypervisor::{DiskCounters, DomainUsage, NetCounters, Result};
use fleetward_model::{ByteSize, VmId};
use std::collections::HashMap;
use std::time::Duration;

/// How long all machines of a host together may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn of_all(libvirt: &Libvirt) -> Result<Vec<DomainUsage>> {
    let known = libvirt
        .call(|connection| {
            let groups = virt_sys::VIR_DOMAIN_STATS_INTERFACE;
            stats::of_all(connection, groups).map_err(failed("count what domains use"))
        })
        .await?;
    if known.is_empty() {
        return Ok(Vec::new());
    }
    let asked = libvirt.call_alone(PATIENCE, |connection| {
        let running = connection
            .list_all_domains(virt_sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            .map_err(failed("list domains"))?;
        let answering: Vec<_> = running
            .into_iter()
            .filter(|domain| binding::unanswered(domain).is_none())
            .collect();
        if answering.is_empty() {
            return Ok(Vec::new());
        }
        let groups = virt_sys::VIR_DOMAIN_STATS_BLOCK | virt_sys::VIR_DOMAIN_STATS_BALLOON;
        stats::of(&answering, groups).map_err(failed("ask domains what they use"))
    });
    let told = match asked.await {
        Ok(told) => told,
        Err(error) => {
            tracing::debug!(%error, "machines do not say what they use");
            Vec::new()
        }
    };
    Ok(together(&known, &told))
}

/// `known` with what the machines told.
fn together(known: &[DomainStats], told: &[DomainStats]) -> Vec<DomainUsage> {
    let told: HashMap<_, _> = told.iter().map(|one| ((one.id, one.run), one)).collect();
    let usage = known.iter().map(|domain| {
        let told = told.get(&(domain.id, domain.run));
        let asked = told.map_or(&[][..], |told| &told.figures);
        let memory = asked.iter().find(|(name, _)| name == "balloon.rss");
        DomainUsage {
            id: VmId(domain.id),
            run: domain.run,
            cpus: domain.cpus,
            cpu_time: Duration::from_nanos(domain.cpu_time),
            memory: memory.map(|(_, kib)| ByteSize(kib.saturating_mul(1024))),
            disks: disks(asked),
            nics: nics(&domain.figures),
        }
    });
    usage.collect()
}

/// The sum of the figures called `GROUP.N.NAME`, and whether there is one at all.
fn sum(figures: &[(String, u64)], group: &str, name: &str) -> Option<u64> {
    let of = |(full, value): &(String, u64)| {
        let rest = full.strip_prefix(group)?.strip_prefix('.')?;
        let (number, rest) = rest.split_once('.')?;
        (number.parse::<u32>().is_ok() && rest == name).then_some(*value)
    };
    figures.iter().filter_map(of).reduce(u64::saturating_add)
}

fn disks(figures: &[(String, u64)]) -> Option<DiskCounters> {
    let block = |name| sum(figures, "block", name);
    Some(DiskCounters {
        read: block("rd.bytes")?,
        written: block("wr.bytes")?,
        requests: block("rd.reqs")?.saturating_add(block("wr.reqs")?),
    })
}

fn nics(figures: &[(String, u64)]) -> Option<NetCounters> {
    Some(NetCounters {
        received: sum(figures, "net", "rx.bytes")?,
        sent: sum(figures, "net", "tx.bytes")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn stats(run: u32, figures: &[(&str, u64)]) -> DomainStats {
        let figures = figures.iter();
        DomainStats {
            id: Uuid::from_u128(7),
            run,
            cpus: 2,
            cpu_time: 1_500_000_000,
            figures: figures.map(|(n, v)| ((*n).to_owned(), *v)).collect(),
        }
    }

    #[test]
    fn devices_are_added_up_and_what_nobody_told_is_not_known() {
        let known = stats(
            3,
            &[
                ("net.count", 2),
                ("net.0.rx.bytes", 10),
                ("net.0.tx.bytes", 1),
                ("net.1.rx.bytes", 20),
                ("net.1.tx.bytes", 2),
                ("net.0.rx.pkts", 99),
            ],
        );
        let told = stats(
            3,
            &[
                ("block.count", 1),
                ("block.0.rd.reqs", 5),
                ("block.0.rd.bytes", 4096),
                ("block.0.wr.reqs", 6),
                ("block.0.wr.bytes", u64::MAX),
                ("block.1.wr.bytes", 7),
                ("balloon.rss", 3),
            ],
        );
        let (known, told) = ([known], [told]);
        let [all] = together(&known, &told)[..] else {
            panic!("one");
        };
        assert_eq!(all.cpu_time, Duration::from_millis(1500));
        assert_eq!(all.memory, Some(ByteSize(3072)));
        let disks = DiskCounters {
            read: 4096,
            written: u64::MAX,
            requests: 11,
        };
        assert_eq!(all.disks, Some(disks));
        let nics = NetCounters {
            received: 30,
            sent: 3,
        };
        assert_eq!(all.nics, Some(nics));

        // what it told was of another run
        let told = told.map(|told| DomainStats { run: 4, ..told });
        let known = [stats(3, &[("net.count", 0)])];
        let [part] = together(&known, &told)[..] else {
            panic!("one");
        };
        assert_eq!((part.memory, part.disks, part.nics), (None, None, None));
    }
}
