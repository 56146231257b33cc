//! JSON values, for callers that store one type under a key.

use crate::{Entry, Outcome, Range, Revision, Store, StoreError, Txn};
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A value with the revision that last wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    pub value: T,
    pub revision: Revision,
}

/// What a put expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Any value.
    Any,
    Absent,
    Unchanged(Revision),
}

impl Entry {
    /// The value, read as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, StoreError> {
        serde_json::from_slice(&self.value).map_err(|e| StoreError::Decode {
            key: self.key.clone(),
            source: Arc::new(e),
        })
    }

    fn versioned<T: DeserializeOwned>(&self) -> Result<Versioned<T>, StoreError> {
        Ok(Versioned {
            value: self.json()?,
            revision: self.mod_revision,
        })
    }
}

impl Txn {
    /// Puts `value` as JSON.
    pub fn put_json<T: Serialize + ?Sized>(
        self,
        key: impl Into<String>,
        value: &T,
    ) -> Result<Self, StoreError> {
        let key = key.into();
        match serde_json::to_vec(value) {
            Ok(bytes) => Ok(self.put(key, bytes)),
            Err(e) => Err(StoreError::Encode {
                key,
                source: Arc::new(e),
            }),
        }
    }
}

/// Typed reading and writing; every [`Store`] has it.
#[async_trait]
pub trait StoreExt: Store {
    /// The value under `key` with its revision.
    async fn get_json<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<Versioned<T>>, StoreError> {
        self.get(key)
            .await?
            .map(|entry| entry.versioned())
            .transpose()
    }

    /// Writes `value` under `key` if `guard` holds.
    async fn put_json<T: Serialize + Sync + ?Sized>(
        &self,
        key: &str,
        value: &T,
        guard: Guard,
    ) -> Result<Outcome, StoreError> {
        let txn = match guard {
            Guard::Any => Txn::new(),
            Guard::Absent => Txn::new().if_absent(key),
            Guard::Unchanged(revision) => Txn::new().if_unchanged(key, revision),
        };
        self.commit(txn.put_json(key, value)?).await
    }

    /// All values under `prefix` with their keys, and the revision they were read at.
    async fn list_json<T: DeserializeOwned + Send>(
        &self,
        prefix: &str,
    ) -> Result<(Vec<(String, Versioned<T>)>, Revision), StoreError> {
        let mut found = Vec::new();
        let mut range = Range::prefix(prefix).limit(1000);
        loop {
            let page = self.list(range.clone()).await?;
            for entry in &page.entries {
                found.push((entry.key.clone(), entry.versioned()?));
            }
            match range.following(&page) {
                Some(next) => range = next,
                None => return Ok((found, page.revision)),
            }
        }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}
