//! The guardians that the fleet has known: whose signature on a VM's key protector counts.
//!
//! Present and former guardians of the hosts are in the hosts' records. Those of hosts that have left are in a file beside the
//! authority's key, which outlives the database: what they signed is still on VMs, and among the kept TPMs. A controller of
//! a former version did not keep them, so the first start takes over what the escrow has: it was there before anybody could
//! have put it there to get past this.

use crate::hosts::Members;
use anyhow::Context;
use fleetward_durable::{self as durable, Access};
use fleetward_model::{ErrorCode, Failure, GuardianId};
use fleetward_protector::KnownOwners;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

/// Those of hosts that have left.
#[derive(Debug)]
pub(crate) struct Owners {
    file: PathBuf,
    /// None before the first start that keeps them has taken over what there is.
    departed: RwLock<Option<BTreeSet<GuardianId>>>,
    writing: tokio::sync::Mutex<()>,
}

impl Owners {
    /// Reads the list in `dir`; a damaged one is an error.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("departed-guardians.json");
        let departed =
            durable::read_json(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            file,
            departed: RwLock::new(departed),
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// Whether no start has yet taken over what a former version did not keep.
    pub(crate) fn is_new(&self) -> bool {
        let departed = self.departed.read();
        departed.unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Adds guardians of hosts that leave, durably. Repeating it changes nothing.
    pub(crate) async fn keep(
        &self,
        guardians: impl IntoIterator<Item = GuardianId>,
    ) -> Result<(), Failure> {
        let _turn = self.writing.lock().await;
        let before = self.departed();
        let mut all = before.clone();
        all.extend(guardians);
        if all == before && !self.is_new() {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(&all).expect("ids are JSON");
        let written = durable::background::replace(&self.file, json, Access::PRIVATE).await;
        written.map_err(|error| {
            let what = "the list of departed guardians cannot be written";
            Failure::new(ErrorCode::StoreFailed, what).because(error)
        })?;
        let mut departed = self
            .departed
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *departed = Some(all);
        Ok(())
    }

    /// All that count now.
    pub(crate) fn known(&self, members: &Members) -> KnownOwners {
        let departed = self.departed();
        let hosts = members.all();
        let of_hosts = hosts
            .iter()
            .flat_map(|host| host.former.iter().chain([&host.guardian.id]));
        KnownOwners::new(of_hosts.cloned().chain(departed))
    }

    fn departed(&self) -> BTreeSet<GuardianId> {
        let departed = self.departed.read();
        let departed = departed.unwrap_or_else(PoisonError::into_inner);
        departed.clone().unwrap_or_default()
    }
}
