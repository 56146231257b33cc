//! Hosts that were expelled: which, and whose keys they could open.
//!
//! ```text
//!   member ──certificates refused, connections cut──► expelled: its guardians may not join, and lose every key
//!                                                        │ its VMs stay in the inventory, on no host: lost
//!                                                        └──► vm recover, or vm delete
//! ```
//! The list is a file beside the authority's key, so it outlives the database. [`crate::keeper`] takes the guardians' access
//! away from each VM that has any, now and whenever one turns up, and rolls what they could open.

use crate::world::World;
use anyhow::Context;
use fleetward_api::controller::{ExpelAnswer, ExposedKey, LostVm, RollWhen};
use fleetward_durable::{self as durable, Access};
use fleetward_model::admission::{Answer, Request, TpmChange, answer};
use fleetward_model::guardian::GuardianStanding;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, GroupName, GuardianId, HostName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use time::OffsetDateTime;
use tokio::sync::watch;

/// A host that was expelled. Its name may be another machine's by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Expelled {
    pub(crate) host: HostName,
    pub(crate) group: GroupName,
    /// Its own, and its former ones.
    pub(crate) guardians: BTreeSet<GuardianId>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) at: OffsetDateTime,
    pub(crate) by: String,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Expulsions {
    file: PathBuf,
    known: RwLock<Vec<Expelled>>,
    writing: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
}

impl Expulsions {
    /// Reads the list in `dir`; a missing one is empty, a damaged one an error.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("expelled-hosts.json");
        let known: Option<Vec<Expelled>> =
            durable::read_json(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            file,
            known: RwLock::new(known.unwrap_or_default()),
            writing: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// Wakes when a host is added.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Adds a host, durably. The same guardians a second time change nothing.
    pub(crate) async fn add(&self, expelled: Expelled) -> Result<(), Failure> {
        let _turn = self.writing.lock().await;
        let mut all = self.all();
        let same = |known: &&Expelled| {
            known.host == expelled.host && known.guardians == expelled.guardians
        };
        if all.iter().any(|known| same(&known)) {
            return Ok(());
        }
        all.push(expelled);
        let json = serde_json::to_vec_pretty(&all).expect("plain fields are JSON");
        let written = durable::background::replace(&self.file, json, Access::PRIVATE).await;
        written.map_err(|error| {
            let what = "the list of expelled hosts cannot be written";
            Failure::new(ErrorCode::StoreFailed, what).because(error)
        })?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = all;
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    pub(crate) fn all(&self) -> Vec<Expelled> {
        let known = self.known.read();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last expulsion of a host of that name.
    pub(crate) fn of(&self, host: &HostName) -> Option<Expelled> {
        self.all().into_iter().rfind(|one| one.host == *host)
    }

    /// Each guardian that was expelled, with its host.
    pub(crate) fn guardians(&self) -> BTreeMap<GuardianId, HostName> {
        let all = self.all().into_iter();
        all.flat_map(|one| {
            let host = one.host;
            let guardians = one.guardians.into_iter();
            guardians.map(move |guardian| (guardian, host.clone()))
        })
        .collect()
    }
}

/// Of the guardians that open a VM's key, those that were expelled.
pub(crate) fn exposed(
    vm: &VmObserved,
    expelled: &BTreeMap<GuardianId, HostName>,
) -> Vec<GuardianId> {
    let opens = vm.tpm.guardians.iter();
    opens
        .filter(|guardian| vm.tpm.enabled && expelled.contains_key(*guardian))
        .cloned()
        .collect()
}

/// Every guardian that a host has as its own, or had, as the fleet knows it: what the host itself says would let it name others'.
pub(crate) fn guardians_of(world: &World, host: &HostName) -> Result<Expelled, Failure> {
    let record = world.hosts.of(host)?;
    let mut guardians: BTreeSet<_> = record.former.iter().cloned().collect();
    guardians.insert(record.guardian.id.clone());
    Ok(Expelled {
        host: host.clone(),
        group: record.group.clone(),
        guardians,
        at: OffsetDateTime::now_utc(),
        by: String::new(),
    })
}

/// What the expulsion of a host comes to.
pub(crate) fn consequences(world: &World, expelled: &Expelled) -> ExpelAnswer {
    let host = &expelled.host;
    let guardians: BTreeMap<_, _> = expelled
        .guardians
        .iter()
        .map(|guardian| (guardian.clone(), host.clone()))
        .collect();
    let lost = world.inventory.vms_on(host).into_iter();
    let lost = lost.filter(|vm| vm.is_managed()).map(|vm| LostVm {
        id: vm.id,
        name: vm.name.clone(),
        copy: world.escrow.newest(vm.id).map(|version| version.made),
        tpm: vm.tpm.enabled,
    });
    let others = world.inventory.vms().into_iter();
    let others = others.filter(|vm| vm.host != *host && vm.is_managed());
    let keys = others.filter_map(|vm| {
        let exposed = exposed(&vm, &guardians);
        (!exposed.is_empty()).then(|| ExposedKey {
            id: vm.id,
            name: vm.name.clone(),
            host: vm.host.clone(),
            guardians: exposed,
            roll: roll_when(world, &vm),
        })
    });
    let facts = world.inventory.seen(host).facts;
    let imported = facts.iter().flat_map(|facts| &facts.guardians);
    ExpelAnswer {
        host: host.clone(),
        lost: lost.collect(),
        keys: keys.collect(),
        imported: imported
            .filter(|guardian| guardian.standing == GuardianStanding::Imported)
            .map(|guardian| guardian.id.clone())
            .collect(),
        jobs: Vec::new(),
    }
}

fn roll_when(world: &World, vm: &VmObserved) -> RollWhen {
    let roll = Request::Tpm {
        change: TpmChange::Roll,
        restart: false,
    };
    if !world.inventory.seen(&vm.host).online {
        return RollWhen::HostBack;
    }
    match answer(vm.state, roll) {
        Answer::Accept => RollWhen::AtOnce,
        Answer::Done | Answer::Refuse(_) => RollWhen::NextStop,
    }
}

/// That a host was expelled, instead of that there is none of that name.
pub(crate) fn told(world: &World, host: &HostName, missing: Failure) -> Failure {
    let Some(expelled) = world.expulsions.of(host) else {
        return missing;
    };
    let what = format!("host {host} was expelled from the fleet");
    Failure::new(ErrorCode::HostExpelled, what)
        .because(format!(
            "by {}, at {}",
            expelled.by,
            crate::tokens::utc(expelled.at)
        ))
        .fix(format!(
            "install it anew, and then: fleetward host token {host} --group {}",
            expelled.group
        ))
}
