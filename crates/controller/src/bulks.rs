//! Bulk requests under way, by the ids that their first lines tell. Nothing of them is stored: their jobs are, and whoever
//! was cut off takes a request up again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Debug, Default)]
pub(crate) struct Bulks(Mutex<HashMap<Uuid, CancellationToken>>);

impl Bulks {
    pub(crate) fn begin(self: &Arc<Self>) -> Bulk {
        let bulk = Bulk {
            id: Uuid::new_v4(),
            stop: CancellationToken::new(),
            all: self.clone(),
        };
        self.lock().insert(bulk.id, bulk.stop.clone());
        bulk
    }

    /// Whether there is such a request under way.
    pub(crate) fn stop(&self, id: Uuid) -> bool {
        let found = self.lock().get(&id).cloned();
        found.inspect(CancellationToken::cancel).is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them. Dropping it ends its entry.
#[derive(Debug)]
pub(crate) struct Bulk {
    pub(crate) id: Uuid,
    /// Fires when nothing more should be begun or followed.
    pub(crate) stop: CancellationToken,
    all: Arc<Bulks>,
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}
