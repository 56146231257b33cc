//! How fast hosts are called: in steps, so that a start with thousands of hosts, or their return, does not do all
//! handshakes and read all first reports at once.

use fleetward_model::HostName;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Calls under way at the same time, of each kind.
const AT_ONCE: usize = 64;
/// A host that does not answer holds its place no longer.
const HELD: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How far apart hosts are in what is done for each of them from time to time.
const APART: Duration = Duration::from_millis(10);

/// Places for calls.
#[derive(Debug)]
pub(crate) struct Dials {
    preferred: Semaphore,
    hopeful: Semaphore,
    repeated: Semaphore,
}

/// A place for one call.
#[derive(Debug)]
pub(crate) struct Place<'d> {
    held: SemaphorePermit<'d>,
}

/// Which hosts a call competes with: those that are gone do not hold up those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Of a host that somebody waits for.
    Preferred,
    /// Of a host that answered last, or was not called since the start.
    Hopeful,
    /// Of a host that did not answer last.
    Repeated,
}

impl Default for Dials {
    fn default() -> Self {
        Self {
            preferred: Semaphore::new(AT_ONCE),
            hopeful: Semaphore::new(AT_ONCE),
            repeated: Semaphore::new(AT_ONCE),
        }
    }
}

impl Dials {
    /// Waits for a place.
    pub(crate) async fn place(&self, kind: Call) -> Place<'_> {
        let places = match kind {
            Call::Preferred => &self.preferred,
            Call::Hopeful => &self.hopeful,
            Call::Repeated => &self.repeated,
        };
        let held = places.acquire().await.expect("it is never closed");
        Place { held }
    }
}

impl Place<'_> {
    /// Runs a call in the place, which is given back at its end, or when it takes long.
    pub(crate) async fn run<T>(self, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        match tokio::time::timeout(HELD, call.as_mut()).await {
            Ok(done) => done,
            Err(_) => {
                drop(self.held);
                call.await
            }
        }
    }
}

/// The pauses between calls of one host: longer and longer, and no two hosts' the same.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// The next.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(0.5 + fastrand::f64());
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// When something that is done for each of so many hosts every `period` is done for one for the first time: at once in a
/// small fleet, and spread over the period in a large one.
pub(crate) fn phase(period: Duration, hosts: usize) -> Duration {
    let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
    let spread = APART.saturating_mul(hosts).min(period);
    spread.mul_f64(fastrand::f64())
}

/// How often it is looked whether something is to be done for a host, which costs little: within `longest` in the largest
/// fleet, and about as often for all hosts together in every fleet.
pub(crate) fn pace(longest: Duration, hosts: usize) -> Duration {
    let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
    let shortest = Duration::from_secs(1).min(longest);
    APART.saturating_mul(hosts).clamp(shortest, longest)
}

/// Says when the files that may be open do not suffice for so many hosts.
pub(crate) fn warn_of_files(hosts: usize, newest: &HostName) {
    const OTHERS: u64 = 1000;
    let needed = hosts as u64 * 2 + OTHERS;
    match fleetward_link::serve::allowed_files() {
        Ok(allowed) if allowed < needed => tracing::warn!(
            host = %newest, hosts, needed, allowed,
            "the limit of open files is too low for so many hosts: start the controller with a higher one (ulimit -Hn, or \
             LimitNOFILE= of a systemd unit that starts it)"
        ),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "cannot read the limit of open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn hosts_are_called_in_steps() {
        let dials = Arc::new(Dials::default());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let calls = (0..1000).map(|_| {
            let (dials, now, most) = (dials.clone(), now.clone(), most.clone());
            tokio::spawn(async move {
                let call = async {
                    let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(running, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                };
                dials.place(Call::Hopeful).await.run(call).await;
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.expect("no panic");
        }
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_hosts_hold_up_nobody_for_long() {
        let dials = Arc::new(Dials::default());
        for kind in [Call::Hopeful, Call::Repeated] {
            for _ in 0..AT_ONCE {
                let dials = dials.clone();
                tokio::spawn(async move {
                    let place = dials.place(kind).await;
                    place.run(std::future::pending::<()>()).await;
                });
            }
        }
        while dials.hopeful.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let begun = tokio::time::Instant::now();
        dials.place(Call::Hopeful).await.run(async {}).await;
        let waited = begun.elapsed();
        assert!(
            waited >= HELD / 2 && waited <= HELD + HELD / 10,
            "{waited:?}"
        );
    }

    #[test]
    fn no_two_hosts_act_in_step() {
        let period = Duration::from_secs(10);
        assert!(phase(period, 3) <= 3 * APART);
        let mut phases: Vec<_> = (0..5000).map(|_| phase(period, 5000)).collect();
        phases.sort();
        assert!(phases[4999] < period && phases[4999] > period / 2);
        let busiest = (0..10).map(|second| {
            let of_second = phases.iter().filter(|phase| phase.as_secs() == second);
            of_second.count()
        });
        assert!(busiest.max() < Some(1000));
    }

    #[test]
    fn pauses_grow_and_differ() {
        let (mut one, mut other) = (Pauses::default(), Pauses::default());
        let pauses: Vec<_> = (0..8).map(|_| (one.next(), other.next())).collect();
        assert!(pauses.iter().any(|(one, other)| one != other));
        assert!(pauses[0].0 <= FIRST_PAUSE * 3 / 2);
        assert!(pauses[7].0 >= LONGEST_PAUSE / 2 && pauses[7].0 <= LONGEST_PAUSE * 3 / 2);
    }
}
