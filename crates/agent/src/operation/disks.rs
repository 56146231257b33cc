//! The volumes of a VM's disks while the VM changes: made, grown, copied to another pool, removed.
//!
//! ```text
//!   comes   volume made ── defined, and attached where the machine can
//!   grows   volume and device ── written down                       what has grown stays so
//!   moves   copied, or mirrored and switched over ── written down   what has moved stays there
//!   goes    detached and taken out of the definition
//! ```
//! Nothing is removed here that the VM could need: the volumes that are left over go in an operation of their own, when the
//! change is certain. Where a change is taken back, what cannot be taken back without losing what the guest wrote stands,
//! and the specification says so.

use super::Task;
use crate::failure::{HypervisorResult, Result, Trouble};
use fleetward_hypervisor::{
    DiskDevice, DomainChange, DomainObserved, DomainState, DriveDevice, MoveState, StorageChange,
};
use fleetward_model::change::{ChangeStep, Direction, DiskAct, DriveStep};
use fleetward_model::vm::{DiskSpec, VmSpec};
use fleetward_model::{ErrorCode, Failure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a disk that moves is looked at.
const PACE: Duration = Duration::from_millis(200);

/// A step, and the way in which it is really taken.
pub(super) type Directed<'s> = (&'s ChangeStep, Direction);

impl Task<'_> {
    /// Does with the volumes what comes before the definition changes. Of steps that are taken back, those that stand are
    /// given forward.
    pub(super) async fn prepare_volumes<'s>(
        &self,
        domain: &DomainObserved,
        steps: &'s [ChangeStep],
        direction: Direction,
    ) -> Result<Vec<Directed<'s>>> {
        let mut directed = Vec::with_capacity(steps.len());
        for step in steps {
            let act = step.disk().and_then(|step| step.act());
            let way = match (act, direction) {
                (None, way) => way,
                (Some(act), Direction::Forward) => {
                    self.prepare_volume(domain, act).await?;
                    Direction::Forward
                }
                (Some(act), Direction::Back) => match self.stands(domain, act).await? {
                    true => Direction::Forward,
                    false => Direction::Back,
                },
            };
            directed.push((step, way));
        }
        Ok(directed)
    }

    async fn prepare_volume(&self, domain: &DomainObserved, act: DiskAct<'_>) -> Result<()> {
        match act {
            DiskAct::Come(disk) => {
                let path = self.host.pools.volume(self.vm, disk)?;
                self.host.pools.require_space(&disk.pool, 0)?;
                let made = self.host.volumes.create_empty(&path, disk.size).await;
                made.attempt(|| format!("making disk {} of VM {}", disk.target, domain.name))?;
                fleetward_failpoint::hold("agent.change-vm.volume-made").await;
                Ok(())
            }
            DiskAct::Grow { to, .. } => {
                self.grow(domain, to).await?;
                fleetward_failpoint::hold("agent.change-vm.volume-grown").await;
                Ok(())
            }
            DiskAct::Move { from, to } => {
                self.move_volume(domain, from, to).await?;
                fleetward_failpoint::hold("agent.change-vm.volume-moved").await;
                Ok(())
            }
            DiskAct::Go(_) => Ok(()),
        }
    }

    async fn grow(&self, domain: &DomainObserved, disk: &DiskSpec) -> Result<()> {
        let path = self.host.pools.volume(self.vm, disk)?;
        self.host.pools.require_space(&disk.pool, 0)?;
        let what = || format!("making disk {} of VM {} larger", disk.target, domain.name);
        match has_process(domain) && is_at(domain, &disk.target, &path) {
            true => {
                let hypervisor = &self.host.hypervisor;
                let grown = hypervisor.grow_disk(self.vm, &disk.target, disk.size).await;
                grown.attempt(what)
            }
            false => self.host.volumes.grow(&path, disk.size).await.attempt(what),
        }
    }

    async fn move_volume(
        &self,
        domain: &DomainObserved,
        from: &DiskSpec,
        to: &DiskSpec,
    ) -> Result<()> {
        let source = self.host.pools.volume(self.vm, from)?;
        let path = self.host.pools.volume(self.vm, to)?;
        if has_moved(domain, &to.target, &path) {
            return Ok(());
        }
        let what = || format!("moving disk {} of VM {}", to.target, domain.name);
        let whole = self.bytes_in_one_piece(&source).await?;
        if has_process(domain) && is_at(domain, &to.target, &source) {
            // Of an earlier attempt.
            let hypervisor = &self.host.hypervisor;
            let aborted = hypervisor.abort_move(self.vm, &to.target).await;
            aborted.attempt(what)?;
            self.delete_file(&path).await?;
            self.host.pools.require_space(&to.pool, whole)?;
            return match self.mirror(domain, to, &source, &path).await {
                Ok(()) => Ok(()),
                Err(trouble) => {
                    // What failed is worth telling, not that its rests could not be removed: the undo tries again.
                    let _ = self.end_move(&to.target, &path).await;
                    Err(trouble)
                }
            };
        }
        if !path.exists() {
            self.host.pools.require_space(&to.pool, whole)?;
        }
        self.progress(0, 0, &format!("copying disk {} to {}", to.target, to.pool));
        tokio::select! {
            () = self.cancel.cancelled() => Err(self.cancelled()),
            copied = self.host.volumes.copy(&source, &path) => copied.attempt(what),
        }
    }

    /// Copies the disk of a machine that runs, and switches over.
    async fn mirror(
        &self,
        domain: &DomainObserved,
        to: &DiskSpec,
        source: &Path,
        path: &Path,
    ) -> Result<()> {
        let what = || format!("moving disk {} of VM {}", to.target, domain.name);
        let (hypervisor, volumes) = (&self.host.hypervisor, &self.host.volumes);
        let size = volumes.inspect_volume(source).await.attempt(what)?;
        let made = volumes.create_empty(path, size.virtual_size).await;
        made.attempt(what)?;
        let begun = hypervisor.begin_move(self.vm, &to.target, path).await;
        begun.attempt(what)?;
        fleetward_failpoint::hold("agent.change-vm.mirror-begun").await;
        loop {
            let state = hypervisor.move_state(self.vm, &to.target).await;
            match state.attempt(what)? {
                MoveState::Mirrored => break,
                MoveState::Copying { done, total } => {
                    let text = format!("copying disk {} to {}", to.target, to.pool);
                    self.progress(done, total, &text);
                }
                MoveState::Still => {
                    // QEMU tells of a full disk only on the job that is gone.
                    self.host.pools.require_space(&to.pool, 0)?;
                    return Err(Trouble::refuse(
                        ErrorCode::HypervisorFailed,
                        what(),
                        "the copy was broken off: the VM stopped, or its new volume could not be written",
                    ));
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return Err(self.cancelled()),
                () = tokio::time::sleep(PACE) => {}
            }
        }
        let switched = hypervisor.finish_move(self.vm, &to.target).await;
        switched.attempt(what)
    }

    /// Ends a copy that is not the VM's disk, and removes it.
    async fn end_move(&self, target: &str, path: &Path) -> Result<()> {
        let aborted = self.host.hypervisor.abort_move(self.vm, target).await;
        aborted.attempt(|| format!("ending the move of disk {target}"))?;
        let domain = self.look().await?;
        if domain.is_some_and(|domain| has_moved(&domain, target, path)) {
            return Ok(());
        }
        self.delete_file(path).await
    }

    /// Whether a step stays as it is although it is taken back: what the guest has seen larger is not cut off, and what it
    /// writes to is not thrown away.
    async fn stands(&self, domain: &DomainObserved, act: DiskAct<'_>) -> Result<bool> {
        match act {
            DiskAct::Grow { to, .. } => {
                let path = self.host.pools.volume(self.vm, to)?;
                let what = || format!("looking at disk {} of VM {}", to.target, domain.name);
                let found = self.host.volumes.inspect_volume(&path).await;
                Ok(found.attempt(what)?.virtual_size >= to.size)
            }
            DiskAct::Move { to, .. } => {
                let path = self.host.pools.volume(self.vm, to)?;
                if has_process(domain) {
                    let hypervisor = &self.host.hypervisor;
                    let aborted = hypervisor.abort_move(self.vm, &to.target).await;
                    aborted.attempt(|| format!("ending the move of disk {}", to.target))?;
                }
                let now = self.look().await?;
                Ok(now.is_some_and(|domain| has_moved(&domain, &to.target, &path)))
            }
            DiskAct::Come(_) | DiskAct::Go(_) => Ok(false),
        }
    }

    /// What the steps change of the definition.
    pub(super) fn storage_changes(
        &self,
        steps: &[Directed<'_>],
        change: &mut DomainChange,
    ) -> Result<()> {
        for (step, way) in steps {
            if let Some(act) = step.disk().and_then(|step| step.act()) {
                match (act, way) {
                    (DiskAct::Come(disk), Direction::Forward)
                    | (DiskAct::Go(disk), Direction::Back) => {
                        change.storage.push(StorageChange::AddDisk(DiskDevice {
                            path: self.host.pools.volume(self.vm, disk)?,
                            spec: disk.clone(),
                        }));
                    }
                    (DiskAct::Come(disk), Direction::Back)
                    | (DiskAct::Go(disk), Direction::Forward) => {
                        let target = disk.target.clone();
                        change.storage.push(StorageChange::RemoveDisk { target });
                    }
                    (DiskAct::Move { to, .. }, Direction::Forward) => {
                        let path = self.host.pools.volume(self.vm, to)?;
                        change.disks.push((to.target.clone(), path));
                    }
                    (DiskAct::Move { .. }, Direction::Back) | (DiskAct::Grow { .. }, _) => {}
                }
            }
            if let Some(step) = step.drive() {
                change.storage.extend(self.drive_changes(step, *way)?);
            }
        }
        Ok(())
    }

    fn drive_changes(&self, step: &DriveStep, way: Direction) -> Result<Vec<StorageChange>> {
        let (before, after) = match way {
            Direction::Forward => (step.from.as_deref(), step.to.as_deref()),
            Direction::Back => (step.to.as_deref(), step.from.as_deref()),
        };
        let Some(drive) = after else {
            let gone = before.map(|drive| StorageChange::RemoveDrive {
                target: drive.target.clone(),
            });
            return Ok(gone.into_iter().collect());
        };
        let path = match &drive.medium {
            // It may have gone meanwhile.
            None => drive
                .seed
                .then(|| self.host.seeds.path(self.vm))
                .filter(|path| path.exists()),
            Some(medium) => {
                let image = self
                    .host
                    .images
                    .require(medium.image.as_str(), &medium.sha256)?;
                Some(image.path)
            }
        };
        let added = before.is_none().then(|| {
            StorageChange::AddDrive(DriveDevice {
                spec: drive.clone(),
                path: path.clone(),
            })
        });
        let target = drive.target.clone();
        let medium = StorageChange::SetMedium {
            target,
            path,
            optional: drive.seed,
        };
        Ok(added.into_iter().chain([medium]).collect())
    }

    /// Removes the volumes that steps made which were taken back.
    pub(super) async fn remove_made(&self, steps: &[Directed<'_>]) -> Result<()> {
        for (step, way) in steps {
            let made = match (step.disk().and_then(|step| step.act()), way) {
                (Some(DiskAct::Come(disk) | DiskAct::Move { to: disk, .. }), Direction::Back) => {
                    disk
                }
                (Some(_), Direction::Forward)
                | (Some(DiskAct::Go(_) | DiskAct::Grow { .. }), Direction::Back)
                | (None, _) => continue,
            };
            match self.host.pools.volume(self.vm, made) {
                Ok(path) => self.delete_file(&path).await?,
                // Nothing was made in a pool that this host does not have.
                Err(trouble) if trouble.failure.code == ErrorCode::PoolMissing => {}
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// See [`DropVolumes`](fleetward_api::agent::operation::DropVolumes).
    pub(super) async fn drop_volumes(&self, disks: &[DiskSpec]) -> Result<()> {
        let domain = self.look().await?;
        for disk in disks {
            let what = || format!("removing volume {} of VM {}", disk.volume, self.vm);
            let path = match self.host.pools.volume(self.vm, disk) {
                Ok(path) => path,
                Err(trouble) if trouble.failure.code == ErrorCode::PoolMissing => continue,
                Err(trouble) => return Err(trouble),
            };
            let needed = domain
                .as_ref()
                .is_some_and(|domain| uses(domain, disk, &path));
            let used = match path.exists() {
                true => self.host.volumes.in_use(&path).await.attempt(what)?,
                false => false,
            };
            if needed || used {
                return Err(Failure::new(ErrorCode::DeviceHeld, what())
                    .because(format!("{} is in use", path.display()))
                    .into());
            }
            self.delete_file(&path).await?;
        }
        Ok(())
    }
}

/// Whether the domain has a machine, which holds its disks.
fn has_process(domain: &DomainObserved) -> bool {
    match domain.state {
        DomainState::Running | DomainState::Paused { .. } => true,
        DomainState::Stopped(_) => false,
    }
}

/// Whether the machine has that disk, in that file.
fn is_at(domain: &DomainObserved, target: &str, path: &Path) -> bool {
    has(&domain.disks, target, path)
}

/// Whether machine or definition has the disk in that file: the guest may have written there.
fn has_moved(domain: &DomainObserved, target: &str, path: &Path) -> bool {
    let defined = domain.defined.as_ref();
    is_at(domain, target, path) || defined.is_some_and(|next| has(&next.disks, target, path))
}

fn has(disks: &[(String, PathBuf)], target: &str, path: &Path) -> bool {
    disks.iter().any(|(at, file)| at == target && file == path)
}

/// Whether the VM has a disk in that file, by its specification, its definition or its machine.
fn uses(domain: &DomainObserved, disk: &DiskSpec, path: &Path) -> bool {
    let named = |spec: &VmSpec| {
        let mut disks = spec.disks.iter();
        disks.any(|known| known.pool == disk.pool && known.volume == disk.volume)
    };
    let defined = domain.defined.iter().flat_map(|defined| &defined.disks);
    domain
        .metadata
        .as_ref()
        .is_some_and(|metadata| named(&metadata.spec))
        || domain
            .disks
            .iter()
            .chain(defined)
            .any(|(_, file)| file == path)
}
