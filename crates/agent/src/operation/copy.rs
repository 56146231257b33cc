//! Copies of a VM's disks, UEFI variables and TPM state, for clones and templates.
//!
//! ```text
//!  stopped:  files are copied; QEMU's lock on a disk refuses while somebody else has it open
//!  running:  copying.json ── paused ── variables, TPM state, copy of the disks begun ── runs ── copy ends
//!                  └── found by a restarted agent, by a repeat or by the undo: copy ended, guest runs on
//! ```
//! All parts of a copy of a running VM are of the moment at which its guest was paused, as after a power cut: data
//! that the guest had not written to its disks is missing. A full copy does not change the source. A linked copy
//! changes the volumes of the source's disks, but nothing that the guest can see: see [`super::link`].

use super::{Task, link};
use crate::ek::JudgedEk;
use crate::failure::chain;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::parse_protector_der;
use crate::machines;
use crate::record::{CopiedRecord, CopiedTpm, Copying, VmRecord};
use crate::tpm_judge;
use crate::tpm_pool::ReadyTpm;
use crate::variables::{self, MAX_VARIABLES};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::operation::{Copied, TpmMade};
use fleetward_durable::{self as durable, Expected};
use fleetward_hypervisor::{
    CopyState, DomainObserved, DomainState, Error as HypervisorError, SecretText,
};
use fleetward_model::guardian::EndorsedGuardian;
use fleetward_model::vm::{VmMetadata, VmSpec};
use fleetward_model::{ErrorCode, Failure, PoolName, VmId};
use fleetward_protector_open::TpmKey;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a copy under way is looked at.
const PACE: Duration = Duration::from_millis(200);

/// An agent that does not thaw its guest is asked again after this, and each time after twice as long.
const THAW_AGAIN: Duration = Duration::from_secs(1);
const THAW_ATTEMPTS: u32 = 4;

/// Which parts are copied beside the disks.
#[derive(Debug, Clone, Copy)]
struct Parts {
    variables: bool,
    tpm_state: bool,
}

/// A disk, and where its copy is to be.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) target: String,
    pub(super) pool: PoolName,
    pub(super) source: PathBuf,
    pub(super) copy: PathBuf,
}

/// When a running VM was copied.
struct Moment {
    /// How long the guest stood still.
    paused: Duration,
    /// Whether it had written everything to its disks.
    frozen: bool,
}

/// Whether a guest's disks are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    No,
    /// Its agent was asked, and did not answer in time.
    Perhaps,
    Yes,
}

/// How the disks are copied.
enum Way {
    Full,
    Linked,
}

impl Task<'_> {
    /// See [`CopyVm`](fleetward_api::agent::operation::CopyVm). A repeat after success answers again.
    pub(super) async fn copy_vm(
        &self,
        to: &VmSpec,
        variables: bool,
        tpm_state: bool,
        linked: bool,
    ) -> Result<Copied> {
        let new = self.record_of_copy(to)?;
        if let Some(done) = new.copied()?.filter(|done| done.job == self.job) {
            return Ok(done.answer());
        }
        self.require_whole()?;
        let (domain, _) = self.managed().await?;
        if !matches!(domain.state, DomainState::Stopped(_)) {
            machines::require_answer(self.host, self.vm, &domain.name).await?;
        }
        settle(self.host, self.vm).await?;
        let (domain, metadata) = self.managed().await?;
        self.require_not_saved(&domain)?;
        self.require_undefined(to).await?;
        let disks = self.pairs(&metadata.spec, to)?;
        self.discard(to, &new).await?;
        let parts = Parts {
            variables,
            tpm_state: tpm_state && metadata.spec.tpm,
        };
        // A disk that waits for the next start is no part of what a machine switches to overlays.
        let whole = !has_waiting(&domain, &disks);
        let way = if linked && whole && self.can_link(&disks).await? {
            Way::Linked
        } else {
            Way::Full
        };
        let (paused, frozen) = match domain.state {
            DomainState::Stopped(_) => {
                if parts.tpm_state {
                    let state = tpm_judge::whole(self.host, self.vm, &metadata.spec.name).await?;
                    let purpose = self.purpose("its TPM is tried before it is copied");
                    tpm_judge::opens(self.host, self.vm, &metadata, &state, &purpose).await?;
                }
                self.keep_parts(&metadata, to, &new, parts).await?;
                match way {
                    Way::Full => self.copy_stopped(&disks).await?,
                    Way::Linked => self.link_stopped(&metadata, to.id, &disks).await?,
                }
                (None, false)
            }
            DomainState::Running => {
                let moment = match way {
                    Way::Full => {
                        let from = (&domain, &metadata);
                        self.copy_running(from, to, &new, &disks, parts).await?
                    }
                    Way::Linked => {
                        let linking = self.link_running(&metadata, to, &new, &disks, parts);
                        linking.await?
                    }
                };
                (Some(moment.paused), moment.frozen)
            }
            DomainState::Paused { .. } => {
                return Err(
                    self.wrong_state("it is paused; only a running or a stopped VM is copied")
                );
            }
        };
        let done = CopiedRecord {
            job: self.job,
            from: self.vm,
            to: to.clone(),
            paused_ms: paused.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            variables: variables::are_there(self.host, to.id)?,
            linked: matches!(way, Way::Linked),
            frozen,
        };
        new.keep_copied(&done)?;
        Ok(done.answer())
    }

    /// Removes what was made for `to`, and leaves the copied VM as if nothing had been asked.
    pub(super) async fn uncopy_vm(&self, to: &VmSpec) -> Result<()> {
        let new = self.record_of_copy(to)?;
        settle(self.host, self.vm).await?;
        self.require_undefined(to).await?;
        self.discard(to, &new).await?;
        Ok(())
    }

    fn record_of_copy(&self, to: &VmSpec) -> Result<VmRecord> {
        if to.id == self.vm {
            return Err(Trouble::refuse(
                ErrorCode::InvalidRequest,
                format!("VM {}", self.vm),
                "a VM is not copied onto itself",
            ));
        }
        Ok(VmRecord::of(&self.host.layout, to.id))
    }

    /// Nothing of a VM that exists is ever overwritten or removed here.
    async fn require_undefined(&self, to: &VmSpec) -> Result<()> {
        match self.host.hypervisor.inspect(to.id).await {
            Err(HypervisorError::NoDomain(_)) => Ok(()),
            Ok(_) => Err(Trouble::refuse(
                ErrorCode::UuidTaken,
                format!("VM {}", to.name),
                "it is defined already",
            )),
            Err(error) => Err(Trouble::hypervisor(
                format!("looking for VM {}", to.name),
                &error,
            )),
        }
    }

    /// Each disk with its copy; `to` must have the same disks in the same order.
    fn pairs(&self, from: &VmSpec, to: &VmSpec) -> Result<Vec<Pair>> {
        let same = from.disks.len() == to.disks.len()
            && from
                .disks
                .iter()
                .zip(&to.disks)
                .all(|(a, b)| a.target == b.target && a.size == b.size);
        if !same {
            return Err(Trouble::refuse(
                ErrorCode::InvalidRequest,
                format!("VM {}", to.name),
                format!("its disks are not those of VM {}", from.name),
            ));
        }
        let disks = from.disks.iter().zip(&to.disks);
        disks
            .map(|(a, b)| {
                Ok(Pair {
                    target: a.target.clone(),
                    pool: b.pool.clone(),
                    source: self.host.pools.volume(from.id, a)?,
                    copy: self.host.pools.volume(to.id, b)?,
                })
            })
            .collect()
    }

    /// Refuses unless the pools have room for full copies.
    async fn require_room(&self, disks: &[Pair]) -> Result<()> {
        for disk in disks {
            let whole = self.bytes_in_one_piece(&disk.source).await?;
            self.host.pools.require_space(&disk.pool, whole)?;
        }
        Ok(())
    }

    async fn copy_stopped(&self, disks: &[Pair]) -> Result<()> {
        self.require_room(disks).await?;
        for Pair {
            target,
            source,
            copy,
            ..
        } in disks
        {
            self.progress(0, 0, &format!("copying disk {target}"));
            let copying = self.host.volumes.copy(source, copy);
            tokio::select! {
                () = self.cancel.cancelled() => return Err(self.cancelled()),
                copied = copying => copied.attempt(|| format!("copying disk {target} of VM {}", self.vm))?,
            }
        }
        Ok(())
    }

    /// Takes everything of one moment, lets the guest run on, and waits for the disks. Answers how long the guest stood
    /// still.
    async fn copy_running(
        &self,
        (domain, metadata): (&DomainObserved, &VmMetadata),
        to: &VmSpec,
        new: &VmRecord,
        disks: &[Pair],
        parts: Parts,
    ) -> Result<Moment> {
        self.require_room(disks).await?;
        self.record.keep_copying(&Copying {
            job: self.job,
            to: to.id,
            freezes: true,
            overlays: Vec::new(),
        })?;
        let (there, waiting): (Vec<&Pair>, Vec<&Pair>) =
            disks.iter().partition(|disk| is_there(domain, disk));
        for Pair {
            source,
            copy,
            target,
            ..
        } in waiting
        {
            let copied = self.host.volumes.copy(source, copy).await;
            copied.attempt(|| format!("copying disk {target} of VM {}", self.vm))?;
        }
        let copies: Vec<(String, PathBuf)> = there
            .iter()
            .map(|disk| (disk.target.clone(), disk.copy.clone()))
            .collect();
        let begin = async {
            let begun = self.host.hypervisor.begin_copy(self.vm, &copies).await;
            begun.attempt(|| format!("copying the disks of VM {}", metadata.spec.name))
        };
        let moment = self.take_moment(metadata, to, new, parts, begin).await?;
        self.follow_copy(disks).await?;
        for Pair { copy, .. } in disks {
            self.host
                .volumes
                .adopt(copy)
                .await
                .attempt(|| format!("giving {} to QEMU", copy.display()))?;
            durable::sync(copy)
                .and_then(|()| durable::sync_parent(copy))
                .map_err(|error| Trouble::file("a copied disk", copy, &error))?;
        }
        self.record.forget_copying()?;
        Ok(moment)
    }

    /// As [`copy_running`](Self::copy_running), but the disks are not copied: the guest writes on to overlays.
    async fn link_running(
        &self,
        metadata: &VmMetadata,
        to: &VmSpec,
        new: &VmRecord,
        disks: &[Pair],
        parts: Parts,
    ) -> Result<Moment> {
        let overlays = self.prepare_switch(metadata, to.id).await?;
        let switch = self.switch(&metadata.spec, &overlays);
        let moment = self.take_moment(metadata, to, new, parts, switch).await?;
        self.link_switched(metadata, &overlays, disks).await?;
        self.record.forget_copying()?;
        Ok(moment)
    }

    /// Has the guest's agent bring the disks in order, pauses the guest, takes everything of that moment, the disks by `disks`,
    /// and lets it run on. Answers how long it stood still.
    async fn take_moment(
        &self,
        metadata: &VmMetadata,
        to: &VmSpec,
        new: &VmRecord,
        parts: Parts,
        disks: impl Future<Output = Result<()>>,
    ) -> Result<Moment> {
        fleetward_failpoint::hold("agent.copy-vm.marked").await;
        let frozen = self.freeze().await;
        let begun = Instant::now();
        let taken = async {
            self.host
                .hypervisor
                .suspend(self.vm)
                .await
                .attempt(|| format!("pausing VM {}", metadata.spec.name))?;
            fleetward_failpoint::hold("agent.copy-vm.paused").await;
            self.keep_parts(metadata, to, new, parts).await?;
            disks.await
        };
        let taken = taken.await;
        // Resumes the guest also after an error.
        let resumed = self.resume().await;
        let paused = begun.elapsed();
        if frozen != Frozen::No {
            thaw(self.host, self.vm).await;
        }
        taken?;
        resumed?;
        Ok(Moment {
            paused,
            frozen: frozen == Frozen::Yes,
        })
    }

    /// Asks the guest's agent to hold back what writes to its disks. A guest without one is copied as after a power cut.
    async fn freeze(&self) -> Frozen {
        match self.look().await {
            Ok(Some(domain)) if domain.guest_agent => {}
            Ok(_) | Err(_) => return Frozen::No,
        }
        self.progress(0, 0, "waiting for the guest to write to its disks");
        match self.host.hypervisor.freeze_guest(self.vm).await {
            Ok(()) => Frozen::Yes,
            Err(error) => {
                tracing::info!(vm = %self.vm, error = %chain(&error), "the guest is copied without its agent's help");
                Frozen::Perhaps
            }
        }
    }

    async fn follow_copy(&self, disks: &[Pair]) -> Result<()> {
        let what = || format!("copying the disks of VM {}", self.vm);
        loop {
            match self
                .host
                .hypervisor
                .copy_state(self.vm)
                .await
                .attempt(what)?
            {
                CopyState::Done => break,
                CopyState::Running { done, total } => self.progress(done, total, "copying disks"),
                CopyState::Full(because) => {
                    return Err(Trouble::refuse(ErrorCode::NoSpace, what(), because));
                }
                CopyState::Failed(because) => {
                    return Err(Trouble::refuse(
                        ErrorCode::HypervisorFailed,
                        what(),
                        because,
                    ));
                }
                CopyState::None => {
                    return Err(Trouble::refuse(
                        ErrorCode::HypervisorFailed,
                        what(),
                        "the copy was broken off: the VM stopped, or libvirt was restarted",
                    ));
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => {
                    settle(self.host, self.vm).await?;
                    return Err(self.cancelled());
                }
                () = tokio::time::sleep(PACE) => {}
            }
        }
        for Pair { target, copy, .. } in disks {
            self.host
                .volumes
                .inspect(copy, Some("qcow2"))
                .await
                .attempt(|| format!("the copy of disk {target}"))?;
        }
        Ok(())
    }

    /// Keeps UEFI variables and TPM state for the copy. While the guest stands still nothing changes either.
    async fn keep_parts(
        &self,
        metadata: &VmMetadata,
        to: &VmSpec,
        new: &VmRecord,
        parts: Parts,
    ) -> Result<()> {
        if parts.variables
            && let Some(content) = variables::read(self.host, self.vm)?
        {
            variables::write(self.host, to.id, &content)?;
        }
        if parts.tpm_state {
            let missing = |what: &str| {
                Trouble::refuse(
                    ErrorCode::KeyProtectorUnreadable,
                    format!("VM {}", metadata.spec.name),
                    format!("its definition holds no {what}"),
                )
            };
            let text = |value: &Option<String>, what: &str| {
                value
                    .as_deref()
                    .and_then(|text| STANDARD.decode(text).ok())
                    .ok_or_else(|| missing(what))
            };
            let state = tpm_judge::whole(self.host, self.vm, &metadata.spec.name).await?;
            new.keep_copied_tpm(&CopiedTpm {
                state,
                protector: text(&metadata.key_protector, "key protector")?,
                ek_certificate: JudgedEk::in_place(text(
                    &metadata.ek_certificate,
                    "EK certificate",
                )?),
            })?;
        }
        Ok(())
    }

    /// Removes what was made for a copy that is not defined.
    async fn discard(&self, to: &VmSpec, new: &VmRecord) -> Result<()> {
        for disk in &to.disks {
            self.delete_file(&self.host.pools.volume(to.id, disk)?)
                .await?;
        }
        variables::remove(self.host, to.id)?;
        new.forget_copied()?;
        new.tidy();
        Ok(())
    }

    /// See [`CopyTpm`](fleetward_api::agent::operation::CopyTpm).
    pub(super) async fn copy_tpm(&self, recipients: &[EndorsedGuardian]) -> Result<TpmMade> {
        self.require_whole()?;
        let staged = ReadyTpm::at(self.record.staged_tpm());
        if self.record.protector()?.is_none() && !staged.is_whole() {
            self.encrypt_copied_tpm(&staged).await?;
        }
        self.make_tpm(recipients).await
    }

    async fn encrypt_copied_tpm(&self, staged: &ReadyTpm) -> Result<()> {
        let missing = || {
            Trouble::refuse(
                ErrorCode::TpmStateMissing,
                format!("VM {}", self.vm),
                "no TPM state was copied for it",
            )
        };
        let from = self.record.copied()?.ok_or_else(missing)?.from;
        let copied = self.record.copied_tpm()?.ok_or_else(missing)?;
        self.progress(0, 0, "encrypting the copied TPM under a key of its own");
        let protector = parse_protector_der(&copied.protector, from)?;
        let old = self.host.keyring.open_secret(
            &protector,
            from,
            &self.purpose(&format!("its TPM is copied for VM {}", self.vm)),
        )?;
        let key = TpmKey::generate()
            .map_err(|error| Failure::new(ErrorCode::Internal, "a new TPM key").because(error))?;
        let new = SecretText::new(key.expose_base64());
        let state = self
            .host
            .tpms
            .reencrypt_state(&copied.state, &old, &new)
            .await
            .attempt(|| format!("encrypting the TPM of VM {} anew", self.vm))?;
        staged.write(&self.host.keyring, &key, &state, &copied.ek_certificate)
    }

    /// Puts UEFI variables from the image cache in place.
    pub(super) async fn place_variables(&self, sha256: &str) -> Result<()> {
        self.require_whole()?;
        if self.look().await?.is_none() {
            let image = self.host.images.require("UEFI variables", sha256)?;
            let content = durable::read_expected(&image.path, &Expected::at_most(MAX_VARIABLES))
                .and_then(|content| content.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
                .map_err(|error| Trouble::file("the UEFI variables", &image.path, &error))?;
            variables::write(self.host, self.vm, &content)?;
        }
        Ok(())
    }
}

/// Whether a machine that runs has the disk, and not only its definition.
fn is_there(domain: &DomainObserved, disk: &Pair) -> bool {
    let mut disks = domain.disks.iter();
    disks.any(|(target, _)| *target == disk.target)
}

fn has_waiting(domain: &DomainObserved, disks: &[Pair]) -> bool {
    let runs = !matches!(domain.state, DomainState::Stopped(_));
    runs && disks.iter().any(|disk| !is_there(domain, disk))
}

impl CopiedRecord {
    fn answer(&self) -> Copied {
        Copied {
            paused_ms: self.paused_ms,
            variables: self.variables,
            linked: self.linked,
            frozen: self.frozen,
        }
    }
}

/// Ends a copy that an earlier attempt or an earlier process left behind, and lets the guest run on.
async fn settle(host: &Host, vm: VmId) -> Result<()> {
    let record = host.record(vm);
    let Some(copying) = record.copying()? else {
        return Ok(());
    };
    let what = || format!("ending a copy of VM {vm}");
    let domain = match host.hypervisor.inspect(vm).await {
        Ok(domain) => {
            // First the guest: it has waited long enough.
            if domain.state == (DomainState::Paused { incoming: false }) {
                host.hypervisor.resume(vm).await.attempt(what)?;
            }
            host.hypervisor.abort_copy(vm).await.attempt(what)?;
            if copying.freezes && domain.guest_agent {
                thaw(host, vm).await;
            }
            Some(domain)
        }
        Err(HypervisorError::NoDomain(_)) => None,
        Err(error) => return Err(Trouble::hypervisor(what(), &error)),
    };
    link::settle_switch(host, vm, domain.as_ref(), &copying.overlays).await?;
    record.forget_copying()
}

/// Lets a guest write to its disks again. An agent in the guest that does not answer now is asked again for a while.
async fn thaw(host: &Host, vm: VmId) {
    let mut pause = THAW_AGAIN;
    for attempt in 1..=THAW_ATTEMPTS {
        match host.hypervisor.thaw_guest(vm).await {
            Ok(()) | Err(HypervisorError::NoDomain(_)) => return,
            Err(error) => {
                tracing::warn!(%vm, attempt, error = %chain(&error), "the guest's agent does not let it write to its disks again");
            }
        }
        let runs = host.hypervisor.inspect(vm).await;
        if !runs.is_ok_and(|domain| domain.guest_agent) {
            return; // stopped, or its agent is gone, and its freeze with it
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// After a start of the agent, or a return of libvirt: no guest stands still for a copy that nobody makes any more.
pub(crate) async fn settle_all(host: &Host) {
    let Ok(entries) = std::fs::read_dir(host.layout.vms()) else {
        return;
    };
    let vms = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<VmId>().ok());
    for vm in vms {
        if !host.operations.is_busy(vm)
            && let Err(trouble) = settle(host, vm).await
        {
            tracing::warn!(%vm, because = trouble.failure.because, "a copy was left behind and does not end");
        }
    }
}

/// The file of a finished copy, open, for the controller to fetch. Whoever has taken over a QEMU of this host may have written
/// to it, or to its directory.
pub(crate) fn copied_file(host: &Host, id: VmId, item: &str) -> Result<std::fs::File> {
    let missing = || {
        Trouble::refuse(
            ErrorCode::NotFound,
            format!("a copy for {id}"),
            "there is none, or it has no such part",
        )
    };
    let copied = host.record(id).copied()?.ok_or_else(missing)?;
    let (path, expected) = if item == "variables" {
        let place = copied.variables.then(|| variables::place(host, id));
        (place.ok_or_else(missing)??, variables::expected(host))
    } else {
        let disk = copied.to.disks.iter().find(|disk| disk.target == item);
        let place = host.pools.volume(id, disk.ok_or_else(missing)?)?;
        (place, Expected::any())
    };
    durable::open_expected(&path, &expected).map_err(|error| Trouble::file("a copy", &path, &error))
}
