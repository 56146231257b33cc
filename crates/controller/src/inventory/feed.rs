//! Who works by what changed takes it from here: hosts and VMs of which something is new, each once, however often it
//! changed since the last look.

use fleetward_model::{HostName, VmId};
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Notify;

/// What is new since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Everything is to be looked at.
    pub(crate) all: bool,
    /// Hosts that came, went, or say something new of themselves.
    pub(crate) hosts: BTreeSet<HostName>,
    pub(crate) vms: HashSet<VmId>,
}

impl News {
    fn is_empty(&self) -> bool {
        !self.all && self.hosts.is_empty() && self.vms.is_empty()
    }

    fn add(&mut self, news: &News) {
        if self.all || news.all {
            *self = Self {
                all: true,
                ..Self::default()
            };
            return;
        }
        self.hosts.extend(news.hosts.iter().cloned());
        self.vms.extend(&news.vms);
    }

    pub(super) fn everything() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    pub(super) fn vm(id: VmId) -> Self {
        Self {
            vms: HashSet::from([id]),
            ..Self::default()
        }
    }

    pub(super) fn host(host: &HostName) -> Self {
        Self {
            hosts: BTreeSet::from([host.clone()]),
            ..Self::default()
        }
    }
}

#[derive(Debug, Default)]
struct Inbox {
    news: Mutex<News>,
    arrived: Notify,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everybody who takes news.
#[derive(Debug, Default)]
pub(super) struct Feed(Mutex<Vec<Weak<Inbox>>>);

impl Feed {
    pub(super) fn send(&self, news: &News) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| {
            let Some(inbox) = reader.upgrade() else {
                return false;
            };
            inbox.lock().add(news);
            inbox.arrived.notify_one();
            true
        });
    }

    /// A reader that has everything to look at.
    pub(super) fn subscribe(&self) -> Reader {
        let inbox = Arc::new(Inbox::default());
        *inbox.lock() = News::everything();
        inbox.arrived.notify_one();
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readers.push(Arc::downgrade(&inbox));
        Reader(inbox)
    }
}

/// Takes news.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Inbox>);

impl Reader {
    /// Waits until there is news; nothing is lost when this is dropped.
    pub(crate) async fn arrived(&self) {
        while self.0.lock().is_empty() {
            self.0.arrived.notified().await;
        }
    }

    /// What is new since the last time, if anything.
    pub(crate) fn take(&self) -> News {
        std::mem::take(&mut self.0.lock())
    }
}
