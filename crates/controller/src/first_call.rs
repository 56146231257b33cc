//! The first call of all hosts after a start, and who waits for it.
//!
//! What was known of a host before the start may be old. Jobs that were under way wait until every host was called, or
//! for [`PATIENCE`]; so does every request, but for one that is about one VM or host: that waits for its own hosts, which
//! are called first.

use crate::app::GATHER;
use crate::watch::Watchers;
use crate::world::World;
use fleetward_model::HostName;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long hosts are waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct FirstCall {
    over: CancellationToken,
}

impl FirstCall {
    /// Begins to watch all hosts.
    pub(crate) fn begin(world: &Arc<World>, watchers: &Watchers) -> Self {
        let hosts: Vec<_> = (world.hosts.all().iter())
            .map(|host| host.name.clone())
            .collect();
        for host in &hosts {
            watchers.watch(world, host);
        }
        let over = CancellationToken::new();
        let (world, done) = (world.clone(), over.clone().drop_guard());
        tokio::spawn(async move {
            let _done = done;
            let called = called(&world, hosts);
            if tokio::time::timeout(PATIENCE, called).await.is_err() {
                tracing::info!("not every host answers yet");
            }
        });
        Self { over }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// When every host was called, with whatever success, or has had its time.
    pub(crate) fn over(&self) -> WaitForCancellationFutureOwned {
        self.over.clone().cancelled_owned()
    }

    /// When these hosts were called, before the others that are still to be called.
    pub(crate) async fn over_for(&self, world: &World, watchers: &Watchers, hosts: &[HostName]) {
        if self.is_over() {
            return;
        }
        for host in hosts {
            watchers.prefer(host);
        }
        tokio::select! {
            () = self.over.cancelled() => {}
            () = called(world, hosts.to_vec()) => {}
        }
    }
}

/// When all of them were called.
async fn called(world: &World, mut awaited: Vec<HostName>) {
    let mut changes = world.inventory.changes();
    loop {
        changes.mark_unchanged();
        awaited.retain(|host| !world.inventory.tried(host));
        if awaited.is_empty() {
            return;
        }
        // Thousands are heard one after the other: they are not counted again at each.
        let pause = match awaited.len() {
            1..=3 => Duration::ZERO,
            _ => GATHER,
        };
        tokio::time::sleep(pause).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}
