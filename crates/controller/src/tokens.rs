//! Join tokens: each is for one host, can be used once, and expires. The store has only the hash of a token's secret.
//!
//! ```text
//!   made ──► used (in the transaction that adds the host)
//!     └────► expired, or replaced by a newer one for the same host
//! ```

use fleetward_api::controller::{TokenRequest, TokenView};
use fleetward_link::{FleetTrust, JoinSecret, JoinToken, SecretHash};
use fleetward_model::preflight::CLOCK_LIMIT;
use fleetward_model::{ErrorCode, Failure, GroupName, HostName, Names};
use fleetward_store::{Guard, Range, Revision, Store, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

const TOKENS: &str = "token/";
/// Read from the store at once.
const RECORDS: usize = 100;
/// Longest life of a token, seconds.
const MAX_TTL: u32 = 7 * 24 * 3600;

/// What is remembered of a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub(crate) host: HostName,
    pub(crate) group: GroupName,
    secret: SecretHash,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) expires: OffsetDateTime,
    /// None: by a controller that did not note it.
    #[serde(default, with = "time::serde::rfc3339::option")]
    made: Option<OffsetDateTime>,
    #[serde(default)]
    pub(crate) used: bool,
    /// It takes the place of a host that has joined before.
    #[serde(default)]
    pub(crate) reinstalled: bool,
    /// It is for a host of the fleet that needs another certificate, and for no join.
    #[serde(default)]
    pub(crate) rejoin: bool,
}

pub(crate) fn key(host: &HostName) -> String {
    format!("{TOKENS}{host}")
}

impl TokenRecord {
    /// The command that makes another token for the same purpose.
    fn made_by(&self) -> String {
        let (host, group) = (&self.host, &self.group);
        match (self.rejoin, self.reinstalled) {
            (true, _) => format!("fleetward host rejoin {host}"),
            (false, true) => format!("fleetward host token {host} --group {group} --reinstalled"),
            (false, false) => format!("fleetward host token {host} --group {group}"),
        }
    }
}

/// Makes a token, for a join or for a host that comes back, and forgets an earlier one for the same host.
pub(crate) async fn make(
    store: &dyn Store,
    trust: &FleetTrust,
    controller: &str,
    request: TokenRequest,
    rejoin: bool,
    now: OffsetDateTime,
) -> Result<TokenView, Failure> {
    if !(1..=MAX_TTL).contains(&request.ttl_seconds) {
        let what = format!(
            "a token lives 1 to {MAX_TTL} seconds, not {}",
            request.ttl_seconds
        );
        return Err(Failure::new(ErrorCode::InvalidArgument, what).fix("--ttl 1h"));
    }
    let internal = |error| Failure::new(ErrorCode::Internal, "cannot make a token").because(error);
    // whole seconds: that is what the token carries
    let expires =
        now.replace_nanosecond(0).unwrap_or(now) + Duration::seconds(request.ttl_seconds.into());
    let token = JoinToken {
        controller: controller.to_owned(),
        authority: trust.fingerprint(),
        host: request.host.clone(),
        secret: JoinSecret::random().map_err(internal)?,
        expires,
    };
    let record = TokenRecord {
        host: request.host.clone(),
        group: request.group.clone(),
        secret: token.secret.hash(),
        expires,
        made: Some(now),
        used: false,
        reinstalled: request.reinstalled,
        rejoin,
    };
    let put = store
        .put_json(&key(&request.host), &record, Guard::Any)
        .await;
    let _ = put.map_err(|error| crate::store_failure(&error))?;
    Ok(TokenView {
        host: request.host,
        group: request.group,
        token: token.encode().to_string(),
        expires,
    })
}

/// What is remembered of the tokens of hosts that follow `after`, up to `last`; without these of all.
pub(crate) async fn of_hosts(
    store: &dyn Store,
    after: Option<&str>,
    last: Option<&HostName>,
) -> Result<Vec<TokenRecord>, Failure> {
    let mut range = Range::prefix(TOKENS).limit(RECORDS);
    if let Some(after) = after {
        range = range.after(format!("{TOKENS}{after}"));
    }
    let last = last.map(key);
    let mut found = Vec::new();
    let mut next = Some(range);
    while let Some(range) = next {
        let page = store.list(range.clone()).await;
        let page = page.map_err(|error| crate::store_failure(&error))?;
        next = range.following(&page);
        for entry in &page.entries {
            if last.as_ref().is_some_and(|last| entry.key > *last) {
                return Ok(found);
            }
            let record = entry.json::<TokenRecord>();
            found.push(record.map_err(|error| crate::store_failure(&error))?);
        }
    }
    Ok(found)
}

/// A token that may be used, and the revision to use it at.
#[derive(Debug)]
pub(crate) struct Usable {
    pub(crate) record: TokenRecord,
    revision: Revision,
}

impl Usable {
    /// The transaction that uses it up, if nobody else has.
    pub(crate) fn use_up(&self) -> Result<Txn, Failure> {
        let key = key(&self.record.host);
        let used = TokenRecord {
            used: true,
            ..self.record.clone()
        };
        let txn = Txn::new()
            .if_unchanged(&key, self.revision)
            .put_json(&key, &used);
        txn.map_err(|error| crate::store_failure(&error))
    }
}

/// A time for people: RFC 3339, to the second, in UTC.
pub(crate) fn utc(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC).truncate_to_second();
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// Finds out whether `text` is a token that may be used now.
pub(crate) async fn look_up(
    store: &dyn Store,
    trust: &FleetTrust,
    text: &str,
    now: OffsetDateTime,
) -> Result<Usable, Failure> {
    let invalid = |because: &str| {
        Failure::new(ErrorCode::TokenInvalid, "the join token is not accepted").because(because)
    };
    let expired = |at: OffsetDateTime| {
        Failure::new(ErrorCode::TokenExpired, "the token is not accepted")
            .because(format!("it expired at {}", utc(at)))
    };
    let token = match JoinToken::parse(text, now) {
        Ok(token) => token,
        Err(fleetward_link::TokenError::Expired { at }) => {
            return Err(expired(at).about(&Names::default()));
        }
        Err(error) => return Err(invalid(&error.to_string())),
    };
    if token.authority != trust.fingerprint() {
        return Err(invalid("it is of another fleet"));
    }
    let found = store.get_json::<TokenRecord>(&key(&token.host)).await;
    let found = found
        .map_err(|error| crate::store_failure(&error))?
        .ok_or_else(|| invalid("this controller did not make it, or its host was removed"))?;
    let record = found.value;
    if record.secret != token.secret.hash() {
        return Err(invalid(
            "it was altered, or replaced by a newer one for the same host",
        ));
    }
    if record.used {
        let what = format!("the token of host {} is not accepted", record.host);
        return Err(Failure::new(ErrorCode::TokenUsed, what)
            .because("it has been used already")
            .fix(record.made_by()));
    }
    if record.expires <= now {
        return Err(expired(record.expires).fix(record.made_by()));
    }
    if let Some(made) = record.made.filter(|made| *made - now > CLOCK_LIMIT) {
        let what = format!("the token of host {} is not accepted", record.host);
        return Err(Failure::new(ErrorCode::ClocksApart, what)
            .because(format!(
                "it was made at {}, and the controller's clock says {}: it was ahead then, and the token would be good for too long",
                utc(made),
                utc(now)
            ))
            .fix(record.made_by()));
    }
    Ok(Usable {
        record,
        revision: found.revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_link::FleetAuthority;
    use fleetward_store::SqliteStore;
    use time::macros::datetime;

    /// It would be good until then.
    #[tokio::test]
    async fn a_token_that_was_made_under_a_clock_of_2040_is_refused_once_the_clock_is_right() {
        let (then, now) = (
            datetime!(2040-01-01 0:00 UTC),
            datetime!(2026-11-28 9:00 UTC),
        );
        let dir = tempfile::tempdir().expect("directory");
        let store = SqliteStore::open(dir.path().join("store.db"));
        let store = store.await.expect("store");
        let authority = FleetAuthority::open(dir.path(), now).expect("authority");
        let trust = authority.trust();
        let token = async |made| {
            let request = TokenRequest {
                host: "a".parse().expect("name"),
                group: GroupName::default(),
                ttl_seconds: 3600,
                reinstalled: false,
            };
            let made = make(&store, trust, "127.0.0.1:7450", request, false, made).await;
            made.expect("a token").token
        };
        let early = token(then).await;
        let refused = look_up(&store, trust, &early, now)
            .await
            .expect_err("refused");
        assert_eq!(refused.code, ErrorCode::ClocksApart, "{refused}");
        for time in ["2040-01-01T00:00:00Z", "2026-11-28T09:00:00Z"] {
            assert!(refused.because.contains(time), "{refused}");
        }
        assert!(refused.fix.contains("fleetward host token a"), "{refused}");
        let right = token(now).await;
        look_up(&store, trust, &right, now)
            .await
            .expect("it is good");
    }
}
