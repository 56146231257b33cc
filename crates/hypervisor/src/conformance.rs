//! Claims that every implementation of the traits must fulfil, as functions that tests call.
//!
//! A claim takes a [`Fixture`], makes and removes its own domains, and panics with a message if it does not hold.
//! [`CLAIMS`] lists all claims, so an implementation's test cannot omit one.

use crate::{
    CopyState, CpuVerdict, DeviceChange, DomainChange, DomainDefinition, DomainState, Error,
    Hypervisor, HypervisorEvent, MigrationDisks, MigrationProgress, MigrationRequest,
    NicDefinition, NicDeviceChange, SecretText, Shutdown,
};
use async_trait::async_trait;
use fleetward_model::change::MachineChange;
use fleetward_model::machine::{BootFirst, Clock, MachineSettings};
use fleetward_model::network::NetworkPlace;
use fleetward_model::spec::{KNOWN, NewerSpec, NicSpec};
use fleetward_model::vm::Profile;
use fleetward_model::{ByteSize, VmId};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// What a test lends to the claims.
#[async_trait]
pub trait Fixture: Send + Sync {
    fn hypervisor(&self) -> &dyn Hypervisor;

    /// A definition with a fresh uuid, no TPM, and one disk whose volume exists; small, and able to start.
    async fn definition(&self, name: &str) -> DomainDefinition;

    /// Defines a domain that Fleetward did not make, with a name that is none of ours, and tells its uuid.
    async fn define_foreign(&self) -> VmId;

    /// Removes it again.
    async fn remove_foreign(&self, id: VmId);

    /// Changes a domain's definition as an administrator does, with the hypervisor's own tools: a device, a memory of
    /// 600 MiB, metadata of another program, and more.
    async fn edit_by_hand(&self, id: VmId);

    /// What of [`edit_by_hand`](Self::edit_by_hand) the definition has lost, the memory left aside.
    async fn lost_of_the_edit(&self, id: VmId) -> Vec<&'static str>;

    /// Gives a defined domain the metadata of a program that knows a version more of the specification than this one.
    async fn write_newer(&self, id: VmId);
}

/// One claim, ready to be awaited.
pub type Claimed<'f> = Pin<Box<dyn Future<Output = ()> + Send + 'f>>;

/// A claim: its name and what to call.
#[derive(Clone, Copy)]
pub struct Claim {
    pub name: &'static str,
    pub check: for<'f> fn(&'f dyn Fixture) -> Claimed<'f>,
}

macro_rules! claims {
    ($($name:ident,)*) => {
        /// Every claim.
        pub const CLAIMS: &[Claim] = &[$(Claim {
            name: stringify!($name),
            check: |fixture| Box::pin($name(fixture)),
        }),*];
    };
}

claims! {
    facts_are_plausible,
    what_is_missing_is_named_or_ignored,
    define_is_idempotent_and_keeps_the_machine,
    a_name_belongs_to_one_domain,
    start_and_destroy_are_idempotent,
    resume_leaves_a_running_domain_alone,
    undefine_removes_the_firmware_variables_and_keeps_disks,
    a_running_domain_is_not_undefined,
    metadata_is_kept_running_and_stopped,
    events_arrive_within_two_seconds,
    secrets_are_loaded_replaced_listed_and_dropped,
    foreign_domains_are_listed_without_metadata,
    what_a_newer_program_wrote_is_shown_and_stays,
    the_domains_own_cpu_fits,
    a_stopped_domain_does_not_migrate,
    there_may_be_no_migration_to_abort,
    a_copy_is_of_one_moment_and_leaves_the_domain_alone,
    an_edit_by_hand_survives_whatever_is_redefined,
    an_edit_by_hand_travels_with_the_definition,
    a_running_domain_gets_its_new_size_when_it_starts_next,
    a_network_card_comes_and_goes_and_twice_is_as_once,
    a_rename_changes_the_name_and_nothing_else,
    usage_is_of_running_domains_and_only_grows,
}

/// How long an event may take.
const EVENT_LIMIT: Duration = Duration::from_secs(2);

async fn facts_are_plausible(fixture: &dyn Fixture) {
    let facts = fixture.hypervisor().facts().await.expect("facts");
    assert!(facts.cpus > 0 && facts.memory.bytes() > 0, "{facts:?}");
    assert!(facts.memory_available <= facts.memory, "{facts:?}");
    assert!(facts.machines.iter().all(|m| m.starts_with("pc-q35-")));
    assert!(!facts.machines.is_empty(), "no machine types");
}

async fn what_is_missing_is_named_or_ignored(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = fixture.definition("never-defined").await.metadata.spec.id;
    for result in [
        hypervisor.inspect(id).await.map(drop),
        hypervisor.start(id).await,
        hypervisor.destroy(id).await,
        hypervisor.resume(id).await,
        hypervisor.request_shutdown(id, Shutdown::Acpi).await,
        hypervisor.request_shutdown(id, Shutdown::GuestAgent).await,
        hypervisor.ask_guest(id).await.map(drop),
        hypervisor.freeze_guest(id).await,
        hypervisor.thaw_guest(id).await,
    ] {
        assert!(
            matches!(result, Err(Error::NoDomain(missing)) if missing == id),
            "{result:?}"
        );
    }
    hypervisor
        .undefine(id)
        .await
        .expect("nothing to undefine is fine");
    hypervisor
        .drop_secret(id)
        .await
        .expect("nothing to drop is fine");
}

async fn define_is_idempotent_and_keeps_the_machine(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut definition = fixture.definition("defined-twice").await;
    let id = definition.metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    let first = hypervisor.inspect(id).await.expect("there");
    assert_eq!(first.metadata.as_ref(), Some(&definition.metadata));
    assert!(
        first.machine.starts_with("pc-q35-"),
        "a version, not {}",
        first.machine
    );
    assert!(matches!(first.state, DomainState::Stopped(_)));
    assert_eq!(first.firmware, Some(definition.metadata.spec.firmware));
    definition.metadata.generation += 1;
    hypervisor.define(&definition).await.expect("redefined");
    let second = hypervisor.inspect(id).await.expect("there");
    assert_eq!(second.metadata.as_ref(), Some(&definition.metadata));
    assert_eq!(second.machine, first.machine);
    let listed = hypervisor.list().await.expect("listed");
    assert_eq!(listed.iter().filter(|d| d.id == id).count(), 1);
    hypervisor.undefine(id).await.expect("undefined");
}

async fn a_name_belongs_to_one_domain(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let first = fixture.definition("same-name").await;
    let second = fixture.definition("same-name").await;
    hypervisor.define(&first).await.expect("defined");
    let refused = hypervisor.define(&second).await;
    assert!(
        matches!(refused, Err(Error::NameTaken { .. })),
        "{refused:?}"
    );
    hypervisor
        .undefine(first.metadata.spec.id)
        .await
        .expect("undefined");
}

async fn start_and_destroy_are_idempotent(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = started(fixture, "started-twice").await;
    hypervisor.start(id).await.expect("running already");
    assert_eq!(state(fixture, id).await, DomainState::Running);
    assert!(hypervisor.is_ours(id).await.expect("there"));
    for _ in 0..2 {
        hypervisor.destroy(id).await.expect("destroyed");
        assert!(matches!(state(fixture, id).await, DomainState::Stopped(_)));
    }
    hypervisor.undefine(id).await.expect("undefined");
}

async fn resume_leaves_a_running_domain_alone(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = started(fixture, "resumed").await;
    hypervisor.resume(id).await.expect("running already");
    removed(fixture, id).await;
    let definition = fixture.definition("not-resumed").await;
    let id = definition.metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    let refused = hypervisor.resume(id).await;
    assert!(
        matches!(refused, Err(Error::WrongState { .. })),
        "{refused:?}"
    );
    hypervisor.undefine(id).await.expect("undefined");
}

async fn undefine_removes_the_firmware_variables_and_keeps_disks(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let definition = fixture.definition("undefined").await;
    let id = definition.metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    hypervisor.start(id).await.expect("started");
    assert!(definition.nvram_path.exists(), "made at first start");
    removed(fixture, id).await;
    assert!(!definition.nvram_path.exists(), "left behind");
    assert!(
        definition.disk_paths.iter().all(|path| path.exists()),
        "disks are not the definition's to remove"
    );
    hypervisor.undefine(id).await.expect("gone already");
}

async fn a_running_domain_is_not_undefined(fixture: &dyn Fixture) {
    let id = started(fixture, "not-undefined").await;
    let refused = fixture.hypervisor().undefine(id).await;
    assert!(
        matches!(refused, Err(Error::WrongState { .. })),
        "{refused:?}"
    );
    assert!(
        fixture
            .hypervisor()
            .inspect(id)
            .await
            .expect("there")
            .persistent
    );
    removed(fixture, id).await;
}

async fn metadata_is_kept_running_and_stopped(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = started(fixture, "described").await;
    let mut metadata = hypervisor
        .inspect(id)
        .await
        .expect("there")
        .metadata
        .expect("ours");
    metadata.generation += 1;
    metadata.key_protector = Some("TUlJ".repeat(33_000));
    hypervisor
        .write_metadata(id, &metadata)
        .await
        .expect("written");
    let running = hypervisor.inspect(id).await.expect("there").metadata;
    assert!(
        running.as_ref() == Some(&metadata),
        "changed while it was written to a running domain"
    );
    hypervisor.destroy(id).await.expect("destroyed");
    let stopped = hypervisor.inspect(id).await.expect("there").metadata;
    assert!(
        stopped.as_ref() == Some(&metadata),
        "lost when the domain stopped"
    );
    metadata.key_protector = None;
    hypervisor
        .write_metadata(id, &metadata)
        .await
        .expect("written");
    let stopped = hypervisor.inspect(id).await.expect("there").metadata;
    assert_eq!(stopped, Some(metadata));
    hypervisor.undefine(id).await.expect("undefined");
}

async fn events_arrive_within_two_seconds(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let definition = fixture.definition("watched").await;
    let id = definition.metadata.spec.id;
    let mut events = hypervisor.events();
    hypervisor.define(&definition).await.expect("defined");
    expect_event(&mut events, HypervisorEvent::Changed(id)).await;
    hypervisor.start(id).await.expect("started");
    expect_event(&mut events, HypervisorEvent::Changed(id)).await;
    hypervisor.destroy(id).await.expect("destroyed");
    expect_event(&mut events, HypervisorEvent::Stopped(id)).await;
    hypervisor.undefine(id).await.expect("undefined");
    expect_event(&mut events, HypervisorEvent::Removed(id)).await;
}

async fn secrets_are_loaded_replaced_listed_and_dropped(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = fixture.definition("with-secret").await.metadata.spec.id;
    let text = |value: &str| SecretText::new(Zeroizing::new(value.to_owned()));
    let loaded = || async { hypervisor.loaded_secrets().await.expect("listed") };
    assert!(!loaded().await.contains(&id));
    for value in ["first", "second"] {
        hypervisor
            .load_secret(id, &text(value))
            .await
            .expect("loaded");
        assert!(loaded().await.contains(&id));
    }
    for _ in 0..2 {
        hypervisor.drop_secret(id).await.expect("dropped");
        assert!(!loaded().await.contains(&id));
    }
}

async fn foreign_domains_are_listed_without_metadata(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = fixture.define_foreign().await;
    let listed = hypervisor.list().await.expect("listed");
    let seen = listed.iter().find(|d| d.id == id).expect("listed too");
    assert_eq!(seen.metadata, None);
    assert!(matches!(seen.state, DomainState::Stopped(_)));
    assert!(!hypervisor.is_ours(id).await.expect("there"));
    fixture.remove_foreign(id).await;
    let gone = hypervisor.is_ours(id).await;
    assert!(matches!(gone, Err(Error::NoDomain(_))), "{gone:?}");
}

async fn what_a_newer_program_wrote_is_shown_and_stays(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let definition = fixture.definition("from-the-future").await;
    let id = definition.metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    fixture.write_newer(id).await;
    let newer = Some(NewerSpec { version: KNOWN + 1 });
    let seen = hypervisor.inspect(id).await.expect("there");
    assert_eq!((seen.metadata, seen.newer), (None, newer.clone()));
    for result in [
        hypervisor.define(&definition).await,
        hypervisor.write_metadata(id, &definition.metadata).await,
    ] {
        assert!(
            matches!(&result, Err(Error::NewerSpec(known, _)) if *known == id),
            "{result:?}"
        );
    }
    let listed = hypervisor.list().await.expect("listed");
    let seen = listed.into_iter().find(|d| d.id == id).expect("listed too");
    assert_eq!((seen.metadata, seen.newer), (None, newer), "as it was");
    removed(fixture, id).await;
}

async fn the_domains_own_cpu_fits(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = started(fixture, "with-cpu").await;
    let cpu = hypervisor.inspect(id).await.expect("there").cpu_xml;
    let verdict = hypervisor.check_cpu(&cpu.expect("a CPU")).await;
    assert_eq!(verdict.expect("compared"), CpuVerdict::Compatible);
    let verdict = hypervisor.check_cpu("no XML").await;
    assert!(matches!(verdict, Ok(CpuVerdict::Incompatible(_)) | Err(_)));
    removed(fixture, id).await;
}

async fn a_stopped_domain_does_not_migrate(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let definition = fixture.definition("unmoved").await;
    let id = definition.metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    let nowhere = PathBuf::from("/nowhere");
    let request = MigrationRequest {
        libvirt_socket: nowhere.clone(),
        memory_socket: nowhere.clone(),
        disk_socket: nowhere,
        disks: MigrationDisks::Shared,
        arriving: definition.metadata.clone(),
        nic_places: Vec::new(),
        disk_io: BTreeMap::new(),
    };
    let (progress, _) = watch::channel(MigrationProgress::default());
    let refused = hypervisor
        .migrate(id, &request, progress, CancellationToken::new())
        .await;
    assert!(
        matches!(refused, Err(Error::WrongState { .. })),
        "{refused:?}"
    );
    hypervisor.undefine(id).await.expect("undefined");
}

async fn there_may_be_no_migration_to_abort(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = started(fixture, "unmoving").await;
    hypervisor
        .abort_leftover_migration(id)
        .await
        .expect("nothing to do");
    assert_eq!(state(fixture, id).await, DomainState::Running);
    hypervisor.destroy(id).await.expect("destroyed");
    hypervisor
        .abort_leftover_migration(id)
        .await
        .expect("nothing to do");
    hypervisor.undefine(id).await.expect("undefined");
}

#[expect(
    clippy::disallowed_methods,
    reason = "part of a test suite, which damages files as it likes"
)]
async fn a_copy_is_of_one_moment_and_leaves_the_domain_alone(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = started(fixture, "copied").await;
    hypervisor.abort_copy(id).await.expect("nothing to abort");
    for _ in 0..2 {
        hypervisor.suspend(id).await.expect("paused");
    }
    let before = hypervisor.inspect(id).await.expect("there");
    assert_eq!(before.state, DomainState::Paused { incoming: false });
    let copies: Vec<(String, PathBuf)> = before
        .disks
        .iter()
        .map(|(target, path)| (target.clone(), path.with_extension("copied")))
        .collect();
    hypervisor.begin_copy(id, &copies).await.expect("begun");
    hypervisor.resume(id).await.expect("running");
    let ended = async {
        loop {
            match hypervisor.copy_state(id).await.expect("known") {
                CopyState::Running { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                ended => break ended,
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert_eq!(ended.expect("in time"), CopyState::Done);
    let after = hypervisor.inspect(id).await.expect("there");
    assert_eq!(
        (after.state, &after.disks),
        (DomainState::Running, &before.disks)
    );
    for (_, path) in &copies {
        assert!(path.exists());
        std::fs::remove_file(path).expect("a file");
    }
    removed(fixture, id).await;
}

/// The memory of [`Fixture::edit_by_hand`].
const BY_HAND: ByteSize = ByteSize::mib(600);

async fn an_edit_by_hand_survives_whatever_is_redefined(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let definition = fixture.definition("edited").await;
    let mut metadata = definition.metadata.clone();
    let id = metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    fixture.edit_by_hand(id).await;
    assert!(fixture.lost_of_the_edit(id).await.is_empty(), "not edited");
    let nothing = DomainChange::default;
    let elsewhere = definition.disk_paths[0].with_extension("moved");
    let target = metadata.spec.disks[0].target.clone();
    for (what, change) in [
        ("metadata", nothing()),
        (
            "a TPM",
            DomainChange {
                tpm: Some(true),
                ..nothing()
            },
        ),
        (
            "no TPM",
            DomainChange {
                tpm: Some(false),
                ..nothing()
            },
        ),
        (
            "a disk",
            DomainChange {
                disks: vec![(target, elsewhere.clone())],
                ..nothing()
            },
        ),
        (
            "processors",
            DomainChange {
                machine: MachineChange {
                    cpus: Some(2),
                    ..MachineChange::default()
                },
                ..nothing()
            },
        ),
    ] {
        metadata.generation += 1;
        for _ in 0..2 {
            let redefined = hypervisor.redefine(id, &metadata, &change).await;
            redefined.expect(what);
        }
        let lost = fixture.lost_of_the_edit(id).await;
        assert!(lost.is_empty(), "{what} took {lost:?}");
        let seen = hypervisor.inspect(id).await.expect("there");
        assert_eq!(seen.metadata.as_ref(), Some(&metadata), "{what}");
        let defined = seen.defined.expect("told");
        assert_eq!(defined.memory, BY_HAND, "{what}");
        assert_eq!(defined.tpm, change.tpm == Some(true), "{what}");
    }
    let seen = hypervisor.inspect(id).await.expect("there");
    assert_eq!(seen.defined.expect("told").cpus, 2);
    assert_eq!(seen.disks[0].1, elsewhere);
    hypervisor.define(&definition).await.expect("defined again");
    assert!(fixture.lost_of_the_edit(id).await.is_empty());
    let memory = DomainChange {
        machine: MachineChange {
            memory: Some(ByteSize::mib(256)),
            ..MachineChange::default()
        },
        ..nothing()
    };
    let asked = hypervisor.redefine(id, &metadata, &memory).await;
    asked.expect("a memory that is asked for");
    let seen = hypervisor.inspect(id).await.expect("there");
    assert_eq!(seen.defined.expect("told").memory, ByteSize::mib(256));
    hypervisor.undefine(id).await.expect("undefined");
}

async fn an_edit_by_hand_travels_with_the_definition(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut definition = fixture.definition("travelling").await;
    definition.metadata.key_protector = Some("MIIKsecret".to_owned());
    let id = definition.metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    fixture.edit_by_hand(id).await;
    let carried = hypervisor.portable_definition(id).await.expect("told");
    assert!(!carried.contains("MIIKsecret"), "the key protector travels");
    hypervisor.undefine(id).await.expect("undefined");
    definition.carried = Some(carried);
    definition.metadata.generation += 1;
    hypervisor.define(&definition).await.expect("taken over");
    let lost = fixture.lost_of_the_edit(id).await;
    assert!(lost.is_empty(), "{lost:?} did not travel");
    let seen = hypervisor.inspect(id).await.expect("there");
    assert_eq!(seen.metadata.as_ref(), Some(&definition.metadata));
    assert_eq!(seen.defined.expect("told").memory, BY_HAND);
    hypervisor.undefine(id).await.expect("undefined");
}

async fn a_running_domain_gets_its_new_size_when_it_starts_next(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let id = started(fixture, "resized").await;
    let seen = hypervisor.inspect(id).await.expect("there");
    let now = (seen.cpus, seen.memory);
    let mut metadata = seen.metadata.expect("ours");
    metadata.generation += 1;
    let wanted = (
        now.0 + 1,
        ByteSize(now.1.bytes() + ByteSize::mib(64).bytes()),
    );
    let before = seen.settings;
    assert_eq!(before.boot, Some(BootFirst::Disk));
    let settings = MachineSettings {
        boot: match metadata.spec.nics.is_empty() {
            true => before.boot,
            false => Some(BootFirst::Network),
        },
        clock: Some(match metadata.spec.clock() {
            Clock::Utc => Clock::Local,
            Clock::Local => Clock::Utc,
        }),
    };
    let change = DomainChange {
        machine: MachineChange {
            cpus: Some(wanted.0),
            memory: Some(wanted.1),
            boot: settings.boot,
            clock: settings.clock,
        },
        ..DomainChange::default()
    };
    let changed = hypervisor.redefine(id, &metadata, &change).await;
    changed.expect("changed");
    let seen = hypervisor.inspect(id).await.expect("there");
    let defined = seen.defined.expect("told");
    assert_eq!((seen.cpus, seen.memory), now, "a running one keeps it");
    assert_eq!((seen.settings, defined.settings), (before, settings));
    assert_eq!((defined.cpus, defined.memory), wanted);
    assert_eq!(seen.metadata.as_ref(), Some(&metadata), "told at once");
    hypervisor.destroy(id).await.expect("destroyed");
    hypervisor.start(id).await.expect("started");
    let seen = hypervisor.inspect(id).await.expect("there");
    assert_eq!((seen.cpus, seen.memory), wanted);
    assert_eq!(seen.settings, settings);
    removed(fixture, id).await;
}

async fn a_network_card_comes_and_goes_and_twice_is_as_once(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let definition = fixture.definition("cards").await;
    let metadata = &definition.metadata;
    let id = metadata.spec.id;
    hypervisor.define(&definition).await.expect("defined");
    let before = hypervisor.inspect(id).await.expect("there").nics;
    let spec = NicSpec {
        id: "nic-7".parse().expect("a name"),
        ..NicSpec::first(Profile::Linux, "52:54:00:77:77:77")
    };
    let change = |to: Option<NicSpec>| DomainChange {
        devices: vec![DeviceChange::Nic(NicDeviceChange {
            id: spec.id.clone(),
            macs: vec![spec.mac.clone()],
            to: to.map(|spec| NicDefinition {
                spec,
                place: NetworkPlace::Nat,
            }),
            parts: Vec::new(),
        })],
        ..DomainChange::default()
    };
    for _ in 0..2 {
        let there = change(Some(spec.clone()));
        let done = hypervisor.redefine(id, metadata, &there).await;
        done.expect("added");
        let seen = hypervisor.inspect(id).await.expect("there");
        let defined = seen.defined.expect("told").nics;
        assert_eq!(seen.nics, defined, "nothing waits while it is stopped");
        let added: Vec<_> = defined.iter().filter(|nic| nic.mac == spec.mac).collect();
        assert_eq!(added.len(), 1, "{defined:?}");
        assert_eq!(added[0].id.as_ref(), Some(&spec.id));
        assert_eq!(added[0].place, Some(NetworkPlace::Nat));
    }
    for _ in 0..2 {
        let done = hypervisor.redefine(id, metadata, &change(None)).await;
        done.expect("removed");
        let after = hypervisor.inspect(id).await.expect("there").nics;
        assert_eq!(after, before, "the others stay");
    }
    hypervisor.undefine(id).await.expect("undefined");
}

async fn a_rename_changes_the_name_and_nothing_else(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let other = fixture.definition("taken-name").await;
    hypervisor.define(&other).await.expect("defined");
    let id = started(fixture, "old-name").await;
    let running = hypervisor.rename(id, "new-name").await;
    assert!(
        matches!(running, Err(Error::WrongState { .. })),
        "{running:?}"
    );
    hypervisor.destroy(id).await.expect("destroyed");
    fixture.edit_by_hand(id).await;
    let taken = hypervisor.rename(id, "taken-name").await;
    assert!(matches!(taken, Err(Error::NameTaken { .. })), "{taken:?}");
    for _ in 0..2 {
        let renamed = hypervisor.rename(id, "new-name").await;
        renamed.expect("renamed");
    }
    let seen = hypervisor.inspect(id).await.expect("there");
    assert_eq!(seen.domain_name, "new-name");
    let spec = seen.metadata.expect("ours").spec;
    assert_eq!(spec.name.as_str(), "old-name", "metadata is not its own");
    assert!(fixture.lost_of_the_edit(id).await.is_empty());
    for id in [id, other.metadata.spec.id] {
        removed(fixture, id).await;
    }
}

async fn usage_is_of_running_domains_and_only_grows(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let stopped = fixture.definition("unused").await;
    hypervisor.define(&stopped).await.expect("define");
    let id = started(fixture, "used").await;
    let of = async |id| {
        let all = hypervisor.usage().await.expect("usage");
        all.into_iter().find(|domain| domain.id == id)
    };
    let first = of(id).await.expect("it runs");
    assert!(first.cpus > 0, "{first:?}");
    let then = of(id).await.expect("it runs still");
    assert_eq!(then.run, first.run);
    assert!(then.cpu_time >= first.cpu_time, "{first:?} {then:?}");
    if let (Some(first), Some(then)) = (first.disks, then.disks) {
        assert!(then.read >= first.read && then.written >= first.written);
    }
    let stopped = stopped.metadata.spec.id;
    assert_eq!(of(stopped).await, None, "it does not run");
    hypervisor.destroy(id).await.expect("destroy");
    assert_eq!(of(id).await, None, "it does not run any more");
    hypervisor.start(id).await.expect("start");
    let anew = of(id).await.expect("it runs again");
    assert_ne!(anew.run, first.run, "another run");
    removed(fixture, id).await;
    removed(fixture, stopped).await;
}

async fn started(fixture: &dyn Fixture, name: &str) -> VmId {
    let definition = fixture.definition(name).await;
    let id = definition.metadata.spec.id;
    let hypervisor = fixture.hypervisor();
    hypervisor.define(&definition).await.expect("defined");
    hypervisor.start(id).await.expect("started");
    id
}

async fn removed(fixture: &dyn Fixture, id: VmId) {
    fixture.hypervisor().destroy(id).await.expect("destroyed");
    fixture.hypervisor().undefine(id).await.expect("undefined");
}

async fn state(fixture: &dyn Fixture, id: VmId) -> DomainState {
    fixture.hypervisor().inspect(id).await.expect("there").state
}

/// Waits for one event; others may come in between.
async fn expect_event(events: &mut broadcast::Receiver<HypervisorEvent>, wanted: HypervisorEvent) {
    let waiting = async {
        loop {
            match events.recv().await {
                Ok(event) if event == wanted => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => panic!("no more events"),
            }
        }
    };
    assert!(
        tokio::time::timeout(EVENT_LIMIT, waiting).await.is_ok(),
        "{wanted:?} did not arrive within {} s",
        EVENT_LIMIT.as_secs()
    );
}
