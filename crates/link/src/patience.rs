//! Waits for a peer for a limited time, and does not hold this process's own delays against the peer.
//!
//! A process that was held up (by a busy worker, a machine that slept) finds its timers and what has arrived meanwhile at the
//! same moment, and the timers may come first. So the time is cut into slices, and only slices that end on time count.

use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Slices of a wait.
const SLICES: u32 = 4;

/// What `future` gives, or none when `limit` of time has passed in which this process was on time.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let slice = limit / SLICES;
    let mut left = SLICES;
    while left > 0 {
        let begun = Instant::now();
        if let Ok(done) = timeout(slice, future.as_mut()).await {
            return Some(done);
        }
        let late = begun.elapsed().saturating_sub(slice);
        if late > slice / 4 {
            tracing::debug!(?late, "held up while waiting");
        } else {
            left -= 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn a_silent_peer_is_given_up_after_the_limit() {
        let begun = Instant::now();
        assert!(within(LIMIT, std::future::pending::<()>()).await.is_none());
        assert!(begun.elapsed() >= LIMIT);
    }

    #[tokio::test]
    async fn the_time_in_which_the_process_was_held_up_does_not_count() {
        let begun = Instant::now();
        let waiting = tokio::spawn(async move {
            let silent = within(LIMIT, std::future::pending::<()>()).await.is_none();
            (silent, begun.elapsed())
        });
        tokio::task::yield_now().await;
        // The only thread: nothing runs meanwhile.
        let held_up = LIMIT * 4;
        std::thread::sleep(held_up);
        let (silent, took) = waiting.await.expect("no panic");
        assert!(silent && took >= held_up + LIMIT, "{took:?}");
    }
}
