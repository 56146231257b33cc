//! Linked copies: a VM's disks become bases on which both the VM and its copy build.
//!
//! ```text
//!   before            after              a copy of a VM that has written nothing since builds on the same base
//!   VM ── F           VM ── N ──┐
//!                               ├── F (frozen)
//!                     copy ── C ┘
//! ```
//! F keeps its name and is never written again; N is a new volume in the VM's specification. The order makes this safe
//! at any line. The overlays are recorded (`copying.json`) and then made. The VM switches to them in one step, in
//! QEMU's transaction or in libvirt's definition. Only then is F frozen, and only then does another volume build on
//! it. After a crash the file that the VM writes to decides: if it is N, the change is completed; if it is F, the
//! overlays are removed.

use super::Task;
use super::copy::Pair;
use super::create::redefine;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::record::{Copying, Overlay};
use fleetward_durable::{self as durable, Expected};
use fleetward_hypervisor::{DomainChange, DomainObserved, DomainState, MAX_BASES};
use fleetward_model::vm::{DiskSpec, VmMetadata, VmSpec};
use fleetward_model::{ErrorCode, VmId};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

impl Task<'_> {
    /// Whether overlays can be made here: each disk and its copy in one pool, and room for one more below.
    pub(super) async fn can_link(&self, disks: &[Pair]) -> Result<bool> {
        for disk in disks {
            let one_pool = disk.source.parent() == disk.copy.parent();
            if !one_pool || self.below(&disk.source).await?.len() + 1 > MAX_BASES {
                return Ok(false);
            }
        }
        Ok(!disks.is_empty())
    }

    /// Lets the stopped VM and the copy build on the VM's disks as they are now.
    pub(super) async fn link_stopped(
        &self,
        metadata: &VmMetadata,
        to: VmId,
        disks: &[Pair],
    ) -> Result<()> {
        let mut bases = Vec::new();
        let mut overlays = Vec::new();
        for (disk, spec) in disks.iter().zip(&metadata.spec.disks) {
            self.require_unused(&disk.source, &metadata.spec).await?;
            let unwritten = match self.below(&disk.source).await?.into_iter().next() {
                Some(base) => self.unwritten_base(&disk.source, base).await?,
                None => None,
            };
            match unwritten {
                Some(base) => bases.push(base),
                None => {
                    overlays.push(self.new_overlay(spec)?);
                    bases.push(disk.source.clone());
                }
            }
        }
        if !overlays.is_empty() {
            self.make_overlays(metadata, to, &overlays).await?;
            fleetward_failpoint::hold("agent.copy-vm.overlaid").await;
            // Nothing may have started it meanwhile.
            self.require_stopped().await?;
            self.switched(metadata, &overlays, true).await?;
            self.record.forget_copying()?;
        }
        self.build_on(&bases, disks).await
    }

    /// Of a running VM, before its guest is paused: the overlays that it will switch to.
    pub(super) async fn prepare_switch(
        &self,
        metadata: &VmMetadata,
        to: VmId,
    ) -> Result<Vec<Overlay>> {
        let overlays = metadata
            .spec
            .disks
            .iter()
            .map(|disk| self.new_overlay(disk))
            .collect::<Result<Vec<_>>>()?;
        self.make_overlays(metadata, to, &overlays).await?;
        Ok(overlays)
    }

    /// Lets the running or paused VM write on to the overlays: the moment of the copy.
    pub(super) async fn switch(&self, spec: &VmSpec, overlays: &[Overlay]) -> Result<()> {
        let disks = overlays
            .iter()
            .map(|overlay| Ok((overlay.target.clone(), place(self.host, spec, overlay)?)))
            .collect::<Result<Vec<_>>>()?;
        self.host
            .hypervisor
            .switch_to_overlays(self.vm, &disks)
            .await
            .attempt(|| format!("freezing the disks of VM {}", spec.name))
    }

    /// After [`switch`](Self::switch), with the guest running again: the copy builds on what lies below.
    pub(super) async fn link_switched(
        &self,
        metadata: &VmMetadata,
        overlays: &[Overlay],
        disks: &[Pair],
    ) -> Result<()> {
        fleetward_failpoint::hold("agent.copy-vm.switched").await;
        self.switched(metadata, overlays, false).await?;
        let bases: Vec<PathBuf> = disks.iter().map(|disk| disk.source.clone()).collect();
        self.build_on(&bases, disks).await
    }

    async fn switched(
        &self,
        metadata: &VmMetadata,
        overlays: &[Overlay],
        stopped: bool,
    ) -> Result<()> {
        write_down_switch(self.host, metadata, overlays, stopped).await
    }

    async fn make_overlays(
        &self,
        metadata: &VmMetadata,
        to: VmId,
        overlays: &[Overlay],
    ) -> Result<()> {
        self.record.keep_copying(&Copying {
            job: self.job,
            to,
            freezes: true,
            overlays: overlays.to_vec(),
        })?;
        for overlay in overlays {
            let disk = disk_of(&metadata.spec, &overlay.target)?;
            self.host.pools.require_space(&disk.pool, 0)?;
            let base = self.host.pools.volume(self.vm, disk)?;
            let path = place(self.host, &metadata.spec, overlay)?;
            self.make_overlay(&base, &path).await?;
        }
        Ok(())
    }

    async fn build_on(&self, bases: &[PathBuf], disks: &[Pair]) -> Result<()> {
        for (base, disk) in bases.iter().zip(disks) {
            self.make_overlay(base, &disk.copy).await?;
        }
        Ok(())
    }

    async fn make_overlay(&self, base: &Path, path: &Path) -> Result<()> {
        self.host
            .volumes
            .create_overlay(base, path)
            .await
            .attempt(|| format!("making {} over {}", path.display(), base.display()))
    }

    /// At most so many bytes it takes to have the volume and all below it as one.
    pub(super) async fn bytes_in_one_piece(&self, volume: &Path) -> Result<u64> {
        let mut taken = 0;
        for layer in self
            .below(volume)
            .await?
            .iter()
            .map(PathBuf::as_path)
            .chain([volume])
        {
            let found = durable::open_expected(layer, &Expected::any())
                .and_then(|file| file.metadata())
                .map_err(|error| Trouble::file(format!("VM {}", self.vm), layer, &error))?;
            taken += found.blocks() * 512;
        }
        Ok(taken)
    }

    pub(super) async fn below(&self, volume: &Path) -> Result<Vec<PathBuf>> {
        self.host
            .volumes
            .bases(volume)
            .await
            .attempt(|| format!("looking below {}", volume.display()))
    }

    /// The base, if the overlay over it shows nothing else.
    async fn unwritten_base(&self, overlay: &Path, base: PathBuf) -> Result<Option<PathBuf>> {
        let what = || format!("looking into {}", overlay.display());
        let volumes = &self.host.volumes;
        let same = volumes.is_frozen(&base).await.attempt(what)?
            && volumes.is_unwritten(overlay).await.attempt(what)?;
        Ok(same.then_some(base))
    }

    async fn require_unused(&self, volume: &Path, spec: &VmSpec) -> Result<()> {
        let what = || format!("copying VM {}", spec.name);
        if self.host.volumes.in_use(volume).await.attempt(what)? {
            let because = format!("{} is in use, although the VM is stopped", volume.display());
            return Err(Trouble::refuse(ErrorCode::VmStateWrong, what(), because));
        }
        Ok(())
    }

    /// A name that no file has yet.
    fn new_overlay(&self, disk: &DiskSpec) -> Result<Overlay> {
        let mut number = 1_u32;
        loop {
            let volume = format!("{}-{}-{number}.qcow2", self.vm, disk.target);
            let named = DiskSpec {
                volume: volume.clone(),
                ..disk.clone()
            };
            if std::fs::symlink_metadata(self.host.pools.volume(self.vm, &named)?).is_err() {
                let target = disk.target.clone();
                return Ok(Overlay { target, volume });
            }
            number += 1;
        }
    }
}

/// Brings a switch that was begun to its end, or takes back what was made for it. Repeating it is harmless.
pub(super) async fn settle_switch(
    host: &Host,
    vm: VmId,
    domain: Option<&DomainObserved>,
    overlays: &[Overlay],
) -> Result<()> {
    let Some(domain) = domain.filter(|_| !overlays.is_empty()) else {
        return Ok(());
    };
    let Some(metadata) = &domain.metadata else {
        return Ok(());
    };
    if has_switched(host, domain, &metadata.spec, overlays).await? {
        let stopped = matches!(domain.state, DomainState::Stopped(_));
        return write_down_switch(host, metadata, overlays, stopped).await;
    }
    for overlay in overlays {
        let path = place(host, &metadata.spec, overlay)?;
        host.volumes
            .delete(&path)
            .await
            .attempt(|| format!("removing a new overlay of VM {vm}"))?;
    }
    Ok(())
}

/// Whether the domain writes to the overlays; libvirt and QEMU switch all disks together. For a libvirt that died
/// before it recorded QEMU's switch, QEMU's lock on an overlay and data in an overlay count too: an overlay that holds
/// anything is never removed.
async fn has_switched(
    host: &Host,
    domain: &DomainObserved,
    spec: &VmSpec,
    overlays: &[Overlay],
) -> Result<bool> {
    for overlay in overlays {
        let path = place(host, spec, overlay)?;
        let named = domain.disks.iter().any(|(_, disk)| *disk == path);
        if named || (path.exists() && is_at_work(host, &path).await?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether somebody writes to a new overlay, or has.
async fn is_at_work(host: &Host, path: &Path) -> Result<bool> {
    let what = || format!("looking at {}", path.display());
    Ok(host.volumes.in_use(path).await.attempt(what)?
        || !host.volumes.is_unwritten(path).await.attempt(what)?)
}

/// The specification names the overlays, and what is below them is frozen.
async fn write_down_switch(
    host: &Host,
    metadata: &VmMetadata,
    overlays: &[Overlay],
    stopped: bool,
) -> Result<()> {
    let what = || format!("writing down the disks of VM {}", metadata.spec.name);
    let mut after = metadata.clone();
    for disk in &mut after.spec.disks {
        if let Some(overlay) = overlays.iter().find(|o| o.target == disk.target) {
            disk.volume.clone_from(&overlay.volume);
        }
    }
    let id = after.spec.id;
    if !stopped {
        host.hypervisor
            .write_metadata(id, &after)
            .await
            .attempt(what)?;
    }
    // Of a running VM this is what it starts with next, without what libvirt believes of the volumes below.
    let mut moved = DomainChange::default();
    for overlay in overlays {
        let path = place(host, &after.spec, overlay)?;
        moved.disks.push((overlay.target.clone(), path));
    }
    redefine(host, &after, &moved).await?;
    fleetward_failpoint::hold("agent.copy-vm.written").await;
    for overlay in overlays {
        let path = place(host, &after.spec, overlay)?;
        let below = host.volumes.bases(&path).await.attempt(what)?;
        if let Some(base) = below.first() {
            host.volumes.freeze(base).await.attempt(what)?;
        }
    }
    Ok(())
}

fn place(host: &Host, spec: &VmSpec, overlay: &Overlay) -> Result<PathBuf> {
    let named = DiskSpec {
        volume: overlay.volume.clone(),
        ..disk_of(spec, &overlay.target)?.clone()
    };
    host.pools.volume(spec.id, &named)
}

fn disk_of<'a>(spec: &'a VmSpec, target: &str) -> Result<&'a DiskSpec> {
    let found = spec.disks.iter().find(|disk| disk.target == target);
    found.ok_or_else(|| {
        Trouble::refuse(
            ErrorCode::Internal,
            format!("VM {}", spec.name),
            format!("it has no disk {target} any more"),
        )
    })
}
