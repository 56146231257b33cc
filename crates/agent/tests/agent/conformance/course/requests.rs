//! What is asked more than once.

use super::Course;
use crate::support::disks;
use fleetward_api::agent::operation::*;
use fleetward_api::agent::*;

impl Course<'_> {
    pub(super) fn rewrap(&self, add: &[usize], drop: &[usize], why: RewrapReason) -> Rewrap {
        Rewrap {
            change: KeyRewrap {
                add: self.endorsed(add),
                drop: drop.iter().map(|host| self.guardian(*host)).collect(),
                expired: Vec::new(),
                former: Vec::new(),
                why,
            },
        }
    }

    pub(super) fn migrate(&self, to: usize) -> MigrateLive {
        MigrateLive {
            to: self.hosts[to].peer(),
            disks: disks(true),
            networks: Default::default(),
        }
    }

    pub(super) fn send_stopped(&self, to: usize) -> SendStopped {
        SendStopped {
            to: self.hosts[to].peer(),
            disks: disks(true),
        }
    }

    pub(super) fn abandon(&self) -> AbandonIncoming {
        AbandonIncoming {
            spec: self.spec.clone(),
            disks: disks(true),
        }
    }

    pub(super) fn clean_up(&self) -> CleanUpDeparted {
        CleanUpDeparted {
            spec: self.spec.clone(),
            disks: disks(true),
        }
    }

    pub(super) fn delete_volumes(&self) -> DeleteVolumes {
        DeleteVolumes {
            spec: self.spec.clone(),
        }
    }
}

pub(super) fn stop() -> Stop {
    Stop {
        force: true,
        deadline_seconds: 5,
        tell: true,
    }
}

pub(super) fn remove_tpm(keep: bool) -> RemoveTpm {
    RemoveTpm {
        keep,
        history: false,
    }
}
