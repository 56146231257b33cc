//! How QEMU can read and write the volumes of a directory: tried with qemu-img, which has the same block layer.
//!
//! `O_DIRECT` depends on the file system, `io_uring` on the kernel and on how QEMU was built, and a domain that is defined
//! with what is not there does not start. So a file of the directory is opened in each way, and the result is remembered.
//!
//! Linux' older interface (`io=native`) is not used: each VM takes 1,024 or more of the 65,536 requests that a host has by
//! default (`fs.aio-max-nr`), so the 64th VM of a host would not start.

use crate::program::Program;
use fleetward_durable::{self as durable, Access, Draft};
use fleetward_model::host::DiskIo;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Set: only processes of the administrator may use `io_uring`, and QEMU is none.
const URING_FORBIDDEN: &str = "/proc/sys/kernel/io_uring_disabled";

/// The file that is opened; it never gets this name.
const TRIED: &str = ".fleetward-io";

/// What has been tried.
#[derive(Debug, Default)]
pub(crate) struct TriedDirectories(Mutex<BTreeMap<PathBuf, DiskIo>>);

impl TriedDirectories {
    pub(crate) async fn of(&self, qemu_img: &Program, directory: &Path) -> DiskIo {
        if let Some(known) = self.known().get(directory) {
            return *known;
        }
        // A directory that cannot be tried now may be there later.
        let Some(found) = try_directory(qemu_img, directory).await else {
            return DiskIo::Cached;
        };
        self.known().insert(directory.to_owned(), found);
        found
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, DiskIo>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of the directories of some volumes.
#[derive(Debug, Clone, Default)]
pub(crate) struct IoOfVolumes(BTreeMap<PathBuf, DiskIo>);

impl IoOfVolumes {
    pub(crate) async fn look<'a>(
        tried: &TriedDirectories,
        qemu_img: &Program,
        volumes: impl Iterator<Item = &'a Path>,
    ) -> Self {
        let mut found = BTreeMap::new();
        for directory in volumes.filter_map(Path::parent) {
            if !found.contains_key(directory) {
                let io = tried.of(qemu_img, directory).await;
                found.insert(directory.to_owned(), io);
            }
        }
        Self(found)
    }

    pub(crate) fn of(&self, volume: &Path) -> DiskIo {
        let directory = volume.parent();
        directory
            .and_then(|directory| self.0.get(directory))
            .copied()
            .unwrap_or_default()
    }
}

async fn try_directory(qemu_img: &Program, directory: &Path) -> Option<DiskIo> {
    let place = directory.join(TRIED);
    // What an agent left that was killed while it tried.
    durable::sweep_file(&place).ok()?;
    let draft = Draft::beside(&place, Access::PRIVATE).ok()?;
    // A block for the largest sectors there are.
    draft.file().set_len(1 << 16).ok()?;
    let opens = async |options: &[(&str, &str)]| {
        let mut file = serde_json::json!({"driver": "file", "filename": draft.path()});
        for (name, value) in options {
            file[name] = (*value).into();
        }
        let image = serde_json::json!({"driver": "raw", "file": file});
        let mut arguments: Vec<OsString> = ["info", "-U"].iter().map(OsString::from).collect();
        arguments.push(format!("json:{image}").into());
        qemu_img.run(&arguments).await.is_ok()
    };
    if !opens(&[("cache.direct", "on")]).await {
        return opens(&[]).await.then_some(DiskIo::Cached);
    }
    let uring = is_uring_allowed() && opens(&[("cache.direct", "on"), ("aio", "io_uring")]).await;
    Some(match uring {
        true => DiskIo::DirectUring,
        false => DiskIo::Direct,
    })
}

fn is_uring_allowed() -> bool {
    match std::fs::read_to_string(URING_FORBIDDEN) {
        Ok(text) => text.trim() == "0",
        // Kernels from before 6.6 have no such switch.
        Err(_) => true,
    }
}
