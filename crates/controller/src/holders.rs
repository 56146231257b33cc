//! In-memory index of the job that holds each VM, so that lists need not read the store and placement can count
//! running creations.

use crate::work::{About, Reservation};
use fleetward_model::admission;
use fleetward_model::{JobId, VmId};
use std::collections::HashMap;
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
pub(crate) struct Holders(Mutex<HashMap<JobId, Holder>>);

impl Holders {
    pub(crate) fn add(&self, job: JobId, holder: Holder) {
        self.lock().insert(job, holder);
    }

    pub(crate) fn remove(&self, job: JobId) {
        self.lock().remove(&job);
    }

    /// The job that works on a VM, and its kind.
    pub(crate) fn of(&self, vm: VmId) -> Option<(admission::Holder, String)> {
        let holders = self.lock();
        let mut all = holders.iter();
        let (job, found) = all.find(|(_, holder)| holder.about.vm == Some(vm))?;
        let holder = admission::Holder {
            job: *job,
            request: found.about.request,
        };
        Some((holder, found.kind.clone()))
    }

    pub(crate) fn reservations(&self) -> Vec<Reservation> {
        let holders = self.lock();
        holders
            .values()
            .filter_map(|holder| holder.about.reservation.clone())
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
