//! Running VMs whose QEMU does not answer: looked at by and by.

use crate::host::Host;
use fleetward_model::VmId;
use fleetward_model::vm::QemuProcess;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// What the last look found wrong.
#[derive(Debug, Default)]
pub(crate) struct Machines(Mutex<HashMap<VmId, QemuProcess>>);

impl Machines {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, QemuProcess>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was wrong with a VM's at the last look.
    pub(crate) fn of(&self, vm: VmId) -> Option<QemuProcess> {
        self.lock().get(&vm).copied()
    }
}

/// Looks at all of them, and has every VM looked at for which something has changed.
pub(crate) async fn look(host: &Host) {
    let found = match host.hypervisor.not_answering().await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "whether machines answer cannot be seen");
            return;
        }
    };
    let before = std::mem::replace(&mut *host.machines.lock(), found.clone());
    let new = found.keys().filter(|vm| !before.contains_key(vm));
    for vm in before.keys().chain(new) {
        if before.get(vm) != found.get(vm) {
            host.observer.look_at(*vm);
        }
    }
}
