//! [`LibvirtHost`]: one host's domains and secrets through libvirt. Which calls there are and what their errors mean.

use crate::binding::{Connection, secret_usage};
use crate::connection::{LONG, Libvirt, SHORT};
use crate::disk_io::{IoOfVolumes, TriedDirectories};
use crate::domain_read;
use crate::domain_xml::{self, NEWEST_MACHINE};
use crate::observe::{self, Told};
use crate::owner::Owner;
use crate::program::Programs;
use crate::qemu_process;
use crate::tpm::TpmPlace;
use crate::tpm_end;
use crate::tpm_library::TpmLibrary;
use crate::tpm_process::PROC;
use crate::volumes::{blocking, file_error};
use crate::{
    copy, disk_move, domain_edit, facts, guest, live, metadata, migration, overlay, said,
    storage_live, usage,
};
use async_trait::async_trait;
use fleetward_hypervisor::{
    CopyState, CpuVerdict, DomainChange, DomainDefinition, DomainObserved, DomainState,
    DomainUsage, Error, GuestTold, Hypervisor, HypervisorEvent, HypervisorFacts, MachineSeen,
    MigrationOutcome, MigrationProgress, MigrationRequest, MoveState, NicAddresses, Result,
    SecretText, Shutdown, StopReason, StorageChange,
};
use fleetward_model::host::Accelerator;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ByteSize, VmId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::secret::Secret;

/// Where libvirt writes down the processes of its domains, in files that only root writes.
const LIBVIRTS_PROCESSES: &str = "/run/libvirt/qemu";

/// Where a host's parts are.
#[derive(Debug, Clone)]
pub struct LibvirtConfig {
    /// `qemu:///system`.
    pub uri: String,
    /// What starts domains.
    pub accelerator: Accelerator,
    /// Directory for short-lived files and sockets, private to root.
    pub run_dir: PathBuf,
    /// The program that answers swtpm_setup's request for an EK certificate: the agent itself under the name
    /// [`crate::EK_CERTIFICATE_TOOL`].
    pub ek_certificate_tool: PathBuf,
    /// Memory that is left to the host and never given to VMs.
    pub memory_reserve: ByteSize,
}

/// A host with libvirt, swtpm and QEMU's tools.
pub struct LibvirtHost {
    pub(crate) libvirt: Libvirt,
    pub(crate) programs: Programs,
    pub(crate) tpm_place: TpmPlace,
    pub(crate) config: LibvirtConfig,
    pub(crate) tried: TriedDirectories,
    pub(crate) tpm_library: TpmLibrary,
    pub(crate) told: Told,
}

impl LibvirtHost {
    /// Begins to connect and returns at once; calls are [`Error::Unavailable`] until libvirt answers.
    ///
    /// # Errors
    /// A program is missing, or the system cannot start a thread.
    pub fn start(config: LibvirtConfig) -> Result<Self> {
        let programs = Programs::find()?;
        let libvirt =
            Libvirt::start(&config.uri).map_err(|error| Error::Unavailable(error.into()))?;
        Ok(Self {
            libvirt,
            programs,
            tpm_place: TpmPlace::standard(),
            config,
            tried: TriedDirectories::default(),
            tpm_library: TpmLibrary::default(),
            told: Told::default(),
        })
    }

    async fn io_of<'a>(&self, volumes: impl Iterator<Item = &'a Path>) -> IoOfVolumes {
        IoOfVolumes::look(&self.tried, &self.programs.qemu_img, volumes).await
    }

    async fn with_domain<T: Send + 'static>(
        &self,
        id: VmId,
        work: impl FnOnce(&Domain) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.libvirt
            .call(move |connection| work(&domain(connection, id)?))
            .await
    }
}

#[async_trait]
impl Hypervisor for LibvirtHost {
    async fn facts(&self) -> Result<HypervisorFacts> {
        let tpm = facts::TpmPrograms {
            swtpm: facts::swtpm_version(&self.programs).await,
            libtpms: self.tpm_library.version(&self.programs).await,
        };
        let (accelerator, reserve) = (self.config.accelerator, self.config.memory_reserve);
        self.libvirt
            .call(move |connection| facts::read(connection, accelerator, tpm, reserve))
            .await
    }

    async fn list(&self) -> Result<Vec<DomainObserved>> {
        let (accelerator, told) = (self.config.accelerator, self.told.clone());
        self.libvirt
            .call(move |connection| {
                let domains = connection
                    .list_all_domains(0)
                    .map_err(failed("list domains"))?;
                let mut seen = Vec::with_capacity(domains.len());
                for domain in &domains {
                    match observe::observe(domain, accelerator, &told) {
                        Ok(observed) => seen.push(observed),
                        // Gone since the list was made.
                        Err(Error::NoDomain(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(seen)
            })
            .await
    }

    async fn inspect(&self, id: VmId) -> Result<DomainObserved> {
        let (accelerator, told) = (self.config.accelerator, self.told.clone());
        self.with_domain(id, move |domain| {
            observe::observe(domain, accelerator, &told)
        })
        .await
    }

    async fn is_paused(&self, id: VmId) -> Result<bool> {
        // On a connection of its own: on the shared one, questions that QEMU does not answer may be ahead.
        self.libvirt
            .call_alone(SHORT, move |connection| {
                let state = domain(connection, id)?.get_state();
                let (state, _) = state.map_err(gone_or(id, "see the domain's state"))?;
                Ok(state == virt_sys::VIR_DOMAIN_PAUSED)
            })
            .await
    }

    async fn is_ours(&self, id: VmId) -> Result<bool> {
        // Not the domain's XML: libvirt gives that only when nobody waits for QEMU.
        self.libvirt
            .call_alone(LONG, move |connection| {
                Ok(read_metadata(&domain(connection, id)?).is_some())
            })
            .await
    }

    async fn define(&self, definition: &DomainDefinition) -> Result<()> {
        let definition = definition.clone();
        let accelerator = self.config.accelerator;
        let disks = definition.disk_paths.iter().map(PathBuf::as_path);
        let io = self.io_of(disks).await;
        self.libvirt
            .call_alone(LONG, move |connection| {
                define(connection, &definition, accelerator, &io)
            })
            .await
    }

    async fn redefine(&self, id: VmId, metadata: &VmMetadata, change: &DomainChange) -> Result<()> {
        let (metadata, change) = (metadata.clone(), change.clone());
        let io = self.io_of(volumes_of(&change)).await;
        self.libvirt
            .call_alone(LONG, move |connection| {
                let domain = domain(connection, id)?;
                redefine(connection, &domain, id, (&metadata, &change), &io)
            })
            .await
    }

    async fn rename(&self, id: VmId, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.libvirt
            .call_alone(LONG, move |connection| rename(connection, id, &name))
            .await
    }

    async fn portable_definition(&self, id: VmId) -> Result<String> {
        self.with_domain(id, move |domain| {
            domain_edit::portable(&definition_xml(domain)?)
                .map_err(|because| Error::CannotChange { id, because })
        })
        .await
    }

    async fn write_metadata(&self, id: VmId, metadata: &VmMetadata) -> Result<()> {
        let element = metadata::element_for_set(metadata);
        self.with_domain(id, move |domain| {
            refuse_newer(domain, id)?;
            write_metadata(domain, &element)
        })
        .await
    }

    async fn start(&self, id: VmId) -> Result<()> {
        let tpm_place = self.tpm_place.clone();
        self.libvirt
            .call_alone(LONG, move |connection| {
                let domain = domain(connection, id)?;
                refuse_a_new_tpm(&domain, id, &tpm_place)?;
                match domain.create() {
                    Ok(_) => Ok(()),
                    // Somebody was faster, or it is running already.
                    Err(error) if error.code() == ErrorNumber::OperationInvalid => {
                        match observe_state(&domain)? {
                            DomainState::Running => Ok(()),
                            state => Err(wrong_state(id, state, "start")),
                        }
                    }
                    Err(error) => Err(failed("start the domain")(error)),
                }
            })
            .await
    }

    async fn look_at_machines(&self) -> Result<HashMap<VmId, MachineSeen>> {
        let mut seen = blocking(|| {
            let found = qemu_process::all(Path::new(PROC), Owner::qemu().uid.as_raw());
            found.map_err(file_error("list", Path::new(PROC)))
        })
        .await?;
        let unanswered = self.libvirt.call(observe::unanswered).await?;
        for (id, waiting) in unanswered {
            seen.entry(id).or_default().unanswered = Some(waiting);
        }
        Ok(seen)
    }

    async fn usage(&self) -> Result<Vec<DomainUsage>> {
        usage::of_all(&self.libvirt).await
    }

    async fn request_shutdown(&self, id: VmId, by: Shutdown) -> Result<()> {
        if by == Shutdown::GuestAgent {
            return guest::shut_down(&self.libvirt, id).await;
        }
        self.with_domain(id, move |domain| {
            let pressed = domain.shutdown_flags(virt_sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN);
            pressed.map(drop).map_err(|error| {
                if error.code() == ErrorNumber::OperationInvalid {
                    wrong_state_now(domain, id, "shut down")
                } else {
                    failed("ask the guest to shut down")(error)
                }
            })
        })
        .await
    }

    async fn ask_guest(&self, id: VmId) -> Result<GuestTold> {
        guest::ask(&self.libvirt, id).await
    }

    async fn neighbours(&self, id: VmId) -> Result<Vec<NicAddresses>> {
        guest::neighbours(&self.libvirt, id).await
    }

    async fn freeze_guest(&self, id: VmId) -> Result<()> {
        guest::freeze(&self.libvirt, id).await
    }

    async fn thaw_guest(&self, id: VmId) -> Result<()> {
        guest::thaw(&self.libvirt, id).await
    }

    async fn end_tpm(&self, id: VmId) -> Result<()> {
        let name = self
            .libvirt
            .call(move |connection| {
                let domain = domain(connection, id)?;
                domain.get_name().map_err(gone_or(id, "name the domain"))
            })
            .await?;
        let pid_file = Path::new(LIBVIRTS_PROCESSES).join(format!("{name}.pid"));
        tokio::task::spawn_blocking(move || tpm_end::shut_down(&pid_file, id))
            .await
            .expect("sending a command does not panic")
            .map_err(|error| Error::Tpm(Box::new(error)))
    }

    async fn destroy(&self, id: VmId) -> Result<()> {
        self.libvirt
            .call_alone(LONG, move |connection| {
                let domain = domain(connection, id)?;
                match domain.destroy() {
                    Ok(()) => Ok(()),
                    // A transient domain is gone with its process.
                    Err(error) if error.code() == ErrorNumber::NoDomain => Ok(()),
                    Err(error) if error.code() == ErrorNumber::OperationInvalid => {
                        match observe_state(&domain) {
                            Ok(DomainState::Stopped(_)) | Err(Error::NoDomain(_)) => Ok(()),
                            _ => Err(failed("destroy the domain")(error)),
                        }
                    }
                    // It was sent SIGKILL, and the kernel does not end it.
                    Err(error) if said::of_unending_process(&error) => {
                        Err(Error::Unending(said::cause(error)))
                    }
                    Err(error) => Err(failed("destroy the domain")(error)),
                }
            })
            .await
    }

    async fn resume(&self, id: VmId) -> Result<()> {
        self.libvirt
            .call_alone(LONG, move |connection| resume(&domain(connection, id)?, id))
            .await
    }

    async fn suspend(&self, id: VmId) -> Result<()> {
        self.with_domain(id, move |domain| match observe_state(domain)? {
            DomainState::Paused { incoming: false } => Ok(()),
            DomainState::Running => domain
                .suspend()
                .map(drop)
                .map_err(failed("pause the domain")),
            state => Err(wrong_state(id, state, "be paused")),
        })
        .await
    }

    async fn begin_copy(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()> {
        let disks = disks.to_vec();
        self.with_domain(id, move |domain| copy::begin(domain, id, &disks))
            .await
    }

    async fn switch_to_overlays(&self, id: VmId, disks: &[(String, PathBuf)]) -> Result<()> {
        let disks = disks.to_vec();
        self.libvirt
            .call_alone(LONG, move |connection| {
                overlay::switch(&domain(connection, id)?, id, &disks)
            })
            .await
    }

    async fn copy_state(&self, id: VmId) -> Result<CopyState> {
        self.with_domain(id, copy::state).await
    }

    async fn abort_copy(&self, id: VmId) -> Result<()> {
        copy::abort(&self.libvirt, id).await
    }

    async fn grow_disk(&self, id: VmId, target: &str, size: ByteSize) -> Result<()> {
        let target = target.to_owned();
        self.libvirt
            .call_alone(LONG, move |connection| {
                disk_move::grow(&domain(connection, id)?, id, &target, size)
            })
            .await
    }

    async fn begin_move(&self, id: VmId, target: &str, path: &Path) -> Result<()> {
        let (target, path) = (target.to_owned(), path.to_owned());
        let io = self.io_of([path.as_path()].into_iter()).await.of(&path);
        self.libvirt
            .call_alone(LONG, move |connection| {
                disk_move::begin(&domain(connection, id)?, id, &target, &path, io)
            })
            .await
    }

    async fn move_state(&self, id: VmId, target: &str) -> Result<MoveState> {
        let target = target.to_owned();
        self.with_domain(id, move |domain| disk_move::state(domain, &target))
            .await
    }

    async fn finish_move(&self, id: VmId, target: &str) -> Result<()> {
        let target = target.to_owned();
        self.libvirt
            .call_alone(LONG, move |connection| {
                disk_move::finish(&domain(connection, id)?, &target)
            })
            .await
    }

    async fn abort_move(&self, id: VmId, target: &str) -> Result<()> {
        let target = target.to_owned();
        self.libvirt
            .call_alone(LONG, move |connection| {
                disk_move::abort(&domain(connection, id)?, &target)
            })
            .await
    }

    async fn discard_saved(&self, id: VmId) -> Result<()> {
        self.with_domain(id, |domain| {
            let saved = domain
                .has_managed_save(0)
                .map_err(failed("look for saved memory"))?;
            if saved {
                domain
                    .managed_save_remove(0)
                    .map_err(failed("give up the saved memory"))?;
            }
            Ok(())
        })
        .await
    }

    async fn undefine(&self, id: VmId) -> Result<()> {
        self.libvirt
            .call_alone(LONG, move |connection| {
                let domain = match domain(connection, id) {
                    Ok(domain) => domain,
                    Err(Error::NoDomain(_)) => return Ok(()),
                    Err(error) => return Err(error),
                };
                let state = observe_state(&domain)?;
                if !matches!(state, DomainState::Stopped(_)) {
                    return Err(wrong_state(id, state, "be undefined"));
                }
                let flags = virt_sys::VIR_DOMAIN_UNDEFINE_NVRAM
                    | virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM
                    | virt_sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
                match domain.undefine_flags(flags) {
                    Err(error) if error.code() != ErrorNumber::NoDomain => {
                        Err(failed("undefine the domain")(error))
                    }
                    _ => Ok(()),
                }
            })
            .await
    }

    async fn load_secret(&self, id: VmId, text: &SecretText) -> Result<()> {
        let value = zeroize::Zeroizing::new(text.expose().as_bytes().to_vec());
        self.libvirt
            .call(move |connection| {
                let secret = Secret::define_xml(connection, &secret_xml(id), 0)
                    .map_err(failed("define the TPM's secret"))?;
                secret
                    .set_value(&value, 0)
                    .map_err(failed("load the TPM's secret"))
            })
            .await
    }

    async fn drop_secret(&self, id: VmId) -> Result<()> {
        self.libvirt
            .call(
                move |connection| match Secret::lookup_by_uuid(connection, id.0) {
                    Ok(secret) => secret.undefine().map_err(failed("forget the TPM's secret")),
                    Err(error) if error.code() == ErrorNumber::NoSecret => Ok(()),
                    Err(error) => Err(failed("look up the TPM's secret")(error)),
                },
            )
            .await
    }

    async fn loaded_secrets(&self) -> Result<Vec<VmId>> {
        self.libvirt
            .call(|connection| {
                let secrets = connection
                    .list_all_secrets(virt_sys::VIR_CONNECT_LIST_SECRETS_EPHEMERAL)
                    .map_err(failed("list secrets"))?;
                Ok(secrets.iter().filter_map(our_secret).collect())
            })
            .await
    }

    async fn check_cpu(&self, cpu_xml: &str) -> Result<CpuVerdict> {
        let cpu_xml = cpu_xml.to_owned();
        let accelerator = self.config.accelerator;
        self.libvirt
            .call(move |connection| facts::check_cpu(connection, accelerator, &cpu_xml))
            .await
    }

    async fn migrate(
        &self,
        id: VmId,
        request: &MigrationRequest,
        progress: watch::Sender<MigrationProgress>,
        cancel: CancellationToken,
    ) -> Result<MigrationOutcome> {
        migration::migrate(&self.libvirt, id, request, progress, cancel).await
    }

    async fn abort_leftover_migration(&self, id: VmId) -> Result<()> {
        migration::abort_leftover(&self.libvirt, id).await
    }

    fn events(&self) -> broadcast::Receiver<HypervisorEvent> {
        self.libvirt.events()
    }
}

/// Turns libvirt's error into ours; to be used as `map_err(failed("list domains"))`.
pub(crate) fn failed(attempt: &'static str) -> impl FnOnce(virt::error::Error) -> Error {
    move |error| Error::Libvirt {
        attempt,
        source: said::cause(error),
    }
}

/// The domain of that uuid.
pub(crate) fn domain(connection: &Connection, id: VmId) -> Result<Domain> {
    Domain::lookup_by_uuid(connection, id.0).map_err(|error| match error.code() {
        ErrorNumber::NoDomain => Error::NoDomain(id),
        _ => failed("look up the domain")(error),
    })
}

/// A domain's state; returned at once, even while libvirt works on the domain.
pub(crate) fn observe_state(domain: &Domain) -> Result<DomainState> {
    Ok(quick_state(domain)?.state)
}

/// The part of a domain's state that libvirt returns at once, even while another call on the domain runs.
pub(crate) struct QuickState {
    pub(crate) id: VmId,
    pub(crate) state: DomainState,
    pub(crate) reason: &'static str,
    pub(crate) persistent: bool,
    /// libvirt answers a request for the definition only when the memory has arrived, or the process has started.
    pub(crate) definition_waits: bool,
}

pub(crate) fn quick_state(domain: &Domain) -> Result<QuickState> {
    let id = domain_id(domain)?;
    let (state, reason) = domain
        .get_state()
        .map_err(gone_or(id, "see the domain's state"))?;
    let persistent = domain
        .is_persistent()
        .map_err(gone_or(id, "see whether the domain is defined"))?;
    let paused_for = |why: virt_sys::virDomainPausedReason| {
        state == virt_sys::VIR_DOMAIN_PAUSED && reason as virt_sys::virDomainPausedReason == why
    };
    let starting = paused_for(virt_sys::VIR_DOMAIN_PAUSED_STARTING_UP);
    let arriving = paused_for(virt_sys::VIR_DOMAIN_PAUSED_MIGRATION) && migration::arrives(domain);
    // What starts here without being defined here comes from elsewhere.
    let incoming = arriving || (starting && !persistent);
    let (state, reason) = match domain_read::domain_state(state, reason, incoming) {
        // The reason does not tell: a restart of libvirtd forgets it, and `virsh save` leaves it behind, too.
        (DomainState::Stopped(_), _)
            if domain
                .has_managed_save(0)
                .map_err(gone_or(id, "look for saved memory"))? =>
        {
            (DomainState::Stopped(StopReason::Saved), "saved")
        }
        seen => seen,
    };
    Ok(QuickState {
        id,
        state,
        reason,
        persistent,
        definition_waits: arriving || starting,
    })
}

pub(crate) fn read_metadata(domain: &Domain) -> metadata::Found {
    domain
        .get_metadata(
            virt_sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
            Some(metadata::NAMESPACE),
            virt_sys::VIR_DOMAIN_AFFECT_CURRENT,
        )
        .ok()
        .and_then(|xml| metadata::parse(&xml))
}

/// What a newer program wrote is not replaced by what this one knows of it.
fn refuse_newer(domain: &Domain, id: VmId) -> Result<()> {
    match read_metadata(domain) {
        Some(Err(newer)) => Err(Error::NewerSpec(id, newer)),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// libvirt makes a TPM where there is no state. In place of one that was lost that would be a stranger's.
fn refuse_a_new_tpm(domain: &Domain, id: VmId, place: &TpmPlace) -> Result<()> {
    let has_tpm = matches!(read_metadata(domain), Some(Ok(metadata)) if metadata.spec.tpm);
    if has_tpm && !place.has_state(id) {
        return Err(Error::Tpm(
            format!("the TPM state of {id} is missing, and no other is made in its place").into(),
        ));
    }
    Ok(())
}

fn write_metadata(domain: &Domain, element: &str) -> Result<()> {
    let active = domain.is_active().map_err(failed("look at the domain"))?;
    let persistent = domain
        .is_persistent()
        .map_err(failed("look at the domain"))?;
    let mut flags = 0;
    if active {
        flags |= virt_sys::VIR_DOMAIN_AFFECT_LIVE;
    }
    if persistent {
        flags |= virt_sys::VIR_DOMAIN_AFFECT_CONFIG;
    }
    domain
        .set_metadata(
            virt_sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
            Some(element),
            Some(metadata::PREFIX),
            Some(metadata::NAMESPACE),
            flags,
        )
        .map(drop)
        .map_err(failed("write the domain's metadata"))
}

fn define(
    connection: &Connection,
    definition: &DomainDefinition,
    accelerator: Accelerator,
    io: &IoOfVolumes,
) -> Result<()> {
    let spec = &definition.metadata.spec;
    match domain(connection, spec.id) {
        Ok(known) => {
            let nothing = DomainChange::default();
            let ours = (&definition.metadata, &nothing);
            return redefine(connection, &known, spec.id, ours, io);
        }
        Err(Error::NoDomain(_)) => {}
        Err(error) => return Err(error),
    }
    if let Some(carried) = &definition.carried {
        return define_carried(connection, definition, carried, (accelerator, io));
    }
    refuse_a_taken_name(connection, spec.id, spec.name.as_str())?;
    let xml = domain_xml::domain_xml(definition, accelerator, NEWEST_MACHINE, io);
    Domain::define_xml_flags(connection, &xml, virt_sys::VIR_DOMAIN_DEFINE_VALIDATE)
        .map(drop)
        .map_err(failed("define the domain"))
}

/// Takes over the definition that a domain had on another host, under the name that it had there, if that is free.
fn define_carried(
    connection: &Connection,
    definition: &DomainDefinition,
    carried: &str,
    (accelerator, io): (Accelerator, &IoOfVolumes),
) -> Result<()> {
    let spec = &definition.metadata.spec;
    let cannot = |because| Error::CannotChange {
        id: spec.id,
        because,
    };
    let mut xml =
        domain_edit::adapted(carried, definition, accelerator, io, Path::exists).map_err(cannot)?;
    let name = domain_edit::name_of(&xml).unwrap_or_default();
    if let Err(taken @ Error::NameTaken { .. }) = refuse_a_taken_name(connection, spec.id, &name) {
        if name == spec.name.as_str() {
            return Err(taken);
        }
        refuse_a_taken_name(connection, spec.id, spec.name.as_str())?;
        xml = domain_edit::named(&xml, spec.name.as_str()).map_err(cannot)?;
    }
    // libvirt wrote it, so it is not held against the schema: that lags behind what libvirt takes.
    Domain::define_xml_flags(connection, &xml, 0)
        .map(drop)
        .map_err(failed("define the domain"))
}

/// See [`Hypervisor::redefine`]: one call of libvirt changes the definition, which writes the file anew or not at all.
fn redefine(
    connection: &Connection,
    domain: &Domain,
    id: VmId,
    (metadata, change): (&VmMetadata, &DomainChange),
    io: &IoOfVolumes,
) -> Result<()> {
    refuse_newer(domain, id)?;
    let before = definition_xml(domain)?;
    let after = domain_edit::changed(&before, metadata, change, io)
        .map_err(|because| Error::CannotChange { id, because })?;
    Domain::define_xml_flags(connection, &after, 0)
        .map(drop)
        .map_err(failed("define the domain"))?;
    if domain.is_active().map_err(failed("look at the domain"))? {
        // What is written about its running half changes now, and its devices as far as they can.
        write_metadata(domain, &metadata::element_for_set(metadata))?;
        for device in &change.devices {
            live::change(domain, id, device)?;
        }
        storage_live::apply(domain, id, &change.storage, io)?;
    }
    Ok(())
}

/// The volumes that a change puts into the definition.
fn volumes_of(change: &DomainChange) -> impl Iterator<Item = &Path> {
    let added = change.storage.iter().filter_map(|change| match change {
        StorageChange::AddDisk(disk) => Some(disk.path.as_path()),
        StorageChange::RemoveDisk { .. }
        | StorageChange::AddDrive(_)
        | StorageChange::RemoveDrive { .. }
        | StorageChange::SetMedium { .. } => None,
    });
    let placed = change.disks.iter().map(|(_, path)| path.as_path());
    placed.chain(added)
}

/// See [`Hypervisor::rename`].
fn rename(connection: &Connection, id: VmId, name: &str) -> Result<()> {
    let domain = domain(connection, id)?;
    if domain.get_name().map_err(gone_or(id, "name the domain"))? == name {
        return Ok(());
    }
    refuse_a_taken_name(connection, id, name)?;
    let state = observe_state(&domain)?;
    if !matches!(state, DomainState::Stopped(_)) {
        return Err(wrong_state(id, state, "be renamed"));
    }
    domain
        .rename(name, 0)
        .map(drop)
        .map_err(failed("rename the domain"))
}

fn refuse_a_taken_name(connection: &Connection, id: VmId, name: &str) -> Result<()> {
    match Domain::lookup_by_name(connection, name) {
        Ok(other) if domain_id(&other)? != id => Err(Error::NameTaken {
            name: name.to_owned(),
        }),
        Ok(_) => Ok(()),
        Err(error) if error.code() == ErrorNumber::NoDomain => Ok(()),
        Err(error) => Err(failed("look for a domain of that name")(error)),
    }
}

/// What the domain starts with next, with the passwords in it: it is handed back to libvirt, not shown.
fn definition_xml(domain: &Domain) -> Result<String> {
    domain
        .get_xml_desc(virt_sys::VIR_DOMAIN_XML_INACTIVE | virt_sys::VIR_DOMAIN_XML_SECURE)
        .map_err(failed("read the domain's definition"))
}

pub(crate) fn resume(domain: &Domain, id: VmId) -> Result<()> {
    match observe_state(domain)? {
        DomainState::Running => return Ok(()),
        state @ (DomainState::Stopped(_) | DomainState::Paused { incoming: true }) => {
            return Err(wrong_state(id, state, "resume"));
        }
        DomainState::Paused { incoming: false } => {}
    }
    domain
        .resume()
        .map(drop)
        .map_err(failed("resume the domain"))
}

pub(crate) fn domain_id(domain: &Domain) -> Result<VmId> {
    let id: Uuid = domain.get_uuid().map_err(failed("read a domain's uuid"))?;
    Ok(VmId(id))
}

pub(crate) fn gone_or(id: VmId, attempt: &'static str) -> impl FnOnce(virt::error::Error) -> Error {
    move |error| match error.code() {
        ErrorNumber::NoDomain => Error::NoDomain(id),
        _ => failed(attempt)(error),
    }
}

pub(crate) fn wrong_state(id: VmId, state: DomainState, attempt: &'static str) -> Error {
    let state = match state {
        DomainState::Running => "running",
        DomainState::Paused { incoming: true } => "still arriving",
        DomainState::Paused { incoming: false } => "paused",
        DomainState::Stopped(_) => "stopped",
    };
    Error::WrongState {
        id,
        state: state.to_owned(),
        attempt,
    }
}

fn wrong_state_now(domain: &Domain, id: VmId, attempt: &'static str) -> Error {
    match observe_state(domain) {
        Ok(state) => wrong_state(id, state, attempt),
        Err(error) => error,
    }
}

/// An ephemeral secret is never written to disk, a private one is never handed out again.
fn secret_xml(id: VmId) -> String {
    format!(
        "<secret ephemeral='yes' private='yes'><uuid>{id}</uuid>\
         <description>TPM key of a virtual machine (Fleetward)</description>\
         <usage type='vtpm'><name>{id}</name></usage></secret>"
    )
}

/// Ours: for a TPM, named after its own uuid.
fn our_secret(secret: &Secret) -> Option<VmId> {
    let id = secret.get_uuid().ok()?;
    let usage = secret_usage(secret).ok()?;
    let vtpm = secret.get_usage_type().ok()? == virt_sys::VIR_SECRET_USAGE_TYPE_VTPM;
    (vtpm && usage == id.to_string()).then_some(VmId(id))
}
