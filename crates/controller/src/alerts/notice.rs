//! One message: what a target is told at a time, as JSON and as text.
//!
//! Many alerts become one message with counts; the first [`NAMED`] of them are in it by name. Texts come from hosts, guests
//! and names: what is no printable character, or turns the direction of writing, is replaced before it is in a message.

use fleetward_api::controller::AlertView;
use fleetward_model::ErrorCode;
use fleetward_model::text::is_invisible;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// Alerts that a message names.
const NAMED: usize = 20;
/// Characters of a text.
const LONGEST: usize = 1000;

/// The body of a webhook. Its fields are a contract: see the user guide.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Notice {
    /// Of this form.
    version: u32,
    /// The same when the same is sent again.
    pub(super) message: Uuid,
    fleet: String,
    /// Whether it was sent by `alert test`.
    test: bool,
    #[serde(with = "time::serde::rfc3339")]
    sent: OffsetDateTime,
    counts: Vec<Count>,
    alerts: Vec<AlertView>,
    /// Alerts that are counted and not named.
    left_out: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Count {
    code: ErrorCode,
    raised: usize,
    ended: usize,
}

impl Notice {
    /// All of `alerts` for `target`.
    pub(super) fn of(
        fleet: &str,
        target: Uuid,
        alerts: &[AlertView],
        sent: OffsetDateTime,
    ) -> Self {
        let mut counts: BTreeMap<ErrorCode, (usize, usize)> = BTreeMap::new();
        let mut content = Vec::new();
        for alert in alerts {
            let (raised, ended) = counts.entry(alert.code).or_default();
            *(if alert.ended.is_some() { ended } else { raised }) += 1;
            content.extend(alert.id.as_bytes());
            content.push(u8::from(alert.ended.is_some()));
        }
        let counts = counts.into_iter().map(|(code, (raised, ended))| Count {
            code,
            raised,
            ended,
        });
        Self {
            version: 1,
            message: Uuid::new_v5(&target, &content),
            fleet: fleet.to_owned(),
            test: false,
            sent,
            counts: counts.collect(),
            alerts: alerts.iter().take(NAMED).map(printable).collect(),
            left_out: alerts.len().saturating_sub(NAMED),
        }
    }

    pub(super) fn test(fleet: &str, sent: OffsetDateTime) -> Self {
        Self {
            test: true,
            message: Uuid::new_v4(),
            ..Self::of(fleet, Uuid::nil(), &[], sent)
        }
    }

    /// One line.
    pub(super) fn subject(&self) -> String {
        if self.test {
            return format!("[fleetward {}] test", self.short());
        }
        let said = match &self.alerts[..] {
            [alert] if self.left_out == 0 => {
                let over = if alert.ended.is_some() { "over: " } else { "" };
                format!("{over}{} {}", alert.code, alert.subject)
            }
            _ => self.sums().join(", "),
        };
        clip(&format!("[fleetward {}] {said}", self.short()), 200)
    }

    /// The beginning of the fleet's id, which tells fleets apart in a list of mails.
    fn short(&self) -> &str {
        self.fleet.split('-').next().unwrap_or_default()
    }

    /// `3 HOST_UNREACHABLE`, `1 NO_SPACE over`.
    fn sums(&self) -> Vec<String> {
        let counts = self.counts.iter();
        let of = |count: &Count| {
            let raised = (count.raised > 0).then(|| format!("{} {}", count.raised, count.code));
            let ended = (count.ended > 0).then(|| format!("{} {} over", count.ended, count.code));
            raised.into_iter().chain(ended)
        };
        counts.flat_map(of).collect()
    }

    pub(super) fn text(&self) -> String {
        if self.test {
            return format!(
                "This is a test, sent by fleetward alert test. Fleet: {}\n",
                self.fleet
            );
        }
        let mut text = format!("{}\n", self.sums().join("\n"));
        for alert in &self.alerts {
            let AlertView {
                id,
                code,
                subject,
                since,
                ended,
                message,
                fix,
            } = alert;
            let state = match ended {
                Some(ended) => format!("over since {}", moment(*ended)),
                None => "needs somebody".to_owned(),
            };
            let since = moment(*since);
            let said = write!(
                text,
                "\n{code}: {subject}: {state}\n  {message}\n  since: {since}\n  fix: {fix}\n  id: {id}\n"
            );
            said.expect("strings take all writes");
        }
        if self.left_out > 0 {
            let said = writeln!(text, "\nand {} more: fleetward alert now", self.left_out);
            said.expect("strings take all writes");
        }
        text
    }
}

fn moment(at: OffsetDateTime) -> String {
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}

fn printable(alert: &AlertView) -> AlertView {
    AlertView {
        subject: clip(&alert.subject, 200),
        message: clip(&alert.message, LONGEST),
        fix: clip(&alert.fix, LONGEST),
        ..alert.clone()
    }
}

/// One line of at most so many characters, all of them printable.
fn clip(text: &str, most: usize) -> String {
    let shown = text.chars().map(|c| match c {
        c if c.is_control() => ' ',
        c if is_invisible(c) => '\u{fffd}',
        c => c,
    });
    shown.take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(n: u128, message: &str) -> AlertView {
        AlertView {
            id: Uuid::from_u128(n),
            code: ErrorCode::HostUnreachable,
            subject: format!("host h{n}"),
            since: OffsetDateTime::UNIX_EPOCH,
            ended: None,
            message: message.to_owned(),
            fix: "look".to_owned(),
        }
    }

    fn notice(alerts: &[AlertView]) -> Notice {
        Notice::of("f", Uuid::from_u128(1), alerts, OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_storm_is_one_message_with_counts() {
        let many: Vec<_> = (0..300).map(|n| alert(n, "away")).collect();
        let storm = notice(&many);
        assert_eq!(storm.subject(), "[fleetward f] 300 HOST_UNREACHABLE");
        assert_eq!((storm.alerts.len(), storm.left_out), (NAMED, 280));
        assert!(storm.text().contains("and 280 more: fleetward alert now"));
        assert!(storm.text().len() < 10_000);
    }

    #[test]
    fn nothing_in_a_text_begins_a_line_or_turns_it() {
        let hostile = "x\r\nBcc: eve@example.org\r\n.\r\nQUIT\u{202e}\u{1b}[2J\u{2028}y";
        let mut one = alert(1, hostile);
        one.subject = format!("VM {hostile}");
        let notice = notice(&[one]);
        let subject = notice.subject();
        assert!(
            !subject.chars().any(|c| c.is_control() || is_invisible(c)),
            "{subject:?}"
        );
        let text = notice.text();
        assert!(
            !text
                .lines()
                .any(|line| line.starts_with("Bcc") || line == "."),
            "{text}"
        );
        assert!(
            !text.contains(['\r', '\u{1b}', '\u{202e}', '\u{2028}']),
            "{text:?}"
        );
    }

    #[test]
    fn the_same_content_is_the_same_message_and_an_end_is_another() {
        let (one, mut end) = (alert(1, "away"), alert(1, "away"));
        end.ended = Some(OffsetDateTime::UNIX_EPOCH);
        let id = |alert: &AlertView| notice(std::slice::from_ref(alert)).message;
        assert_eq!(id(&one), id(&alert(1, "still away")));
        assert_ne!(id(&one), id(&end));
    }
}
