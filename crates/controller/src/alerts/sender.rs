//! Tells one target what it is owed, one message at a time, for as long as the target is there.

use super::Alerts;
use super::notice::Notice;
use super::targets::{Target, Way};
use crate::world::World;
use fleetward_model::{ErrorCode, Failure};
use fleetward_store::StoreError;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// For one message in all, whatever the target does.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// Tells the target until it is removed, or `stop`.
pub(super) async fn tell(world: Arc<World>, target: Arc<Target>, stop: CancellationToken) {
    let work = tell_for_ever(&world.alerts, &target);
    tokio::select! {
        () = stop.cancelled() => {}
        () = target.removed.cancelled() => {}
        () = work => {}
    }
}

async fn tell_for_ever(alerts: &Alerts, target: &Target) {
    let mut changes = alerts.changed.subscribe();
    loop {
        changes.mark_unchanged();
        let pause = match tell_now(alerts, target).await {
            Ok(true) => continue,
            Ok(false) if target.health().failures == 0 => Duration::MAX,
            Ok(false) => pause(target.health().failures),
            Err(error) => {
                tracing::warn!(%error, "cannot write who was told of alerts");
                crate::STORE_PAUSE
            }
        };
        match pause {
            Duration::MAX => {
                if changes.changed().await.is_err() {
                    return;
                }
            }
            // A test that has arrived ends it.
            pause => tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = repaired(target, &mut changes) => {}
            },
        }
    }
}

async fn repaired(target: &Target, changes: &mut watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {
        if target.health().failures == 0 {
            return;
        }
    }
    std::future::pending().await
}

/// Whether something was told, after which there may be more.
async fn tell_now(alerts: &Alerts, target: &Target) -> Result<bool, StoreError> {
    let owed = alerts.lock().owed(target.id(), target.codes());
    if owed.is_empty() {
        return Ok(false);
    }
    alerts
        .change(|book| book.try_to_tell(target.id(), &owed))
        .await?;
    let notice = Notice::of(&alerts.fleet, target.id(), &owed, OffsetDateTime::now_utc());
    if send(target, &notice).await.is_err() {
        return Ok(false);
    }
    alerts.change(|book| book.told(target.id(), &owed)).await?;
    Ok(true)
}

/// # Errors
/// The target did not take it.
pub(super) async fn send_test(alerts: &Alerts, target: &Target) -> Result<(), Failure> {
    let notice = Notice::test(&alerts.fleet, OffsetDateTime::now_utc());
    send(target, &notice).await
}

async fn send(target: &Target, notice: &Notice) -> Result<(), Failure> {
    let now = OffsetDateTime::now_utc();
    let sending = async {
        match &target.way {
            Way::Webhook(caller) => caller.send(notice, now).await,
            Way::Mail(postman) => postman.send(notice).await,
        }
    };
    let sent = tokio::time::timeout(PATIENCE, sending).await;
    let sent = sent.unwrap_or_else(|_| {
        let what = format!("alert target {} did not take the message", target.name());
        let because = format!("it took longer than {} s", PATIENCE.as_secs());
        Err(Failure::new(ErrorCode::AlertTargetFailing, what).because(because))
    });
    let mut health = target.health();
    match &sent {
        Ok(()) => {
            health.last_told = Some(now);
            health.failure = None;
            health.failures = 0;
        }
        Err(failure) => {
            health.failures = health.failures.saturating_add(1);
            tracing::warn!(name = %target.name(), failures = health.failures, what = %failure.what, because = %failure.because, "an alert target fails");
            health.failure = Some(failure.clone());
        }
    }
    sent
}

/// Longer and longer, and no two targets' the same.
fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled
        .min(LONGEST_PAUSE)
        .mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_quarter_of_an_hour() {
        for (failures, longest) in [(1, 2), (2, 4), (5, 32), (40, 900)] {
            let pause = pause(failures);
            let longest = Duration::from_secs(longest);
            assert!(
                pause >= longest / 2 && pause <= longest,
                "{failures}: {pause:?}"
            );
        }
    }
}
