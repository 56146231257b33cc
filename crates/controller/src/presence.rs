//! Which hosts are silent, and since when: what the event streams tell, for whoever waits for a host's answer.
//!
//! A connection to a machine that lost power stays open for as long as nobody sends anything. Whoever waits for an answer
//! therefore looks here too.

use fleetward_model::HostName;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Hosts that do not answer.
#[derive(Debug)]
pub(crate) struct Presence {
    silent: Mutex<HashMap<HostName, Instant>>,
    /// Hosts that answer, and whose certificate is not taken; why.
    distrusted: Mutex<HashMap<HostName, Distrust>>,
    changed: watch::Sender<u64>,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            silent: Mutex::default(),
            distrusted: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

/// Why no connection to a host comes about that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Distrust {
    /// Its certificate is not taken, for that reason.
    OfIts(String),
    /// It takes the controller's for out of its time, by its own clock.
    OfOurs,
}

impl Presence {
    /// Its events have ended, or it has been silent for too long.
    pub(crate) fn lost(&self, host: &HostName) {
        self.lock().entry(host.clone()).or_insert_with(Instant::now);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Somebody answers there, and no connection comes about.
    pub(crate) fn distrusts(&self, host: &HostName, distrust: Distrust) {
        self.distrusted().insert(host.clone(), distrust);
    }

    /// Why none does; none if one does, or if nobody answers.
    pub(crate) fn distrust(&self, host: &HostName) -> Option<Distrust> {
        self.distrusted().get(host).cloned()
    }

    fn distrusted(&self) -> MutexGuard<'_, HashMap<HostName, Distrust>> {
        let distrusted = self.distrusted.lock();
        distrusted.unwrap_or_else(PoisonError::into_inner)
    }

    /// It speaks.
    pub(crate) fn heard(&self, host: &HostName) {
        self.distrusted().remove(host);
        if self.lock().remove(host).is_some() {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// For how long it has been known to be silent; none for a host that answers, and for one that was never called.
    pub(crate) fn silent_for(&self, host: &HostName) -> Option<Duration> {
        self.lock().get(host).map(Instant::elapsed)
    }

    /// Returns when `host` has been silent for `patience` without a break.
    pub(crate) async fn silence(&self, host: &HostName, patience: Duration) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let rest = match self.silent_for(host) {
                Some(silent) if silent >= patience => return,
                Some(silent) => patience - silent,
                None => Duration::MAX,
            };
            let over = async {
                match rest {
                    Duration::MAX => std::future::pending().await,
                    rest => tokio::time::sleep(rest).await,
                }
            };
            tokio::select! {
                () = over => {}
                changed = changes.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<HostName, Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn host() -> HostName {
        "a".parse().expect("a name")
    }

    const PATIENCE: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_silence_counts_only_without_a_break() {
        let presence = Arc::new(Presence::default());
        let silence = {
            let presence = presence.clone();
            tokio::spawn(async move {
                presence.silence(&host(), PATIENCE).await;
                Instant::now()
            })
        };
        presence.lost(&host());
        tokio::task::yield_now().await;
        presence.heard(&host());
        assert!(presence.silent_for(&host()).is_none());
        tokio::task::yield_now().await;
        let lost = Instant::now();
        presence.lost(&host());
        presence.lost(&host());
        let over = silence.await.expect("no panic");
        assert!(over - lost >= PATIENCE);
    }
}
