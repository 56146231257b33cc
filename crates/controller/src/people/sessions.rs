//! Sessions: who has logged in with a browser, and until when.
//!
//! ```text
//!   begun ──► good ──► 12 hours after it began, or 30 minutes after its last request: over
//!                └───► logged out, or the user was changed or removed: over, its connections cut
//! ```
//! The store has hashes of secrets alone. When a session last made a request is written once a minute.

use crate::tokens::utc;
use fleetward_link::{SecretHash, SessionSecret};
use fleetward_model::preflight::CLOCK_LIMIT;
use fleetward_model::{ErrorCode, Failure, UserName};
use fleetward_store::{Guard, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

const PREFIX: &str = "session/";
const LIFETIME: time::Duration = time::Duration::hours(12);
/// Without a request for so long it is over.
pub(crate) const IDLE: Duration = Duration::from_secs(30 * 60);
/// Sessions of one user; one more ends the oldest.
const MOST: usize = 20;
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// Until connections of who logs out are cut, so that the answer arrives.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    user: UserName,
    secret: SecretHash,
    #[serde(with = "time::serde::rfc3339")]
    began: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    seen: OffsetDateTime,
}

/// A session of somebody.
#[derive(Debug)]
pub(crate) struct Session {
    record: Record,
    /// Seconds since 1970 of the last request.
    seen: AtomicI64,
    /// What the store says of that.
    written: AtomicI64,
    over: CancellationToken,
}

impl Session {
    fn new(record: Record) -> Arc<Self> {
        let seen = record.seen.unix_timestamp();
        Arc::new(Self {
            record,
            seen: seen.into(),
            written: seen.into(),
            over: CancellationToken::new(),
        })
    }

    pub(crate) fn user(&self) -> &UserName {
        &self.record.user
    }

    /// When it ends whatever happens.
    pub(crate) fn expires(&self) -> OffsetDateTime {
        self.record.began + LIFETIME
    }

    /// A name for it that opens nothing.
    pub(crate) fn label(&self) -> String {
        format!("session {}", self.record.secret)
    }

    fn key(&self) -> String {
        format!("{PREFIX}{}", self.record.secret)
    }

    fn seen(&self) -> OffsetDateTime {
        let seen = OffsetDateTime::from_unix_timestamp(self.seen.load(Ordering::Relaxed));
        seen.unwrap_or(self.record.began)
    }

    /// How long it is good without another request.
    fn left(&self, now: OffsetDateTime) -> Duration {
        let early = self.record.began - now > CLOCK_LIMIT || self.seen() - now > CLOCK_LIMIT;
        if early || self.over.is_cancelled() {
            return Duration::ZERO;
        }
        let end = self.expires().min(self.seen() + IDLE);
        (end - now).try_into().unwrap_or(Duration::ZERO)
    }

    /// Returns when it is over.
    pub(crate) async fn end(self: Arc<Self>) {
        loop {
            let left = self.left(OffsetDateTime::now_utc());
            let ends = tokio::time::timeout(left, self.over.cancelled()).await;
            if left.is_zero() || ends.is_ok() {
                return;
            }
        }
    }
}

/// All sessions, by the hash of their secret.
#[derive(Debug)]
pub(crate) struct Sessions {
    store: Arc<dyn Store>,
    known: RwLock<HashMap<String, Arc<Session>>>,
}

impl Sessions {
    pub(super) async fn open(
        store: Arc<dyn Store>,
        now: OffsetDateTime,
    ) -> Result<Self, StoreError> {
        let (found, _) = store.list_json::<Record>(PREFIX).await?;
        let found = found
            .into_iter()
            .map(|(_, found)| Session::new(found.value));
        let known = found.map(|session| (session.record.secret.to_string(), session));
        let sessions = Self {
            known: RwLock::new(known.collect()),
            store,
        };
        sessions.tidy(now).await?;
        Ok(sessions)
    }

    /// Begins one, with a secret that nobody had before.
    ///
    /// # Errors
    /// The store, or no random numbers.
    pub(super) async fn begin(
        &self,
        user: &UserName,
        now: OffsetDateTime,
    ) -> Result<(Zeroizing<String>, Arc<Session>), Failure> {
        let secret = SessionSecret::random().map_err(|error| {
            Failure::new(ErrorCode::Internal, "cannot begin a session").because(error)
        })?;
        let mut of_user = self.of(user);
        of_user.sort_by_key(|session| session.record.began);
        let too_many = (of_user.len() + 1).saturating_sub(MOST);
        self.end(&of_user[..too_many], Duration::ZERO).await?;
        let record = Record {
            user: user.clone(),
            secret: secret.hash(),
            began: now,
            seen: now,
        };
        let session = Session::new(record);
        let key = session.key();
        let put = self.store.put_json(&key, &session.record, Guard::Any);
        let _ = put.await.map_err(|error| crate::store_failure(&error))?;
        self.write()
            .insert(session.record.secret.to_string(), session.clone());
        Ok((secret.encode(), session))
    }

    /// Whose it is. The session is good for some time more.
    ///
    /// # Errors
    /// Nobody's, or one that is over.
    pub(super) fn find(&self, secret: &str, now: OffsetDateTime) -> Result<Arc<Session>, Failure> {
        let refused = |because: String| {
            Failure::new(ErrorCode::CredentialsRefused, "the session is not accepted")
                .because(because)
                .fix("log in again")
        };
        let secret: SessionSecret = secret
            .parse()
            .map_err(|error: fleetward_link::TokenError| refused(error.to_string()))?;
        let known = self.read().get(&secret.hash().to_string()).cloned();
        let session = known.ok_or_else(|| {
            refused("this controller does not know it: it has ended, or was never begun".into())
        })?;
        if session.left(now).is_zero() {
            return Err(refused(format!(
                "it began at {} and made its last request at {}: it ends after {} hours, or {} minutes without one",
                utc(session.record.began),
                utc(session.seen()),
                LIFETIME.whole_hours(),
                IDLE.as_secs() / 60
            )));
        }
        session.seen.store(now.unix_timestamp(), Ordering::Relaxed);
        Ok(session)
    }

    /// Ends all sessions of a user; their connections are cut after `farewell`.
    ///
    /// # Errors
    /// The store.
    pub(super) async fn end_all_of(
        &self,
        user: &UserName,
        farewell: Duration,
    ) -> Result<(), Failure> {
        self.end(&self.of(user), farewell).await
    }

    /// How many sessions of a user are good.
    pub(super) fn count_of(&self, user: &UserName, now: OffsetDateTime) -> usize {
        let of_user = self.of(user);
        let good = of_user
            .iter()
            .filter(|session| !session.left(now).is_zero());
        good.count()
    }

    /// Writes when each session was last seen and removes those that are over, now and then and at the end.
    pub(crate) async fn keep_written(&self, stop: &CancellationToken) {
        loop {
            let ends = tokio::time::timeout(WRITE_EVERY, stop.cancelled()).await;
            if let Err(error) = self.tidy(OffsetDateTime::now_utc()).await {
                tracing::warn!(%error, "cannot write which sessions there are");
            }
            if ends.is_ok() {
                return;
            }
        }
    }

    async fn tidy(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let all: Vec<_> = self.read().values().cloned().collect();
        for session in all {
            if session.left(now).is_zero() {
                let _ = self.store.commit(Txn::new().delete(session.key())).await?;
                self.write().remove(&session.record.secret.to_string());
                session.over.cancel();
                continue;
            }
            let seen = session.seen.load(Ordering::Relaxed);
            if seen != session.written.load(Ordering::Relaxed) {
                let record = Record {
                    seen: session.seen(),
                    ..session.record.clone()
                };
                // Only while it is there: one that somebody ended meanwhile does not come back.
                let written = Txn::new()
                    .if_present(session.key())
                    .put_json(session.key(), &record)?;
                let _ = self.store.commit(written).await?;
                session.written.store(seen, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    async fn end(&self, which: &[Arc<Session>], farewell: Duration) -> Result<(), Failure> {
        if which.is_empty() {
            return Ok(());
        }
        let removal = which
            .iter()
            .fold(Txn::new(), |txn, session| txn.delete(session.key()));
        let removed = self.store.commit(removal).await;
        let _ = removed.map_err(|error| crate::store_failure(&error))?;
        let mut known = self.write();
        for session in which {
            known.remove(&session.record.secret.to_string());
        }
        drop(known);
        let over: Vec<_> = which.iter().map(|session| session.over.clone()).collect();
        if farewell.is_zero() {
            over.iter().for_each(CancellationToken::cancel);
            return Ok(());
        }
        tokio::spawn(async move {
            tokio::time::sleep(farewell).await;
            over.iter().for_each(CancellationToken::cancel);
        });
        Ok(())
    }

    fn of(&self, user: &UserName) -> Vec<Arc<Session>> {
        let known = self.read();
        let of_user = known.values().filter(|session| session.user() == user);
        of_user.cloned().collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Arc<Session>>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<Session>>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_store::SqliteStore;
    use tempfile::TempDir;
    use time::macros::datetime;

    const BEGIN: OffsetDateTime = datetime!(2026-11-28 08:00 UTC);

    /// Sessions of kim's, and where they are kept.
    struct Kept {
        sessions: Sessions,
        store: Arc<dyn Store>,
        kim: UserName,
        _dir: TempDir,
    }

    impl Kept {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("directory");
            let store = SqliteStore::open(dir.path().join("store.db")).await;
            let store: Arc<dyn Store> = Arc::new(store.expect("store"));
            Self {
                sessions: Sessions::open(store.clone(), BEGIN).await.expect("open"),
                store,
                kim: "kim".parse().expect("a name"),
                _dir: dir,
            }
        }

        async fn begin(&self, now: OffsetDateTime) -> Zeroizing<String> {
            let begun = self.sessions.begin(&self.kim, now).await;
            begun.expect("begun").0
        }

        fn is_good(&self, secret: &str, minutes: i64) -> bool {
            let now = BEGIN + time::Duration::minutes(minutes);
            let found = self.sessions.find(secret, now);
            let refused = |failure: &Failure| failure.code == ErrorCode::CredentialsRefused;
            assert!(found.as_ref().err().is_none_or(refused), "{found:?}");
            found.is_ok()
        }

        async fn stored(&self) -> usize {
            let (stored, _) = self.store.list_json::<Record>(PREFIX).await.expect("read");
            stored.len()
        }
    }

    #[tokio::test]
    async fn a_session_ends_after_half_an_hour_without_a_request_and_after_twelve_hours_with_them()
    {
        let kept = Kept::new().await;
        let (idle, busy) = (kept.begin(BEGIN).await, kept.begin(BEGIN).await);
        assert!(kept.is_good(&idle, 29));
        assert!(kept.is_good(&idle, 58), "each request counts");
        assert!(!kept.is_good(&idle, 89));
        for minutes in (0..12 * 60).step_by(20) {
            assert!(kept.is_good(&busy, minutes), "{minutes}");
        }
        assert!(!kept.is_good(&busy, 12 * 60));
        assert_eq!(kept.sessions.count_of(&kept.kim, BEGIN + LIFETIME), 0);
        assert_eq!(kept.stored().await, 2);
        kept.sessions.tidy(BEGIN + LIFETIME).await.expect("tidied");
        assert_eq!(kept.stored().await, 0, "the store forgets them");
    }

    #[tokio::test]
    async fn what_waits_for_the_end_of_a_session_hears_of_it() {
        let kept = Kept::new().await;
        let now = OffsetDateTime::now_utc();
        let (_, session) = kept.sessions.begin(&kept.kim, now).await.expect("begun");
        let mut end = Box::pin(session.end());
        let early = tokio::time::timeout(Duration::from_millis(50), &mut end).await;
        assert!(early.is_err(), "it is good");
        let ended = kept.sessions.end_all_of(&kept.kim, Duration::ZERO).await;
        ended.expect("ended");
        let heard = tokio::time::timeout(Duration::from_secs(5), end).await;
        heard.expect("at once");
    }

    #[tokio::test]
    async fn one_session_more_than_there_may_be_ends_the_oldest() {
        let kept = Kept::new().await;
        let mut secrets = Vec::new();
        for n in 0..=MOST as i64 {
            secrets.push(kept.begin(BEGIN + time::Duration::seconds(n)).await);
        }
        assert!(!kept.is_good(&secrets[0], 1));
        assert!(secrets[1..].iter().all(|secret| kept.is_good(secret, 1)));
    }

    #[tokio::test]
    async fn what_was_ended_does_not_come_back_with_its_last_use() {
        let kept = Kept::new().await;
        let secret = kept.begin(BEGIN).await;
        assert!(kept.is_good(&secret, 5));
        // As where it is ended while its use is about to be written.
        let other = Sessions::open(kept.store.clone(), BEGIN)
            .await
            .expect("open");
        let ended = other.end_all_of(&kept.kim, Duration::ZERO).await;
        ended.expect("ended");
        let now = BEGIN + time::Duration::minutes(6);
        kept.sessions.tidy(now).await.expect("tidied");
        assert_eq!(kept.stored().await, 0);
    }

    #[tokio::test]
    async fn a_session_that_was_begun_under_a_clock_of_2040_is_over_once_the_clock_is_right() {
        let kept = Kept::new().await;
        let secret = kept.begin(datetime!(2040-01-01 00:00 UTC)).await;
        assert!(!kept.is_good(&secret, 0));
    }
}
