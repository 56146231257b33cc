//! Whether the processes of running VMs' TPMs answer: looked at by and by, and before a VM moves.

use crate::host::Host;
use crate::machines;
use fleetward_model::VmId;
use fleetward_model::vm::TpmProcess;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks at all of them.
const EVERY: Duration = Duration::from_secs(5);

/// The last look: the VMs whose TPM has a process, and the number of one that was stopped.
#[derive(Debug, Default)]
pub(crate) struct TpmProcesses(Mutex<HashMap<VmId, Option<u32>>>);

impl TpmProcesses {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Option<u32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with the process of a running VM's TPM. None also where it cannot be seen: then nothing is said.
///
/// Only a look of just now says that something is; that nothing is, the last one says, too.
pub(crate) async fn of(host: &Host, vm: VmId) -> Option<TpmProcess> {
    if host.tpm_processes.lock().get(&vm) == Some(&None) {
        return None;
    }
    now(host, vm).await
}

/// The same, of just now.
pub(crate) async fn now(host: &Host, vm: VmId) -> Option<TpmProcess> {
    match look(host).await?.get(&vm) {
        Some(None) => None,
        Some(Some(pid)) => Some(TpmProcess::Stopped { pid: *pid }),
        None => Some(TpmProcess::Gone),
    }
}

/// Looks at all of them, and has every VM looked at for which something has changed.
async fn look(host: &Host) -> Option<HashMap<VmId, Option<u32>>> {
    let found = match host.tpms.processes().await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "the processes of TPMs cannot be seen");
            return None;
        }
    };
    let before = std::mem::replace(&mut *host.tpm_processes.lock(), found.clone());
    let new = found.keys().filter(|vm| !before.contains_key(vm));
    for vm in before.keys().chain(new) {
        if before.get(vm) != found.get(vm) {
            host.observer.look_at(*vm);
        }
    }
    Some(found)
}

/// Looks by and by until `stop`, also at the machines themselves.
pub(crate) async fn watch(host: Arc<Host>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        // Without a reader nobody would be told, and the next one begins with a look at every VM.
        if host.observer.has_reader() {
            look(&host).await;
            machines::look(&host).await;
        }
    }
}
