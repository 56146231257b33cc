//! Hosts that lie: what they say while they do, and how they stop.

use super::Lie;
use crate::agent::{FakeAgent, FakeVm};
use crate::fleet::RunningFleet;
use fleetward_model::{GuardianId, VmId};
use std::borrow::Cow;
use std::time::Duration;
use tokio::time::sleep;

/// The least and the most bytes of the reason in a growing report: beyond what a controller takes of one VM, and below what
/// it takes of one event.
const GROWS_FROM: usize = 1 << 10;
const GROWS_TO: usize = 4 << 20;

/// Hosts that lie, and what is taken back at the end.
pub(super) struct Lies<'f>(Vec<Liar<'f>>);

struct Liar<'f> {
    host: &'f FakeAgent,
    back: Back,
}

enum Back {
    /// VMs that it never had.
    Claims(Vec<VmId>),
    OwnAnswers,
    /// What was said of a VM before.
    Reason(Option<(VmId, Cow<'static, str>)>),
}

impl<'f> Lies<'f> {
    pub(super) fn begin(lie: Lie, fleet: &'f RunningFleet, numbers: &[usize]) -> Self {
        let liars = numbers.iter().map(|number| {
            let host = &fleet.hosts[*number];
            let back = match lie {
                Lie::OthersVms { vms } => {
                    let other = &fleet.hosts[(number + 1) % fleet.hosts.len()];
                    Back::Claims(claim(host, other, vms))
                }
                Lie::AnyVm => {
                    host.look(|inner| inner.answers_with = inner.vms.keys().next().copied());
                    Back::OwnAnswers
                }
                Lie::GrowingReports => Back::Reason(host.look(|inner| {
                    let first = inner.vms.iter().next();
                    first.map(|(id, vm)| (*id, vm.reason.clone()))
                })),
            };
            Liar { host, back }
        });
        Self(liars.collect())
    }

    /// They say what is so.
    pub(super) fn end(self) {
        for Liar { host, back } in self.0 {
            host.look(|inner| match back {
                Back::Claims(claimed) => {
                    for id in claimed {
                        inner.vms.remove(&id);
                        inner.tpms.remove(&id);
                        inner.tell(id);
                    }
                }
                Back::OwnAnswers => inner.answers_with = None,
                Back::Reason(None) => {}
                Back::Reason(Some((id, reason))) => {
                    if let Some(vm) = inner.vms.get_mut(&id) {
                        vm.reason = reason;
                        inner.tell(id);
                    }
                }
            });
        }
    }

    fn grow(&self, bytes: usize) {
        for liar in &self.0 {
            let Back::Reason(Some((id, _))) = &liar.back else {
                continue;
            };
            liar.host.look(|inner| {
                if let Some(vm) = inner.vms.get_mut(id) {
                    vm.reason = Cow::Owned("x".repeat(bytes));
                    inner.tell(*id);
                }
            });
        }
    }
}

/// Returns after `time`. What grows has grown to its end by then.
pub(super) async fn keep_up(lies: &Lies<'_>, lie: Lie, time: Duration) {
    if lie != Lie::GrowingReports {
        sleep(time).await;
        return;
    }
    let sizes = std::iter::successors(Some(GROWS_FROM), |size| Some(size * 2));
    let sizes: Vec<usize> = sizes.take_while(|size| *size <= GROWS_TO).collect();
    for size in &sizes {
        lies.grow(*size);
        sleep(time.div_f64(sizes.len() as f64)).await;
    }
}

/// `liar` says it has the first VMs of `other`, as they are there; returns which.
fn claim(liar: &FakeAgent, other: &FakeAgent, vms: u32) -> Vec<VmId> {
    // One after the other: two hosts that claim each other's would wait for each other.
    let copies: Vec<(VmId, FakeVm, Vec<GuardianId>)> = other.look(|inner| {
        let guardians = |id| inner.tpms.get(id).cloned().unwrap_or_default();
        let copies = inner.vms.iter();
        let copies = copies.map(|(id, vm)| (*id, vm.clone(), guardians(id)));
        copies.take(vms as usize).collect()
    });
    liar.look(|inner| {
        let mut claimed = Vec::new();
        for (id, vm, guardians) in copies {
            if inner.vms.contains_key(&id) {
                continue;
            }
            inner.vms.insert(id, vm);
            inner.tpms.insert(id, guardians);
            inner.tell(id);
            claimed.push(id);
        }
        claimed
    })
}
