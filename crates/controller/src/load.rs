//! What hosts and VMs use: the last word of each, and a history.
//!
//! ```text
//!   a host's events ─► heard: its own figures, and those of VMs that are its ─► the last word, in memory
//!                                                         once a minute, all in one go ─► history, in files
//! ```
//! A figure is as old as its host's word, which comes once a minute; older ones are shown to nobody as of now.

mod cell;
mod history;
mod slots;
mod tier;

use crate::admission::shown_state;
use crate::inventory::Inventory;
use crate::world::World;
use cell::{Key, Packed};
use fleetward_api::agent::{LoadReport, MAX_DOMAINS};
use fleetward_api::controller::{LoadHistory, Usage};
use fleetward_model::load::Load;
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{ErrorCode, Failure, HostName, VmId};
use history::{History, MINUTE};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How old a word may be to count as of now: two may be late.
const FRESH: Duration = Duration::from_secs(150);

/// How old a word may be to be written as of this minute: one may be late.
const OF_THIS_MINUTE: Duration = Duration::from_secs(90);

/// Requests that read the history beside each other.
const READERS: usize = 4;

/// The second of a minute in which its row is written.
const WITHIN: u64 = 45;

/// The last word of a host or a VM.
#[derive(Debug, Clone, Copy)]
struct Word {
    load: Packed,
    heard: Instant,
    at: OffsetDateTime,
}

/// The last words, and the history.
#[derive(Debug)]
pub(crate) struct Loads {
    directory: PathBuf,
    now: RwLock<HashMap<Key, Word>>,
    /// None where its directory cannot be used.
    history: Mutex<Option<History>>,
    /// Who may read it at the same moment: threads that wait for a disk are few.
    readers: Semaphore,
}

impl Loads {
    /// With the history in `data`. Without it, if that cannot be used.
    pub(crate) fn open(data: &Path) -> Self {
        let directory = data.join("load");
        let history = History::open(&directory);
        let history = history.inspect_err(|error| {
            tracing::warn!(%error, directory = %directory.display(), "there is no history of loads");
        });
        Self {
            directory,
            now: RwLock::default(),
            history: Mutex::new(history.ok()),
            readers: Semaphore::new(READERS),
        }
    }

    /// Takes what a host says of itself and of its VMs. What it says of others' is passed over, and so is what it says of a VM
    /// that another host claims, too.
    pub(crate) fn heard(
        &self,
        inventory: &Inventory,
        host: &HostName,
        report: &LoadReport,
        at: OffsetDateTime,
    ) {
        let heard = Instant::now();
        let vms = report.vms.iter().take(MAX_DOMAINS).filter(|vm| {
            let known = inventory.vm(vm.id);
            known.is_some_and(|known| known.host == *host) && inventory.claimants(vm.id).is_empty()
        });
        let vms: Vec<_> = vms.map(|vm| (key_of_vm(vm.id), &vm.load)).collect();
        let all = vms.into_iter().chain([(key_of_host(host), &report.host)]);
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        for (key, load) in all {
            let load = Packed::of(&load.believable());
            now.insert(key, Word { load, heard, at });
        }
    }

    fn of_now(&self, key: &Key) -> Option<(Load, OffsetDateTime)> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        let word = now.get(key).filter(|word| word.heard.elapsed() <= FRESH)?;
        Some((word.load.load(), word.at))
    }

    /// What a host uses now. None while it does not answer.
    pub(crate) fn of_host(
        &self,
        inventory: &Inventory,
        host: &HostName,
    ) -> Option<(Load, OffsetDateTime)> {
        let answers = inventory.seen(host).answers;
        self.of_now(&key_of_host(host)).filter(|_| answers)
    }

    /// Writes this minute's row.
    fn record(
        &self,
        now: OffsetDateTime,
        live: impl FnOnce() -> HashSet<Key>,
    ) -> std::io::Result<()> {
        let loads: Vec<(Key, Packed)> = {
            let mut words = self.now.write().unwrap_or_else(PoisonError::into_inner);
            words.retain(|_, word| word.heard.elapsed() <= FRESH);
            let fresh = words
                .iter()
                .filter(|(_, word)| word.heard.elapsed() <= OF_THIS_MINUTE);
            fresh.map(|(key, word)| (*key, word.load)).collect()
        };
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.is_none() {
            *history = Some(History::open(&self.directory)?);
        }
        match history.as_mut() {
            Some(history) => history.record(seconds(now), &loads, live),
            None => Ok(()),
        }
    }

    fn read(&self, key: &Key, span: &Span) -> Vec<Usage> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(history) = history.as_ref() else {
            return Vec::new();
        };
        let points = history.read(key, &span.time, span.step).into_iter();
        let points = points.filter_map(|(at, load)| Some(Usage::of(&load, moment(at)?)));
        points.take(MOST_POINTS as usize + 1).collect()
    }
}

/// What a VM uses now. None where it does not run, or its host does not answer.
pub(crate) fn of_vm(world: &World, vm: &VmObserved) -> Option<Usage> {
    match shown_state(world, vm) {
        VmState::Running | VmState::Paused | VmState::Migrating => {}
        VmState::Stopped | VmState::Saved | VmState::Failed | VmState::Unknown => return None,
    }
    let (load, at) = world.loads.of_now(&key_of_vm(vm.id))?;
    Some(Usage::of(&load, at))
}

/// What a host uses now.
pub(crate) fn of_host(world: &World, host: &HostName) -> Option<Usage> {
    let (load, at) = world.loads.of_host(&world.inventory, host)?;
    Some(Usage::of(&load, at))
}

/// What a VM has used.
pub(crate) async fn history_of_vm(world: &Arc<World>, vm: VmId, span: Span) -> LoadHistory {
    history_of(world, key_of_vm(vm), span).await
}

/// What a host has used.
pub(crate) async fn history_of_host(
    world: &Arc<World>,
    host: &HostName,
    span: Span,
) -> LoadHistory {
    history_of(world, key_of_host(host), span).await
}

async fn history_of(world: &Arc<World>, key: Key, span: Span) -> LoadHistory {
    let _turn = world.loads.readers.acquire().await;
    let (of, asked) = (Arc::clone(world), span.clone());
    let read = tokio::task::spawn_blocking(move || of.loads.read(&key, &asked)).await;
    LoadHistory {
        from: moment(span.time.start).unwrap_or(OffsetDateTime::UNIX_EPOCH),
        to: moment(span.time.end).unwrap_or(OffsetDateTime::UNIX_EPOCH),
        step: u32::try_from(span.step).unwrap_or(u32::MAX),
        points: read.unwrap_or_default(),
    }
}

/// Writes the history, once a minute.
pub(crate) async fn keep(world: Arc<World>, stop: CancellationToken) {
    let mut fails = false;
    loop {
        let passed = seconds(OffsetDateTime::now_utc()) % MINUTE;
        // In the last third of each minute: nobody's clock is that exact.
        let pause = Duration::from_secs((MINUTE + WITHIN - passed) % MINUTE);
        let pause = if pause.is_zero() {
            Duration::from_secs(MINUTE)
        } else {
            pause
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        match record(&world).await {
            Ok(()) => fails = false,
            Err(error) if !fails => {
                tracing::warn!(%error, "the history of loads is not written");
                fails = true;
            }
            Err(_) => {}
        }
    }
}

/// Writes what is used now, once more at the end of the controller.
pub(crate) async fn record(world: &Arc<World>) -> std::io::Result<()> {
    let of = Arc::clone(world);
    let written = tokio::task::spawn_blocking(move || {
        of.loads.record(OffsetDateTime::now_utc(), || live(&of))
    });
    written.await.map_err(std::io::Error::other)?
}

/// Whoever the fleet has.
fn live(world: &World) -> HashSet<Key> {
    let hosts = world.hosts.all().into_iter();
    let hosts = hosts.map(|host| key_of_host(&host.name));
    let vms = world.inventory.vms().into_iter();
    hosts.chain(vms.map(|vm| key_of_vm(vm.id))).collect()
}

fn key_of_vm(vm: VmId) -> Key {
    vm.0.into_bytes()
}

fn key_of_host(host: &HostName) -> Key {
    let digest = Sha256::digest(format!("host {host}"));
    let mut key = Key::default();
    key.copy_from_slice(&digest[..16]);
    key
}

/// Unix seconds; zero before 1970.
fn seconds(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp()).unwrap_or(0)
}

fn moment(at: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at).ok()?).ok()
}

/// Points of the longest answer.
const MOST_POINTS: u64 = 1500;

/// A time, and how finely it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Unix seconds.
    time: Range<u64>,
    /// Seconds.
    step: u64,
}

impl Span {
    /// # Errors
    /// `INVALID_ARGUMENT`: times that are none or in the wrong order, a step that is not of whole minutes, or from an hour on of
    /// whole hours, and more points than an answer has.
    pub(crate) fn new(
        from: Option<OffsetDateTime>,
        to: Option<OffsetDateTime>,
        step: Option<u32>,
        now: OffsetDateTime,
    ) -> Result<Self, Failure> {
        const DAY: u64 = 24 * history::HOUR;
        let refuse = |because: String| {
            let what = "that part of the history cannot be asked for";
            Failure::new(ErrorCode::InvalidArgument, what).because(because)
        };
        let end = to.map_or_else(|| seconds(now), seconds);
        let start = from.map_or_else(|| end.saturating_sub(DAY), seconds);
        if start >= end {
            return Err(refuse("it ends before it begins".to_owned()));
        }
        let length = end - start;
        let unit = |step| {
            if step < history::HOUR {
                MINUTE
            } else {
                history::HOUR
            }
        };
        let step = match step {
            Some(step) => u64::from(step),
            None if length <= DAY && start.saturating_add(DAY + history::HOUR) >= seconds(now) => {
                MINUTE
            }
            None => length.div_ceil(MOST_POINTS).next_multiple_of(history::HOUR),
        };
        if step == 0 || step % unit(step) != 0 {
            let because = format!(
                "a step of {step} s is not of whole minutes, or from an hour on of whole hours"
            );
            return Err(refuse(because));
        }
        let points = length.div_ceil(step);
        if points > MOST_POINTS {
            let because = format!("it has {points} points, and an answer at most {MOST_POINTS}");
            return Err(refuse(because));
        }
        Ok(Self {
            time: start..end,
            step,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn span(from: Option<i64>, to: Option<i64>, step: Option<u32>) -> Option<(u64, u64)> {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
        let at = |ago: i64| now - time::Duration::seconds(ago);
        let span = Span::new(from.map(at), to.map(at), step, now).ok()?;
        Some((span.time.end - span.time.start, span.step))
    }

    #[test]
    fn a_day_is_asked_for_in_minutes_and_more_in_hours() {
        assert_eq!(span(None, None, None), Some((86_400, 60)));
        assert_eq!(span(Some(HOUR), None, None), Some((3600, 60)));
        assert_eq!(
            span(Some(48 * HOUR), Some(47 * HOUR), None),
            Some((3600, 3600)),
            "long ago"
        );
        assert_eq!(
            span(Some(30 * 24 * HOUR), None, None),
            Some((2_592_000, 3600))
        );
        assert_eq!(
            span(Some(365 * 24 * HOUR), None, None),
            Some((31_536_000, 21_600))
        );
        assert_eq!(span(Some(HOUR), None, Some(300)), Some((3600, 300)));
    }

    #[test]
    fn what_makes_no_sense_or_is_too_much_is_refused() {
        assert_eq!(span(Some(5), Some(5), None), None);
        assert_eq!(span(Some(-5), None, None), None);
        for step in [0, 1, 61, 3660, 60] {
            assert_eq!(span(Some(48 * HOUR), None, Some(step)), None, "{step}");
        }
        // from 1970 on: still a bounded number of points
        let (length, step) = span(Some(1_800_000_000), None, None).expect("a span");
        assert!(length.div_ceil(step) <= MOST_POINTS);
    }
}
