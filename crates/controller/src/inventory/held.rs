//! What is known of one VM on one host, and what of that is in the store.
//!
//! ```text
//!   a host's word ──► as before ────────────────────────► nothing to write
//!                ├──► another condition (runs, stops) ──► the conditions of that host's VMs, now and then, in one record
//!                └──► anything else ────────────────────► the VM's own record, at once
//! ```
//!
//! A VM's own record takes some kilobytes, and what changes most takes some bytes. A condition is of no use without the
//! record that it was written over: it names that record's revision, so one that is older or newer is not mixed with it.

use fleetward_model::vm::{Noted, VmObserved, VmState};
use fleetward_model::{ByteSize, VmId};
use fleetward_store::Revision;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::time::Instant;

/// A VM as one host told it last.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) vm: Arc<VmObserved>,
    /// Since when it is in the state it is in.
    pub(super) since: OffsetDateTime,
    /// The revision of its record; none: there is none, or it is behind.
    pub(super) recorded: Option<Revision>,
    /// It has another condition than its record says.
    pub(super) has_moved: bool,
    /// When it was taken.
    pub(super) at: Instant,
    /// It answered a question, when it was so by the host's own clock: events of before may still be on their way.
    pub(super) answered: Option<OffsetDateTime>,
}

/// How a VM is, as opposed to what it is: what changes while it is used, and is not kept at once. The digest of its TPM's
/// state is not here, because it decides whether a copy is the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Condition {
    /// Of the VM's record that this belongs to.
    over: u64,
    state: VmState,
    reason: String,
    #[serde(with = "time::serde::rfc3339")]
    observed: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    /// What each disk takes, and what those take that it builds on; in bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allocated: Vec<(ByteSize, ByteSize)>,
    #[serde(default, skip_serializing_if = "Noted::is_empty")]
    noted: Noted,
}

/// The conditions of a host's VMs that differ from their records.
pub(super) type Conditions = BTreeMap<VmId, Condition>;

impl Held {
    /// Whether an event of that time, by the host's own clock, was on its way when this was asked for.
    pub(super) fn overtook(&self, event: OffsetDateTime) -> bool {
        self.answered.is_some_and(|answered| event < answered)
    }

    /// Whether an answer is newer than this: it was asked for when this was here already, or the host's own clock says so.
    pub(super) fn is_before(&self, asked: Instant, answer: Option<&VmObserved>) -> bool {
        self.at <= asked || answer.is_some_and(|answer| self.vm.observed <= answer.observed)
    }

    /// The condition to be written over its record; none where the record says all.
    pub(super) fn condition(&self) -> Option<Condition> {
        let over = self.recorded.filter(|_| self.has_moved)?;
        let vm = &self.vm;
        let allocated = vm.disks.iter();
        Some(Condition {
            over: over.0,
            state: vm.state,
            reason: vm.reason.clone(),
            observed: vm.observed,
            since: self.since,
            allocated: allocated
                .map(|disk| (disk.allocated, disk.bases_allocated))
                .collect(),
            noted: vm.noted.clone(),
        })
    }

    /// Takes a condition that was written over the record that this was read from; any other is of another time.
    pub(super) fn take(&mut self, condition: Condition) {
        let vm = Arc::make_mut(&mut self.vm);
        if self.recorded != Some(Revision(condition.over))
            || vm.disks.len() != condition.allocated.len()
        {
            return;
        }
        for (disk, (allocated, bases)) in vm.disks.iter_mut().zip(condition.allocated) {
            disk.allocated = allocated;
            disk.bases_allocated = bases;
        }
        vm.state = condition.state;
        vm.reason = condition.reason;
        vm.observed = condition.observed;
        vm.noted = condition.noted;
        self.since = condition.since;
        self.has_moved = true;
    }
}

/// How a report differs from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// In nothing but when it was made.
    Nothing,
    Condition,
    More,
}

impl Difference {
    pub(super) fn between(known: &VmObserved, new: &VmObserved) -> Self {
        let mut as_before = new.clone();
        as_before.observed = known.observed;
        if as_before == *known {
            return Self::Nothing;
        }
        as_before.state = known.state;
        as_before.reason.clone_from(&known.reason);
        as_before.noted.clone_from(&known.noted);
        for (disk, known) in as_before.disks.iter_mut().zip(&known.disks) {
            disk.allocated = known.allocated;
            disk.bases_allocated = known.bases_allocated;
        }
        match as_before == *known {
            true => Self::Condition,
            false => Self::More,
        }
    }
}
