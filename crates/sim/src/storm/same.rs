//! Whether every VM is shown as its host has it.

use crate::fleet::RunningFleet;
use crate::measure::lists;
use anyhow::Result;
use fleetward_api::controller::VmView;
use fleetward_link::Client;
use fleetward_model::vm::VmState;
use fleetward_model::{ByteSize, HostName, VmId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What is compared of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    name: String,
    host: HostName,
    state: VmState,
    reason: String,
    cpus: u32,
    memory: ByteSize,
}

/// What came of it.
pub(super) struct Same {
    /// Until all were; none: not within the limit.
    pub(super) seconds: Option<f64>,
    /// How the last comparison differed, a sentence for each VM.
    pub(super) differences: Vec<String>,
}

/// Compares until nothing differs, or until `limit` is over.
pub(super) async fn wait(client: &Client, fleet: &RunningFleet, limit: Duration) -> Result<Same> {
    let begin = Instant::now();
    loop {
        let differences = differences(client, fleet).await?;
        let time = begin.elapsed();
        if differences.is_empty() || time > limit {
            let seconds = differences.is_empty().then_some(time.as_secs_f64());
            return Ok(Same {
                seconds,
                differences,
            });
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn differences(client: &Client, fleet: &RunningFleet) -> Result<Vec<String>> {
    let shown: Vec<VmView> = lists::all(client, "/v1/vms?").await?;
    let mut shown: BTreeMap<VmId, Vec<Shown>> =
        shown.into_iter().fold(BTreeMap::new(), |mut shown, vm| {
            shown.entry(vm.id).or_default().push(Shown {
                name: vm.name.to_string(),
                host: vm.host,
                state: vm.state,
                reason: vm.reason,
                cpus: vm.cpus,
                memory: vm.memory_bytes,
            });
            shown
        });
    let mut differences = Vec::new();
    for (id, has) in there(fleet) {
        let name = &has.name;
        match shown.remove(&id).as_deref() {
            Some([shown]) if *shown == has => {}
            Some([shown]) => {
                differences.push(format!("VM {name} is {has:?} and shown as {shown:?}"))
            }
            Some(shown) => differences.push(format!("VM {name} is shown {} times", shown.len())),
            None => differences.push(format!("VM {name} of host {} is not shown", has.host)),
        }
    }
    let others = shown.into_values().flatten();
    differences.extend(others.map(|vm| format!("VM {} is shown, and no host has it", vm.name)));
    Ok(differences)
}

/// What the hosts have.
fn there(fleet: &RunningFleet) -> Vec<(VmId, Shown)> {
    let mut all = Vec::new();
    for host in &fleet.hosts {
        host.look(|inner| {
            for id in inner.vms.keys() {
                let Some(vm) = inner.observed(*id) else {
                    continue;
                };
                all.push((
                    *id,
                    Shown {
                        name: vm.name.to_string(),
                        host: vm.host,
                        state: vm.state,
                        reason: vm.reason,
                        cpus: vm.cpus,
                        memory: vm.memory,
                    },
                ));
            }
        });
    }
    all
}
