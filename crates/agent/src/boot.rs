//! VMs that come back with their host.
//!
//! ```text
//!   the host has booted anew ── libvirt answers ──► due: its stopped VMs with autostart, oldest first
//!     waiting ─┬─ asked for; the controller starts it (`vm-start`) ──────────────────► started
//!              ├─ nobody answers, and agent.toml permits: the agent starts it itself ──► started
//!              ├─ it runs, whoever started it ─────────────────────────────────────► started
//!              └─ refused for a reason that lasts; rebuilt elsewhere meanwhile ─────► off, and why
//! ```
//! A copy that was rebuilt on another host while this one was away must never start, and only the controller knows of that.
//! So the agent asks for each VM, in its facts, and the controller answers with a job; its locks and its record of copies that
//! count for nothing are in its store. The agent decides about order and pace: it asks for a few at a time.
//!
//! What is due lies in `boot.json`, so an agent that is started again in the middle goes on. The first agent on a host only
//! writes down which boot it saw: VMs that were stopped when Fleetward learnt to start them stay stopped.

use crate::host::Host;
use crate::operation::table;
use fleetward_api::agent::operation::Operation;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{DomainObserved, DomainState};
use fleetward_model::boot::{AfterBoot, BootFacts, StayedOff};
use fleetward_model::{VmId, VmName};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether the next VM can be asked for.
const LOOK: Duration = Duration::from_millis(500);
/// A VM that is asked for without an answer for so long lets another go first.
const TURN: Duration = Duration::from_secs(30);
/// VMs that stayed off are named up to this number.
const MOST_NAMED: usize = 32;

/// What `boot.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BootRecord {
    /// The kernel's id of this boot.
    boot_id: String,
    #[serde(with = "time::serde::rfc3339")]
    noticed: OffsetDateTime,
    /// None: libvirt has not been asked yet.
    due: Option<Vec<Due>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Due {
    vm: VmId,
    name: VmName,
    #[serde(flatten)]
    state: DueState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum DueState {
    Waiting,
    Started,
    Off { because: String },
}

/// The VMs that the host's boot brings back.
#[derive(Debug)]
pub(crate) struct Boot {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: BootRecord,
    /// Asked for now, with since when.
    asking: Vec<(VmId, Instant)>,
    /// Had their turn without an answer: asked for again when all others had theirs.
    later: VecDeque<VmId>,
    /// Nothing more is begun before.
    pause: Option<Instant>,
    /// When somebody who can answer was last there.
    heard: Instant,
}

impl Boot {
    /// Compares the boot with the one that was seen last.
    pub(crate) fn open(path: PathBuf, boot_id: &str, now: OffsetDateTime) -> Self {
        let known: Option<BootRecord> = durable::read_json(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "which boot was seen last is not known");
            None
        });
        let record = match known {
            Some(known) if known.boot_id == boot_id => known,
            Some(_) => BootRecord {
                boot_id: boot_id.to_owned(),
                noticed: now,
                due: None,
            },
            None => BootRecord {
                boot_id: boot_id.to_owned(),
                noticed: now,
                due: Some(Vec::new()),
            },
        };
        let boot = Self {
            path,
            state: Mutex::new(State {
                record,
                asking: Vec::new(),
                later: VecDeque::new(),
                pause: None,
                heard: Instant::now(),
            }),
        };
        boot.write(&boot.lock().record);
        boot
    }

    /// For the host's facts; none where nothing was due.
    pub(crate) fn facts(&self) -> Option<BootFacts> {
        let state = self.lock();
        let due = state.record.due.as_deref().unwrap_or_default();
        if due.is_empty() {
            return None;
        }
        let count = |wanted: fn(&DueState) -> bool| {
            let found = due.iter().filter(|due| wanted(&due.state)).count();
            u32::try_from(found).unwrap_or(u32::MAX)
        };
        let off = due.iter().filter_map(|due| match &due.state {
            DueState::Off { because } => Some(StayedOff {
                vm: due.name.clone(),
                because: because.clone(),
            }),
            DueState::Waiting | DueState::Started => None,
        });
        Some(BootFacts {
            noticed: state.record.noticed,
            asking: state.asking.iter().map(|(vm, _)| *vm).collect(),
            waiting: count(|state| matches!(state, DueState::Waiting)),
            started: count(|state| matches!(state, DueState::Started)),
            off: off.take(MOST_NAMED).collect(),
        })
    }

    /// For the report of a VM.
    pub(crate) fn of(&self, vm: VmId) -> Option<AfterBoot> {
        let state = self.lock();
        let due = state.record.due.iter().flatten().find(|due| due.vm == vm)?;
        match &due.state {
            DueState::Waiting => Some(AfterBoot::Waiting),
            DueState::Started => None,
            DueState::Off { because } => Some(AfterBoot::Off {
                because: because.clone(),
            }),
        }
    }

    /// Takes note of how an operation on a VM ended: `None` for well, else why not, if trying again is no cure.
    pub(crate) fn note(&self, vm: VmId, operation: &Operation, refused: Option<String>) {
        match (operation, refused) {
            (Operation::Start(_), None) => self.settle(vm, DueState::Started),
            (Operation::Start(_), Some(because)) => {
                tracing::warn!(%vm, because, "a VM stays off after the host's boot");
                self.settle_waiting(vm, DueState::Off { because });
            }
            (Operation::Supersede(_), None) => self.settle(
                vm,
                DueState::Off {
                    because: "it was rebuilt on another host while this one was away".to_owned(),
                },
            ),
            _ => {}
        }
    }

    fn settle(&self, vm: VmId, outcome: DueState) {
        self.change(vm, |state| *state = outcome);
    }

    fn settle_waiting(&self, vm: VmId, outcome: DueState) {
        self.change(vm, |state| {
            if *state == DueState::Waiting {
                *state = outcome;
            }
        });
    }

    fn change(&self, vm: VmId, change: impl FnOnce(&mut DueState)) {
        let mut state = self.lock();
        let Some(due) = state
            .record
            .due
            .iter_mut()
            .flatten()
            .find(|due| due.vm == vm)
        else {
            return;
        };
        let before = due.state.clone();
        change(&mut due.state);
        if due.state != before {
            state.asking.retain(|(asked, _)| *asked != vm);
            self.write(&state.record);
        }
    }

    /// Forgets a VM that is not here any more.
    fn forget(&self, vm: VmId) {
        let mut state = self.lock();
        let Some(due) = &mut state.record.due else {
            return;
        };
        due.retain(|due| due.vm != vm || due.state != DueState::Waiting);
        state.asking.retain(|(asked, _)| *asked != vm);
        self.write(&state.record);
    }

    fn is_listed(&self) -> bool {
        self.lock().record.due.is_some()
    }

    fn list(&self, due: Vec<Due>) {
        let mut state = self.lock();
        state.record.due = Some(due);
        self.write(&state.record);
    }

    fn waiting(&self) -> Vec<VmId> {
        let state = self.lock();
        let due = state.record.due.iter().flatten();
        due.filter(|due| due.state == DueState::Waiting)
            .map(|due| due.vm)
            .collect()
    }

    /// Asks for the next ones, `parallel` at a time; those that had their turn without an answer go behind the others.
    fn advance(&self, waiting: &[VmId], parallel: usize) {
        let mut state = self.lock();
        let State {
            asking,
            later,
            pause,
            ..
        } = &mut *state;
        later.retain(|vm| waiting.contains(vm));
        let unanswered = |(_, since): &(VmId, Instant)| since.elapsed() >= TURN;
        if waiting.len() > asking.len() {
            later.extend(
                asking
                    .iter()
                    .filter(|one| unanswered(one))
                    .map(|(vm, _)| *vm),
            );
            asking.retain(|one| !unanswered(one));
        }
        if pause.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let fresh = waiting.iter().filter(|vm| !later.contains(vm)).copied();
        let next: Vec<VmId> = fresh.chain(later.iter().copied()).collect();
        for vm in next {
            if asking.len() >= parallel {
                break;
            }
            if asking.iter().all(|(asked, _)| *asked != vm) {
                later.retain(|other| *other != vm);
                asking.push((vm, Instant::now()));
            }
        }
    }

    fn asking(&self) -> Vec<VmId> {
        self.lock().asking.iter().map(|(vm, _)| *vm).collect()
    }

    /// One has started: the host gets a moment before the next.
    fn rest(&self, pause: Duration) {
        self.lock().pause = Some(Instant::now() + pause);
    }

    fn heard(&self) {
        self.lock().heard = Instant::now();
    }

    fn silent_for(&self) -> Duration {
        self.lock().heard.elapsed()
    }

    fn write(&self, record: &BootRecord) {
        if let Err(error) = durable::replace_json(&self.path, record, Access::PRIVATE) {
            tracing::warn!(%error, path = %self.path.display(), "what the host's boot brings back is not written down");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings back what is due, until nothing is or `stop`.
pub(crate) async fn bring_back(host: Arc<Host>, stop: CancellationToken) {
    let mut said = false;
    loop {
        if host.boot.is_listed() {
            if host.boot.waiting().is_empty() {
                return;
            }
            step(&host, &mut said).await;
        } else {
            list(&host).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Writes down what is due, once libvirt answers.
async fn list(host: &Host) {
    let Ok(domains) = host.hypervisor.list().await else {
        return;
    };
    let mut due: Vec<_> = domains
        .into_iter()
        .filter_map(|domain| {
            let spec = comes_back(host, &domain)?;
            Some((
                spec.created,
                Due {
                    vm: spec.id,
                    name: spec.name.clone(),
                    state: DueState::Waiting,
                },
            ))
        })
        .collect();
    due.sort_by_key(|(created, due)| (*created, due.vm));
    let due: Vec<Due> = due.into_iter().map(|(_, due)| due).collect();
    if !due.is_empty() {
        tracing::info!(
            vms = due.len(),
            "the host has booted: its VMs with autostart come back"
        );
    }
    host.boot.list(due);
}

/// The specification of a domain that is the VM, is off, and is to come back.
fn comes_back<'d>(
    host: &Host,
    domain: &'d DomainObserved,
) -> Option<&'d fleetward_model::vm::VmSpec> {
    let spec = &domain.metadata.as_ref()?.spec;
    let off = matches!(domain.state, DomainState::Stopped(_));
    let whole = host.record(domain.id).is_whole().unwrap_or(false);
    (spec.autostart && off && whole).then_some(spec)
}

async fn step(host: &Arc<Host>, said: &mut bool) {
    let config = &host.config;
    let pause = Duration::from_secs(config.autostart_pause.into());
    for vm in host.boot.asking() {
        if !host.operations.is_busy(vm) {
            look(host, vm, pause).await;
        }
    }
    host.boot
        .advance(&host.boot.waiting(), config.autostart_parallel);
    if host.observer.has_reader() {
        host.boot.heard();
        return;
    }
    let patience = Duration::from_secs(config.autostart_patience.into());
    if host.boot.silent_for() < patience {
        return;
    }
    if !config.autostart_without_controller {
        if !*said {
            *said = true;
            tracing::warn!(
                vms = host.boot.waiting().len(),
                "the controller does not answer, so VMs with autostart stay off until it does: one of them may have been \
                 rebuilt on another host. autostart_without_controller in agent.toml is for a host that is alone"
            );
        }
        return;
    }
    for vm in host.boot.asking() {
        let why = "the VM starts with its host, without the controller's word";
        if table::start_own(host, vm, why).is_some() {
            tracing::info!(%vm, "starting a VM without the controller's word");
        }
    }
}

/// What became of a VM that was asked for.
async fn look(host: &Host, vm: VmId, pause: Duration) {
    let domain = match host.hypervisor.inspect(vm).await {
        Ok(domain) => domain,
        Err(fleetward_hypervisor::Error::NoDomain(_)) => {
            host.boot.forget(vm);
            return;
        }
        // libvirt is away: it is looked at again.
        Err(_) => return,
    };
    if !matches!(domain.state, DomainState::Stopped(_)) {
        host.boot.settle(vm, DueState::Started);
        host.boot.rest(pause);
    } else if comes_back(host, &domain).is_none() {
        host.boot.settle_waiting(
            vm,
            DueState::Off {
                because: "it is not to start with its host any more, or has left it".to_owned(),
            },
        );
    }
}
