//! The destination of a migration.
//!
//! ```text
//!                 PrepareIncoming                     CommitIncoming
//!  nothing ───────────────────────► incoming ──────────────────────────► the VM
//!     ▲                                │        (source has departed)
//!     └──────── AbandonIncoming ───────┘
//! ```
//! `transit.json` marks a copy as incoming; it is written before any other part of the arrival. While it exists, the
//! copy on this host is not the VM: it is never resumed or started, and memory that has arrived stays paused. The
//! commit removes the mark. The controller requests the commit only when the source's copy can never run again, so two
//! copies never run.

use super::Task;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::record::{Incoming, TransitRecord};
use crate::tpm_judge;
use crate::variables;
use fleetward_api::agent::operation::{Committed, PrepareIncoming};
use fleetward_api::agent::{IncomingDisk, Peer};
use fleetward_durable::{self as durable, SharedDirectory};
use fleetward_hypervisor::{DomainChange, DomainState, Error as HypervisorError};
use fleetward_model::vm::{VmMetadata, VmSpec};
use fleetward_model::{ErrorCode, Failure, VmId};
use std::path::{Path, PathBuf};

impl Task<'_> {
    /// Opens the key protector, loads the secret, makes volumes for what is copied.
    pub(super) async fn prepare_incoming(&self, asked: &PrepareIncoming) -> Result<()> {
        let PrepareIncoming {
            metadata,
            disks,
            live,
            from,
            former_states,
        } = asked;
        let live = *live;
        let spec = &metadata.spec;
        self.require_same_vm(spec)?;
        match self.record.transit()? {
            Some(TransitRecord::Incoming(earlier)) if earlier.job != self.job => {
                return Err(
                    self.wrong_state(format!("job {} is bringing it here already", earlier.job))
                );
            }
            Some(TransitRecord::Departed { .. }) => {
                return Err(self
                    .wrong_state("an earlier copy has left this host and is not cleaned up yet"));
            }
            Some(TransitRecord::Incoming(_)) => {}
            None => self.require_absent(spec).await?,
        }
        let copied = copied_paths(self, spec, disks)?;
        self.judge_ek_of(metadata)?;
        self.keep_incoming(metadata, disks, live, from, &copied)?;
        if spec.tpm {
            let protector = self.current_protector(metadata)?;
            let protector = self.judge_owner(protector, spec.name.as_str())?;
            self.load_secret(metadata, &protector, "the VM migrates to this host")
                .await?;
            tpm_judge::learn(self.host, self.vm, former_states)?;
        }
        self.progress(0, 0, "making room");
        if live {
            for (disk, path) in &copied {
                let pool = &spec.disks[*disk].pool;
                self.host.pools.require_space(pool, 0)?;
                self.host
                    .volumes
                    .create_empty(path, spec.disks[*disk].size)
                    .await
                    .attempt(|| format!("disk {} of VM {}", spec.disks[*disk].target, spec.name))?;
            }
            make_arrival_directory(self.host, self.vm)?;
        }
        Ok(())
    }

    /// Neither the VM nor its name may be here yet.
    pub(super) async fn require_absent(&self, spec: &VmSpec) -> Result<()> {
        let domains = self
            .host
            .hypervisor
            .list()
            .await
            .attempt(|| "listing the VMs".to_owned())?;
        for domain in domains {
            if domain.id == self.vm {
                return Err(Trouble::refuse(
                    ErrorCode::UuidTaken,
                    format!("VM {}", spec.name),
                    format!(
                        "host {} has a domain {} of its uuid",
                        self.host.member.host, domain.name
                    ),
                ));
            }
            if domain.name == spec.name {
                return Err(Trouble::refuse(
                    ErrorCode::NameTaken,
                    format!("VM {}", spec.name),
                    format!(
                        "host {} has another domain of that name",
                        self.host.member.host
                    ),
                ));
            }
        }
        let state = self
            .host
            .tpms
            .state(self.vm)
            .await
            .attempt(|| format!("looking for TPM state of VM {}", spec.name))?;
        match state {
            None => {
                let strays = self.host.tpms.remove_strays(self.vm).await;
                strays.attempt(|| format!("clearing the TPM's directory of VM {}", spec.name))
            }
            Some(path) => Err(self.wrong_state(format!(
                "this host has TPM state of it, from earlier, in {}; it is not overwritten",
                path.display()
            ))),
        }
    }

    /// Marks this copy as arriving, and which files did not exist before.
    pub(super) fn keep_incoming(
        &self,
        metadata: &VmMetadata,
        disks: &[IncomingDisk],
        live: bool,
        from: &Peer,
        copied: &[(usize, PathBuf)],
    ) -> Result<()> {
        let earlier = self.record.incoming()?;
        let mut made = earlier.map(|earlier| earlier.made).unwrap_or_default();
        for (_, path) in copied {
            if made.contains(path) {
                continue;
            }
            if path.exists() {
                return Err(Trouble::refuse(
                    ErrorCode::NameTaken,
                    format!("volume {}", path.display()),
                    "a file exists there already, and is not overwritten",
                ));
            }
            made.push(path.clone());
        }
        let mut metadata = metadata.clone();
        metadata.transit = None;
        self.record
            .keep_transit(&TransitRecord::Incoming(Box::new(Incoming {
                job: self.job,
                metadata,
                disks: disks.to_vec(),
                live,
                from: from.clone(),
                made,
                received: Default::default(),
                complete: false,
                definition: None,
            })))
    }

    pub(super) fn remove_socket_directory(&self) -> Result<()> {
        let directory = self.host.layout.migration(self.vm);
        durable::remove_tree(&directory)
            .map_err(|error| Trouble::file("the sockets of a migration", &directory, &error))
    }

    /// Removes everything of an arrival that will not be completed.
    pub(super) async fn abandon_incoming(&self, spec: &VmSpec) -> Result<()> {
        self.require_same_vm(spec)?;
        if self.record.committed()? == Some(self.job) {
            return Err(self.wrong_state("the migration is committed: this is the VM now"));
        }
        let incoming = match self.record.transit()? {
            Some(TransitRecord::Incoming(incoming)) if incoming.job == self.job => incoming,
            // Nothing of this job ever came here, or it is gone already.
            Some(TransitRecord::Incoming(_) | TransitRecord::Departed { .. }) | None => {
                return Ok(());
            }
        };
        self.host.arrivals.close(self.vm);
        self.remove_arrived_domain().await?;
        self.host.seeds.remove(self.vm)?;
        self.drop_secret().await?;
        for path in &incoming.made {
            self.delete_file(path).await?;
            self.delete_file(&partial(path)).await?;
        }
        self.remove_socket_directory()?;
        // Last: until here a repeat finds what is still to be removed.
        self.record.forget()?;
        Ok(())
    }

    /// Removes the arrived domain with its UEFI variables and TPM state. Only for a copy that is marked as incoming: it is
    /// not the VM, and the VM's own state is at the source.
    pub(super) async fn remove_arrived_domain(&self) -> Result<()> {
        remove_arrived(self.host, self.vm).await
    }

    /// It is the VM now; lets it run when it came running.
    pub(super) async fn commit_incoming(&self, live: bool) -> Result<Committed> {
        match self.record.transit()? {
            Some(TransitRecord::Incoming(incoming)) if incoming.job == self.job => {
                self.host.arrivals.close(self.vm);
                self.complete_arrival(&incoming).await?;
                self.record.keep_committed(self.job)?;
                self.record.forget_transit()?;
            }
            None if self.record.committed()? == Some(self.job) => {}
            Some(_) | None => {
                return Err(self.wrong_state("nothing of this migration has arrived here"));
            }
        }
        if live {
            self.run_arrived().await?;
        }
        self.remove_socket_directory()?;
        Ok(Committed)
    }

    /// Refuses unless everything is here; then defines what is not defined yet, and writes who the VM is.
    async fn complete_arrival(&self, incoming: &Incoming) -> Result<()> {
        let mut metadata = incoming.metadata.clone();
        metadata.generation = self.generation;
        if let Some(beside) = self.own_beside(&metadata) {
            metadata.key_protector = Some(beside.to_base64());
            self.record.keep_protector(&beside)?;
        }
        match self.look().await? {
            Some(domain) if domain.state == (DomainState::Paused { incoming: true }) => {
                Err(Trouble::passing(
                    Failure::new(ErrorCode::VmStateWrong, format!("VM {}", self.vm))
                        .because("its memory is still arriving"),
                ))
            }
            Some(domain) if incoming.live => {
                if !domain.persistent {
                    self.redefine(&metadata, &DomainChange::default()).await?;
                }
                self.host
                    .hypervisor
                    .write_metadata(self.vm, &metadata)
                    .await
                    .attempt(|| format!("writing the metadata of VM {}", self.vm))
            }
            Some(_) | None => {
                if !incoming.complete {
                    return Err(self.wrong_state("not all of it has arrived"));
                }
                let carried = incoming.definition.clone();
                self.define_domain(metadata, carried).await
            }
        }
    }

    /// Resumes the arrived guest. One that was lost with this host's power while it waited boots again: its disks and its
    /// TPM state are here and nowhere else.
    async fn run_arrived(&self) -> Result<()> {
        let (domain, metadata) = self.managed().await?;
        match domain.state {
            DomainState::Running => Ok(()),
            DomainState::Paused { .. } => self.resume().await,
            DomainState::Stopped(_) => {
                tracing::warn!(vm = %self.vm, "the arrived memory is lost; the VM boots again");
                self.boot(&metadata, domain.tpm).await
            }
        }
    }
}

/// The directory in which QEMU, as its own user, makes the sockets that the memory and the disks arrive at. Nobody else
/// reaches them; and as QEMU may put anything there, [`crate::arrivals`] connects only to a socket of QEMU's user
/// (decision 0046).
pub(crate) fn make_arrival_directory(host: &Host, vm: VmId) -> Result<PathBuf> {
    let directory = host.layout.migration(vm);
    let (uid, gid) = host.volumes.owner();
    durable::remove_tree(&directory)
        .and_then(|()| durable::make_new_directory(&directory, 0o700))
        .and_then(|()| SharedDirectory::open(&directory))
        .and_then(|open| open.give(Some(uid), Some(gid)))
        .map_err(|error| Trouble::file("the sockets of a migration", &directory, &error))?;
    Ok(directory)
}

/// See [`Task::remove_arrived_domain`].
pub(crate) async fn remove_arrived(host: &Host, vm: VmId) -> Result<()> {
    let what = || format!("removing what arrived of VM {vm}");
    match host.hypervisor.destroy(vm).await {
        Ok(()) | Err(HypervisorError::NoDomain(_)) => {}
        Err(error) => return Err(Trouble::hypervisor(what(), &error)),
    }
    match host.hypervisor.undefine(vm).await {
        Ok(()) | Err(HypervisorError::NoDomain(_)) => {}
        Err(error) => return Err(Trouble::hypervisor(what(), &error)),
    }
    variables::remove(host, vm)?;
    host.tpms.remove(vm).await.attempt(what)
}

/// Index and path of the disks that are copied. Every disk of the request must be one of the VM's.
fn copied_paths(
    task: &Task<'_>,
    spec: &VmSpec,
    disks: &[IncomingDisk],
) -> Result<Vec<(usize, PathBuf)>> {
    let mut copied = Vec::new();
    for disk in disks {
        let Some(at) = spec.disks.iter().position(|d| d.target == disk.target) else {
            return Err(Trouble::refuse(
                ErrorCode::InvalidRequest,
                format!("disk {}", disk.target),
                format!("VM {} has no such disk", spec.name),
            ));
        };
        let path = task.host.pools.volume(task.vm, &spec.disks[at])?;
        if disk.copy {
            copied.push((at, path));
        }
    }
    Ok(copied)
}

/// Where a file lies while it is being received.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}
