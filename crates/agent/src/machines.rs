//! Running VMs whose QEMU does not answer: looked at by and by.
//!
//! ```text
//!  one look ──┬─ its process was stopped ───────────────────────────────► stopped
//!             ├─ it waits in the kernel, as at every look for 10 s ──┐
//!             ├─ it owes libvirt an answer for 10 s ─────────────────┴──► hangs, since then
//!             └─ none of that ──────────────────────────────────────────► nothing is said
//! ```

use crate::failure::Result;
use crate::host::Host;
use fleetward_hypervisor::MachineSeen;
use fleetward_model::vm::{QemuHangs, QemuProcess};
use fleetward_model::{Failure, VmId, VmName};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;

/// A machine that is only busy answers within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the last look found.
#[derive(Debug, Default)]
pub(crate) struct Machines(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    silent: HashMap<VmId, Silent>,
    said: HashMap<VmId, Said>,
}

/// A machine that may not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Silent {
    pid: Option<u32>,
    stopped: bool,
    /// How often it had waited in the kernel before the wait that it is in, and since when that one is seen.
    in_kernel: Option<(u64, OffsetDateTime)>,
    /// Since when it has not answered libvirt.
    unanswered: Option<OffsetDateTime>,
}

/// What is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Stopped(QemuProcess),
    Hangs(QemuHangs),
}

impl Silent {
    /// As it is seen now; none where it answers.
    fn after(former: Option<&Self>, seen: &MachineSeen, now: OffsetDateTime) -> Option<Self> {
        let in_kernel = seen.in_kernel.map(|waits| {
            let former = former.and_then(|former| former.in_kernel);
            former
                .filter(|(before, _)| *before == waits)
                .unwrap_or((waits, now))
        });
        // What was seen first stays: the moment is reckoned from a duration, and would move a little at each look.
        let unanswered = seen.unanswered.map(|waiting| {
            let since = now - waiting;
            let former = former.and_then(|former| former.unanswered);
            former
                .filter(|former| (since - *former).abs() < time::Duration::seconds(2))
                .unwrap_or(since)
        });
        let wrong = seen.stopped || in_kernel.is_some() || unanswered.is_some();
        wrong.then_some(Self {
            pid: seen.pid,
            stopped: seen.stopped,
            in_kernel,
            unanswered,
        })
    }

    fn said(&self, now: OffsetDateTime) -> Option<Said> {
        if let (true, Some(pid)) = (self.stopped, self.pid) {
            return Some(Said::Stopped(QemuProcess::Stopped { pid }));
        }
        let in_kernel = self.in_kernel.map(|(_, since)| since);
        let long = |since: &OffsetDateTime| now - *since >= PATIENCE;
        let (in_kernel, unanswered) = (in_kernel.filter(long), self.unanswered.filter(long));
        let since = in_kernel.into_iter().chain(unanswered).min()?;
        Some(Said::Hangs(QemuHangs {
            since,
            pid: self.pid,
            in_kernel: in_kernel.is_some(),
            shown_as_of: None,
        }))
    }
}

impl Found {
    /// Takes a look in; the VMs of which something else is said now.
    fn learn(&mut self, seen: &HashMap<VmId, MachineSeen>, now: OffsetDateTime) -> Vec<VmId> {
        let after = |(vm, seen): (&VmId, &MachineSeen)| {
            let silent = Silent::after(self.silent.get(vm), seen, now)?;
            Some((*vm, silent))
        };
        self.silent = seen.iter().filter_map(after).collect();
        let said = |(vm, silent): (&VmId, &Silent)| Some((*vm, silent.said(now)?));
        let said = self.silent.iter().filter_map(said).collect();
        let before = std::mem::replace(&mut self.said, said);
        let new = self.said.keys().filter(|vm| !before.contains_key(vm));
        let all = before.keys().chain(new);
        all.filter(|vm| before.get(vm) != self.said.get(vm))
            .copied()
            .collect()
    }
}

impl Machines {
    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a VM's process was stopped.
    pub(crate) fn stopped(&self, vm: VmId) -> Option<QemuProcess> {
        match self.lock().said.get(&vm)? {
            Said::Stopped(stopped) => Some(*stopped),
            Said::Hangs(_) => None,
        }
    }

    /// Whether a VM's machine hangs.
    pub(crate) fn hangs(&self, vm: VmId) -> Option<QemuHangs> {
        match self.lock().said.get(&vm)? {
            Said::Hangs(hangs) => Some(hangs.clone()),
            Said::Stopped(_) => None,
        }
    }

    /// Whether a question to a VM's machine may have an answer.
    pub(crate) fn answers(&self, vm: VmId) -> bool {
        !self.lock().said.contains_key(&vm)
    }
}

/// Looks at all of them, and has every VM looked at for which something has changed.
pub(crate) async fn look(host: &Host) {
    let seen = match host.hypervisor.look_at_machines().await {
        Ok(seen) => seen,
        Err(error) => {
            tracing::debug!(%error, "whether machines answer cannot be seen");
            return;
        }
    };
    let changed = host.machines.lock().learn(&seen, OffsetDateTime::now_utc());
    for vm in changed {
        host.observer.look_at(vm);
    }
}

/// Refuses what a machine would have to answer, while it does not: libvirt would wait for it for half a minute, and all others
/// for libvirt. Only a look of just now says that it does not.
///
/// # Errors
/// `QEMU_NOT_ANSWERING`.
pub(crate) async fn require_answer(host: &Host, vm: VmId, name: &VmName) -> Result<()> {
    if host.machines.answers(vm) {
        return Ok(());
    }
    look(host).await;
    let said = host.machines.lock().said.get(&vm).cloned();
    let Some(said) = said else {
        return Ok(());
    };
    let on = &host.member.host;
    let finding = match said {
        Said::Stopped(stopped) => stopped.finding(name, on),
        Said::Hangs(hangs) => hangs.finding(name, on),
    };
    let failure = Failure::new(finding.code, format!("VM {name} does not answer"));
    Err(failure.because(finding.what).fix(finding.fix).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const VM: VmId = VmId(Uuid::from_u128(7));
    const START: OffsetDateTime = time::macros::datetime!(2026-11-27 12:00 UTC);

    fn seconds(count: u64) -> OffsetDateTime {
        START + Duration::from_secs(count)
    }

    fn seen(in_kernel: Option<u64>, unanswered: Option<u64>) -> MachineSeen {
        MachineSeen {
            pid: Some(163),
            stopped: false,
            in_kernel,
            unanswered: unanswered.map(Duration::from_secs),
        }
    }

    /// Looks every five seconds; what is said after each.
    fn said(looks: &[MachineSeen]) -> Vec<Option<Said>> {
        let mut found = Found::default();
        let look = |(at, seen): (usize, &MachineSeen)| {
            found.learn(&HashMap::from([(VM, *seen)]), seconds(at as u64 * 5));
            found.said.get(&VM).cloned()
        };
        looks.iter().enumerate().map(look).collect()
    }

    fn hangs(since: u64, in_kernel: bool) -> Option<Said> {
        Some(Said::Hangs(QemuHangs {
            since: seconds(since),
            pid: Some(163),
            in_kernel,
            shown_as_of: None,
        }))
    }

    #[test]
    fn one_long_wait_in_the_kernel_is_a_hang_and_many_short_ones_are_not() {
        let wait = |count| seen(Some(count), None);
        assert_eq!(
            said(&[wait(4), wait(4), wait(4), wait(4), seen(None, None)]),
            [None, None, hangs(0, true), hangs(0, true), None]
        );
        assert_eq!(
            said(&[wait(4), wait(5), wait(6), wait(9)]),
            [const { None }; 4]
        );
    }

    #[test]
    fn a_question_without_an_answer_is_a_hang_after_ten_seconds() {
        let owes = |waiting| seen(None, Some(waiting));
        assert_eq!(
            said(&[owes(1), owes(6), owes(11), owes(0)]),
            [None, None, hangs(0, false).map(earlier), None]
        );
    }

    /// It was asked a second before the first look.
    fn earlier(said: Said) -> Said {
        match said {
            Said::Hangs(hangs) => Said::Hangs(QemuHangs {
                since: hangs.since - Duration::from_secs(1),
                ..hangs
            }),
            Said::Stopped(_) => said,
        }
    }

    #[test]
    fn a_stopped_process_is_told_at_once_and_nothing_is_told_twice() {
        let mut found = Found::default();
        let stopped = HashMap::from([(
            VM,
            MachineSeen {
                stopped: true,
                ..seen(None, Some(1))
            },
        )]);
        assert_eq!(found.learn(&stopped, START), [VM]);
        let expected = Said::Stopped(QemuProcess::Stopped { pid: 163 });
        assert_eq!(found.said.get(&VM), Some(&expected));
        assert_eq!(found.learn(&stopped, seconds(5)), []);
        assert_eq!(found.learn(&HashMap::new(), seconds(10)), [VM]);
    }
}
