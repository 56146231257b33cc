//! The files of the escrow: one for each version, compressed, with the SHA-256 of its own bytes in its name.
//!
//! A file is written under another name, synced and renamed. It also contains its row of the index, so the index can
//! be rebuilt.

use fleetward_api::tpm::{TpmBundle, TpmVersion};
use fleetward_durable::{self as durable, Access};
use fleetward_model::{ErrorCode, Failure, VmId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest file read, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Largest content, bytes: state, protector and variables with their limits, in base64.
const MAX_CONTENT: u64 = 8 << 20;
const LEVEL: i32 = 3;

/// What is added to the name of a file that turned out not to be what was written: nobody uses it, and nobody loses it.
const DAMAGED: &str = ".damaged";

/// Why a file was not read.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) because: String,
    /// It is gone, or is not what was written. Without this the disk may have refused for another reason, and reading may
    /// work the next time.
    pub(super) lost: bool,
}

/// What a file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) version: TpmVersion,
    pub(crate) bundle: TpmBundle,
}

/// The directory of all files.
#[derive(Debug, Clone)]
pub(super) struct Blobs(PathBuf);

impl Blobs {
    /// Makes the directory, and clears away what was being written when an earlier process ended.
    pub(super) async fn open(root: PathBuf) -> anyhow::Result<Self> {
        let blobs = Self(root);
        let there = blobs.clone();
        tokio::task::spawn_blocking(move || there.prepare())
            .await
            .expect("preparing a directory does not panic")?;
        Ok(blobs)
    }

    fn prepare(&self) -> io::Result<()> {
        durable::make_directory(&self.0, 0o700)?;
        durable::sweep_tree(&self.0).map(drop)
    }

    fn vms(&self) -> io::Result<Vec<(VmId, PathBuf)>> {
        let mut found = Vec::new();
        for directory in fs::read_dir(&self.0)? {
            let path = directory?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(Ok(vm)) = name.map(str::parse) {
                found.push((vm, path));
            }
        }
        Ok(found)
    }

    /// Every file with its VM.
    pub(super) async fn list(&self) -> io::Result<Vec<(VmId, String)>> {
        let blobs = self.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for (vm, path) in blobs.vms()? {
                for file in fs::read_dir(path)? {
                    if let Ok(name) = file?.file_name().into_string()
                        && !name.ends_with(DAMAGED)
                    {
                        found.push((vm, name));
                    }
                }
            }
            // By version: names begin with it.
            found.sort();
            Ok(found)
        });
        listed.await.expect("listing a directory does not panic")
    }

    /// Writes a version, durably; returns its file's name.
    pub(super) async fn write(&self, kept: &Kept) -> Result<String, Failure> {
        let name = kept.version.vm_name.clone();
        let json = serde_json::to_vec(kept).expect("a bundle is JSON");
        let directory = self.0.join(kept.version.vm.to_string());
        let version = kept.version.version;
        let written = tokio::task::spawn_blocking(move || write(&directory, version, &json));
        let written = written.await.expect("writing a file does not panic");
        written.map_err(|error| {
            let code = if durable::is_full(&error) {
                ErrorCode::NoSpace
            } else {
                ErrorCode::StoreFailed
            };
            Failure::new(
                code,
                format!("the controller cannot keep a copy of the TPM of VM {name}"),
            )
            .because(error)
            .fix("make room in the controller's data directory; the copy is taken again by itself")
        })
    }

    /// Reads a version, and refuses it when a byte of it has changed.
    pub(super) async fn read(&self, vm: VmId, file: &str) -> Result<Kept, Failure> {
        let read = self.look_at(vm, file).await;
        read.map_err(|Unread { because, .. }| {
            Failure::new(ErrorCode::EscrowCorrupt, format!("the copy {file}")).because(because)
        })
    }

    /// The same, telling a file that is lost from one that cannot be read now.
    pub(super) async fn look_at(&self, vm: VmId, file: &str) -> Result<Kept, Unread> {
        let path = self.0.join(vm.to_string()).join(file);
        let expected = sha256_in(file).map(str::to_owned);
        let read = tokio::task::spawn_blocking(move || read(&path, expected.as_deref()));
        read.await.expect("reading a file does not panic")
    }

    /// Puts a damaged file out of use. One that is gone already is none.
    pub(super) async fn set_aside(&self, vm: VmId, file: &str) -> io::Result<()> {
        let path = self.0.join(vm.to_string()).join(file);
        let aside = path.with_file_name(format!("{file}{DAMAGED}"));
        durable::background::rename_if_there(&path, &aside).await
    }

    pub(super) async fn remove(&self, vm: VmId, file: &str) -> Result<(), Failure> {
        let path = self.0.join(vm.to_string()).join(file);
        let removed = durable::background::remove(&path).await;
        removed.map_err(|error| not_removed(&path, error))
    }

    /// Removes the directory of a VM, with files that the index does not name.
    pub(super) async fn remove_vm(&self, vm: VmId) -> Result<(), Failure> {
        let path = self.0.join(vm.to_string());
        let removed = durable::background::remove_tree(&path).await;
        removed.map_err(|error| not_removed(&path, error))
    }
}

fn not_removed(path: &Path, error: io::Error) -> Failure {
    Failure::new(ErrorCode::StoreFailed, "an old copy cannot be removed")
        .because(format!("{}: {error}", path.display()))
}

fn write(directory: &Path, version: u64, json: &[u8]) -> io::Result<String> {
    let bytes = zstd::bulk::compress(json, LEVEL)?;
    let name = format!("{version:020}-{}.zst", hex::encode(Sha256::digest(&bytes)));
    durable::make_directory(directory, 0o700)?;
    durable::replace(&directory.join(&name), &bytes, Access::PRIVATE)?;
    Ok(name)
}

/// The SHA-256 in a file's name.
fn sha256_in(file: &str) -> Option<&str> {
    let (_, hash) = file.strip_suffix(".zst")?.split_once('-')?;
    (hash.len() == 64).then_some(hash)
}

fn read(path: &Path, expected: Option<&str>) -> Result<Kept, Unread> {
    let lost = |because: String| Unread {
        because: format!("{}: {because}", path.display()),
        lost: true,
    };
    let refused = |error: io::Error| Unread {
        because: format!("{}: {error}", path.display()),
        lost: error.kind() == io::ErrorKind::NotFound,
    };
    let expected = expected.ok_or_else(|| lost("it is no escrow file".to_owned()))?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(refused)?;
    let length = file
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(refused)?;
    if length as u64 > MAX_FILE {
        return Err(lost(format!("it has more than {MAX_FILE} bytes")));
    }
    let found = hex::encode(Sha256::digest(&bytes));
    if found != expected {
        return Err(lost(format!(
            "it was changed: its SHA-256 is {found}, not {expected}"
        )));
    }
    parse(&bytes).map_err(lost)
}

/// Decompresses the bytes of a file, without trusting them.
///
/// # Errors
/// What is wrong with them, in words.
pub(crate) fn parse(bytes: &[u8]) -> Result<Kept, String> {
    let told = |error: io::Error| error.to_string();
    let mut json = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(bytes).map_err(told)?;
    let length = decoder
        .take(MAX_CONTENT + 1)
        .read_to_end(&mut json)
        .map_err(told)?;
    if length as u64 > MAX_CONTENT {
        return Err(format!("it holds more than {MAX_CONTENT} bytes"));
    }
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}
