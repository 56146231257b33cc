//! The files of the history, whole and damaged.

use super::*;
use std::path::PathBuf;
use tempfile::TempDir;

/// A whole day, Unix seconds.
const DAY: u64 = 24 * HOUR;
/// The begin of some day.
const BEGIN: u64 = 20_000 * DAY;

struct Kept {
    directory: TempDir,
    history: History,
}

impl Kept {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let history = History::open(directory.path()).expect("opened");
        Self { directory, history }
    }

    /// As after `kill -9`: nothing is finished.
    fn again(self) -> Self {
        let Self { directory, history } = self;
        drop(history);
        let history = History::open(directory.path()).expect("opened");
        Self { directory, history }
    }

    fn record(&mut self, at: u64, loads: &[(Key, Packed)]) {
        let live = || loads.iter().map(|(key, _)| *key).collect();
        self.history.record(at, loads, live).expect("recorded");
    }

    fn cpus(&self, n: u8, time: Range<u64>, step: u64) -> Vec<(u64, u64)> {
        let read = self.history.read(&key(n), &time, step).into_iter();
        read.filter_map(|(at, load)| Some((at - BEGIN, load.cpu?)))
            .collect()
    }

    fn files(&self, of: &str) -> Vec<PathBuf> {
        let entries = self.directory.path().join(of).read_dir().expect("read");
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

fn key(n: u8) -> Key {
    [n; 16]
}

fn cpu(n: u8, cpu: u64) -> (Key, Packed) {
    let load = Load {
        cpu: Some(cpu),
        ..Load::default()
    };
    (key(n), Packed::of(&load))
}

#[test]
fn minutes_come_back_in_any_step_and_hours_are_their_means() {
    let mut kept = Kept::new();
    for minute in 0..150 {
        kept.record(BEGIN + minute * MINUTE, &[cpu(1, minute), cpu(2, 500)]);
    }
    let kept = kept.again();
    let minutes = kept.cpus(1, BEGIN..BEGIN + DAY, MINUTE);
    let expected: Vec<_> = (0..150).map(|minute| (minute * MINUTE, minute)).collect();
    assert_eq!(minutes, expected);
    let some = kept.cpus(1, BEGIN + 30..BEGIN + 130, MINUTE);
    assert_eq!(some, [(60, 1), (120, 2)]);
    let tens = kept.cpus(1, BEGIN..BEGIN + 20 * MINUTE, 10 * MINUTE);
    assert_eq!(tens, [(0, 5), (600, 15)]);
    // two that are over, and one that is not
    let hours = kept.cpus(1, BEGIN..BEGIN + DAY, HOUR);
    assert_eq!(hours, [(0, 30), (HOUR, 90), (2 * HOUR, 135)]);
    assert_eq!(kept.cpus(2, BEGIN..BEGIN + DAY, DAY), [(0, 500)]);
    assert_eq!(kept.cpus(3, BEGIN..BEGIN + DAY, MINUTE), []);
}

#[test]
fn a_day_of_minutes_and_more_hours_stay_however_long_it_goes_on() {
    let mut kept = Kept::new();
    for hour in 0..40 {
        kept.record(BEGIN + hour * HOUR, &[cpu(1, hour)]);
    }
    let end = BEGIN + 40 * HOUR;
    assert_eq!(kept.cpus(1, end - DAY..end, MINUTE).len(), 24);
    assert_eq!(kept.cpus(1, BEGIN..end, MINUTE).len(), HOURS + 1);
    assert_eq!(kept.cpus(1, BEGIN..end, HOUR).len(), 40);
    assert_eq!(kept.files("minutes").len(), HOURS + 1);
}

#[test]
fn a_fleet_that_grows_within_an_hour_keeps_what_was_before() {
    let mut kept = Kept::new();
    kept.record(BEGIN, &[cpu(1, 10)]);
    let many: Vec<_> = (1..=200).map(|n| cpu(n, 20)).collect();
    kept.record(BEGIN + MINUTE, &many);
    let mut kept = kept.again();
    kept.record(BEGIN + 2 * MINUTE, &[cpu(1, 30)]);
    let time = BEGIN..BEGIN + HOUR;
    assert_eq!(
        kept.cpus(1, time.clone(), MINUTE),
        [(0, 10), (60, 20), (120, 30)]
    );
    assert_eq!(kept.cpus(200, time.clone(), MINUTE), [(60, 20)]);
    kept.record(BEGIN + HOUR, &[cpu(1, 0)]);
    assert_eq!(kept.cpus(1, time, HOUR), [(0, 20)]);
}

#[test]
fn a_place_that_somebody_else_gets_tells_nothing_of_the_former_one() {
    let mut kept = Kept::new();
    kept.record(BEGIN, &[cpu(1, 10), cpu(2, 20)]);
    // the next hour only 2 is left, and 3 gets the place of 1
    kept.record(BEGIN + HOUR, &[cpu(2, 20)]);
    kept.record(BEGIN + HOUR + MINUTE, &[cpu(2, 20), cpu(3, 30)]);
    assert_eq!(kept.history.slots.width(), 2);
    let time = BEGIN..BEGIN + DAY;
    assert_eq!(kept.cpus(1, time.clone(), MINUTE), []);
    assert_eq!(kept.cpus(2, time.clone(), MINUTE).len(), 3);
    assert_eq!(kept.cpus(3, time.clone(), MINUTE), [(HOUR + 60, 30)]);
    assert_eq!(kept.cpus(3, time, HOUR), [(HOUR, 30)]);
}

#[test]
fn a_clock_that_goes_years_forth_and_back_costs_no_more_than_it_writes() {
    let mut kept = Kept::new();
    for hour in 0..24 {
        kept.record(BEGIN + hour * HOUR, &[cpu(1, hour)]);
    }
    let end = BEGIN + DAY;
    for other in [end + 5000 * DAY, end - 5000 * DAY, 0] {
        kept.record(other, &[cpu(1, 999)]);
    }
    kept.record(end, &[cpu(1, 24)]);
    // an hour back: what is written anew counts
    kept.record(end - HOUR, &[cpu(1, 77)]);
    kept.record(end + HOUR, &[cpu(1, 25)]);
    let cpus = kept.cpus(1, end - DAY + 2 * HOUR..end + DAY, MINUTE);
    assert_eq!(cpus.len(), 24);
    assert_eq!(
        cpus[21..],
        [(23 * HOUR, 77), (24 * HOUR, 24), (25 * HOUR, 25)]
    );
    assert!(kept.files("minutes").len() <= HOURS + 1);
}

#[test]
fn damaged_files_are_history_that_is_lost_and_nothing_else() {
    let whole = || {
        let mut kept = Kept::new();
        for minute in 0..70 {
            kept.record(BEGIN + minute * MINUTE, &[cpu(1, minute), cpu(2, minute)]);
        }
        kept
    };
    let time = BEGIN..BEGIN + DAY;
    let damages: [fn(&mut Vec<u8>); 6] = [
        |content| content.truncate(content.len() / 2),
        |content| content.truncate(10),
        Vec::clear,
        |content| content.fill(0xA5),
        |content| content.fill(0),
        |content| content.extend([7; 1000]),
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        for which in ["minutes", "hours", ""] {
            let kept = whole();
            let files = kept.files(which).into_iter().filter(|file| file.is_file());
            for file in files {
                let mut content = std::fs::read(&file).expect("read");
                damage(&mut content);
                std::fs::write(&file, content).expect("write");
            }
            let mut kept = kept.again();
            for (at, cpu) in kept.cpus(2, time.clone(), MINUTE) {
                assert_eq!(
                    cpu,
                    at / MINUTE,
                    "damage {n} of {which}: nothing that was not so"
                );
            }
            for minute in [70, 71, 130] {
                kept.record(BEGIN + minute * MINUTE, &[cpu(1, 1), cpu(2, minute)]);
            }
            let cpus = kept.cpus(2, time.clone(), MINUTE);
            let last = &cpus[cpus.len() - 3..];
            assert_eq!(last, [70, 71, 130].map(|minute| (minute * MINUTE, minute)));
        }
    }
    // names that mean nothing
    let kept = whole();
    for name in [
        "x",
        "1-2",
        "x-2.load",
        "1-x.load",
        "99999999999999999999-1.load",
        "18446744073709551615-4294967295.load",
    ] {
        std::fs::write(kept.directory.path().join("minutes").join(name), "x").expect("write");
    }
    assert_eq!(kept.again().cpus(2, time, MINUTE).len(), 70);
}

#[test]
fn what_cannot_be_written_fails_and_goes_on_when_it_can() {
    let mut kept = Kept::new();
    kept.record(BEGIN, &[cpu(1, 1)]);
    let minutes = kept.directory.path().join("minutes");
    let aside = kept.directory.path().join("aside");
    std::fs::rename(&minutes, &aside).expect("renamed");
    let failed = kept
        .history
        .record(BEGIN + HOUR, &[cpu(1, 2)], HashSet::new);
    assert!(failed.is_err());
    assert_eq!(kept.cpus(1, BEGIN..BEGIN + DAY, MINUTE), []);
    std::fs::rename(&aside, &minutes).expect("renamed");
    kept.record(BEGIN + HOUR + MINUTE, &[cpu(1, 3)]);
    assert_eq!(
        kept.cpus(1, BEGIN..BEGIN + DAY, MINUTE).last(),
        Some(&(HOUR + 60, 3))
    );
}
