//! Who may log in. The store has hashes of passwords alone; all users are in memory, too.

use fleetward_model::role::Rights;
use fleetward_model::{ErrorCode, Failure, UserName};
use fleetward_store::{Guard, Store, StoreError, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use time::OffsetDateTime;

const PREFIX: &str = "user/";

/// A user as it is stored.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct UserRecord {
    pub(super) name: UserName,
    #[serde(flatten)]
    pub(super) rights: Rights,
    /// The hash, a PHC string.
    pub(super) password: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) made: OffsetDateTime,
    pub(super) made_by: String,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub(super) last_login: Option<OffsetDateTime>,
}

impl UserRecord {
    pub(super) fn new(
        name: UserName,
        rights: Rights,
        password: String,
        made_by: String,
        made: OffsetDateTime,
    ) -> Self {
        Self {
            name,
            rights,
            password,
            made,
            made_by,
            last_login: None,
        }
    }
}

impl fmt::Debug for UserRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserRecord({}, {})", self.name, self.rights.role)
    }
}

#[derive(Debug)]
pub(super) struct Users {
    store: Arc<dyn Store>,
    known: RwLock<BTreeMap<UserName, UserRecord>>,
}

impl Users {
    pub(super) async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let (found, _) = store.list_json::<UserRecord>(PREFIX).await?;
        let known = found
            .into_iter()
            .map(|(_, found)| (found.value.name.clone(), found.value));
        Ok(Self {
            known: RwLock::new(known.collect()),
            store,
        })
    }

    pub(super) fn all(&self) -> Vec<UserRecord> {
        self.read().values().cloned().collect()
    }

    /// # Errors
    /// There is none.
    pub(super) fn of(&self, name: &UserName) -> Result<UserRecord, Failure> {
        self.read().get(name).cloned().ok_or_else(|| {
            Failure::new(ErrorCode::UserNotFound, format!("there is no user {name}"))
        })
    }

    /// # Errors
    /// Somebody has the name.
    pub(super) fn require_free(&self, name: &UserName) -> Result<(), Failure> {
        if !self.read().contains_key(name) {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::NameTaken,
            format!("there is a user {name} already"),
        )
        .fix(format!(
            "choose another name, or change the user: fleetward user set {name} --help"
        )))
    }

    /// # Errors
    /// The store.
    pub(super) async fn put(&self, record: UserRecord) -> Result<(), Failure> {
        let key = key(&record.name);
        let put = self.store.put_json(&key, &record, Guard::Any);
        let _ = put.await.map_err(|error| crate::store_failure(&error))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(record.name.clone(), record);
        Ok(())
    }

    /// # Errors
    /// The store.
    pub(super) async fn remove(&self, name: &UserName) -> Result<(), Failure> {
        let removed = self.store.commit(Txn::new().delete(key(name))).await;
        let _ = removed.map_err(|error| crate::store_failure(&error))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(name);
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<UserName, UserRecord>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(name: &UserName) -> String {
    format!("{PREFIX}{name}")
}
