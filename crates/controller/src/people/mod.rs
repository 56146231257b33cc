//! People who log in with a password: who they are, their sessions, and how often somebody may try.
//!
//! ```text
//!   name, password, address ─► Pace: may this address try now? ─► hash, a few at once ─► right ─► a session, in a cookie
//!                                        │ no                            │ wrong
//!                                        ▼                               ▼
//!                              refused, with seconds to wait     refused; the next tries wait longer
//! ```
//! Whoever loses a session loses the connections over which it came, streams and WebSockets included.

mod pace;
mod password;
mod sessions;
mod users;

pub(crate) use sessions::{IDLE, Session, Sessions};

use crate::people::pace::Pace;
use crate::people::users::{UserRecord, Users};
use fleetward_api::controller::{
    Login, NewPassword, Password, Role, UserChange, UserRequest, UserView,
};
use fleetward_model::role::{Rights, Scope};
use fleetward_model::{ErrorCode, Failure, GroupName, UserName};
use fleetward_store::{Store, StoreError};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::sync::{Mutex, Semaphore};
use zeroize::Zeroizing;

/// A login that is refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) failure: Failure,
    /// After which time trying again is of use.
    pub(crate) retry_after: Option<Duration>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            retry_after: None,
        }
    }
}

/// What a browser gets, and what is to be shown of it.
pub(crate) struct Begun {
    /// For the cookie, and nowhere else.
    pub(crate) secret: Zeroizing<String>,
    pub(crate) session: Arc<Session>,
    pub(crate) rights: Rights,
}

/// # Errors
/// Groups that such a role cannot have.
pub(crate) fn limited(role: Role, groups: Option<BTreeSet<GroupName>>) -> Result<Rights, Failure> {
    let scope = Scope::of(role, groups).map_err(|problem| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("role {role} cannot hold in these groups"),
        )
        .because(problem)
        .fix("leave the groups out, or choose --role viewer or operator")
    })?;
    Ok(Rights { role, scope })
}

/// Hashes of passwords are computed one after another, since each takes 19 MiB and some 30 ms of a core; in two lanes, so
/// that who comes from where nobody guesses does not stand behind those who do.
#[derive(Debug)]
struct Lanes {
    suspected: Semaphore,
    others: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            suspected: Semaphore::new(1),
            others: Semaphore::new(1),
        }
    }
}

/// Everybody who may log in, and everybody who has.
#[derive(Debug)]
pub(crate) struct People {
    users: Users,
    pub(crate) sessions: Sessions,
    pace: Pace,
    hashing: Lanes,
    /// Held while users or sessions come or go, so that no session outlives what it was begun with.
    changing: Mutex<()>,
}

impl People {
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        now: OffsetDateTime,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            users: Users::open(store.clone()).await?,
            sessions: Sessions::open(store, now).await?,
            pace: Pace::default(),
            hashing: Lanes::default(),
            changing: Mutex::default(),
        })
    }

    /// # Errors
    /// A name that is taken, a password that is too short or too long.
    pub(crate) async fn add(
        &self,
        request: UserRequest,
        by: String,
        now: OffsetDateTime,
    ) -> Result<UserView, Failure> {
        let UserRequest {
            name,
            role,
            groups,
            password,
        } = request;
        let rights = limited(role, groups)?;
        self.users.require_free(&name)?;
        let hash = self.hash(&name, password).await?;
        let _changing = self.changing.lock().await;
        self.users.require_free(&name)?;
        let record = UserRecord::new(name, rights, hash, by, now);
        self.users.put(record.clone()).await?;
        Ok(self.view(&record, now))
    }

    /// All of them, by name.
    pub(crate) fn list(&self, now: OffsetDateTime) -> Vec<UserView> {
        let users = self.users.all();
        users.iter().map(|record| self.view(record, now)).collect()
    }

    /// Whoever is changed logs in again.
    ///
    /// # Errors
    /// There is no such user; a password that is too short or too long.
    pub(crate) async fn set(
        &self,
        name: &UserName,
        change: UserChange,
        now: OffsetDateTime,
    ) -> Result<UserView, Failure> {
        self.users.of(name)?;
        let hash = match change.password {
            None => None,
            Some(password) => Some(self.hash(name, password).await?),
        };
        let _changing = self.changing.lock().await;
        let mut record = self.users.of(name)?;
        let former = record.rights.scope.groups().cloned();
        record.rights = limited(
            change.role.unwrap_or(record.rights.role),
            change.groups.unwrap_or(former),
        )?;
        record.password = hash.unwrap_or(record.password);
        self.users.put(record.clone()).await?;
        self.sessions.end_all_of(name, Duration::ZERO).await?;
        Ok(self.view(&record, now))
    }

    /// # Errors
    /// There is no such user.
    pub(crate) async fn remove(
        &self,
        name: &UserName,
        now: OffsetDateTime,
    ) -> Result<UserView, Failure> {
        let _changing = self.changing.lock().await;
        let record = self.users.of(name)?;
        let view = self.view(&record, now);
        self.users.remove(name).await?;
        self.sessions.end_all_of(name, Duration::ZERO).await?;
        Ok(view)
    }

    /// Begins a session for who has the right password. Others are told neither whether there is such a user, nor by how long
    /// it took.
    ///
    /// # Errors
    /// A wrong name or password, or one of too many tries.
    pub(crate) async fn log_in(
        &self,
        from: IpAddr,
        login: Login,
        now: OffsetDateTime,
    ) -> Result<Begun, Refused> {
        let Login { user, password } = login;
        let record = self.verify(from, &user, password).await?;
        let _changing = self.changing.lock().await;
        let record = self.as_before(record)?;
        Ok(self.begin(record, now).await?)
    }

    /// Another password for who knows the present one, and a new session in place of all others.
    ///
    /// # Errors
    /// A wrong present password, a new one that is too short or too long, too many tries.
    pub(crate) async fn change_password(
        &self,
        from: IpAddr,
        user: &UserName,
        change: NewPassword,
        now: OffsetDateTime,
    ) -> Result<Begun, Refused> {
        let NewPassword {
            password,
            new_password,
        } = change;
        let record = self.verify(from, user, password).await?;
        let hash = self.hash(user, new_password).await?;
        let _changing = self.changing.lock().await;
        let mut record = self.as_before(record)?;
        record.password = hash;
        self.users.put(record.clone()).await?;
        self.sessions.end_all_of(user, sessions::FAREWELL).await?;
        Ok(self.begin(record, now).await?)
    }

    /// Ends all sessions of a user who asks for that.
    ///
    /// # Errors
    /// The store.
    pub(crate) async fn log_out(&self, user: &UserName) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        self.sessions.end_all_of(user, sessions::FAREWELL).await
    }

    /// Whose session this is, and with which rights; the session lasts for some time more.
    ///
    /// # Errors
    /// Nobody's, or one that is over.
    pub(crate) fn session(
        &self,
        secret: &str,
        now: OffsetDateTime,
    ) -> Result<(Arc<Session>, Rights), Failure> {
        let session = self.sessions.find(secret, now)?;
        let record = self.users.of(session.user())?;
        Ok((session, record.rights))
    }

    async fn begin(&self, mut record: UserRecord, now: OffsetDateTime) -> Result<Begun, Failure> {
        let (secret, session) = self.sessions.begin(&record.name, now).await?;
        record.last_login = Some(now);
        let rights = record.rights.clone();
        self.users.put(record).await?;
        Ok(Begun {
            secret,
            session,
            rights,
        })
    }

    async fn verify(
        &self,
        from: IpAddr,
        user: &UserName,
        password: Password,
    ) -> Result<UserRecord, Refused> {
        let record = self.users.of(user).ok();
        // Of a name that nobody has nothing is written: it may be a password in the wrong field.
        let known = record.as_ref().map(|record| record.name.to_string());
        let admitted = self.pace.admit(from, user, Instant::now());
        let admitted = admitted.map_err(|wait| {
            tracing::info!(%from, user = known, "a login was not tried: too many were wrong before");
            Refused {
                failure: Failure::new(
                    ErrorCode::LoginTooOften,
                    "the password was not looked at: too many before it were wrong",
                )
                .because(format!("the next try is in {} s", wait.as_secs().max(1)))
                .fix("wait as long, and try again"),
                retry_after: Some(wait),
            }
        })?;
        tokio::time::sleep(admitted.patience).await;
        let hash = record.as_ref().map(|record| record.password.clone());
        let lane = match admitted.unsuspected {
            true => &self.hashing.others,
            false => &self.hashing.suspected,
        };
        let permit = lane.acquire().await;
        let right = tokio::task::spawn_blocking(move || password::is_right(&password, hash)).await;
        drop(permit);
        match (record, right) {
            (Some(record), Ok(true)) => {
                self.pace.forget(from, user);
                Ok(record)
            }
            _ => {
                tracing::info!(%from, user = known, "a login with a wrong name or password");
                Err(wrong().into())
            }
        }
    }

    /// The user as it was when the password was looked at.
    fn as_before(&self, looked_at: UserRecord) -> Result<UserRecord, Failure> {
        let now = self.users.of(&looked_at.name).map_err(|_| wrong())?;
        match now.password == looked_at.password {
            true => Ok(now),
            false => Err(wrong()),
        }
    }

    async fn hash(&self, user: &UserName, password: Password) -> Result<String, Failure> {
        password::require_good(user, &password)?;
        let _permit = self.hashing.others.acquire().await;
        let hashed = tokio::task::spawn_blocking(move || password::hash(&password)).await;
        hashed.unwrap_or_else(|error| {
            Err(
                Failure::new(ErrorCode::Internal, "cannot make a hash of the password")
                    .because(error.to_string()),
            )
        })
    }

    fn view(&self, record: &UserRecord, now: OffsetDateTime) -> UserView {
        UserView {
            name: record.name.clone(),
            role: record.rights.role,
            groups: record.rights.scope.groups().cloned(),
            made: record.made,
            made_by: record.made_by.clone(),
            sessions: self.sessions.count_of(&record.name, now),
            last_login: record.last_login,
        }
    }
}

fn wrong() -> Failure {
    Failure::new(ErrorCode::LoginRefused, "the login is not accepted")
        .because("the name or the password is wrong")
        .fix("try again; an administrator gives another password with fleetward user set")
}
