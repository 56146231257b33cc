//! Which alerts there are, and who was told of what. Pure: what was seen goes in, what is to be written comes out.
//!
//! ```text
//!   seen ──twice in a row──► raised ──not seen, 3 times in a row or more──► ended ──every target told──► forgotten
//!                              │ ▲                                           │
//!                              └─┴──────────── each target: tried ► told ◄───┘
//! ```
//! What comes back within an hour has to be away for twice as long before it ends, up to [`LONGEST_CALM`] looks. Of what
//! cannot be looked at, because its host is away, nothing changes.

use fleetward_api::controller::AlertView;
use fleetward_model::{ErrorCode, HostName};
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// Looks in a row that must see something before it is raised.
const SEEN: u32 = 2;
/// Looks in a row that must not see it before it ends.
const CALM: u32 = 3;
const LONGEST_CALM: u32 = 48;
/// For how long it is known that something has come and gone.
const MEMORY: Duration = Duration::hours(1);
/// Alerts that last, and alerts whose end somebody is still to be told, at most.
const MOST: usize = 10_000;

/// Something that needs somebody, as it was seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// The same for as long as it lasts: code and object.
    pub(crate) key: String,
    pub(crate) code: ErrorCode,
    pub(crate) subject: String,
    /// Without this host it cannot be looked at.
    pub(crate) host: Option<HostName>,
    pub(crate) message: String,
    pub(crate) fix: String,
    /// It does not come and go by itself, and is raised when it is seen first.
    pub(crate) at_once: bool,
}

/// All that was seen in one look.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) conditions: Vec<Condition>,
    /// Hosts of the fleet that could not be looked at.
    pub(crate) away: HashSet<HostName>,
}

/// How far a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    /// It was sent, and may have arrived.
    Tried,
    Raised,
}

/// An alert as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Alert {
    #[serde(flatten)]
    pub(crate) view: AlertView,
    key: String,
    host: Option<HostName>,
    /// By the id of the target.
    #[serde(default)]
    told: BTreeMap<Uuid, Told>,
    /// How often it came back within an hour.
    #[serde(default)]
    returns: u32,
    /// Looks in a row that did not see it.
    #[serde(skip)]
    absent: u32,
}

impl Alert {
    fn calm(&self) -> u32 {
        (CALM << self.returns.min(8)).min(LONGEST_CALM)
    }

    /// Whether a target is still to be told of it, or of its end.
    fn is_owed(&self, target: Uuid) -> bool {
        match (self.view.ended, self.told.get(&target)) {
            (None, told) => told != Some(&Told::Raised),
            (Some(_), told) => told.is_some(),
        }
    }
}

/// A change of the store.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    Put(Box<Alert>),
    Delete(Uuid),
}

impl Write {
    fn put(alert: &Alert) -> Self {
        Self::Put(Box::new(alert.clone()))
    }
}

/// What was seen, and is not raised.
#[derive(Debug)]
struct Candidate {
    looks: u32,
    since: OffsetDateTime,
}

/// What has ended.
#[derive(Debug)]
struct Recent {
    ended: OffsetDateTime,
    returns: u32,
}

/// Every alert.
#[derive(Debug, Default)]
pub(crate) struct Book {
    raised: BTreeMap<String, Alert>,
    /// Whose end somebody is to be told.
    ended: BTreeMap<Uuid, Alert>,
    candidates: HashMap<String, Candidate>,
    recent: HashMap<String, Recent>,
    /// What the last look saw and there is no room for.
    left_out: usize,
}

impl Book {
    pub(crate) fn of(stored: impl IntoIterator<Item = Alert>) -> Self {
        let mut book = Self::default();
        for alert in stored {
            if alert.view.ended.is_some() {
                book.ended.insert(alert.view.id, alert);
            } else {
                book.raised.insert(alert.key.clone(), alert);
            }
        }
        book
    }

    /// Takes in one look.
    pub(crate) fn take(&mut self, look: Look, now: OffsetDateTime) -> Vec<Write> {
        let mut writes = Vec::new();
        let mut seen = HashSet::new();
        let mut before = std::mem::take(&mut self.candidates);
        self.recent.retain(|_, recent| now - recent.ended < MEMORY);
        self.left_out = 0;
        for condition in look.conditions {
            if !seen.insert(condition.key.clone()) {
                continue;
            }
            if let Some(alert) = self.raised.get_mut(&condition.key) {
                alert.absent = 0;
                alert.host = condition.host;
                alert.view.message = condition.message;
                alert.view.fix = condition.fix;
                continue;
            }
            let mut candidate = before.remove(&condition.key).unwrap_or(Candidate {
                looks: 0,
                since: now,
            });
            candidate.looks += 1;
            if candidate.looks < SEEN && !condition.at_once {
                self.candidates.insert(condition.key, candidate);
            } else if self.raised.len() >= MOST {
                self.left_out += 1;
                self.candidates.insert(condition.key, candidate);
            } else {
                let alert = self.raise(condition, candidate.since);
                writes.push(Write::put(alert));
            }
        }
        let gone = self.raised.iter_mut().filter_map(|(key, alert)| {
            let hidden = alert
                .host
                .as_ref()
                .is_some_and(|host| look.away.contains(host));
            if seen.contains(key) || hidden {
                return None;
            }
            alert.absent += 1;
            (alert.absent >= alert.calm()).then(|| key.clone())
        });
        for key in gone.collect::<Vec<_>>() {
            writes.extend(self.end(&key, now));
        }
        writes
    }

    fn raise(&mut self, condition: Condition, since: OffsetDateTime) -> &Alert {
        let recent = self.recent.remove(&condition.key);
        let alert = Alert {
            view: AlertView {
                id: Uuid::new_v4(),
                code: condition.code,
                subject: condition.subject,
                since,
                ended: None,
                message: condition.message,
                fix: condition.fix,
            },
            key: condition.key.clone(),
            host: condition.host,
            told: BTreeMap::new(),
            returns: recent.map_or(0, |recent| recent.returns + 1),
            absent: 0,
        };
        self.raised.entry(condition.key).or_insert(alert)
    }

    fn end(&mut self, key: &str, now: OffsetDateTime) -> Vec<Write> {
        let Some(mut alert) = self.raised.remove(key) else {
            return Vec::new();
        };
        let recent = Recent {
            ended: now,
            returns: alert.returns,
        };
        self.recent.insert(key.to_owned(), recent);
        alert.view.ended = Some(now);
        let id = alert.view.id;
        if alert.told.is_empty() {
            return vec![Write::Delete(id)];
        }
        let mut writes = vec![Write::put(&alert)];
        self.ended.insert(id, alert);
        while self.ended.len() > MOST {
            let oldest = self.ended.values().min_by_key(|alert| alert.view.ended);
            let Some(oldest) = oldest.map(|alert| alert.view.id) else {
                break;
            };
            self.ended.remove(&oldest);
            writes.push(Write::Delete(oldest));
        }
        writes
    }

    /// What a target is still to be told, oldest first.
    pub(crate) fn owed(&self, target: Uuid, codes: &[ErrorCode]) -> Vec<AlertView> {
        let wanted = |alert: &&Alert| {
            (codes.is_empty() || codes.contains(&alert.view.code)) && alert.is_owed(target)
        };
        let all = self.ended.values().chain(self.raised.values());
        let mut owed: Vec<_> = all.filter(wanted).map(|alert| alert.view.clone()).collect();
        owed.sort_by_key(|view| (view.ended.unwrap_or(view.since), view.id));
        owed
    }

    /// Before something is sent: from now on its end is told, too, whatever becomes of the sending.
    pub(crate) fn try_to_tell(&mut self, target: Uuid, views: &[AlertView]) -> Vec<Write> {
        let ids = ids(views, false);
        let raised = self.raised.values_mut();
        let mut writes = Vec::new();
        for alert in raised.filter(|alert| ids.contains(&alert.view.id)) {
            if let Entry::Vacant(entry) = alert.told.entry(target) {
                entry.insert(Told::Tried);
                writes.push(Write::put(alert));
            }
        }
        writes
    }

    /// The target has taken these.
    pub(crate) fn told(&mut self, target: Uuid, views: &[AlertView]) -> Vec<Write> {
        let (raised, ends) = (ids(views, false), ids(views, true));
        let mut writes = Vec::new();
        for alert in self.raised.values_mut().chain(self.ended.values_mut()) {
            if raised.contains(&alert.view.id) {
                alert.told.insert(target, Told::Raised);
                writes.push(Write::put(alert));
            }
        }
        for id in ends {
            writes.extend(self.told_end(target, id));
        }
        writes
    }

    fn told_end(&mut self, target: Uuid, id: Uuid) -> Option<Write> {
        let alert = self.ended.get_mut(&id)?;
        alert.told.remove(&target)?;
        if !alert.told.is_empty() {
            return Some(Write::put(alert));
        }
        self.ended.remove(&id);
        Some(Write::Delete(id))
    }

    /// Nobody else is told anything any more.
    pub(crate) fn keep_targets(&mut self, known: &HashSet<Uuid>) -> Vec<Write> {
        let mut writes = Vec::new();
        for alert in self.raised.values_mut().chain(self.ended.values_mut()) {
            let before = alert.told.len();
            alert.told.retain(|target, _| known.contains(target));
            if alert.told.len() < before {
                writes.push(Write::put(alert));
            }
        }
        let over = self.ended.extract_if(.., |_, alert| alert.told.is_empty());
        writes.extend(over.map(|(id, _)| Write::Delete(id)));
        writes
    }

    /// Those that last, oldest first.
    pub(crate) fn raised(&self) -> Vec<AlertView> {
        let mut raised: Vec<_> = self.raised.values().map(|one| one.view.clone()).collect();
        raised.sort_by_key(|view| (view.since, view.id));
        raised
    }

    /// How many last, by code.
    pub(crate) fn counts(&self) -> BTreeMap<ErrorCode, usize> {
        let mut counts = BTreeMap::new();
        for alert in self.raised.values() {
            *counts.entry(alert.view.code).or_default() += 1;
        }
        counts
    }

    pub(crate) const fn left_out(&self) -> usize {
        self.left_out
    }
}

fn ids(views: &[AlertView], ended: bool) -> HashSet<Uuid> {
    let those = views.iter().filter(|view| view.ended.is_some() == ended);
    those.map(|view| view.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const BEGIN: OffsetDateTime = datetime!(2026-11-28 12:00 UTC);
    const TARGET: Uuid = Uuid::from_u128(7);

    fn condition(name: &str) -> Condition {
        Condition {
            key: name.to_owned(),
            code: ErrorCode::HostUnreachable,
            subject: format!("host {name}"),
            host: Some(name.parse().expect("a name")),
            message: "it is away".to_owned(),
            fix: "look".to_owned(),
            at_once: false,
        }
    }

    /// A book, and what was told of it to one target, by name and whether it was the end.
    struct Story {
        book: Book,
        now: OffsetDateTime,
        told: Vec<(String, bool)>,
    }

    impl Story {
        fn new() -> Self {
            Self {
                book: Book::default(),
                now: BEGIN,
                told: Vec::new(),
            }
        }

        /// One look, a minute after the last; `hears` whether the target takes what is sent.
        fn look(&mut self, seen: &[&str], away: &[&str], hears: bool) {
            self.now += Duration::MINUTE;
            let look = Look {
                conditions: seen.iter().map(|name| condition(name)).collect(),
                away: away
                    .iter()
                    .map(|name| name.parse().expect("name"))
                    .collect(),
            };
            self.book.take(look, self.now);
            let owed = self.book.owed(TARGET, &[]);
            self.book.try_to_tell(TARGET, &owed);
            if hears {
                self.book.told(TARGET, &owed);
                let said = owed.into_iter();
                self.told
                    .extend(said.map(|v| (v.key_of(), v.ended.is_some())));
            }
        }

        /// As after a kill -9: what was written is there.
        fn restart(&mut self) {
            let raised = self.book.raised.values().chain(self.book.ended.values());
            let json: Vec<_> = raised
                .map(|alert| serde_json::to_string(alert).expect("JSON"))
                .collect();
            let stored = json
                .iter()
                .map(|text| serde_json::from_str(text).expect("an alert"));
            self.book = Book::of(stored);
        }
    }

    trait Named {
        fn key_of(&self) -> String;
    }

    impl Named for AlertView {
        fn key_of(&self) -> String {
            self.subject.replace("host ", "")
        }
    }

    fn said(name: &str, end: bool) -> (String, bool) {
        (name.to_owned(), end)
    }

    #[test]
    fn an_alert_is_told_once_and_its_end_once_over_restarts() {
        let mut story = Story::new();
        story.look(&["a"], &[], true);
        assert_eq!(story.told, [], "one look is a moment");
        for _ in 0..5 {
            story.look(&["a"], &[], true);
            story.restart();
        }
        assert_eq!(story.told, [said("a", false)]);
        for _ in 0..4 {
            story.look(&[], &[], true);
        }
        assert_eq!(story.told, [said("a", false), said("a", true)]);
        assert!(story.book.ended.is_empty(), "it is forgotten");
    }

    #[test]
    fn a_moment_is_no_alert_and_a_moment_of_calm_no_end() {
        let mut story = Story::new();
        for _ in 0..10 {
            story.look(&["a"], &[], true);
            story.look(&[], &[], true);
        }
        assert_eq!(story.told, []);
        for _ in 0..10 {
            story.look(&["a"], &[], true);
            story.look(&["a"], &[], true);
            story.look(&[], &[], true);
        }
        assert_eq!(story.told, [said("a", false)]);
    }

    #[test]
    fn what_comes_and_goes_for_a_day_is_told_a_few_times() {
        let mut story = Story::new();
        for _ in 0..24 * 6 {
            for _ in 0..5 {
                story.look(&["a"], &[], true);
            }
            for _ in 0..5 {
                story.look(&[], &[], true);
            }
        }
        assert_eq!(
            story.told,
            [said("a", false), said("a", true), said("a", false)]
        );
    }

    #[test]
    fn of_what_cannot_be_looked_at_nothing_changes() {
        let mut story = Story::new();
        story.look(&["a"], &[], true);
        story.look(&["a"], &[], true);
        for _ in 0..20 {
            story.look(&[], &["a"], true);
        }
        assert_eq!(story.told, [said("a", false)]);
    }

    #[test]
    fn a_target_that_may_have_heard_is_told_the_end_and_one_that_did_not_is_told_nothing() {
        let mut story = Story::new();
        story.look(&["a"], &[], false);
        story.look(&["a"], &[], false);
        story.restart();
        for _ in 0..4 {
            story.look(&[], &[], true);
        }
        // It may have come already, and is told again, since nobody knows.
        assert_eq!(story.told, [said("a", false), said("a", true)]);
        assert!(story.book.ended.is_empty());
        // Nobody was told of it: nobody is told of its end.
        let mut book = Book::default();
        for seen in [true, true, false, false, false] {
            let look = Look {
                conditions: seen.then(|| condition("a")).into_iter().collect(),
                ..Look::default()
            };
            book.take(look, BEGIN);
        }
        assert_eq!(book.owed(TARGET, &[]), []);
    }

    #[test]
    fn a_removed_target_keeps_nothing_waiting() {
        let mut story = Story::new();
        story.look(&["a"], &[], false);
        story.look(&["a"], &[], false);
        for _ in 0..4 {
            story.look(&[], &[], false);
        }
        assert_eq!(story.book.ended.len(), 1);
        let writes = story.book.keep_targets(&HashSet::new());
        assert!(matches!(writes.last(), Some(Write::Delete(_))));
        assert!(story.book.ended.is_empty());
    }

    #[test]
    fn only_the_codes_that_a_target_asked_for_are_told() {
        let mut story = Story::new();
        story.look(&["a"], &[], false);
        story.look(&["a"], &[], false);
        assert_eq!(story.book.owed(TARGET, &[ErrorCode::NoSpace]), []);
        assert_eq!(
            story.book.owed(TARGET, &[ErrorCode::HostUnreachable]).len(),
            1
        );
    }
}
