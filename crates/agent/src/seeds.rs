//! Media for guests' first boots: a file for each VM, in memory only (`run_dir` is a tmpfs) and for nobody but root and
//! the VM's QEMU, because passwords may be on them.
//!
//! ```text
//!   put ── no VM is made with it for an hour ────────────────────────────────► removed
//!    └─ in the VM's drive ─┬─ the guest's agent answers, `first_boot_grace` ──► ejected, removed
//!                          └─ a day ───────────────────────────────────────────► ejected, removed
//! ```
//! A guest reads its medium while it boots, some in several boots: Cloudbase-Init reads it again after the reboot that gives
//! Windows its name. So the agent in the guest must have answered for some time without a break, as it does in one boot only.
//! First it is ejected, then removed: a crash between the two leaves a file that nothing uses, and the next agent removes it.

use crate::failure::{Result, Trouble};
use crate::host::Host;
use crate::operation::table;
use fleetward_api::agent::OperationLine;
use fleetward_durable::{self as durable, Access, Expected};
use fleetward_hypervisor::DomainObserved;
use fleetward_model::change::{ChangeStep, Direction, DriveStep};
use fleetward_model::vm::DriveSpec;
use fleetward_model::{ErrorCode, VmId};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Largest medium taken, bytes.
pub(crate) const MAX_SEED: usize = 2 << 20;

/// How long a medium stays at most.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long one stays whose VM is not made.
const UNUSED: Duration = Duration::from_secs(3600);
/// How long one stays at least, although its VM has no drive with it any more.
const EJECTED: Duration = Duration::from_secs(10);
/// How often they are looked through.
const ROUND: Duration = Duration::from_secs(10);
/// How long one stays that could not be ejected, because its guest holds it, say.
const AGAIN: Duration = Duration::from_secs(600);
/// How long it is waited for one to be ejected, before the others have their turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// The media of this host.
#[derive(Debug, Clone)]
pub(crate) struct Seeds(PathBuf);

impl Seeds {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub(crate) fn path(&self, vm: VmId) -> PathBuf {
        self.0.join(format!("{vm}.iso"))
    }

    pub(crate) fn put(&self, vm: VmId, content: &[u8]) -> Result<()> {
        if content.len() > MAX_SEED {
            return Err(Trouble::refuse(
                ErrorCode::TooLarge,
                format!("the medium for the first boot of VM {vm}"),
                format!("it has more than {MAX_SEED} bytes"),
            ));
        }
        durable::replace(&self.path(vm), content, Access::PRIVATE)
            .map_err(|error| self.trouble(vm, &error))
    }

    /// The file is QEMU's while the VM runs, so it is read with a limit.
    pub(crate) fn get(&self, vm: VmId) -> Result<Option<Vec<u8>>> {
        let read = || {
            let file = match durable::open_expected(&self.path(vm), &Expected::any()) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let mut content = Vec::new();
            file.take(MAX_SEED as u64 + 1).read_to_end(&mut content)?;
            match content.len() > MAX_SEED {
                true => Err(io::Error::other("it is larger than what was written there")),
                false => Ok(Some(content)),
            }
        };
        read().map_err(|error| self.trouble(vm, &error))
    }

    /// A missing one is fine.
    pub(crate) fn remove(&self, vm: VmId) -> Result<()> {
        durable::wipe(&self.path(vm)).map_err(|error| self.trouble(vm, &error))
    }

    fn trouble(&self, vm: VmId, error: &io::Error) -> Trouble {
        let what = format!("the medium for the first boot of VM {vm}");
        Trouble::file(what, self.path(vm), error)
    }

    /// The VMs that have one, and since when; under `None` lies what no VM is named after.
    fn all(&self) -> io::Result<Vec<(Option<VmId>, PathBuf, SystemTime)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".iso"));
            let vm = id.and_then(|id| id.parse::<VmId>().ok());
            all.push((vm, entry.path(), entry.metadata()?.modified()?));
        }
        Ok(all)
    }

    /// Removes what has had its time. `defined`: the VMs of this host, and whether they have such a drive.
    fn sweep(&self, defined: &BTreeMap<VmId, bool>, now: SystemTime) -> io::Result<()> {
        for (vm, path, written) in self.all()? {
            let life = match vm.and_then(|vm| defined.get(&vm)) {
                Some(true) => LIFE,
                Some(false) => EJECTED,
                None => UNUSED,
            };
            if is_older(written, life, now) {
                durable::wipe(&path)?;
            }
        }
        Ok(())
    }
}

fn is_older(written: SystemTime, life: Duration, now: SystemTime) -> bool {
    now.duration_since(written).is_ok_and(|age| age > life)
}

/// Ejects and removes until `stop`.
pub(crate) async fn keep(host: Arc<Host>, stop: CancellationToken) {
    let mut rounds = tokio::time::interval(ROUND);
    let mut held = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rounds.tick() => {}
        }
        if let Err(error) = round(&host, &mut held).await {
            tracing::warn!(%error, "media for first boots stay longer than they should");
        }
    }
}

/// `held`: media that could not be ejected, and when.
async fn round(host: &Arc<Host>, held: &mut HashMap<VmId, Instant>) -> io::Result<()> {
    let media = host.seeds.all()?;
    held.retain(|vm, _| media.iter().any(|(has, ..)| *has == Some(*vm)));
    if media.is_empty() {
        return Ok(());
    }
    // While libvirt does not answer, nothing is known of the VMs.
    let Ok(domains) = host.hypervisor.list().await else {
        return Ok(());
    };
    let now = SystemTime::now();
    for (vm, _, written) in media {
        let domain = domains.iter().find(|domain| Some(domain.id) == vm);
        let Some((domain, drive)) = domain.and_then(|domain| Some((domain, drive_of(domain)?)))
        else {
            continue;
        };
        let grace = Duration::from_secs(host.config.first_boot_grace.into());
        let answers = host.guests.answering(domain.id);
        let done = answers.is_some_and(|since| since >= grace);
        let tried = held.get(&domain.id).is_some_and(|at| at.elapsed() < AGAIN);
        if (done || is_older(written, LIFE, now)) && !tried && !eject(host, domain.id, drive).await
        {
            held.insert(domain.id, Instant::now());
        }
    }
    // Of a domain that is arriving, nothing is known yet.
    let known = domains.iter().filter(|domain| domain.metadata.is_some());
    // Its machine may have what its specification does not say any more.
    let has = |domain: &DomainObserved| {
        let file = host.seeds.path(domain.id);
        let mut drives = domain.drives.iter();
        drive_of(domain).is_some() || drives.any(|drive| drive.1.as_ref() == Some(&file))
    };
    let defined = known.map(|domain| (domain.id, has(domain)));
    host.seeds.sweep(&defined.collect(), now)
}

/// The drive with such a medium, and its place among the VM's drives.
fn drive_of(domain: &DomainObserved) -> Option<(usize, &DriveSpec)> {
    let spec = &domain.metadata.as_ref()?.spec;
    let mut drives = spec.drives.iter().enumerate();
    drives.find(|(_, drive)| drive.seed)
}

/// Empties the drive and removes the medium; false where it could not be done, and is not worth trying again soon.
async fn eject(host: &Arc<Host>, vm: VmId, (at, drive): (usize, &DriveSpec)) -> bool {
    // Half of a migration, or between two steps of a job: the next round looks again.
    if host.operations.may_go_on(vm) || !host.record(vm).is_whole().unwrap_or(false) {
        return true;
    }
    let steps = vec![ChangeStep::Drive(DriveStep::emptied(at, drive))];
    match change(host, vm, (steps.clone(), Direction::Forward)).await {
        Change::Busy => true,
        Change::Done => {
            fleetward_failpoint::hold("agent.seed.ejected").await;
            match host.seeds.remove(vm) {
                Ok(()) => tracing::info!(%vm, "the medium for the first boot has gone"),
                Err(trouble) => {
                    tracing::warn!(%vm, because = trouble.failure.because, "it is removed later");
                }
            }
            true
        }
        // The operation has said why. The definition may have changed, and the machine has its medium still.
        Change::Failed => {
            change(host, vm, (steps, Direction::Back)).await;
            false
        }
    }
}

enum Change {
    /// Something else is done with the VM.
    Busy,
    Done,
    Failed,
}

async fn change(host: &Arc<Host>, vm: VmId, steps: (Vec<ChangeStep>, Direction)) -> Change {
    let why = "the guest has what it needed at its first boot";
    let Some(lines) = table::change_own(host, vm, steps, why) else {
        return Change::Busy;
    };
    match tokio::time::timeout(PATIENCE, table::ended(lines)).await {
        Ok(OperationLine::Done { .. }) => Change::Done,
        Ok(OperationLine::Failed { .. } | OperationLine::Progress { .. }) | Err(_) => {
            Change::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_lives_a_day_an_hour_without_its_vm_and_not_long_once_it_is_ejected() {
        let dir = tempfile::tempdir().expect("a directory");
        let seeds = Seeds::new(dir.path().to_owned());
        let vms = [1, 2, 3].map(|n| VmId(uuid::Uuid::from_u128(n)));
        let [known, unknown, ejected] = vms;
        for vm in vms {
            seeds.put(vm, b"content").expect("written");
        }
        let defined = [(known, true), (ejected, false)].into();
        let after = |minutes: u64| {
            let now = SystemTime::now() + Duration::from_secs(minutes * 60);
            seeds.sweep(&defined, now).expect("swept");
            [known, unknown, ejected].map(|vm| seeds.get(vm).expect("read").is_some())
        };
        assert_eq!(after(0), [true, true, true]);
        assert_eq!(after(2), [true, true, false]);
        assert_eq!(after(2 * 60), [true, false, false]);
        assert_eq!(after(25 * 60), [false, false, false]);
        assert!(seeds.put(known, &vec![0; MAX_SEED + 1]).is_err());
    }

    #[test]
    fn a_medium_that_has_grown_is_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let seeds = Seeds::new(dir.path().to_owned());
        let vm = VmId(uuid::Uuid::from_u128(1));
        std::fs::write(seeds.path(vm), vec![0; MAX_SEED + 1]).expect("written");
        assert!(seeds.get(vm).is_err());
    }
}
