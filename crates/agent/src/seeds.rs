//! Media for guests' first boots: a file for each VM, in memory only (`run_dir` is a tmpfs) and for nobody but root and
//! the VM's QEMU, because passwords may be on them. They go when the guest no longer needs them, and after a day.

use crate::failure::{Result, Trouble};
use crate::host::Host;
use fleetward_durable::{self as durable, Access};
use fleetward_model::{ErrorCode, VmId};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// Largest medium taken, bytes.
pub(crate) const MAX_SEED: usize = 2 << 20;

/// How long a medium stays at most.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long one stays whose VM is not made, or has ejected it.
const UNUSED: Duration = Duration::from_secs(3600);
/// How often they are looked through.
const ROUND: Duration = Duration::from_secs(600);

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
            let file = match File::open(self.path(vm)) {
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

    /// Removes what has had its time. `defined`: the VMs that have such a medium.
    fn sweep(&self, defined: &BTreeSet<VmId>, now: SystemTime) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let vm = name
                .to_str()
                .and_then(|name| name.strip_suffix(".iso"))
                .and_then(|id| id.parse::<VmId>().ok());
            let life = match vm {
                Some(vm) if defined.contains(&vm) => LIFE,
                Some(_) | None => UNUSED,
            };
            let written = entry.metadata()?.modified()?;
            if now.duration_since(written).is_ok_and(|age| age > life) {
                durable::wipe(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Sweeps until `stop`.
pub(crate) async fn keep(host: Arc<Host>, stop: CancellationToken) {
    let mut rounds = tokio::time::interval(ROUND);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rounds.tick() => {}
        }
        // While libvirt does not answer, nothing is known of the VMs.
        let Ok(domains) = host.hypervisor.list().await else {
            continue;
        };
        // A medium that was ejected has no use either.
        let uses = domains.iter().filter(|domain| {
            let spec = domain.metadata.as_ref().map(|metadata| &metadata.spec);
            spec.is_some_and(|spec| spec.drives.iter().any(|drive| drive.seed))
        });
        let defined = uses.map(|domain| domain.id).collect();
        if let Err(error) = host.seeds.sweep(&defined, SystemTime::now()) {
            tracing::warn!(%error, "media for first boots stay longer than they should");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_lives_a_day_and_an_hour_without_its_vm() {
        let dir = tempfile::tempdir().expect("a directory");
        let seeds = Seeds::new(dir.path().to_owned());
        let [known, unknown] = [1, 2].map(|n| VmId(uuid::Uuid::from_u128(n)));
        seeds.put(known, b"known").expect("written");
        seeds.put(unknown, b"unknown").expect("written");
        let defined = [known].into();
        let after = |hours: u64| {
            let now = SystemTime::now() + Duration::from_secs(hours * 3600);
            seeds.sweep(&defined, now).expect("swept");
            [known, unknown].map(|vm| seeds.get(vm).expect("read").is_some())
        };
        assert_eq!(after(0), [true, true]);
        assert_eq!(after(2), [true, false]);
        assert_eq!(after(25), [false, false]);
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
