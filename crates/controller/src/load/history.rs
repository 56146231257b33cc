//! A day of minutes and a year of hours of every host and VM, in files: `load/minutes`, `load/hours` and `load/places`.
//!
//! Nothing else depends on it. Whatever is wrong with the files, the controller works without them.

use super::cell::{self, CELL, Key, Packed};
use super::slots::Slots;
use super::tier::Tier;
use fleetward_durable as durable;
use fleetward_model::load::{Load, Mean};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::Path;

pub(super) const MINUTE: u64 = 60;
pub(super) const HOUR: u64 = 3600;

/// Hours of minutes that are kept, beside the one that is being written.
const HOURS: usize = 25;
/// Days of hours that are kept, beside the one that is being written.
const DAYS: usize = 366;

#[derive(Debug)]
pub(super) struct History {
    slots: Slots,
    minutes: Tier,
    hours: Tier,
    /// The hour whose minutes were written last.
    hour: Option<u64>,
}

impl History {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let [minutes, hours] = ["minutes", "hours"].map(|name| directory.join(name));
        for directory in [directory, &minutes, &hours] {
            durable::ensure_directory(directory, 0o700)?;
        }
        let minutes = Tier::new(minutes, MINUTE, HOUR / MINUTE, HOURS + 1);
        Ok(Self {
            slots: Slots::open(directory.join("places")),
            hour: minutes.newest(),
            hours: Tier::new(hours, HOUR, 24, DAYS + 1),
            minutes,
        })
    }

    /// Writes what was used in the minute that begins at `at`, Unix seconds; with the first minute of another hour the means of
    /// the hour before it. Whoever is not in `live` then has no place any more.
    pub(super) fn record(
        &mut self,
        at: u64,
        loads: &[(Key, Packed)],
        live: impl FnOnce() -> HashSet<Key>,
    ) -> io::Result<()> {
        let at = at - at % MINUTE;
        let hour = at - at % HOUR;
        if let Some(before) = self.hour.replace(hour)
            && before != hour
        {
            self.sum_up(before)?;
            self.slots.retain(&live())?;
        }
        let mut placed = Vec::with_capacity(loads.len());
        for (key, load) in loads {
            if let Some(place) = self.slots.take(key)? {
                placed.push((*key, place, *load));
            }
        }
        self.minutes
            .write(at, &row(self.slots.width(), at, &placed))
    }

    fn sum_up(&mut self, hour: u64) -> io::Result<()> {
        let keys: Vec<_> = self.slots.all().map(|(key, place)| (*key, place)).collect();
        let means = self.minutes.means(hour, &keys);
        let known = keys.into_iter().zip(means);
        let known: Vec<_> = known
            .filter_map(|((key, place), mean)| Some((key, place, Packed::of(&mean?))))
            .collect();
        self.hours
            .write(hour, &row(self.slots.width(), hour, &known))
    }

    /// The means of each `step` in that time, Unix seconds; the step is a multiple of a minute. From an hour on they are made of
    /// hours, and of the minutes of hours that are not over.
    pub(super) fn read(&self, key: &Key, time: &Range<u64>, step: u64) -> BTreeMap<u64, Load> {
        let Some(place) = self.slots.of(key) else {
            return BTreeMap::new();
        };
        if step < HOUR {
            return means(self.minutes.read(key, place, time), step);
        }
        let kept = HOURS as u64 * HOUR;
        let recent = time.start.max(time.end.saturating_sub(kept))..time.end;
        let mut hours = means(self.minutes.read(key, place, &recent), HOUR);
        hours.extend(self.hours.read(key, place, time));
        means(hours, step)
    }
}

fn row(width: u32, at: u64, loads: &[(Key, u32, Packed)]) -> Vec<[u8; CELL]> {
    let mut row = vec![[0; CELL]; width as usize];
    for (key, place, load) in loads {
        if let Some(cell) = row.get_mut(*place as usize) {
            cell::write(cell, key, at, *load);
        }
    }
    row
}

fn means(loads: BTreeMap<u64, Load>, step: u64) -> BTreeMap<u64, Load> {
    let mut means: BTreeMap<u64, Mean> = BTreeMap::new();
    for (at, load) in loads {
        means.entry(at - at % step).or_default().add(&load);
    }
    let means = means.into_iter();
    means
        .filter_map(|(at, mean)| Some((at, mean.load()?)))
        .collect()
}

#[cfg(test)]
mod tests;
