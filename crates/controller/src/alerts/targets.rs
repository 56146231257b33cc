//! Whom alerts are told to.
//!
//! The list is a file of mode 0600 beside the authority's key, and not in the store: the store keeps former values for a
//! while, and a secret that somebody has removed must be gone.

use super::mail::Postman;
use super::webhook::Caller;
use anyhow::Context;
use fleetward_api::controller::{AlertKind, AlertTargetRequest, AlertTargetView, AlertWay};
use fleetward_durable::{self as durable, Access};
use fleetward_model::{AlertTargetName, ErrorCode, Failure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Targets at most: each is told by a task of its own.
const MOST: usize = 32;

/// A target as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// Another one under the same name has another.
    id: Uuid,
    #[serde(flatten)]
    request: AlertTargetRequest,
    #[serde(with = "time::serde::rfc3339")]
    added: OffsetDateTime,
    added_by: String,
}

/// How messages get there.
#[derive(Debug)]
pub(super) enum Way {
    Webhook(Box<Caller>),
    Mail(Box<Postman>),
}

impl Way {
    /// # Errors
    /// What cannot be used, as `INVALID_ARGUMENT`.
    fn of(way: &AlertWay) -> Result<Self, Failure> {
        match way {
            AlertWay::Webhook(webhook) => Ok(Self::Webhook(Box::new(Caller::new(webhook)?))),
            AlertWay::Mail(mail) => Ok(Self::Mail(Box::new(Postman::new(mail)?))),
        }
    }
}

/// What became of the last messages.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) last_told: Option<OffsetDateTime>,
    pub(super) failure: Option<Failure>,
    /// Failures in a row.
    pub(super) failures: u32,
}

/// A target at work.
#[derive(Debug)]
pub(super) struct Target {
    record: Record,
    pub(super) way: Way,
    health: Mutex<Health>,
    /// Fires when it is removed.
    pub(super) removed: CancellationToken,
}

impl Target {
    /// # Errors
    /// What cannot be used.
    fn new(record: Record) -> Result<Arc<Self>, Failure> {
        Ok(Arc::new(Self {
            way: Way::of(&record.request.way)?,
            record,
            health: Mutex::default(),
            removed: CancellationToken::new(),
        }))
    }

    pub(super) fn id(&self) -> Uuid {
        self.record.id
    }

    pub(super) fn name(&self) -> &AlertTargetName {
        &self.record.request.name
    }

    pub(super) fn codes(&self) -> &[ErrorCode] {
        &self.record.request.codes
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self, waiting: usize) -> AlertTargetView {
        let (kind, to, by, secret) = match (&self.way, &self.record.request.way) {
            (Way::Webhook(caller), _) => (
                AlertKind::Webhook,
                caller.origin().to_owned(),
                None,
                caller.signs(),
            ),
            (Way::Mail(postman), AlertWay::Mail(mail)) => (
                AlertKind::Mail,
                mail.to.join(", "),
                Some(mail.smtp.clone()),
                postman.knows_password(),
            ),
            (Way::Mail(_), AlertWay::Webhook(_)) => unreachable!("a way is made of its request"),
        };
        let health = self.health();
        AlertTargetView {
            name: self.name().clone(),
            kind,
            to,
            by,
            secret,
            codes: self.codes().to_vec(),
            added: self.record.added,
            added_by: self.record.added_by.clone(),
            last_told: health.last_told,
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            failure: health.failure.clone(),
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Targets {
    file: PathBuf,
    known: RwLock<BTreeMap<AlertTargetName, Arc<Target>>>,
    writing: tokio::sync::Mutex<()>,
}

impl Targets {
    /// Reads the list in `dir`; a missing one is empty, a damaged one an error.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("alert-targets.json");
        let read = || format!("cannot read {}", file.display());
        let records: Option<Vec<Record>> = durable::read_json(&file).with_context(read)?;
        let mut known = BTreeMap::new();
        for record in records.unwrap_or_default() {
            let target = Target::new(record).with_context(read)?;
            known.insert(target.name().clone(), target);
        }
        Ok(Self {
            known: RwLock::new(known),
            writing: tokio::sync::Mutex::default(),
            file,
        })
    }

    pub(super) fn all(&self) -> Vec<Arc<Target>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    pub(super) fn ids(&self) -> HashSet<Uuid> {
        self.all().iter().map(|target| target.id()).collect()
    }

    /// # Errors
    /// `ALERT_TARGET_NOT_FOUND`.
    pub(super) fn of(&self, name: &AlertTargetName) -> Result<Arc<Target>, Failure> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned().ok_or_else(|| {
            let what = format!("there is no alert target {name}");
            Failure::new(ErrorCode::AlertTargetNotFound, what)
        })
    }

    /// # Errors
    /// A name that is taken, too many, or what cannot be used.
    pub(super) async fn add(
        &self,
        request: AlertTargetRequest,
        by: String,
        now: OffsetDateTime,
    ) -> Result<Arc<Target>, Failure> {
        let target = Target::new(Record {
            id: Uuid::new_v4(),
            request,
            added: now.replace_nanosecond(0).unwrap_or(now),
            added_by: by,
        })?;
        let name = target.name();
        let _turn = self.writing.lock().await;
        let mut all = self.all();
        if self.of(name).is_ok() {
            let what = format!("there is an alert target {name} already");
            return Err(Failure::new(ErrorCode::NameTaken, what).fix(format!(
                "choose another name, or first: fleetward alert remove {name}"
            )));
        }
        if all.len() >= MOST {
            let what = format!("there are {MOST} alert targets already");
            return Err(
                Failure::new(ErrorCode::TooLarge, what).fix("remove one: fleetward alert list")
            );
        }
        all.push(target.clone());
        self.write(&all).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.clone(), target.clone());
        Ok(target)
    }

    /// # Errors
    /// `ALERT_TARGET_NOT_FOUND`.
    pub(super) async fn remove(&self, name: &AlertTargetName) -> Result<Arc<Target>, Failure> {
        let _turn = self.writing.lock().await;
        let target = self.of(name)?;
        let mut all = self.all();
        all.retain(|other| other.id() != target.id());
        self.write(&all).await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(name);
        target.removed.cancel();
        Ok(target)
    }

    async fn write(&self, all: &[Arc<Target>]) -> Result<(), Failure> {
        let records: Vec<_> = all.iter().map(|target| &target.record).collect();
        let json = serde_json::to_vec_pretty(&records).expect("plain fields are JSON");
        let written = durable::background::replace(&self.file, json, Access::PRIVATE).await;
        written.map_err(|error| {
            let what = "the list of alert targets cannot be written";
            Failure::new(ErrorCode::StoreFailed, what).because(error)
        })
    }
}

/// Whether it is this machine, by its name or its address.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What was given cannot be used.
pub(super) fn unusable(what: &str, because: impl std::fmt::Display, fix: &str) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, what)
        .because(because)
        .fix(fix)
}

/// # Errors
/// A secret that is too short, too long, or has a character that is none.
pub(super) fn require_secret(text: &str, shortest: usize, option: &str) -> Result<(), Failure> {
    const LONGEST: usize = 1024;
    let fix = format!("{option} names a file with {shortest} to {LONGEST} printable characters");
    let what = "the secret of the alert target cannot be used";
    if !(shortest..=LONGEST).contains(&text.len()) {
        let because = format!("it has {} bytes", text.len());
        return Err(unusable(what, because, &fix));
    }
    if text.chars().any(char::is_control) {
        return Err(unusable(what, "it has a control character", &fix));
    }
    Ok(())
}
