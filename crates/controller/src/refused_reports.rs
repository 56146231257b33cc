//! What a host reports that is more than is taken: refused for that host alone, and named.
//!
//! The store takes values of a mebibyte, and one that is larger would hold up whatever is written with it. So each report is
//! measured when it arrives. What is refused changes nothing: the VM stays as it was last seen.

use fleetward_api::agent::{MAX_DOMAINS, MAX_REPORT};
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, VmId, VmName};
use std::collections::BTreeMap;

/// Bytes that all reports of one host may have together.
const MAX_ALL: usize = 64 << 20;
/// Refused reports that are named.
const NAMED: usize = 20;

/// What one host's reports take, and which were refused.
#[derive(Debug, Clone, Default)]
pub(crate) struct RefusedReports {
    /// Bytes of each report that was taken.
    sizes: BTreeMap<VmId, usize>,
    all: usize,
    vms: BTreeMap<VmId, (VmName, usize)>,
    facts: Option<usize>,
    events: Option<String>,
}

impl RefusedReports {
    /// Whether a report of so many bytes is taken; `known` is whether the VM is among the host's `count`.
    pub(crate) fn judge(
        &mut self,
        vm: &VmObserved,
        size: usize,
        known: bool,
        count: usize,
    ) -> bool {
        let before = self.sizes.get(&vm.id).copied().unwrap_or_default();
        let all = self.all - before + size;
        if size <= MAX_REPORT && all <= MAX_ALL && (known || count < MAX_DOMAINS) {
            self.all = all;
            self.sizes.insert(vm.id, size);
            self.vms.remove(&vm.id);
            return true;
        }
        if self.vms.contains_key(&vm.id) || self.vms.len() < NAMED {
            self.vms.insert(vm.id, (vm.name.clone(), size));
        }
        false
    }

    /// The same of what a host says of itself.
    pub(crate) fn judge_facts(&mut self, size: usize) -> bool {
        self.facts = (size > MAX_REPORT).then_some(size);
        self.facts.is_none()
    }

    /// The events were given up; `failure` says why.
    pub(crate) fn events(&mut self, failure: &Failure) {
        if failure.code == ErrorCode::ReportTooLarge {
            self.events = Some(failure.because.clone());
        }
    }

    /// The VM is gone.
    pub(crate) fn forget(&mut self, vm: VmId) {
        self.all -= self.sizes.remove(&vm).unwrap_or_default();
        self.vms.remove(&vm);
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let code = ErrorCode::ReportTooLarge.as_str();
        let vms = self.vms.values().map(|(name, size)| {
            format!(
                "{code}: its report of VM {name} has {size} bytes; at most {MAX_REPORT} are taken, {MAX_ALL} for all of its \
                 VMs, of which there are at most {MAX_DOMAINS}; the VM is shown as it was last seen"
            )
        });
        let facts = self.facts.map(|size| {
            format!("{code}: what it says of itself has {size} bytes, and at most {MAX_REPORT} are taken")
        });
        let events = self.events.iter();
        let events = events.map(|because| format!("{code}: its events were given up: {because}"));
        vms.chain(facts).chain(events).collect()
    }
}
