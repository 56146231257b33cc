//! What the controller's clock is worth. Certificates, tokens and copies of TPMs have a time, and a controller that was started
//! under the year 2010 or 2040 judges all of them wrongly. Hosts tell what their clocks say, and when each was last heard is
//! known: what contradicts the controller's clock is said, and nothing is removed for its age meanwhile.

use crate::hosts::HostRecord;
use crate::inventory::Seen;
use crate::tokens::utc;
use crate::world::World;
use fleetward_model::certificate::CertificateFacts;
use fleetward_model::error::Finding;
use fleetward_model::preflight::CLOCK_LIMIT;
use fleetward_model::{ErrorCode, HostName};
use time::{Duration, OffsetDateTime};

/// A fleet of which nobody was heard for so long: half the life of its certificates.
const LONG: Duration = Duration::days(180);

/// How far the clock of a host that answers is ahead of the controller's, as of its last report.
fn ahead(seen: &Seen) -> Option<Duration> {
    let facts = seen.facts.as_ref().filter(|_| seen.answers)?;
    Some(facts.clock - seen.reported?)
}

/// The last moment that is certain not to be ahead: what is older than a while by it may go. None while no host that answers
/// has a clock beside the controller's.
pub(crate) fn certain(world: &World, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let hosts = world.hosts.all();
    let aheads = hosts
        .iter()
        .filter_map(|host| ahead(&world.inventory.seen(&host.name)));
    earliest(aheads, now)
}

fn earliest(aheads: impl Iterator<Item = Duration>, now: OffsetDateTime) -> Option<OffsetDateTime> {
    let least = aheads.min()?;
    Some(now.min(now.saturating_add(least)))
}

/// What speaks against the controller's clock, with both times; none where nothing does.
pub(crate) fn finding(world: &World, now: OffsetDateTime) -> Option<Finding> {
    let hosts = world.hosts.all();
    let heard: Vec<_> = hosts
        .iter()
        .map(|host| Heard::of(host, &world.inventory.seen(&host.name)))
        .collect();
    let what = of_those_that_answer(&heard, now).or_else(|| of_the_last_heard(&heard, now))?;
    Some(Finding::warning(ErrorCode::ClocksApart, what))
}

/// A host, and when it was last heard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Heard {
    last: OffsetDateTime,
    name: HostName,
    /// How far ahead its clock is, if it answers.
    ahead: Option<Duration>,
    answers: bool,
}

impl Heard {
    fn of(host: &HostRecord, seen: &Seen) -> Self {
        Self {
            last: last_heard(host, seen),
            name: host.name.clone(),
            ahead: ahead(seen),
            answers: seen.answers,
        }
    }
}

/// One that has never reported was heard when it joined.
fn last_heard(host: &HostRecord, seen: &Seen) -> OffsetDateTime {
    seen.last_seen.unwrap_or(host.joined)
}

/// More of the hosts that answer have another time than the controller's.
fn of_those_that_answer(heard: &[Heard], now: OffsetDateTime) -> Option<String> {
    let answering = heard
        .iter()
        .filter_map(|host| Some((&host.name, host.ahead?)));
    let answering: Vec<_> = answering.collect();
    let apart: Vec<_> = answering
        .iter()
        .filter(|(_, ahead)| ahead.abs() > CLOCK_LIMIT)
        .collect();
    let (name, ahead) = apart.first()?;
    (apart.len() * 2 > answering.len()).then(|| {
        format!(
            "the controller's clock says {}, and that of host {name} {}: it is apart from {} of {} hosts that answer",
            utc(now),
            utc(now.saturating_add(*ahead)),
            apart.len(),
            answering.len()
        )
    })
}

/// Nobody answers: when was somebody heard?
fn of_the_last_heard(heard: &[Heard], now: OffsetDateTime) -> Option<String> {
    if heard.iter().any(|host| host.answers) {
        return None;
    }
    let Heard { last, name, .. } = heard.iter().max()?;
    let times = format!(
        "the controller's clock says {}, and host {name} was last heard at {}",
        utc(now),
        utc(*last)
    );
    let since = now - *last;
    if since < -CLOCK_LIMIT {
        Some(format!(
            "{times}, which is later: it is behind, or was ahead then"
        ))
    } else if since > LONG {
        Some(format!(
            "{times}: it is ahead, unless the fleet was off for all of that time"
        ))
    } else {
        None
    }
}

/// What speaks against the clock of one host, or for it against the controller's.
pub(crate) fn warning(host: &HostRecord, seen: &Seen, now: OffsetDateTime) -> Option<String> {
    let name = &host.name;
    let at = |ahead| (utc(now), utc(now.saturating_add(ahead)));
    if let Some(ahead) = ahead(seen) {
        let (ours, its) = at(ahead);
        return (ahead.abs() > CLOCK_LIMIT).then(|| {
            format!(
                "its clock says {its}, and the controller's {ours} (CLOCKS_APART): nothing moves between {name} and hosts with \
                 the right time"
            )
        });
    }
    let last = seen.last_seen.filter(|last| *last - now > CLOCK_LIMIT)?;
    Some(format!(
        "it was last heard at {}, and the controller's clock says {} (CLOCKS_APART)",
        utc(last),
        utc(now)
    ))
}

/// What is said of a host that takes the controller's certificate for out of its time.
pub(crate) fn refusal(name: &HostName, ours: &CertificateFacts, now: OffsetDateTime) -> String {
    let (begins, ends) = (utc(ours.not_before), utc(ours.not_after));
    format!(
        "it refuses the controller's certificate as out of its time (CLOCKS_APART): its clock is before {begins} or after \
         {ends}, and the controller's says {}. Once its clock is set it answers; VMs run on, and nothing of them is changed. On \
         host {name}: date",
        utc(now)
    )
}

/// What is said beside the end of a host's certificate, if that end may only seem to be over.
pub(crate) fn doubt(host: &HostRecord, seen: &Seen, now: OffsetDateTime) -> String {
    let last = last_heard(host, seen);
    if now - last <= LONG {
        return String::new();
    }
    format!(
        " (if the controller's clock is right, which says {}: the host was last heard at {})",
        utc(now),
        utc(last)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const HEARD: OffsetDateTime = datetime!(2026-11-28 12:00 UTC);

    fn host(ahead: Option<Duration>) -> Heard {
        Heard {
            last: HEARD,
            name: "a".parse().expect("name"),
            ahead,
            answers: ahead.is_some(),
        }
    }

    #[test]
    fn a_clock_of_another_decade_is_told_with_both_times() {
        for (now, word) in [
            (datetime!(2010-01-01 0:00 UTC), "is behind"),
            (datetime!(2026-11-28 11:00 UTC), "is behind"),
            (datetime!(2040-01-01 0:00 UTC), "is ahead"),
        ] {
            let said = of_the_last_heard(&[host(None)], now).expect("a finding");
            let then = "host a was last heard at 2026-11-28T12:00:00Z";
            assert!(said.contains(then), "{said}");
            assert!(said.contains(&utc(now)) && said.contains(word), "{said}");
        }
        for now in [HEARD, datetime!(2027-02-01 0:00 UTC)] {
            assert_eq!(of_the_last_heard(&[host(None)], now), None, "{now}");
        }
    }

    #[test]
    fn most_hosts_that_answer_are_right_about_the_time() {
        let (right, wrong) = (host(Some(Duration::ZERO)), host(Some(Duration::hours(-2))));
        let said = |hosts: &[&Heard]| {
            let hosts: Vec<_> = hosts.iter().map(|one| (*one).clone()).collect();
            of_those_that_answer(&hosts, HEARD)
        };
        assert_eq!(said(&[&right, &wrong]), None);
        let said = said(&[&right, &wrong, &wrong]).expect("a finding");
        assert!(said.contains("2026-11-28T10:00:00Z"), "{said}");
        assert!(said.contains("2 of 3 hosts"), "{said}");
    }

    #[test]
    fn nothing_is_old_while_no_host_confirms_the_time() {
        let now = datetime!(2040-01-01 0:00 UTC);
        let years = Duration::days(14 * 365);
        assert_eq!(earliest([].into_iter(), now), None);
        let clocks = [Duration::ZERO, -years, Duration::HOUR];
        assert_eq!(earliest(clocks.into_iter(), now), Some(now - years));
        assert_eq!(earliest([years].into_iter(), now), Some(now));
    }
}
