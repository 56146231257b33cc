//! The source of a migration.
//!
//! ```text
//!  the VM ── MigrateLive | SendStopped ──► left ── Depart ──► departed ── CleanUpDeparted ──► nothing
//!    ▲              │ any failure           │
//!    └──────────────┴── (undone) ───────────┘
//! ```
//! *Left* is recorded on the disk (`outgoing.json`): the memory or the files are at the destination, and the VM does
//! not run on this host. Its undo does nothing on this host. *Departed* is the point of no return: this copy can never
//! be started again.

use super::Task;
use crate::arrivals::{Channel, ChannelUse};
use crate::failure::{HypervisorResult, Result, Trouble, chain};
use crate::record::{Outgoing, TransitRecord};
use fleetward_api::agent::operation::{Migrated, SourceState};
use fleetward_api::agent::{IncomingDisk, Peer};
use fleetward_durable as durable;
use fleetward_hypervisor::{
    DomainObserved, DomainState, Error as HypervisorError, MigrationDisks, MigrationOutcome,
    MigrationProgress, MigrationRequest, StopReason,
};
use fleetward_link::tunnel::{TunnelError, TunnelTarget, UnixRelay};
use fleetward_link::{Identity, SocketSpec};
use fleetward_model::network::NetworkPlace;
use fleetward_model::vm::{NicSpec, Transit, TransitSide, VmMetadata, VmSpec};
use fleetward_model::{ErrorCode, Failure, NetworkName, VmName};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the destination is called while memory moves.
pub(super) const CALL: Duration = Duration::from_secs(2);

/// A destination that is there answers within this.
const REACH: Duration = Duration::from_secs(5);

/// A destination that has not answered for so long is lost.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long an abort may take before the sockets are closed under it.
const ABORT: Duration = Duration::from_secs(2);

impl Task<'_> {
    /// Moves the running VM; it arrives paused. A repeat after success answers again.
    pub(super) async fn migrate_live(
        &self,
        to: &Peer,
        disks: &[IncomingDisk],
        networks: &BTreeMap<NetworkName, NetworkPlace>,
    ) -> Result<Migrated> {
        if let Some(outgoing) = self.left_already()? {
            return Ok(outgoing.answer());
        }
        self.require_whole()?;
        self.host
            .hypervisor
            .abort_leftover_migration(self.vm)
            .await
            .attempt(|| format!("ending an earlier migration of VM {}", self.vm))?;
        let (domain, metadata) = self.managed().await?;
        match domain.state {
            DomainState::Running => {}
            DomainState::Stopped(StopReason::Migrated) => return self.leave(None),
            DomainState::Paused { .. } | DomainState::Stopped(_) => {
                return Err(Trouble::refuse(
                    ErrorCode::VmNotRunning,
                    format!("VM {}", domain.name),
                    format!("it is {} here", domain.reason),
                ));
            }
        }
        self.require_known_disks(&domain, &metadata)?;
        self.require_tpm_that_answers(&domain, &metadata).await?;
        self.progress(0, 0, "calling the destination");
        // What is asked next may take long there; that the host is there shows at once.
        self.call(to, ChannelUse::Ping, REACH).await?;
        self.call(to, ChannelUse::Arm, Duration::from_secs(30))
            .await?;
        let nics = self.host.networks.as_specified(&domain, &metadata.spec);
        let place = |nic: &NicSpec| Some((nic.mac.clone(), networks.get(&nic.network)?.clone()));
        let nic_places = nics.filter_map(place).collect();
        let outcome = self
            .move_memory(to, disks, (&domain, &metadata), nic_places)
            .await;
        self.remove_socket_directory()?;
        match outcome {
            Ok(outcome) => self.leave(Some(outcome)),
            Err(trouble) => self.settle_after_failure(trouble).await,
        }
    }

    /// What libvirt believes the VM writes to is what would be copied, so it must be what the specification says. A libvirt
    /// that died at the wrong moment of a linked copy believes in the volumes below.
    fn require_known_disks(&self, domain: &DomainObserved, metadata: &VmMetadata) -> Result<()> {
        for disk in &metadata.spec.disks {
            let path = self.host.pools.volume(self.vm, disk)?;
            // A disk that waits for the next start is in the definition only.
            let next = domain.defined.iter().flat_map(|defined| &defined.disks);
            let mut known = domain.disks.iter().chain(next);
            // Of a domain that is just being started libvirt tells nothing.
            if !domain.disks.is_empty() && !known.any(|(_, known)| *known == path) {
                return Err(Failure::new(
                    ErrorCode::VmStateWrong,
                    format!("migrating VM {}", domain.name),
                )
                .because(format!(
                    "libvirt does not know that its disk {} is {}",
                    disk.target,
                    path.display()
                ))
                .fix(format!(
                    "fleetward vm stop {0}, then fleetward vm start {0}: what it starts with is right",
                    domain.name
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Opens the sockets, lets libvirt migrate through them, and gives up when the destination is lost.
    async fn move_memory(
        &self,
        to: &Peer,
        disks: &[IncomingDisk],
        (domain, metadata): (&DomainObserved, &VmMetadata),
        nic_places: Vec<(String, NetworkPlace)>,
    ) -> Result<MigrationOutcome> {
        let directory = self.make_departure_directory()?;
        // libvirt opens the connection for the memory and hands it to QEMU; to the disks' QEMU connects itself.
        let machine = self.host.volumes.owner();
        let relays = [
            ("libvirt.sock", ChannelUse::Libvirt, None),
            ("memory.sock", ChannelUse::Memory, None),
            ("disk.sock", ChannelUse::Disk, Some(machine)),
        ]
        .into_iter()
        .map(|(name, channel, owner)| self.relay(&directory.join(name), to, channel, owner))
        .collect::<Result<Vec<_>>>()?;

        // A disk that the machine does not have yet is empty, and so is the one that the destination has made for it.
        let is_there = |target: &str| domain.disks.iter().any(|(there, _)| there == target);
        let copied: Vec<String> = disks
            .iter()
            .filter(|disk| disk.copy && is_there(&disk.target))
            .map(|disk| disk.target.clone())
            .collect();
        let mut arriving = metadata.clone();
        arriving.transit = Some(Transit {
            job: self.job,
            side: TransitSide::Incoming,
        });
        let request = MigrationRequest {
            libvirt_socket: directory.join("libvirt.sock"),
            memory_socket: directory.join("memory.sock"),
            disk_socket: directory.join("disk.sock"),
            disks: if copied.is_empty() {
                MigrationDisks::Shared
            } else {
                MigrationDisks::Copy(copied)
            },
            arriving,
            nic_places,
            disk_io: disks
                .iter()
                .map(|disk| (disk.target.clone(), disk.io))
                .collect(),
        };
        let (sender, progress) = watch::channel(MigrationProgress::default());
        let abort = CancellationToken::new();
        let migration = self
            .host
            .hypervisor
            .migrate(self.vm, &request, sender, abort.clone());
        tokio::pin!(migration);

        let mut relays = Some(relays);
        let lost = self.destination_lost(to);
        tokio::pin!(lost);
        let stands_still = self.stands_still(&metadata.spec.name);
        tokio::pin!(stands_still);
        let reason = tokio::select! {
            outcome = &mut migration => {
                return self.judge(&metadata.spec.name, outcome, relays, None).await;
            }
            () = self.follow(progress) => unreachable!("progress is followed for ever"),
            () = self.cancel.cancelled() => None,
            because = &mut lost => {
                let what = migrating(&metadata.spec.name);
                Some(Failure::new(ErrorCode::LinkLost, what).because(because))
            }
            failure = &mut stands_still => Some(failure),
        };
        self.progress(0, 0, "taking the migration back");
        abort.cancel();
        self.wake_tpm().await;
        let (outcome, tpm) = tokio::select! {
            outcome = &mut migration => (outcome, None),
            () = tokio::time::sleep(ABORT) => {
                // libvirt waits for a peer that does not answer: closed sockets it understands.
                close(relays.take()).await;
                self.freed_from_tpm(migration, &metadata.spec.name, to).await
            }
        };
        // Why it does not answer is said better by the TPM, but not better than by who has cancelled.
        let reason = reason.map(|reason| tpm.unwrap_or(reason));
        self.judge(&metadata.spec.name, outcome, relays, reason)
            .await
    }

    async fn judge(
        &self,
        name: &VmName,
        outcome: fleetward_hypervisor::Result<MigrationOutcome>,
        relays: Option<Vec<UnixRelay>>,
        ended_for: Option<Failure>,
    ) -> Result<MigrationOutcome> {
        let broken = relays.as_ref().and_then(|relays| {
            relays
                .iter()
                .find_map(|relay| relay.last_failure())
                .map(|error| chain(&*error))
        });
        close(relays).await;
        let error = match outcome {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        if let Some(failure) = ended_for {
            return Err(failure.into());
        }
        if self.cancel.is_cancelled() {
            return Err(self.cancelled());
        }
        let mut trouble = Trouble::hypervisor(migrating(name), &error);
        if let Some(broken) = broken {
            trouble.failure.because = format!("{}; the link: {broken}", trouble.failure.because);
        }
        Err(trouble)
    }

    /// A failed migration leaves the VM running here. If it went nevertheless, and only the report of it failed, that is
    /// a success.
    async fn settle_after_failure(&self, trouble: Trouble) -> Result<Migrated> {
        self.host
            .hypervisor
            .abort_leftover_migration(self.vm)
            .await
            .attempt(|| format!("ending the migration of VM {}", self.vm))?;
        match self.look().await?.map(|domain| domain.state) {
            Some(DomainState::Stopped(StopReason::Migrated)) => self.leave(None),
            Some(DomainState::Paused { .. }) => {
                // Nothing at the destination runs before the commit, so it may go on here.
                self.resume().await?;
                Err(trouble)
            }
            Some(DomainState::Running | DomainState::Stopped(_)) | None => Err(trouble),
        }
    }

    /// Puts on record that the memory or the files have left.
    pub(super) fn leave(&self, outcome: Option<MigrationOutcome>) -> Result<Migrated> {
        let outgoing = Outgoing {
            job: self.job,
            total_ms: outcome.map_or(0, |o| o.total_ms),
            downtime_ms: outcome.and_then(|o| o.downtime_ms),
            transferred: outcome.map_or(0, |o| o.transferred),
        };
        self.record.keep_outgoing(&outgoing)?;
        Ok(outgoing.answer())
    }

    pub(super) fn left_already(&self) -> Result<Option<Outgoing>> {
        Ok(self
            .record
            .outgoing()?
            .filter(|outgoing| outgoing.job == self.job))
    }

    /// Our own directory: others may pass, and only we make sockets in it.
    fn make_departure_directory(&self) -> Result<PathBuf> {
        let directory = self.host.layout.migration(self.vm);
        durable::remove_tree(&directory)
            .and_then(|()| durable::make_directory(&directory, 0o711))
            .map_err(|error| Trouble::file("the sockets of a migration", &directory, &error))?;
        Ok(directory)
    }

    /// A socket for this process's own user, or for the one who has to connect to it.
    fn relay(
        &self,
        path: &Path,
        to: &Peer,
        channel: ChannelUse,
        owner: Option<(u32, u32)>,
    ) -> Result<UnixRelay> {
        let mut socket = SocketSpec::new(path);
        if let Some((uid, gid)) = owner {
            socket = socket.with_owner(uid, gid);
        }
        let target = TunnelTarget {
            address: to.address.clone(),
            expected: Identity::Host(to.host.clone()),
            header: Channel::new(self.job, channel).header(self.vm),
        };
        UnixRelay::open(&socket, self.host.dialer.clone(), target)
            .map_err(|error| Trouble::file("the sockets of a migration", path, &error))
    }

    async fn follow(&self, mut progress: watch::Receiver<MigrationProgress>) {
        loop {
            let now = *progress.borrow_and_update();
            self.progress(
                now.memory_done.saturating_add(now.disk_done),
                now.memory_total.saturating_add(now.disk_total),
                if now.memory_done == 0 && now.disk_total > 0 {
                    "copying disks"
                } else {
                    "copying memory"
                },
            );
            if progress.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns when the destination has not answered for too long, and says so.
    async fn destination_lost(&self, to: &Peer) -> String {
        let mut heard = Instant::now();
        loop {
            tokio::time::sleep(CALL).await;
            match self.call(to, ChannelUse::Ping, CALL).await {
                Ok(()) => heard = Instant::now(),
                Err(trouble) if heard.elapsed() >= PATIENCE => {
                    return format!(
                        "host {} does not answer any more: {}",
                        to.host, trouble.failure.because
                    );
                }
                Err(_) => {}
            }
        }
    }

    /// Calls the destination about this migration: it accepts, or says why not.
    async fn call(&self, to: &Peer, channel: ChannelUse, patience: Duration) -> Result<()> {
        let header = Channel::new(self.job, channel).header(self.vm);
        let expected = Identity::Host(to.host.clone());
        let dialer = self.host.dialer.clone().with_timeout(patience);
        dialer
            .dial(&to.address, &expected, &header)
            .await
            .map(drop)
            .map_err(|error| self.refused_by(to, &error))
    }

    pub(super) fn refused_by(&self, to: &Peer, error: &TunnelError) -> Trouble {
        match error {
            TunnelError::Refused { code, message } => {
                let code = code.parse().unwrap_or(ErrorCode::MigrationFailed);
                Failure::new(code, format!("VM {} at host {}", self.vm, to.host))
                    .because(message)
                    .into()
            }
            TunnelError::Dial(_)
            | TunnelError::NoAnswer
            | TunnelError::Socket { .. }
            | TunnelError::Stream(_) => Failure::new(
                ErrorCode::LinkLost,
                format!(
                    "the link from host {} to host {}",
                    self.host.member.host, to.host
                ),
            )
            .because(chain(error))
            .into(),
        }
    }

    /// Whether the VM's memory has left for good. What an earlier process left half done is ended first.
    pub(super) async fn migration_state(&self) -> Result<SourceState> {
        let departed = matches!(self.record.transit()?, Some(TransitRecord::Departed { .. }));
        if !departed && self.left_already()?.is_none() {
            match self.host.hypervisor.abort_leftover_migration(self.vm).await {
                Ok(()) | Err(HypervisorError::NoDomain(_)) => {}
                Err(error) => {
                    return Err(Trouble::hypervisor(
                        format!("ending the migration of VM {}", self.vm),
                        &error,
                    ));
                }
            }
        }
        let state = match self.look().await?.map(|domain| domain.state) {
            Some(DomainState::Running | DomainState::Paused { .. }) => SourceState::Here,
            // Ended by itself: its memory is nowhere, and what is here is the VM.
            Some(DomainState::Stopped(reason))
                if reason != StopReason::Migrated
                    && self.left_already()?.is_none()
                    && !departed =>
            {
                SourceState::Here
            }
            Some(DomainState::Stopped(_)) | None => SourceState::NotHere,
        };
        Ok(state)
    }

    /// Marks the copy here as departed, so that nothing starts it again.
    pub(super) async fn depart(&self) -> Result<()> {
        match self.record.transit()? {
            Some(TransitRecord::Departed { job }) if job == self.job => {}
            Some(TransitRecord::Departed { .. } | TransitRecord::Incoming(_)) => {
                return Err(self.wrong_state("it is half of another migration"));
            }
            None => {
                self.require_stopped().await?;
                if self.left_already()?.is_none() {
                    return Err(self.wrong_state("this migration has not moved it"));
                }
                self.record
                    .keep_transit(&TransitRecord::Departed { job: self.job })?;
            }
        }
        if let Some(domain) = self.require_stopped().await?
            && let Some(mut metadata) = domain.metadata
        {
            metadata.transit = Some(Transit {
                job: self.job,
                side: TransitSide::Departed,
            });
            self.host
                .hypervisor
                .write_metadata(self.vm, &metadata)
                .await
                .attempt(|| format!("marking VM {} as departed", self.vm))?;
        }
        self.drop_secret().await?;
        Ok(())
    }

    /// Removes what stayed behind. Only of a copy that is marked as departed, and never while it runs.
    pub(super) async fn clean_up_departed(
        &self,
        spec: &VmSpec,
        disks: &[IncomingDisk],
    ) -> Result<()> {
        self.require_same_vm(spec)?;
        match self.record.transit()? {
            Some(TransitRecord::Departed { job }) if job == self.job => {}
            Some(TransitRecord::Departed { .. } | TransitRecord::Incoming(_)) => {
                return Err(self.wrong_state("it is half of another migration"));
            }
            None if self.look().await?.is_none() => {
                self.record.forget()?;
                return Ok(());
            }
            None => return Err(self.wrong_state("this copy has not departed: it is the VM")),
        }
        self.require_stopped().await?;
        self.remove_definition().await?;
        for disk in spec.disks.iter().filter(|disk| {
            disks
                .iter()
                .any(|copied| copied.copy && copied.target == disk.target)
        }) {
            self.delete_file(&self.host.pools.volume(self.vm, disk)?)
                .await?;
        }
        self.host
            .tpms
            .remove(self.vm)
            .await
            .attempt(|| format!("removing the departed TPM state of VM {}", spec.name))?;
        self.remove_socket_directory()?;
        // Last, with the mark of departure in it: until here a repeat finds what is still to be removed.
        self.record.forget()?;
        Ok(())
    }
}

impl Outgoing {
    fn answer(&self) -> Migrated {
        Migrated {
            total_ms: self.total_ms,
            downtime_ms: self.downtime_ms,
            transferred: self.transferred,
        }
    }
}

/// What fails, where a live migration does.
pub(super) fn migrating(name: &VmName) -> String {
    format!("migrating VM {name}")
}

async fn close(relays: Option<Vec<UnixRelay>>) {
    for relay in relays.into_iter().flatten() {
        relay.close().await;
    }
}
