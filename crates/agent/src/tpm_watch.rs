//! Detects that swtpm has written a VM's state, and requests an inspection of that VM.
//!
//! ```text
//!   inotify below the directory of all states ── tpm2-00.permall ──► 1 s ──► look ──► VmChanged with its new SHA-256
//! ```
//! Correctness does not depend on each event: each inspection, each end of an operation and each snapshot reports the
//! SHA-256 too. If the kernel has dropped events, all VMs are inspected.

use crate::host::Host;
use fleetward_model::VmId;
use notify::event::{EventKind, ModifyKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// swtpm writes several times while a guest boots; they are on_event together.
const SETTLE: Duration = Duration::from_secs(1);
/// Until the directory exists, or can be watched.
const TRY_AGAIN: Duration = Duration::from_secs(10);
const STATE_FILE: &str = "tpm2-00.permall";

/// What was seen.
enum Seen {
    Written(VmId),
    /// Something was missed.
    Gap,
}

/// Until `stop`.
pub(crate) async fn watch(host: Arc<Host>, stop: CancellationToken) {
    let Some(root) = host.tpms.states_below() else {
        return;
    };
    let (sender, mut seen) = mpsc::unbounded_channel();
    let _watcher = loop {
        match begin(&root, sender.clone()) {
            Ok(watcher) => break watcher,
            Err(error) => tracing::debug!(%error, "TPM states are not watched yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TRY_AGAIN) => {}
        }
    };
    let mut due: HashMap<VmId, Instant> = HashMap::new();
    loop {
        let next = due.values().min().copied();
        tokio::select! {
            () = stop.cancelled() => return,
            Some(seen) = seen.recv() => match seen {
                Seen::Written(vm) => {
                    due.entry(vm).or_insert_with(|| Instant::now() + SETTLE);
                }
                Seen::Gap => look_at_all(&host).await,
            },
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let now = Instant::now();
                due.retain(|vm, at| {
                    let wait = *at > now;
                    if !wait {
                        host.observer.look_at(*vm);
                    }
                    wait
                });
            }
        }
    }
}

fn begin(root: &Path, sender: mpsc::UnboundedSender<Seen>) -> notify::Result<RecommendedWatcher> {
    let below = root.to_owned();
    let on_event = move |event: notify::Result<Event>| {
        let seen = match event {
            Ok(event) if event.need_rescan() => Some(Seen::Gap),
            Ok(event) => written(&below, &event).map(Seen::Written),
            Err(_) => Some(Seen::Gap),
        };
        if let Some(seen) = seen {
            // The receiver has ended with the agent.
            let _ = sender.send(seen);
        }
    };
    let mut watcher = RecommendedWatcher::new(on_event, Config::default())?;
    watcher.watch(root, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// The VM whose state came into place: by swtpm's rename, or ours.
fn written(root: &Path, event: &Event) -> Option<VmId> {
    match event.kind {
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Create(_) | EventKind::Remove(_) => {}
        EventKind::Modify(_) | EventKind::Access(_) | EventKind::Any | EventKind::Other => {
            return None;
        }
    }
    event.paths.iter().find_map(|path| {
        if path.file_name()? != STATE_FILE {
            return None;
        }
        let first = path.strip_prefix(root).ok()?.iter().next()?;
        first.to_str()?.parse().ok()
    })
}

async fn look_at_all(host: &Host) {
    if let Ok(domains) = host.hypervisor.list().await {
        for domain in domains {
            host.observer.look_at(domain.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_replaced_state_is_seen_also_in_a_directory_that_is_new() {
        let root = tempfile::tempdir().expect("directory");
        let (sender, mut seen) = mpsc::unbounded_channel();
        let _watcher = begin(root.path(), sender).expect("watch");
        let vm = VmId(Uuid::from_u128(7));
        let directory = root.path().join(vm.to_string()).join("tpm2");
        fs::create_dir_all(&directory).expect("make");
        // The watch of a new directory begins a moment after it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::write(directory.join("TMP2-00.permall"), b"state").expect("write");
        fs::rename(
            directory.join("TMP2-00.permall"),
            directory.join(STATE_FILE),
        )
        .expect("rename");
        let seen = tokio::time::timeout(Duration::from_secs(5), seen.recv());
        match seen.await.expect("in time") {
            Some(Seen::Written(found)) => assert_eq!(found, vm),
            Some(Seen::Gap) | None => panic!("something else was seen"),
        }
    }
}
