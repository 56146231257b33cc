//! Certificates of members of the fleet: how long they live, when they are renewed, and which are refused before their end.
//!
//! ```text
//!   made ──two thirds of its life──► due ──► renewed: the old one is superseded once the new one was used
//!     │                               └── nobody renews it ──► ends soon (a warning) ──► ended: host rejoin
//!     └── administrator says so, host removed or expelled ──► refused everywhere
//! ```
//! A refusal names one certificate by its serial number, or every certificate of a member that begins before a moment. The
//! second also covers certificates whose numbers nobody has kept, and those of an earlier host of the same name.

use crate::ErrorCode;
use crate::error::Finding;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

/// Most entries of a list that an agent takes.
pub const MAX_REFUSED: usize = 4096;
/// Beyond so many, those that are over leave the list.
const MANY_REFUSED: usize = MAX_REFUSED / 2;

/// The serial number of a certificate: lower-case hex digits, two a byte, at most 20 bytes (RFC 5280, 4.1.2.2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Serial(String);

impl Serial {
    /// The number as a certificate holds it, without a leading zero byte.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let bytes = match bytes {
            [0, rest @ ..] if !rest.is_empty() => rest,
            all => all,
        };
        Self(hex::encode(bytes))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    /// Colons between the bytes and upper case, as other programs print them, are understood.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        let digits = text.replace(':', "").to_ascii_lowercase();
        let bytes = hex::decode(&digits).map_err(|_| SerialError)?;
        match bytes.len() {
            1..=20 => Ok(Self::from_bytes(&bytes)),
            _ => Err(SerialError),
        }
    }
}

impl TryFrom<String> for Serial {
    type Error = SerialError;

    fn try_from(text: String) -> Result<Self, SerialError> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is no serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a serial number has 1 to 20 bytes, written as hex digits")]
pub struct SerialError;

/// What a certificate says of itself, apart from whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateFacts {
    pub serial: Serial,
    /// First moment at which it is good.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// Last moment at which it is good.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

impl CertificateFacts {
    /// From this moment on it is renewed: two thirds of its life.
    pub fn renew_from(&self) -> OffsetDateTime {
        self.not_before + (self.not_after - self.not_before) / 3 * 2
    }

    /// Whether it is to be renewed now.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        now >= self.renew_from()
    }

    /// Whether its end is so near, a sixth of its life, that its renewal must have failed.
    pub fn ends_soon(&self, now: OffsetDateTime) -> bool {
        self.not_after - now <= (self.not_after - self.not_before) / 6
    }

    /// Whether it is no longer good.
    pub fn has_ended(&self, now: OffsetDateTime) -> bool {
        now > self.not_after
    }

    /// Time until its end, negative afterwards.
    pub fn left(&self, now: OffsetDateTime) -> Duration {
        self.not_after - now
    }
}

/// From so long before the end of the fleet's authority on it is told: nothing renews it, and another fleet takes planning.
pub const AUTHORITY_WARNING: Duration = Duration::days(2 * 365);

/// What is to be known of a fleet's authority that is good from `begins` to `ends`: it will end soon, it has ended, or it was made
/// under a clock that was ahead.
pub fn authority_finding(
    begins: OffsetDateTime,
    ends: OffsetDateTime,
    now: OffsetDateTime,
) -> Option<Finding> {
    let what = if now < begins {
        format!(
            "the fleet's certificate authority begins on {}, and it is {} now: the controller's clock is wrong, or was when the \
             fleet was made; no host believes its certificates before",
            begins.date(),
            now.date()
        )
    } else if now > ends {
        format!(
            "the fleet's certificate authority ended on {}, and with it every certificate of the fleet",
            ends.date()
        )
    } else if ends - now < AUTHORITY_WARNING {
        format!(
            "the fleet's certificate authority ends on {}, in {} days, and with it every certificate of the fleet; nothing renews it",
            ends.date(),
            (ends - now).whole_days()
        )
    } else {
        return None;
    };
    Some(Finding::warning(ErrorCode::AuthorityEnds, what))
}

/// Certificates that are refused although they have not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedCertificates {
    pub entries: Vec<Refused>,
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub which: Which,
    pub why: WhyRefused,
    /// When it was decided.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// No certificate that this is about is good any longer: the entry is not needed afterwards.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// Which certificates an entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Which {
    /// One.
    Serial { serial: Serial },
    /// Those of a member, `host/NAME` or `admin/NAME`, that begin before a moment.
    Earlier {
        member: String,
        #[serde(with = "time::serde::rfc3339")]
        before: OffsetDateTime,
    },
}

/// Why a certificate is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyRefused {
    /// The member has a newer one, and has used it.
    Superseded,
    /// An administrator has revoked it.
    Revoked,
    /// Its host has left the fleet.
    Removed,
    /// Its host was expelled.
    Expelled,
    /// A reason of a newer version.
    #[serde(other)]
    Other,
}

impl WhyRefused {
    /// Whether connections that are open are cut: not for a certificate that was only renewed, under which a migration may run.
    pub fn cuts(self) -> bool {
        match self {
            Self::Superseded => false,
            Self::Revoked | Self::Removed | Self::Expelled | Self::Other => true,
        }
    }
}

impl fmt::Display for WhyRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superseded => "it was replaced by a newer one",
            Self::Revoked => "an administrator has revoked it",
            Self::Removed => "its host was removed from the fleet",
            Self::Expelled => "its host was expelled from the fleet",
            Self::Other => "the controller says so",
        })
    }
}

impl RefusedCertificates {
    /// Why a certificate of `member` is refused; none if it is not.
    pub fn refuses(&self, member: &str, certificate: &CertificateFacts) -> Option<WhyRefused> {
        self.entry(member, certificate).map(|entry| entry.why)
    }

    /// The entry by which a certificate of `member` is refused; one that cuts before one that does not.
    pub fn entry(&self, member: &str, certificate: &CertificateFacts) -> Option<&Refused> {
        let about = self.entries.iter().filter(|entry| match &entry.which {
            Which::Serial { serial } => *serial == certificate.serial,
            Which::Earlier { member: of, before } => {
                of == member && certificate.not_before < *before
            }
        });
        about.max_by_key(|entry| entry.why.cuts())
    }

    /// The moment before which every certificate of `member` is refused.
    pub fn earliest(&self, member: &str) -> Option<OffsetDateTime> {
        let moments = self.entries.iter().filter_map(|entry| match &entry.which {
            Which::Earlier { member: of, before } if of == member => Some(*before),
            Which::Earlier { .. } | Which::Serial { .. } => None,
        });
        moments.max()
    }

    /// Takes the entries of `other`, too. Nothing that is refused becomes good by it. What is over by the clock goes only where
    /// there are many entries: a clock that was ahead for a moment would bring back what was revoked. Whether anything was
    /// added.
    pub fn merge(&mut self, other: &Self, now: OffsetDateTime) -> bool {
        let mut added = false;
        let crowded = self.entries.len().max(other.entries.len()) > MANY_REFUSED;
        let counts = |entry: &Refused| !crowded || entry.until >= now;
        for new in other.entries.iter().filter(|entry| counts(entry)) {
            let known = self
                .entries
                .iter_mut()
                .find(|known| known.is_replaced_by(new));
            match known {
                Some(known) if known.covers(new) => {}
                Some(known) => {
                    known.take(new);
                    added = true;
                }
                None => {
                    self.entries.push(new.clone());
                    added = true;
                }
            }
        }
        self.entries.retain(counts);
        added
    }
}

impl Refused {
    /// Whether `new` is about the same certificate, or about the same member for the same kind of reason.
    fn is_replaced_by(&self, new: &Self) -> bool {
        match (&self.which, &new.which) {
            (Which::Serial { serial: a }, Which::Serial { serial: b }) => a == b,
            (Which::Earlier { member: a, .. }, Which::Earlier { member: b, .. }) => {
                // A newer certificate of a host that is back must not hide that the former host was expelled.
                a == b && self.why.cuts() == new.why.cuts()
            }
            (Which::Serial { .. } | Which::Earlier { .. }, _) => false,
        }
    }

    fn covers(&self, new: &Self) -> bool {
        let moment = |which: &Which| match which {
            Which::Serial { .. } => None,
            Which::Earlier { before, .. } => Some(*before),
        };
        moment(&self.which) >= moment(&new.which) && (self.why.cuts() || !new.why.cuts())
    }

    fn take(&mut self, new: &Self) {
        let until = self.until.max(new.until);
        *self = Self {
            until,
            ..new.clone()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    fn at(days: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000 + days * DAY).expect("a time")
    }

    fn certificate(serial: u8, begins: i64) -> CertificateFacts {
        CertificateFacts {
            serial: Serial::from_bytes(&[0x40, serial]),
            not_before: at(begins),
            not_after: at(begins + 300),
        }
    }

    fn earlier(member: &str, before: i64, why: WhyRefused) -> RefusedCertificates {
        list(
            Which::Earlier {
                member: member.to_owned(),
                before: at(before),
            },
            why,
        )
    }

    fn list(which: Which, why: WhyRefused) -> RefusedCertificates {
        RefusedCertificates {
            entries: vec![Refused {
                which,
                why,
                at: at(0),
                until: at(400),
            }],
        }
    }

    #[test]
    fn an_authority_is_told_of_from_two_years_before_its_end_and_before_its_beginning() {
        let day = |days| OffsetDateTime::UNIX_EPOCH + Duration::days(days);
        let (begins, ends) = (day(10_000), day(10_000 + 20 * 365));
        let words = |days| authority_finding(begins, ends, day(days)).map(|found| found.what);
        for (days, expected) in [
            (9_990, Some("begins on 1997-05-19")),
            (10_001, None),
            (10_000 + 18 * 365, None),
            (10_001 + 18 * 365, Some("in 729 days")),
            (9_999 + 20 * 365, Some("in 1 days")),
            (10_001 + 20 * 365, Some("ended on 2017-05-14")),
        ] {
            match (words(days), expected) {
                (Some(words), Some(expected)) => assert!(words.contains(expected), "{words}"),
                (words, expected) => assert_eq!(words.as_deref(), expected, "day {days}"),
            }
        }
        let found = authority_finding(begins, ends, ends).expect("a remark");
        assert!(!found.blocking, "it stops nothing");
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_and_warned_of_at_five_sixths() {
        let one = certificate(1, 0);
        assert!(!one.is_due(at(199)));
        assert!(one.is_due(at(200)));
        assert!(!one.ends_soon(at(249)));
        assert!(one.ends_soon(at(250)));
        assert!(!one.has_ended(at(300)));
        assert!(one.has_ended(at(301)));
    }

    #[test]
    fn a_number_is_the_same_however_it_is_written() {
        let plain: Serial = "00ab".parse().expect("hex");
        assert_eq!(plain, "AB".parse().expect("hex"));
        assert_eq!("40:AB:01".parse(), Ok(Serial::from_bytes(&[0x40, 0xab, 1])));
        for bad in ["", "x", "abc", &"ab".repeat(21)] {
            assert_eq!(bad.parse::<Serial>(), Err(SerialError), "{bad}");
        }
    }

    #[test]
    fn earlier_certificates_of_a_name_are_refused_and_later_ones_are_not() {
        let list = earlier("host/a", 10, WhyRefused::Removed);
        assert_eq!(
            list.refuses("host/a", &certificate(1, 9)),
            Some(WhyRefused::Removed)
        );
        assert_eq!(list.refuses("host/a", &certificate(2, 10)), None);
        assert_eq!(list.refuses("host/b", &certificate(3, 9)), None);
        assert_eq!(list.refuses("admin/a", &certificate(4, 9)), None);
    }

    #[test]
    fn nothing_refused_becomes_good_by_a_merge_and_what_is_over_goes() {
        let mut list = earlier("host/a", 10, WhyRefused::Expelled);
        // the host's name is used again, and the new host's certificate is renewed
        assert!(list.merge(&earlier("host/a", 20, WhyRefused::Superseded), at(1)));
        let why =
            |list: &RefusedCertificates, begins| list.refuses("host/a", &certificate(1, begins));
        assert_eq!(why(&list, 9), Some(WhyRefused::Expelled));
        assert_eq!(why(&list, 15), Some(WhyRefused::Superseded));
        assert_eq!(why(&list, 20), None);
        // an older list adds nothing
        assert!(!list.merge(&earlier("host/a", 5, WhyRefused::Expelled), at(1)));
        assert_eq!(list.entries.len(), 2);
        let serial = Serial::from_bytes(&[0x40, 7]);
        assert!(list.merge(
            &self::list(Which::Serial { serial }, WhyRefused::Revoked),
            at(1)
        ));
        assert_eq!(why(&list, 30), None);
        assert_eq!(
            list.refuses("admin/kim", &certificate(7, 30)),
            Some(WhyRefused::Revoked)
        );
    }

    #[test]
    fn a_clock_that_was_ahead_brings_nothing_back_and_a_long_list_loses_what_is_over() {
        let serial = |n: usize| Which::Serial {
            serial: Serial::from_bytes(&[0x40, (n >> 8) as u8, n as u8]),
        };
        let mut list = list(serial(1), WhyRefused::Revoked);
        list.merge(&self::list(serial(2), WhyRefused::Revoked), at(4000));
        assert_eq!(
            list.entries.len(),
            2,
            "neither goes, and what is over counts"
        );
        for n in 3..=MANY_REFUSED + 1 {
            list.merge(&self::list(serial(n), WhyRefused::Superseded), at(1));
        }
        assert_eq!(list.entries.len(), MANY_REFUSED + 1);
        list.merge(&RefusedCertificates::default(), at(4000));
        assert_eq!(list, RefusedCertificates::default());
    }

    #[test]
    fn a_reason_of_a_newer_version_is_still_a_refusal() {
        let why: WhyRefused = serde_json::from_str("\"eaten_by_the_dog\"").expect("any reason");
        assert!(why.cuts());
    }
}
