//! Volumes and definitions: made before a VM's first start, removed after its last stop.

use super::Task;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::parse_protector;
use crate::variables;
use fleetward_durable::{self as durable, Expected};
use fleetward_hypervisor::{DomainChange, DomainDefinition, Error as HypervisorError};
use fleetward_model::vm::{VmMetadata, VmSpec, VolumeSource};
use fleetward_model::{ErrorCode, Failure, VmId, VmName};
use std::path::{Path, PathBuf};

impl Task<'_> {
    /// Makes the disks; none is left when one cannot be made.
    pub(super) async fn create_volumes(
        &self,
        spec: &VmSpec,
        sources: &[VolumeSource],
    ) -> Result<()> {
        self.require_same_vm(spec)?;
        self.require_whole()?;
        if self.look().await?.is_none()
            && let Err(trouble) = self.create_each_volume(spec, sources).await
        {
            // What failed is worth telling, not that its rests could not be removed: the undo tries again.
            let _ = self.remove_volume_files(spec).await;
            return Err(trouble);
        }
        Ok(())
    }

    async fn create_each_volume(&self, spec: &VmSpec, sources: &[VolumeSource]) -> Result<()> {
        for (at, disk) in spec.disks.iter().enumerate() {
            if self.cancel.is_cancelled() {
                return Err(self.cancelled());
            }
            let path = self.host.pools.volume(self.vm, disk)?;
            self.progress(0, 0, &format!("making disk {}", disk.target));
            let what = || format!("disk {} of VM {}", disk.target, spec.name);
            match sources.get(at).unwrap_or(&VolumeSource::Empty) {
                VolumeSource::Empty => {
                    self.host.pools.require_space(&disk.pool, 0)?;
                    self.host.volumes.create_empty(&path, disk.size).await
                }
                VolumeSource::Image { image, sha256 } => {
                    let image = self.host.images.require(image.as_str(), sha256)?;
                    let size = durable::open_expected(&image.path, &Expected::any())
                        .and_then(|file| file.metadata())
                        .map_err(|error| Trouble::file(what(), &image.path, &error))?
                        .len();
                    if !path.exists() {
                        self.host.pools.require_space(&disk.pool, size)?;
                    }
                    self.host
                        .volumes
                        .create_from_image(&image.path, image.format, &path, disk.size)
                        .await
                }
            }
            .attempt(what)?;
        }
        Ok(())
    }

    /// Removes the disks' files. Refused while the VM is defined and not stopped.
    pub(super) async fn delete_volumes(&self, spec: &VmSpec) -> Result<()> {
        self.require_same_vm(spec)?;
        self.require_stopped().await?;
        // One for a VM that was not defined yet.
        self.host.seeds.remove(self.vm)?;
        self.remove_volume_files(spec).await?;
        Ok(())
    }

    async fn remove_volume_files(&self, spec: &VmSpec) -> Result<()> {
        for disk in &spec.disks {
            // A pool that is not configured any more holds nothing that could be removed.
            match self.host.pools.volume(self.vm, disk) {
                Ok(path) => self.delete_file(&path).await?,
                Err(Trouble { failure, .. }) if failure.code == ErrorCode::PoolMissing => {}
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    pub(super) async fn delete_file(&self, path: &Path) -> Result<()> {
        self.host
            .volumes
            .delete(path)
            .await
            .attempt(|| format!("removing {}", path.display()))
    }

    /// Defines the domain; a repeat defines it anew.
    pub(super) async fn define(&self, metadata: &VmMetadata) -> Result<()> {
        self.require_same_vm(&metadata.spec)?;
        self.require_whole()?;
        if let Some(domain) = self.look().await?
            && domain.metadata.is_none()
        {
            return Err(Trouble::refuse(
                ErrorCode::UuidTaken,
                format!("VM {}", metadata.spec.name),
                format!(
                    "a domain {} that Fleetward did not make has its uuid",
                    domain.name
                ),
            ));
        }
        let mut metadata = metadata.clone();
        metadata.generation = self.generation;
        metadata.transit = None;
        if metadata.spec.tpm {
            self.complete_tpm_metadata(&mut metadata)?;
        }
        self.define_domain(metadata, None).await?;
        if let Some(domain) = self.look().await? {
            self.make_variables(&domain)?;
        }
        self.record.forget_copied()?;
        Ok(())
    }

    /// A VM's key protector is the one that was made with its TPM here; another one is refused.
    fn complete_tpm_metadata(&self, metadata: &mut VmMetadata) -> Result<()> {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;
        let made = self.record.protector()?.map(|der| STANDARD.encode(der));
        match (&metadata.key_protector, made) {
            (Some(given), Some(made)) if *given != made => {
                return Err(Trouble::refuse(
                    ErrorCode::KeyProtectorUnreadable,
                    format!("VM {}", metadata.spec.name),
                    "the definition brings another key protector than its TPM was made with",
                ));
            }
            (Some(_), Some(_)) => {}
            (Some(given), None) => {
                let given = parse_protector(given, self.vm)?;
                self.judge_owner(given, metadata.spec.name.as_str())?;
            }
            (None, Some(made)) => metadata.key_protector = Some(made),
            (None, None) => {
                return Err(Trouble::refuse(
                    ErrorCode::KeyProtectorUnreadable,
                    format!("VM {}", metadata.spec.name),
                    "it is to have a TPM, but none has been made",
                ));
            }
        }
        let made = self.record.ek_certificate()?.map(|ek| ek.to_base64());
        if metadata.ek_certificate.is_none() {
            metadata.ek_certificate = made;
        } else if metadata.ek_certificate != made {
            self.judge_ek_of(metadata)?;
        }
        Ok(())
    }

    /// Defines the domain; with what it was on the host it comes from, if it comes from one.
    pub(super) async fn define_domain(
        &self,
        metadata: VmMetadata,
        carried: Option<String>,
    ) -> Result<()> {
        let mut definition = definition_of(self.host, self.vm, metadata)?;
        definition.carried = carried;
        self.host
            .hypervisor
            .define(&definition)
            .await
            .attempt(|| format!("defining VM {}", definition.metadata.spec.name))
    }

    /// Changes our metadata and what `change` names in the definition there is, and nothing else of it.
    pub(super) async fn redefine(
        &self,
        metadata: &VmMetadata,
        change: &DomainChange,
    ) -> Result<()> {
        redefine(self.host, metadata, change).await
    }

    /// Removes the definition and the UEFI variables of a stopped VM.
    pub(super) async fn undefine(&self) -> Result<()> {
        match self.require_stopped().await? {
            Some(domain) if domain.metadata.is_none() => {
                return Err(Failure::new(
                    ErrorCode::VmNotManaged,
                    format!("VM {} ({})", domain.name, self.vm),
                )
                .into());
            }
            Some(_) | None => {}
        }
        self.require_whole()?;
        self.remove_definition().await?;
        self.record.forget_migrations()?;
        Ok(())
    }

    /// Definition, UEFI variables, secret and the medium for the first boot, whichever of them are there.
    pub(super) async fn remove_definition(&self) -> Result<()> {
        self.host.seeds.remove(self.vm)?;
        match self.host.hypervisor.undefine(self.vm).await {
            Ok(()) | Err(HypervisorError::NoDomain(_)) => {}
            Err(error) => {
                return Err(Trouble::hypervisor(
                    format!("undefining VM {}", self.vm),
                    &error,
                ));
            }
        }
        variables::remove(self.host, self.vm)?;
        self.drop_secret().await
    }

    /// The specification must be of the VM that the request names.
    pub(super) fn require_same_vm(&self, spec: &VmSpec) -> Result<()> {
        if spec.id == self.vm {
            return Ok(());
        }
        Err(Trouble::refuse(
            ErrorCode::InvalidRequest,
            format!("VM {}", self.vm),
            format!("the specification is of VM {}", spec.id),
        ))
    }
}

/// See [`Task::redefine`].
pub(super) async fn redefine(
    host: &Host,
    metadata: &VmMetadata,
    change: &DomainChange,
) -> Result<()> {
    let spec = &metadata.spec;
    host.hypervisor
        .redefine(spec.id, metadata, change)
        .await
        .attempt(|| format!("changing the definition of VM {}", spec.name))
}

/// The definition with its paths resolved; refused where a pool or a medium is not here.
fn definition_of(host: &Host, vm: VmId, metadata: VmMetadata) -> Result<DomainDefinition> {
    let spec = &metadata.spec;
    let drive_paths = spec
        .drives
        .iter()
        .map(|drive| match &drive.medium {
            None => Ok(drive.seed.then(|| host.seeds.path(vm))),
            Some(medium) => {
                let image = host.images.require(medium.image.as_str(), &medium.sha256)?;
                Ok(Some(image.path))
            }
        })
        .collect::<Result<_>>()?;
    Ok(DomainDefinition {
        disk_paths: host.pools.volumes(spec)?,
        drive_paths,
        nic_places: host.networks.places(spec, &host.member.host)?,
        serial_log: serial_log(host, &spec.name),
        nvram_path: variables::place(host, vm)?,
        carried: None,
        metadata,
    })
}

/// Where a VM's serial output is kept, if this host keeps it.
pub(super) fn serial_log(host: &Host, name: &VmName) -> Option<PathBuf> {
    let directory = host.config.serial_log_dir.as_ref()?;
    Some(directory.join(format!("{name}.log")))
}
