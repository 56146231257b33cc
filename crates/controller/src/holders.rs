//! In-memory index of the job that holds each VM, so that lists need not read the store and placement can count
//! running creations.

use crate::work::{About, Reservation};
use fleetward_model::admission;
use fleetward_model::{JobId, VmId};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// A job that has not ended.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) kind: String,
    /// Its VM, and what it will take of a host.
    pub(crate) about: About,
}

/// All jobs that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Holders(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    jobs: HashMap<JobId, Holder>,
    /// The jobs of each VM.
    vms: HashMap<VmId, BTreeSet<JobId>>,
}

impl Holders {
    pub(crate) fn add(&self, job: JobId, holder: Holder) {
        let mut held = self.lock();
        if let Some(vm) = holder.about.vm {
            held.vms.entry(vm).or_default().insert(job);
        }
        held.jobs.insert(job, holder);
    }

    /// The VM that the job held, if it held one until now.
    pub(crate) fn remove(&self, job: JobId) -> Option<VmId> {
        let mut held = self.lock();
        let vm = held.jobs.remove(&job)?.about.vm?;
        if let Entry::Occupied(mut jobs) = held.vms.entry(vm) {
            jobs.get_mut().remove(&job);
            if jobs.get().is_empty() {
                jobs.remove();
            }
        }
        Some(vm)
    }

    /// The job that works on a VM, and its kind.
    pub(crate) fn of(&self, vm: VmId) -> Option<(admission::Holder, String)> {
        let held = self.lock();
        let job = held.vms.get(&vm)?.first()?;
        let found = held.jobs.get(job)?;
        let holder = admission::Holder {
            job: *job,
            request: found.about.request,
        };
        Some((holder, found.kind.clone()))
    }

    /// Whether a job works on a VM.
    pub(crate) fn hold(&self, vm: VmId) -> bool {
        self.lock().vms.contains_key(&vm)
    }

    pub(crate) fn reservations(&self) -> Vec<Reservation> {
        let held = self.lock();
        held.jobs
            .values()
            .filter_map(|holder| holder.about.reservation.clone())
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().jobs.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
