//! Lets a scenario happen in a running fleet. The same seed chooses the same hosts and VMs in the same order.

use super::lies::{self, Lies};
use super::{Change, Changed, Fault, FaultKind, Scenario, Whom};
use crate::agent::FakeAgent;
use crate::fleet::RunningFleet;
use fleetward_model::VmId;
use fleetward_model::vm::VmState;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

impl Scenario {
    /// Begins all of it. It ends with the runtime.
    pub fn begin(self, fleet: &Arc<RunningFleet>) {
        for change in self.changes {
            tokio::spawn(keep_changing(fleet.clone(), change));
        }
        for (number, fault) in (1..).zip(self.faults) {
            tokio::spawn(keep_failing(fleet.clone(), fault, number));
        }
    }
}

/// Until the runtime ends.
pub(crate) async fn keep_changing(fleet: Arc<RunningFleet>, change: Change) {
    let vms = fleet.plan.all_vms();
    if vms == 0 {
        return;
    }
    let mut random = fastrand::Rng::with_seed(fleet.plan.random_seed);
    let begin = Instant::now();
    let mut due = interval(Duration::from_millis(10));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut done = 0_u64;
    loop {
        due.tick().await;
        let wanted = (begin.elapsed().as_secs_f64() * change.per_second) as u64;
        while done < wanted {
            done += 1;
            let vm = random.u32(0..vms);
            match change.what {
                Changed::StateReason => fleet.touch(vm, format!("change {done}")),
                Changed::Tpm => fleet.write_tpm(vm),
                Changed::Variables => fleet.write_variables(vm),
            };
        }
    }
}

async fn keep_failing(fleet: Arc<RunningFleet>, fault: Fault, number: u64) {
    let mut random = fastrand::Rng::with_seed(fleet.plan.random_seed ^ number);
    let hosts = match &fault.whom {
        Whom::Percent(percent) => choose_hosts(fleet.hosts.len(), *percent, &mut random),
        Whom::Group(group) => {
            let all = (0..fleet.plan.hosts).zip(0..);
            let those = all.filter(|(host, _)| fleet.plan.group(*host) == *group);
            those.map(|(_, at)| at).collect()
        }
    };
    sleep(fault.after).await;
    loop {
        let begin = Instant::now();
        tracing::info!(kind = ?fault.kind, hosts = hosts.len(), "a fault begins");
        happen(&fleet, &fault, &hosts, &mut random).await;
        tracing::info!(kind = ?fault.kind, hosts = hosts.len(), "a fault has ended");
        let Some(every) = fault.every else {
            return;
        };
        sleep(every.saturating_sub(begin.elapsed())).await;
    }
}

/// The numbers of that share of `all` hosts.
pub(crate) fn choose_hosts(all: usize, percent: f64, random: &mut fastrand::Rng) -> Vec<usize> {
    let mut hosts: Vec<usize> = (0..all).collect();
    random.shuffle(&mut hosts);
    hosts.truncate((all as f64 * percent / 100.0).round() as usize);
    hosts
}

/// The fault from its begin to its end, once.
async fn happen(
    fleet: &RunningFleet,
    fault: &Fault,
    numbers: &[usize],
    random: &mut fastrand::Rng,
) {
    let hosts: Vec<&FakeAgent> = numbers.iter().map(|number| &fleet.hosts[*number]).collect();
    let each = |act: &dyn Fn(&FakeAgent)| hosts.iter().for_each(|host| act(host));
    match fault.kind {
        FaultKind::Silent => {
            each(&|host| host.silence(true));
            sleep(fault.lasts).await;
            each(&|host| host.silence(false));
        }
        FaultKind::Partition => {
            each(&FakeAgent::cut);
            sleep(fault.lasts).await;
            join_all(hosts.iter().map(|host| host.listen_again())).await;
        }
        FaultKind::Restart => {
            each(&FakeAgent::cut);
            sleep(fault.lasts).await;
            each(&FakeAgent::begin_anew);
            join_all(hosts.iter().map(|host| host.listen_again())).await;
        }
        FaultKind::Flapping { up, down } => {
            let end = Instant::now() + fault.lasts;
            let flapping = hosts.iter().map(|host| {
                let first = up.mul_f64(random.f64());
                flap(host, [first, up, down], end)
            });
            join_all(flapping.collect::<Vec<_>>()).await;
        }
        FaultKind::Slow { delay } => {
            each(&|host| host.look(|inner| inner.delay = delay));
            sleep(fault.lasts).await;
            each(&|host| host.look(|inner| inner.delay = Duration::ZERO));
        }
        FaultKind::Clock { ahead } => {
            each(&|host| host.look(|inner| inner.clock_ahead = ahead));
            sleep(fault.lasts).await;
            each(&|host| host.look(|inner| inner.clock_ahead = time::Duration::ZERO));
        }
        FaultKind::BootStorm => boot(&hosts, fault.lasts, random).await,
        FaultKind::Lying(lie) => {
            let lies = Lies::begin(lie, fleet, numbers);
            lies::keep_up(&lies, lie, fault.lasts).await;
            lies.end();
        }
    }
}

/// Goes and comes until `end`, and is there afterwards.
async fn flap(host: &FakeAgent, [first, up, down]: [Duration; 3], end: Instant) {
    let mut next = Instant::now() + first;
    while next < end {
        sleep_until(next).await;
        host.cut();
        sleep_until((next + down).min(end)).await;
        host.listen_again().await;
        next += down + up;
    }
    sleep_until(end).await;
}

/// The hosts lose their power and are back at once. The VMs that ran begin to boot within `time`, each writes its TPM.
async fn boot(hosts: &[&FakeAgent], time: Duration, random: &mut fastrand::Rng) {
    let mut boots: Vec<(&FakeAgent, VmId)> = Vec::new();
    for host in hosts {
        host.cut();
        host.begin_anew();
        let ran = host.look(|inner| {
            let running = inner.vms.iter_mut();
            let running = running.filter(|(_, vm)| vm.state == VmState::Running);
            let stopped = running.map(|(id, vm)| {
                vm.state = VmState::Stopped;
                *id
            });
            stopped.collect::<Vec<_>>()
        });
        boots.extend(ran.into_iter().map(|id| (*host, id)));
    }
    join_all(hosts.iter().map(|host| host.listen_again())).await;
    random.shuffle(&mut boots);
    let (begin, count) = (Instant::now(), boots.len().max(1) as f64);
    for (number, (host, id)) in boots.into_iter().enumerate() {
        sleep_until(begin + time.mul_f64((number + 1) as f64 / count)).await;
        host.look(|inner| {
            // Somebody may have deleted, moved or started it meanwhile.
            let vm = inner.vms.get_mut(&id);
            let Some(vm) = vm.filter(|vm| vm.state == VmState::Stopped) else {
                return;
            };
            vm.state = VmState::Running;
            vm.write_tpm();
            inner.tell(id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_chooses_the_same_hosts_and_another_one_others() {
        let chosen = |seed| choose_hosts(100, 30.0, &mut fastrand::Rng::with_seed(seed));
        assert_eq!(chosen(1).len(), 30);
        assert_eq!(chosen(1), chosen(1));
        assert_ne!(chosen(1), chosen(2));
    }
}
