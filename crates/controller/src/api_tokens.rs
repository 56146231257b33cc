//! API tokens: who has one, until when, and with which role.
//!
//! ```text
//!   made (its text is shown once) ──► good ──► its time is over: refused, still listed
//!                                       └────► revoked: refused, forgotten, its connections cut
//! ```
//! The store has hashes of secrets alone. All tokens are in memory too, so that a wrong one reads no file.

use crate::people::limited;
use crate::tokens::utc;
use fleetward_api::controller::{ApiTokenRequest, ApiTokenStanding, ApiTokenView};
use fleetward_link::{ApiToken, SecretHash};
use fleetward_model::preflight::CLOCK_LIMIT;
use fleetward_model::role::Rights;
use fleetward_model::{ErrorCode, Failure, TokenName};
use fleetward_store::{Guard, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

const PREFIX: &str = "api-token/";
const SHORTEST_TTL: u32 = 60;
const LONGEST_TTL: u32 = 366 * 24 * 3600;
/// How often it is written which tokens were used.
const WRITE_EVERY: Duration = Duration::from_secs(60);
const NOT_ACCEPTED: &str = "the API token is not accepted";
/// Of a token that never came in.
const NEVER: i64 = i64::MIN;

/// A token as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: TokenName,
    #[serde(flatten)]
    rights: Rights,
    secret: SecretHash,
    #[serde(with = "time::serde::rfc3339")]
    made: OffsetDateTime,
    made_by: String,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    last_used: Option<OffsetDateTime>,
}

impl Record {
    fn key(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn standing(&self, now: OffsetDateTime) -> ApiTokenStanding {
        if self.made - now > CLOCK_LIMIT {
            ApiTokenStanding::Early
        } else if self.expires <= now {
            ApiTokenStanding::Ended
        } else {
            ApiTokenStanding::Good
        }
    }

    /// Why the token lets nobody in now, if it does not.
    fn refusal(&self, now: OffsetDateTime) -> Option<Failure> {
        let Self {
            name,
            rights,
            made,
            expires,
            ..
        } = self;
        let role = rights.role;
        let (code, because) = match self.standing(now) {
            ApiTokenStanding::Good => return None,
            ApiTokenStanding::Ended => (
                ErrorCode::CredentialsRefused,
                format!("{name} ended at {}", utc(*expires)),
            ),
            ApiTokenStanding::Early => (
                ErrorCode::ClocksApart,
                format!(
                    "{name} was made at {}, and the controller's clock says {}: it was ahead then, and the token would be good for too long",
                    utc(*made),
                    utc(now)
                ),
            ),
        };
        let fix =
            format!("fleetward token revoke {name}; fleetward token create {name} --role {role}");
        Some(Failure::new(code, NOT_ACCEPTED).because(because).fix(fix))
    }
}

#[derive(Debug)]
struct Known {
    record: Record,
    /// Seconds since 1970, or [`NEVER`].
    last_used: AtomicI64,
    /// What the store says of that.
    written: AtomicI64,
    revoked: CancellationToken,
}

impl Known {
    fn new(record: Record) -> Arc<Self> {
        let last_used = record
            .last_used
            .map_or(NEVER, OffsetDateTime::unix_timestamp);
        Arc::new(Self {
            record,
            last_used: last_used.into(),
            written: last_used.into(),
            revoked: CancellationToken::new(),
        })
    }

    fn last_used(&self) -> Option<OffsetDateTime> {
        moment(self.last_used.load(Ordering::Relaxed))
    }

    fn view(&self, now: OffsetDateTime) -> ApiTokenView {
        let Record {
            name,
            rights,
            made,
            made_by,
            expires,
            ..
        } = &self.record;
        ApiTokenView {
            name: name.clone(),
            role: rights.role,
            groups: rights.scope.groups().cloned(),
            standing: self.record.standing(now),
            made: *made,
            made_by: made_by.clone(),
            expires: *expires,
            last_used: self.last_used(),
        }
    }
}

fn moment(seconds: i64) -> Option<OffsetDateTime> {
    (seconds != NEVER)
        .then(|| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .flatten()
}

/// Every API token of the fleet.
#[derive(Debug)]
pub(crate) struct ApiTokens {
    store: Arc<dyn Store>,
    known: RwLock<BTreeMap<TokenName, Arc<Known>>>,
    /// Held while the store and the table are brought to say something else.
    changing: tokio::sync::Mutex<()>,
}

/// Who came in with a token.
pub(crate) struct Bearer {
    pub(crate) name: TokenName,
    pub(crate) rights: Rights,
    known: Arc<Known>,
}

impl Bearer {
    /// Returns when the token is good no longer.
    pub(crate) fn end(&self, now: OffsetDateTime) -> impl Future<Output = ()> + Send + 'static {
        let revoked = self.known.revoked.clone();
        let left = (self.known.record.expires - now)
            .try_into()
            .unwrap_or(Duration::ZERO);
        async move {
            // Whether by its time or by somebody's word is the same to it.
            let _ = tokio::time::timeout(left, revoked.cancelled()).await;
        }
    }
}

impl ApiTokens {
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (found, _) = store.list_json::<Record>(PREFIX).await?;
        let known = found.into_iter().map(|(_, found)| {
            let record = found.value;
            (record.name.clone(), Known::new(record))
        });
        Ok(Self {
            known: RwLock::new(known.collect()),
            store,
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Makes a token; its text is in memory here and with whoever asked, and nowhere else.
    ///
    /// # Errors
    /// A name that is taken, a time that is none.
    pub(crate) async fn make(
        &self,
        request: ApiTokenRequest,
        by: String,
        now: OffsetDateTime,
    ) -> Result<(ApiTokenView, Zeroizing<String>), Failure> {
        let ApiTokenRequest {
            name,
            role,
            groups,
            ttl_seconds,
        } = request;
        let rights = limited(role, groups)?;
        if !(SHORTEST_TTL..=LONGEST_TTL).contains(&ttl_seconds) {
            let what = format!(
                "an API token lives {SHORTEST_TTL} to {LONGEST_TTL} seconds, not {ttl_seconds}"
            );
            return Err(Failure::new(ErrorCode::InvalidArgument, what).fix("--ttl 90d"));
        }
        let token = ApiToken::random().map_err(|error| {
            Failure::new(ErrorCode::Internal, "cannot make an API token").because(error)
        })?;
        // Whole seconds: what is shown is what is meant.
        let now = now.replace_nanosecond(0).unwrap_or(now);
        let record = Record {
            name: name.clone(),
            rights,
            secret: token.hash(),
            made: now,
            made_by: by,
            expires: now + time::Duration::seconds(ttl_seconds.into()),
            last_used: None,
        };
        let _changing = self.changing.lock().await;
        if self.read().contains_key(&name) {
            let what = format!("there is an API token {name} already");
            return Err(Failure::new(ErrorCode::NameTaken, what).fix(format!(
                "choose another name, or first: fleetward token revoke {name}"
            )));
        }
        let put = self
            .store
            .put_json(&record.key(), &record, Guard::Any)
            .await;
        let _ = put.map_err(|error| crate::store_failure(&error))?;
        let known = Known::new(record);
        let view = known.view(now);
        self.write().insert(name, known);
        Ok((view, token.encode()))
    }

    /// All of them, by name.
    pub(crate) fn list(&self, now: OffsetDateTime) -> Vec<ApiTokenView> {
        self.read().values().map(|known| known.view(now)).collect()
    }

    /// Refuses the token from now on, and cuts the connections of whoever came in with it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn revoke(
        &self,
        name: &TokenName,
        now: OffsetDateTime,
    ) -> Result<ApiTokenView, Failure> {
        let _changing = self.changing.lock().await;
        let known = self.read().get(name).cloned();
        let known = known.ok_or_else(|| {
            Failure::new(
                ErrorCode::ApiTokenNotFound,
                format!("there is no API token {name}"),
            )
        })?;
        let removal = Txn::new().delete(known.record.key());
        let removed = self.store.commit(removal).await;
        let _ = removed.map_err(|error| crate::store_failure(&error))?;
        self.write().remove(name);
        known.revoked.cancel();
        Ok(known.view(now))
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// Nobody's, or one whose time is over.
    pub(crate) fn bearer(&self, text: &str, now: OffsetDateTime) -> Result<Bearer, Failure> {
        let refused = || Failure::new(ErrorCode::CredentialsRefused, NOT_ACCEPTED);
        let token: ApiToken = text.parse().map_err(|error| refused().because(error))?;
        let secret = token.hash();
        let known = self.read();
        let known = known.values().find(|known| known.record.secret == secret);
        let known = known.ok_or_else(|| {
            refused()
                .because("this controller does not know it: it was revoked, or is of another fleet")
        })?;
        if let Some(refusal) = known.record.refusal(now) {
            return Err(refusal);
        }
        known
            .last_used
            .store(now.unix_timestamp(), Ordering::Relaxed);
        Ok(Bearer {
            name: known.record.name.clone(),
            rights: known.record.rights.clone(),
            known: known.clone(),
        })
    }

    /// Writes when each token was last used, now and then and at the end.
    pub(crate) async fn keep_written(&self, stop: &CancellationToken) {
        loop {
            let ends = tokio::time::timeout(WRITE_EVERY, stop.cancelled())
                .await
                .is_ok();
            if let Err(error) = self.write_uses().await {
                tracing::warn!(%error, "cannot write when API tokens were used");
            }
            if ends {
                return;
            }
        }
    }

    async fn write_uses(&self) -> Result<(), StoreError> {
        let all: Vec<_> = self.read().keys().cloned().collect();
        for name in all {
            // With each anew: one that is revoked meanwhile must not come back.
            let _changing = self.changing.lock().await;
            let Some(known) = self.read().get(&name).cloned() else {
                continue;
            };
            let used = known.last_used.load(Ordering::Relaxed);
            if used == known.written.load(Ordering::Relaxed) {
                continue;
            }
            let record = Record {
                last_used: moment(used),
                ..known.record.clone()
            };
            let _ = self
                .store
                .put_json(&record.key(), &record, Guard::Any)
                .await?;
            known.written.store(used, Ordering::Relaxed);
        }
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<TokenName, Arc<Known>>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<TokenName, Arc<Known>>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_model::role::Role;
    use fleetward_store::SqliteStore;
    use tempfile::TempDir;

    const MINUTE: u32 = 60;

    fn asked(name: &str) -> ApiTokenRequest {
        ApiTokenRequest {
            name: name.parse().expect("a name"),
            role: Role::Viewer,
            groups: None,
            ttl_seconds: MINUTE,
        }
    }

    /// Tokens, with one of the name `ci`.
    struct Made {
        tokens: ApiTokens,
        view: ApiTokenView,
        text: Zeroizing<String>,
        store: Arc<dyn Store>,
        _dir: TempDir,
    }

    impl Made {
        async fn at(moment: OffsetDateTime) -> Self {
            let dir = tempfile::tempdir().expect("directory");
            let store = SqliteStore::open(dir.path().join("store.db")).await;
            let store: Arc<dyn Store> = Arc::new(store.expect("store"));
            let tokens = ApiTokens::open(store.clone()).await.expect("open");
            let made = tokens.make(asked("ci"), "local:0".to_owned(), moment);
            let (view, text) = made.await.expect("made");
            Self {
                tokens,
                view,
                text,
                store,
                _dir: dir,
            }
        }

        async fn after_a_restart(&self) -> ApiTokens {
            self.tokens.write_uses().await.expect("written");
            ApiTokens::open(self.store.clone()).await.expect("open")
        }

        fn standing(&self, now: OffsetDateTime) -> ApiTokenStanding {
            let [listed] = &self.tokens.list(now)[..] else {
                panic!("one token");
            };
            listed.standing
        }

        fn refused(&self, now: OffsetDateTime) -> Failure {
            let refused = self.tokens.bearer(&self.text, now);
            refused.err().expect("refused")
        }
    }

    #[tokio::test]
    async fn a_token_is_good_until_its_end_and_stays_listed() {
        let now = OffsetDateTime::now_utc();
        let made = Made::at(now).await;
        let bearer = made.tokens.bearer(&made.text, now).expect("good");
        assert_eq!(
            (bearer.name.as_str(), bearer.rights.role),
            ("ci", Role::Viewer)
        );

        let end = made.view.expires;
        let before = end - time::Duration::SECOND;
        made.tokens.bearer(&made.text, before).expect("still good");
        assert_eq!(made.standing(before), ApiTokenStanding::Good);
        let refused = made.refused(end);
        assert_eq!(refused.code, ErrorCode::CredentialsRefused);
        let fix = "fleetward token create ci --role viewer";
        assert!(refused.fix.contains(fix), "{refused:?}");
        // What goes on over its connections ends by then.
        tokio::time::timeout(Duration::from_secs(5), bearer.end(end))
            .await
            .expect("over");
        assert_eq!(made.standing(end), ApiTokenStanding::Ended);
        // A name is taken until the token is revoked.
        let again = made.tokens.make(asked("ci"), "local:0".to_owned(), end);
        let Err(taken) = again.await else {
            panic!("the name was given twice");
        };
        assert_eq!(taken.code, ErrorCode::NameTaken);

        let again = made.after_a_restart().await;
        let whole = before.replace_nanosecond(0).expect("a moment");
        assert_eq!(again.list(now)[0].last_used, Some(whole));
    }

    #[tokio::test]
    async fn a_revoked_token_does_not_come_back_with_its_last_use() {
        let now = OffsetDateTime::now_utc();
        let made = Made::at(now).await;
        let bearer = made.tokens.bearer(&made.text, now).expect("good");
        let revoked = made.tokens.revoke(&made.view.name, now).await;
        revoked.expect("revoked");
        tokio::time::timeout(Duration::from_secs(5), bearer.end(now))
            .await
            .expect("cut");
        let again = made.after_a_restart().await;
        assert_eq!(again.list(now), []);
        assert!(again.bearer(&made.text, now).is_err());
    }

    /// It would be good until then.
    #[tokio::test]
    async fn an_api_token_that_was_made_under_a_clock_of_2040_is_refused_once_the_clock_is_right() {
        let now = OffsetDateTime::now_utc();
        let made = Made::at(now + time::Duration::days(14 * 365)).await;
        let refused = made.refused(now);
        assert_eq!(refused.code, ErrorCode::ClocksApart);
        for time in [made.view.made, now] {
            assert!(refused.because.contains(&utc(time)), "{refused}");
        }
        assert_eq!(made.standing(now), ApiTokenStanding::Early);
    }
}
