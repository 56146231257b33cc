//! Sending a stopped VM: disks, UEFI variables and TPM state, one after the other.
//!
//! A disk that builds on others is sent as one file: a temporary full copy is made for it.

use super::Task;
use crate::arrivals::{Channel, ChannelUse};
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::tpm_judge;
use crate::transfer::{self, Item, Source};
use crate::variables;
use fleetward_api::agent::operation::Migrated;
use fleetward_api::agent::{IncomingDisk, Peer};
use fleetward_durable::{self as durable, Expected};
use fleetward_hypervisor::MigrationOutcome;
use fleetward_link::Identity;
use fleetward_model::vm::{DiskSpec, VmSpec};
use fleetward_model::{ErrorCode, Failure};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Longest definition sent, in bytes as JSON has it: it goes in the header of a tunnel.
const MAX_DEFINITION: usize = 60 * 1024;

impl Task<'_> {
    /// Sends everything of a stopped VM. A repeat sends it again, unless it had all arrived.
    pub(super) async fn send_stopped(&self, to: &Peer, disks: &[IncomingDisk]) -> Result<Migrated> {
        if let Some(outgoing) = self.left_already()? {
            return Ok(Migrated {
                total_ms: outgoing.total_ms,
                downtime_ms: None,
                transferred: outgoing.transferred,
            });
        }
        self.require_whole()?;
        let (_, metadata) = self.managed().await?;
        self.require_stopped().await?;
        if metadata.spec.tpm {
            let state = tpm_judge::whole(self.host, self.vm, &metadata.spec.name).await?;
            let purpose = self.purpose("its TPM is tried before it moves");
            tpm_judge::opens(self.host, self.vm, &metadata, &state, &purpose).await?;
        }
        let definition = self.definition_to_send(&metadata.spec).await?;
        let sent = self.send_files(to, &metadata.spec, disks).await;
        // Also after a failure, and after an earlier attempt.
        self.remove_pieces(&metadata.spec).await?;
        let (begun, done) = sent?;
        let complete = ChannelUse::Complete {
            definition: Some(definition),
        };
        let header = Channel::new(self.job, complete).header(self.vm);
        self.host
            .dialer
            .dial(&to.address, &Identity::Host(to.host.clone()), &header)
            .await
            .map_err(|error| self.refused_by(to, &error))?;
        // Nothing may have started it meanwhile.
        self.require_stopped().await?;
        self.leave(Some(MigrationOutcome {
            total_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            downtime_ms: None,
            transferred: done,
        }))
    }

    /// What the destination is to define, as somebody may have edited it here.
    async fn definition_to_send(&self, spec: &VmSpec) -> Result<String> {
        let what = || format!("the definition of VM {}", spec.name);
        let definition = self.host.hypervisor.portable_definition(self.vm).await;
        let definition = definition.attempt(what)?;
        let length = definition.escape_default().count();
        if length > MAX_DEFINITION {
            let because = format!("it has {length} bytes, and {MAX_DEFINITION} can be sent");
            return Err(Trouble::refuse(ErrorCode::TooLarge, what(), because));
        }
        Ok(definition)
    }

    /// When it began, and how many bytes went.
    async fn send_files(
        &self,
        to: &Peer,
        spec: &VmSpec,
        disks: &[IncomingDisk],
    ) -> Result<(Instant, u64)> {
        let begun = Instant::now();
        let files = self.files_to_send(spec, disks).await?;
        let total: u64 = files.iter().map(|(_, _, size)| size).sum();
        let mut done = 0;
        for (item, source, _) in files {
            let sending =
                transfer::send(self.host, to, self.job, self.vm, &item, source, |bytes| {
                    done += bytes;
                    self.progress(done, total.max(done), &format!("sending {}", item.name()));
                });
            tokio::select! {
                () = self.cancel.cancelled() => return Err(self.cancelled()),
                sent = sending => sent?,
            }
        }
        Ok((begun, done))
    }

    /// The files with the bytes they take.
    async fn files_to_send(
        &self,
        spec: &VmSpec,
        disks: &[IncomingDisk],
    ) -> Result<Vec<(Item, Source, u64)>> {
        let mut files = Vec::new();
        for disk in disks.iter().filter(|disk| disk.copy) {
            let volume = spec
                .disks
                .iter()
                .find(|d| d.target == disk.target)
                .ok_or_else(|| {
                    Failure::new(ErrorCode::InvalidRequest, format!("disk {}", disk.target))
                        .because(format!("VM {} has no such disk", spec.name))
                })?;
            let path = self.in_one_piece(volume).await?;
            let (file, found) = durable::open_expected(&path, &Expected::any())
                .and_then(|file| file.metadata().map(|found| (file, found)))
                .map_err(|error| Trouble::file(format!("disk {}", disk.target), &path, &error))?;
            let size = found.blocks() * 512;
            let item = Item::Disk {
                target: disk.target.clone(),
            };
            files.push((item, Source::File(file, path), size));
        }
        // A VM that has never started has no variables yet.
        if let Some(content) = variables::read(self.host, self.vm)? {
            let size = content.len() as u64;
            files.push((Item::Variables, Source::Bytes(content), size));
        }
        if spec.tpm {
            let state = tpm_judge::whole(self.host, self.vm, &spec.name).await?;
            let size = state.len() as u64;
            files.push((Item::Tpm, Source::Bytes(state), size));
        }
        Ok(files)
    }

    /// The disk's file, or a full copy of it where it builds on others.
    async fn in_one_piece(&self, disk: &DiskSpec) -> Result<PathBuf> {
        let what = || format!("disk {} of VM {}", disk.target, self.vm);
        let path = self.host.pools.volume(self.vm, disk)?;
        if self.below(&path).await?.is_empty() {
            return Ok(path);
        }
        let whole = self.bytes_in_one_piece(&path).await?;
        self.host.pools.require_space(&disk.pool, whole)?;
        let piece = piece_of(&path);
        self.progress(
            0,
            0,
            &format!("putting disk {} together in one piece", disk.target),
        );
        let copying = async {
            // One that an earlier attempt left may be older than the disk.
            self.host.volumes.delete(&piece).await?;
            self.host.volumes.copy(&path, &piece).await
        };
        tokio::select! {
            () = self.cancel.cancelled() => Err(self.cancelled()),
            copied = copying => copied.attempt(what).map(|()| piece),
        }
    }

    /// Removes the copies that were made to be sent.
    pub(super) async fn remove_pieces(&self, spec: &VmSpec) -> Result<()> {
        for disk in &spec.disks {
            if let Ok(path) = self.host.pools.volume(self.vm, disk) {
                self.delete_file(&piece_of(&path)).await?;
            }
        }
        Ok(())
    }
}

/// Where a disk is put together in one piece, beside it.
fn piece_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".piece");
    path.with_file_name(name)
}
