//! The directories of volumes: their list, whether two hosts share one, and the path of a disk's file.
//!
//! Each pool's directory has a marker file with a random id, made by the first agent that uses it. Hosts that report
//! the same id share the directory, so a migration between them neither copies nor removes disks.

use crate::config::PoolConfig;
use crate::failure::{Result, Trouble};
use fleetward_durable::{self as durable, Access};
use fleetward_model::host::{DiskIo, PoolFacts};
use fleetward_model::image::is_volume_name;
use fleetward_model::vm::{DiskSpec, VmSpec};
use fleetward_model::{ByteSize, ErrorCode, Failure, PoolName, VmId};
use nix::sys::statvfs::statvfs;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The marker file.
const MARKER: &str = ".fleetward-pool";

/// Left free in every pool: QEMU pauses guests on a full disk, and the host needs to breathe.
const RESERVE: u64 = 16 * ByteSize::MIB;

/// The host's pools.
#[derive(Debug, Clone)]
pub(crate) struct Pools {
    pools: Vec<PoolConfig>,
}

impl Pools {
    pub(crate) fn new(pools: Vec<PoolConfig>) -> Self {
        Self { pools }
    }

    /// What each pool has; one that cannot be used is left out, with a warning.
    pub(crate) fn facts(&self) -> (Vec<PoolFacts>, Vec<String>) {
        let mut facts = Vec::new();
        let mut warnings = Vec::new();
        for pool in &self.pools {
            match facts_of(pool) {
                Ok(found) => {
                    facts.push(found);
                    let what = format!("pool {}", pool.name);
                    warnings.extend(exposure(&what, &pool.path));
                }
                Err(error) => warnings.push(format!(
                    "pool {} at {} cannot be used: {error}",
                    pool.name,
                    pool.path.display()
                )),
            }
        }
        (facts, warnings)
    }

    /// Bytes that are taken in the pools' file systems, each counted once. None where none can be asked.
    pub(crate) fn used(&self) -> Option<u64> {
        let mut systems = BTreeMap::new();
        for pool in &self.pools {
            if let (Ok(found), Ok((capacity, available))) =
                (pool.path.metadata(), space(&pool.path))
            {
                systems.insert(found.dev(), capacity.saturating_sub(available));
            }
        }
        let used = systems.into_values();
        used.reduce(u64::saturating_add)
    }

    /// The pool that holds a file, by its directory.
    pub(crate) fn holding<'a>(&self, facts: &'a [PoolFacts], path: &Path) -> Option<&'a PoolFacts> {
        let directory = path.parent()?;
        facts.iter().find(|pool| Path::new(&pool.path) == directory)
    }

    /// Where the file of a disk of `vm` lies on this host. Volumes belong to their VM, whoever asks: one that is not called
    /// after it is refused.
    pub(crate) fn volume(&self, vm: VmId, disk: &DiskSpec) -> Result<PathBuf> {
        let directory = self.directory(&disk.pool)?;
        let refuse = |because: &str| {
            let shown: String = disk.volume.chars().take(80).collect();
            let what = format!("disk {} of VM {vm}: volume {shown:?}", disk.target);
            Trouble::refuse(ErrorCode::InvalidArgument, what, because)
        };
        // The name comes from outside and must stay one inside the pool.
        if !is_volume_name(&disk.volume) {
            return Err(refuse("it is not a plain file name"));
        }
        if !disk.volume.starts_with(&format!("{vm}-")) {
            return Err(refuse("it is no volume of this VM"));
        }
        Ok(directory.join(&disk.volume))
    }

    /// The files of all of a VM's disks, in the specification's order.
    pub(crate) fn volumes(&self, spec: &VmSpec) -> Result<Vec<PathBuf>> {
        let disks = spec.disks.iter();
        disks.map(|disk| self.volume(spec.id, disk)).collect()
    }

    /// Refuses when the pool's file system has not `needed` bytes to spare.
    pub(crate) fn require_space(&self, pool: &PoolName, needed: u64) -> Result<()> {
        let directory = self.directory(pool)?;
        let (_, available) = space(directory)
            .map_err(|error| Trouble::file(format!("pool {pool}"), directory, &error))?;
        if available < needed.saturating_add(RESERVE) {
            return Err(no_space(
                pool,
                &format!(
                    "{needed} bytes are needed, {available} are available in {}",
                    directory.display()
                ),
            ));
        }
        Ok(())
    }

    fn directory(&self, name: &PoolName) -> Result<&Path> {
        self.pools
            .iter()
            .find(|pool| pool.name == *name)
            .map(|pool| pool.path.as_path())
            .ok_or_else(|| {
                Failure::new(ErrorCode::PoolMissing, format!("pool {name}"))
                    .because("this host's configuration has no pool of that name")
                    .into()
            })
    }
}

/// A warning where somebody else than root may change names in a directory, or on the way to it: the files in it are opened
/// by name, by programs that run as root.
pub(crate) fn exposure(what: &str, path: &Path) -> Option<String> {
    let code = ErrorCode::DirectoryExposed.as_str();
    match durable::exposed(path) {
        Ok(None) => None,
        // It is made, as root's, with the first report.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Ok(Some((at, because))) => {
            let at = at.display();
            Some(format!(
                "{code}: {what} at {}: {because}, so others than root can put files there that root will open; \
                 on this host: chown root:root '{at}' && chmod go-w '{at}'",
                path.display(),
            ))
        }
        Err(error) => Some(format!(
            "{code}: {what} at {}: who may write there cannot be told: {error}",
            path.display()
        )),
    }
}

/// The refusal of a pool that is full.
pub(crate) fn no_space(pool: &PoolName, because: &str) -> Trouble {
    Trouble::refuse(ErrorCode::NoSpace, format!("pool {pool}"), because)
}

/// Capacity and available bytes of the file system that holds `path`.
fn space(path: &Path) -> io::Result<(u64, u64)> {
    let found = statvfs(path)?;
    let block = found.fragment_size();
    Ok((
        found.blocks().saturating_mul(block),
        found.blocks_available().saturating_mul(block),
    ))
}

fn facts_of(pool: &PoolConfig) -> io::Result<PoolFacts> {
    if !pool.path.is_dir() {
        durable::make_directory(&pool.path, 0o711)?;
    }
    let id = match read_marker(&pool.path)? {
        Some(id) => id,
        None => make_marker(&pool.path)?,
    };
    let (capacity, available) = space(&pool.path)?;
    Ok(PoolFacts {
        name: pool.name.clone(),
        id,
        path: pool.path.display().to_string(),
        capacity: ByteSize(capacity),
        available: ByteSize(available),
        // Tried by the host's hypervisor: see `observe::facts`.
        io: DiskIo::default(),
    })
}

fn read_marker(directory: &Path) -> io::Result<Option<String>> {
    let Some(content) = durable::read(&directory.join(MARKER))? else {
        return Ok(None);
    };
    std::str::from_utf8(&content)
        .ok()
        .and_then(|text| text.trim().parse::<uuid::Uuid>().ok())
        .map(|id| Some(id.to_string()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{MARKER} holds no id")))
}

/// Of several hosts that come at once, one makes the marker; the others read it.
fn make_marker(directory: &Path) -> io::Result<String> {
    let id = uuid::Uuid::new_v4().to_string();
    let marker = directory.join(MARKER);
    durable::sweep_file(&marker)?;
    if durable::create(&marker, id.as_bytes(), Access::PUBLIC)? {
        return Ok(id);
    }
    read_marker(directory)?.ok_or_else(|| io::Error::other("the pool's marker came and went"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_model::vm::DiskBus;

    fn pools(dir: &Path) -> Pools {
        Pools::new(vec![PoolConfig {
            name: PoolName::default(),
            path: dir.join("pool"),
        }])
    }

    #[test]
    fn two_hosts_see_one_id_in_a_shared_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let (first, warnings) = pools(dir.path()).facts();
        let (second, _) = pools(dir.path()).facts();
        assert!(warnings.is_empty());
        assert_eq!(first[0].id, second[0].id);
    }

    #[test]
    fn a_pool_that_others_may_write_is_named_with_the_cure_and_no_longer_after_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("pool");
        assert_eq!(pools(dir.path()).facts().1, Vec::<String>::new());
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode));
        mode(0o777).expect("opened to all");
        let (facts, warnings) = pools(dir.path()).facts();
        assert_eq!(facts.len(), 1, "its VMs go on");
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        let cure = format!("chmod go-w '{}'", path.display());
        assert!(
            warning.starts_with("DIRECTORY_EXPOSED: pool default at "),
            "{warning}"
        );
        assert!(warning.contains(&cure), "{warning}");
        mode(0o755).expect("closed");
        assert_eq!(pools(dir.path()).facts().1, Vec::<String>::new());
    }

    #[test]
    fn a_volume_name_leaves_neither_its_pool_nor_its_vm() {
        let dir = tempfile::tempdir().expect("directory");
        let (vm, other) = (
            VmId(uuid::Uuid::from_u128(1)),
            VmId(uuid::Uuid::from_u128(2)),
        );
        let volume = |name: &str| {
            let (bus, pool) = (DiskBus::Virtio, PoolName::default());
            let disk = DiskSpec::new("vda", bus, pool, name, ByteSize::mib(1));
            pools(dir.path()).volume(vm, &disk)
        };
        for name in ["", ".", "..", "../x", "a/b", ".fleetward-pool"] {
            assert!(volume(name).is_err(), "{name:?}");
            assert!(volume(&format!("{vm}-/{name}")).is_err(), "{name:?}");
        }
        for name in [
            format!("{other}-vda.qcow2"),
            vm.to_string(),
            format!("x{vm}-vda.qcow2"),
        ] {
            assert!(volume(&name).is_err(), "{name:?}");
        }
        for name in [format!("{vm}-vda.qcow2"), format!("{vm}-vda-2.qcow2")] {
            assert!(volume(&name).is_ok(), "{name:?}");
        }
    }
}
