//! Live migration between two libvirtds, and a libvirtd that goes away.

use crate::Host;
use crate::host::wait_for;
use crate::tpm::{MarkedIssuer, key};
use fleetward_hypervisor::conformance::Fixture;
use fleetward_hypervisor::{
    DomainDefinition, DomainState, Error, Hypervisor, HypervisorEvent, MigrationDisks,
    MigrationProgress, MigrationRequest, StopReason, TpmFactory, Volumes,
};
use fleetward_model::JobId;
use fleetward_model::vm::{Transit, TransitSide};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) async fn a_vm_with_a_tpm_moves_and_waits(here: &Host, there: &Host) {
    let (definition, request) = ready_to_move(here, there, "moving").await;
    let id = definition.metadata.spec.id;
    let (sender, progress) = watch::channel(MigrationProgress::default());
    let outcome = here
        .libvirt
        .migrate(id, &request, sender, CancellationToken::new())
        .await
        .expect("moved");
    assert!(
        outcome.transferred > 0 && outcome.downtime_ms.is_some(),
        "{outcome:?}"
    );
    assert!(progress.borrow().memory_total > 0, "no progress was told");

    let source = here.domain(id).await.expect("stays defined");
    assert_eq!(source.state, DomainState::Stopped(StopReason::Migrated));
    assert_eq!(source.metadata.as_ref(), Some(&definition.metadata));
    assert!(
        here.libvirt.state(id).await.expect("looked").is_some(),
        "TPM state is kept"
    );
    let arrived = there.domain(id).await.expect("arrived");
    assert_eq!(arrived.state, DomainState::Paused { incoming: false });
    assert_eq!(arrived.metadata, Some(request.arriving));
    assert!(arrived.persistent && arrived.tpm);
    there.libvirt.resume(id).await.expect("resumed");
    there.libvirt.resume(id).await.expect("running already");
    assert_eq!(
        there.domain(id).await.expect("there").state,
        DomainState::Running
    );
    forget(here, there, &definition).await;
}

pub(crate) async fn a_cancelled_migration_leaves_the_vm_here(here: &Host, there: &Host) {
    let (definition, request) = ready_to_move(here, there, "staying").await;
    let id = definition.metadata.spec.id;
    let (sender, _) = watch::channel(MigrationProgress::default());
    let cancel = CancellationToken::new();
    cancel.cancel();
    let refused = here.libvirt.migrate(id, &request, sender, cancel).await;
    assert!(matches!(refused, Err(Error::Cancelled)), "{refused:?}");
    here.libvirt
        .abort_leftover_migration(id)
        .await
        .expect("nothing to do");
    let seen = here.domain(id).await.expect("here");
    assert_eq!(seen.state, DomainState::Running);
    let deadline = Instant::now() + Duration::from_secs(10);
    while there.domain(id).await.is_ok() {
        assert!(Instant::now() < deadline, "a copy stays at the destination");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    forget(here, there, &definition).await;
}

pub(crate) async fn libvirtd_may_restart(here: &Host) {
    let libvirt = &here.libvirt;
    let definition = here.definition("outliving").await;
    let id = definition.metadata.spec.id;
    libvirt.define(&definition).await.expect("defined");
    libvirt.start(id).await.expect("started");
    libvirt.load_secret(id, &key()).await.expect("loaded");
    let mut events = libvirt.events();
    here.kill_libvirtd();
    let asked = Instant::now();
    let answer = libvirt.list().await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    assert!(asked.elapsed() < Duration::from_secs(4), "slow to say no");
    wait_for("the old socket", || {
        std::fs::remove_file(here.socket()).is_ok() || !here.socket().exists()
    });
    here.restart_libvirtd();
    let mut seen = Vec::new();
    while seen.last() != Some(&HypervisorEvent::Connected) {
        let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await;
        seen.push(event.expect("in time").expect("events"));
    }
    assert!(seen.contains(&HypervisorEvent::Disconnected), "{seen:?}");
    let domain = here.domain(id).await.expect("there");
    assert_eq!(
        domain.state,
        DomainState::Running,
        "the VM outlives libvirtd"
    );
    assert_eq!(
        libvirt.loaded_secrets().await.expect("listed"),
        [],
        "ephemeral secrets do not outlive libvirtd; callers rely on knowing that"
    );
    libvirt.destroy(id).await.expect("destroyed");
    libvirt.undefine(id).await.expect("undefined");
}

/// A running VM with a TPM here, and its volume and key there.
async fn ready_to_move(
    here: &Host,
    there: &Host,
    name: &str,
) -> (DomainDefinition, MigrationRequest) {
    let mut definition = here.definition(name).await;
    definition.metadata.spec.tpm = true;
    definition.metadata.key_protector = Some("TUlJ".into());
    let id = definition.metadata.spec.id;
    let made = here.directory.join(format!("made-{name}"));
    here.libvirt
        .manufacture(&made, &key(), &MarkedIssuer)
        .await
        .expect("made");
    here.libvirt.install(id, &made).await.expect("installed");
    for host in [here, there] {
        host.libvirt.load_secret(id, &key()).await.expect("loaded");
    }
    here.libvirt.define(&definition).await.expect("defined");
    here.libvirt.start(id).await.expect("started");
    let disk = &definition.metadata.spec.disks[0];
    let path_there = there.directory.join("lib/images").join(&disk.volume);
    there
        .libvirt
        .create_empty(&path_there, disk.size)
        .await
        .expect("a volume there");
    let mut arriving = definition.metadata.clone();
    arriving.generation += 1;
    arriving.transit = Some(Transit {
        job: JobId(Uuid::new_v4()),
        side: TransitSide::Incoming,
    });
    let request = MigrationRequest {
        libvirt_socket: there.socket(),
        memory_socket: here.sockets.join(format!("{name}.mem")),
        disk_socket: here.sockets.join(format!("{name}.nbd")),
        disks: MigrationDisks::Copy(vec![disk.target.clone()]),
        arriving,
        nic_places: Vec::new(),
        disk_io: Default::default(),
    };
    (definition, request)
}

async fn forget(here: &Host, there: &Host, definition: &DomainDefinition) {
    let id = definition.metadata.spec.id;
    for host in [here, there] {
        if host.domain(id).await.is_ok() {
            host.libvirt.destroy(id).await.expect("destroyed");
        }
        host.libvirt.undefine(id).await.expect("undefined");
        host.libvirt.drop_secret(id).await.expect("dropped");
    }
    here.libvirt.remove(id).await.expect("removed");
}
