//! Waits for conditions with a deadline, never for a fixed time.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Looks at `condition` until it gives a value.
///
/// # Errors
/// After `deadline`, with `what` and the condition's last complaint.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let complaint = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} for {what} in vain{complaint}");
        }
        std::thread::sleep(POLL);
    }
}

pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
