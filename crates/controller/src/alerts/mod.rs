//! Alerts: what needs somebody now, told to people and programs elsewhere, each once, with its end.
//!
//! ```text
//!   sweep (a slow look at all) ──► book (raised, ended; in the store) ──► sender, one for each target ──► webhook, mail
//!                                       ▲ tried, told                            │
//!                                       └────────────────────────────────────────┘
//! ```
//! A target may be told twice after a crash, or where its answer was lost; each alert has an id for that. A target that hangs
//! holds up no other.

mod book;
mod failed_jobs;
mod mail;
mod notice;
mod sender;
mod sweep;
mod targets;
mod webhook;

use crate::app::App;
use crate::world::World;
use book::{Alert, Book, Look, Write};
use failed_jobs::FailedJobs;
use fleetward_api::controller::{AlertTargetRequest, AlertTargetView, AlertView};
use fleetward_model::error::Finding;
use fleetward_model::{AlertTargetName, ErrorCode, Failure};
use fleetward_store::{Store, StoreError, StoreExt, Txn};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use targets::{Target, Targets};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Of the keys in the store, which keeps no former values of them.
pub(crate) const PREFIX: &str = "alert/";
/// Changes in one transaction.
const AT_ONCE: usize = 50;
/// A look takes no more than one part of so many of the time.
const SHARE: u32 = 50;
/// Failures in a row from which on a target counts as failing.
const FAILING: u32 = 3;

/// The book, the targets, and what wakes those who tell.
#[derive(Debug)]
pub(crate) struct Alerts {
    store: Arc<dyn Store>,
    /// As messages name it.
    fleet: String,
    book: Mutex<Book>,
    /// Held while the book and the store are brought to say something else.
    changing: tokio::sync::Mutex<()>,
    targets: Targets,
    pub(crate) jobs: FailedJobs,
    changed: watch::Sender<u64>,
}

impl Alerts {
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        dir: &Path,
        fleet: String,
    ) -> anyhow::Result<Self> {
        let (stored, _) = store.list_json::<Alert>(PREFIX).await?;
        let stored = stored.into_iter().map(|(_, found)| found.value);
        let alerts = Self {
            book: Mutex::new(Book::of(stored)),
            targets: Targets::open(dir)?,
            store,
            fleet,
            changing: tokio::sync::Mutex::default(),
            jobs: FailedJobs::default(),
            changed: watch::Sender::new(0),
        };
        let known = alerts.targets.ids();
        alerts.change(|book| book.keep_targets(&known)).await?;
        Ok(alerts)
    }

    /// Changes the book, and then the store. What could not be written may be told again after a restart.
    async fn change(&self, change: impl FnOnce(&mut Book) -> Vec<Write>) -> Result<(), StoreError> {
        let _turn = self.changing.lock().await;
        let writes = change(&mut self.lock());
        for some in writes.chunks(AT_ONCE) {
            let mut txn = Txn::new();
            for write in some {
                txn = match write {
                    Write::Put(alert) => {
                        txn.put_json(format!("{PREFIX}{}", alert.view.id), alert)?
                    }
                    Write::Delete(id) => txn.delete(format!("{PREFIX}{id}")),
                };
            }
            let _ = self.store.commit(txn).await?;
        }
        Ok(())
    }

    /// Those that last, oldest first.
    pub(crate) fn raised(&self) -> Vec<AlertView> {
        self.lock().raised()
    }

    /// How many last, by code; and how many more there is no room for.
    pub(crate) fn counts(&self) -> (BTreeMap<ErrorCode, usize>, usize) {
        let book = self.lock();
        (book.counts(), book.left_out())
    }

    /// All targets, by name.
    pub(crate) fn targets(&self) -> Vec<AlertTargetView> {
        self.targets
            .all()
            .iter()
            .map(|one| self.view(one))
            .collect()
    }

    /// # Errors
    /// `ALERT_TARGET_NOT_FOUND`.
    pub(crate) fn target(&self, name: &AlertTargetName) -> Result<AlertTargetView, Failure> {
        Ok(self.view(&*self.targets.of(name)?))
    }

    fn view(&self, target: &Target) -> AlertTargetView {
        target.view(self.lock().owed(target.id(), target.codes()).len())
    }

    /// Targets that have taken nothing for a while.
    pub(crate) fn failing(&self) -> Vec<(AlertTargetName, Finding)> {
        let all = self.targets.all().into_iter();
        let failing = all.filter_map(|target| {
            let health = target.health();
            let failure = health.failure.as_ref()?;
            let name = target.name();
            (health.failures >= FAILING).then(|| {
                let what = format!("alert target {name}: {}: {}", failure.what, failure.because);
                let fix = format!(
                    "when it is repaired: fleetward alert test {name}; or: fleetward alert remove {name}"
                );
                let finding = Finding::warning(ErrorCode::AlertTargetFailing, what);
                (name.clone(), Finding { fix, ..finding })
            })
        });
        failing.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds a target, and begins to tell it.
///
/// # Errors
/// A name that is taken, or what cannot be used.
pub(crate) async fn add(
    app: &App,
    request: AlertTargetRequest,
    by: String,
) -> Result<AlertTargetView, Failure> {
    let alerts = &app.world.alerts;
    let now = OffsetDateTime::now_utc();
    let target = alerts.targets.add(request, by, now).await?;
    tokio::spawn(sender::tell(
        app.world.clone(),
        target.clone(),
        app.stop.clone(),
    ));
    Ok(alerts.view(&target))
}

/// Removes a target, and what waits for it.
///
/// # Errors
/// `ALERT_TARGET_NOT_FOUND`.
pub(crate) async fn remove(app: &App, name: &AlertTargetName) -> Result<AlertTargetView, Failure> {
    let alerts = &app.world.alerts;
    let target = alerts.targets.remove(name).await?;
    let view = alerts.view(&target);
    let known = alerts.targets.ids();
    let changed = alerts.change(|book| book.keep_targets(&known)).await;
    changed.map_err(|error| crate::store_failure(&error))?;
    Ok(view)
}

/// Sends a test, and waits until it has arrived.
///
/// # Errors
/// `ALERT_TARGET_NOT_FOUND`, `ALERT_TARGET_FAILING` with the reason.
pub(crate) async fn test(app: &App, name: &AlertTargetName) -> Result<AlertTargetView, Failure> {
    let alerts = &app.world.alerts;
    let target = alerts.targets.of(name)?;
    sender::send_test(alerts, &target).await?;
    // What waits is told now.
    alerts.changed.send_modify(|n| *n += 1);
    Ok(alerts.view(&target))
}

/// Looks after alerts until `stop`: a look every `every`, or less often where a look takes long.
pub(crate) async fn keep(app: App, every: Duration, stop: CancellationToken) {
    let world = &app.world;
    let alerts = &world.alerts;
    if let Err(error) = alerts.jobs.read(&app.engine).await {
        tracing::warn!(%error, "cannot read which jobs failed");
    }
    for target in alerts.targets.all() {
        tokio::spawn(sender::tell(world.clone(), target, stop.clone()));
    }
    let mut pause = every;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let begun = Instant::now();
        let look = tokio::select! {
            () = stop.cancelled() => return,
            look = sweep::look(world) => look,
        };
        pause = every.max(begun.elapsed() * SHARE);
        take(world, look).await;
    }
}

async fn take(world: &World, look: Look) {
    let alerts = &world.alerts;
    let now = OffsetDateTime::now_utc();
    if let Err(error) = alerts.change(|book| book.take(look, now)).await {
        tracing::warn!(%error, "cannot write the alerts");
    }
    alerts.changed.send_modify(|n| *n += 1);
}
