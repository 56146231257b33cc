//! Overlays and bases: files that build on each other, and a running domain that goes on over one.

use crate::Host;
use fleetward_hypervisor::conformance::Fixture;
use fleetward_hypervisor::{
    DomainChange, DomainDefinition, DomainState, Error, Hypervisor, MAX_BASES, Volumes,
};
use fleetward_model::ByteSize;
use std::path::{Path, PathBuf};
use std::process::Command;

const MARK: u64 = 1 << 20;

pub(crate) async fn bases_go_with_the_last_that_builds_on_them(host: &Host) {
    let volumes: &dyn Volumes = &host.libvirt;
    let pool = pool("bases");
    let [disk, next, twin, deep] = ["disk", "next", "twin", "deep"].map(|name| {
        let file = format!("{name}.qcow2");
        pool.join(file)
    });
    volumes
        .create_empty(&disk, ByteSize::mib(8))
        .await
        .expect("made");
    write(&disk, "0x11", 0);
    for overlay in [&next, &twin] {
        for _ in 0..2 {
            volumes.create_overlay(&disk, overlay).await.expect("made");
        }
        assert!(volumes.is_unwritten(overlay).await.expect("seen"));
    }
    let elsewhere = volumes.create_overlay(&next, &twin).await;
    assert!(matches!(elsewhere, Err(Error::BadImage { .. })));

    // A disk that is somebody's own is never taken for a base that nobody needs.
    volumes.delete(&twin).await.expect("deleted");
    assert!(disk.exists());
    volumes.create_overlay(&disk, &twin).await.expect("made");

    for _ in 0..2 {
        volumes.freeze(&disk).await.expect("frozen");
    }
    assert!(volumes.is_frozen(&disk).await.expect("seen"));
    assert!(!volumes.is_frozen(&next).await.expect("seen"));
    // Zeros count as written: they cover what is below.
    write(&next, "0", 0);
    assert!(!volumes.is_unwritten(&next).await.expect("seen"));
    write(&next, "0x22", MARK);
    volumes.freeze(&next).await.expect("frozen");
    volumes.create_overlay(&next, &deep).await.expect("made");
    let info = volumes.inspect_volume(&deep).await.expect("ours");
    assert_eq!(info.bases, [next.clone(), disk.clone()]);
    assert_eq!(info.virtual_size, ByteSize::mib(8));

    let whole = pool.join("whole.qcow2");
    volumes.copy(&deep, &whole).await.expect("copied");
    let info = volumes.inspect(&whole, Some("qcow2")).await.expect("ours");
    assert!(info.bases.is_empty());
    holds(&whole, "0x22", MARK);
    holds(&whole, "0", 0);

    // Asked to remove a base that others need, it keeps it.
    volumes.delete(&next).await.expect("kept");
    assert!(next.exists());
    volumes.delete(&deep).await.expect("deleted");
    assert!(!deep.exists() && !next.exists(), "nobody needs it any more");
    assert!(disk.exists(), "the twin builds on it");
    holds(&twin, "0x11", 0);
    volumes.delete(&twin).await.expect("deleted");
    assert!(!twin.exists() && !disk.exists());
    volumes.delete(&twin).await.expect("gone already");
    std::fs::remove_dir_all(pool).expect("removed");
}

pub(crate) async fn chains_that_lead_elsewhere_are_refused(host: &Host) {
    let volumes: &dyn Volumes = &host.libvirt;
    let pool = pool("chains");
    let made = |base: &str, name: &str| {
        let path = pool.join(name);
        let status = Command::new("qemu-img")
            .args([
                "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base,
            ])
            .arg(&path)
            .arg("8M")
            .status();
        assert!(status.expect("qemu-img").success());
        path
    };
    let secret = "/etc/shadow";
    for (base, name) in [
        (secret, "away.qcow2"),
        ("../chains.qcow2", "up.qcow2"),
        ("json:{}", "json.qcow2"),
        (".fleetward-pool", "marker.qcow2"),
        ("round.qcow2", "round.qcow2"),
    ] {
        let path = made(base, name);
        let answer = volumes.inspect_volume(&path).await;
        assert!(
            matches!(answer, Err(Error::BadImage { .. })),
            "{base}: {answer:?}"
        );
        let copied = volumes.copy(&path, &pool.join("copy.qcow2")).await;
        assert!(copied.is_err() && !pool.join("copy.qcow2").exists());
        volumes.delete(&path).await.expect("deleted");
        assert!(!path.exists());
    }
    assert!(Path::new(secret).exists());

    let mut top = pool.join("0.qcow2");
    volumes
        .create_empty(&top, ByteSize::mib(8))
        .await
        .expect("made");
    for number in 1..=MAX_BASES {
        let next = pool.join(format!("{number}.qcow2"));
        volumes.create_overlay(&top, &next).await.expect("made");
        volumes.freeze(&top).await.expect("frozen");
        top = next;
    }
    let more = volumes.create_overlay(&top, &pool.join("more.qcow2")).await;
    assert!(matches!(more, Err(Error::BadImage { .. })), "{more:?}");
    volumes.delete(&top).await.expect("deleted");
    let left = std::fs::read_dir(&pool).expect("read").count();
    assert_eq!(left, 1, "all went with the last, but the lock");
    std::fs::remove_dir_all(pool).expect("removed");
}

/// The one moment of a linked copy: what the guest writes afterwards goes to the overlay, through restarts, and nothing can
/// write to what lies below.
pub(crate) async fn a_running_domain_goes_on_over_an_overlay(host: &Host) {
    let libvirt = &host.libvirt;
    let definition = host.definition("layered").await;
    let id = definition.metadata.spec.id;
    let before = definition.disk_paths[0].clone();
    let overlay = before.with_extension("1.qcow2");
    let disks = [("vda".to_owned(), overlay.clone())];
    libvirt.define(&definition).await.expect("defined");
    let stopped = libvirt.switch_to_overlays(id, &disks).await;
    assert!(matches!(stopped, Err(Error::WrongState { .. })));
    libvirt.start(id).await.expect("started");
    libvirt
        .create_overlay(&before, &overlay)
        .await
        .expect("made");
    assert!(!libvirt.in_use(&overlay).await.expect("seen"));
    libvirt.suspend(id).await.expect("paused");
    libvirt
        .switch_to_overlays(id, &disks)
        .await
        .expect("switched");
    libvirt.resume(id).await.expect("running");
    assert_eq!(host.domain(id).await.expect("there").disks, disks);
    assert!(
        libvirt.in_use(&overlay).await.expect("seen"),
        "QEMU's own lock tells it too"
    );
    libvirt.freeze(&before).await.expect("frozen");

    // Another domain builds on the same base while this one runs.
    let twin = twin_over(host, &before).await;
    let twin_id = twin.metadata.spec.id;
    libvirt.start(twin_id).await.expect("both run");
    libvirt.destroy(twin_id).await.expect("destroyed");

    // It starts again from the overlay, and a definition that is older than it cannot.
    libvirt.destroy(id).await.expect("destroyed");
    let metadata = &definition.metadata;
    let in_file = |path: &Path| DomainChange {
        disks: vec![("vda".to_owned(), path.to_owned())],
        ..DomainChange::default()
    };
    let stale = libvirt.redefine(id, metadata, &in_file(&before)).await;
    stale.expect("defined as it was");
    let refused = libvirt.start(id).await;
    assert!(refused.is_err(), "a frozen volume was opened for writing");
    let right = libvirt.redefine(id, metadata, &in_file(&overlay)).await;
    right.expect("defined over the overlay");
    libvirt.start(id).await.expect("started");
    libvirt.destroy(id).await.expect("destroyed");
    for (id, disk) in [(id, &overlay), (twin_id, &twin.disk_paths[0])] {
        let seen = host.domain(id).await.expect("there").state;
        assert!(matches!(seen, DomainState::Stopped(_)));
        libvirt.undefine(id).await.expect("undefined");
        libvirt.delete(disk).await.expect("deleted");
    }
    assert!(!before.exists(), "it goes with the last that builds on it");
}

async fn twin_over(host: &Host, base: &Path) -> DomainDefinition {
    let definition = host.definition("layered-twin").await;
    let disk = &definition.disk_paths[0];
    host.libvirt.delete(disk).await.expect("deleted");
    host.libvirt.create_overlay(base, disk).await.expect("made");
    host.libvirt.define(&definition).await.expect("defined");
    definition
}

fn pool(name: &str) -> PathBuf {
    let pool = Path::new("/var/lib/libvirt/images").join(name);
    std::fs::create_dir_all(&pool).expect("a directory");
    pool
}

fn qemu_io(path: &Path, command: &str) {
    let said = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", command])
        .arg(path)
        .output()
        .expect("qemu-io");
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(
        said.status.success() && !text.contains("failed"),
        "{command}: {text}"
    );
}

fn write(path: &Path, pattern: &str, at: u64) {
    match pattern {
        "0" => qemu_io(path, &format!("write -z {at} 64k")),
        pattern => qemu_io(path, &format!("write -P {pattern} {at} 64k")),
    }
}

fn holds(path: &Path, pattern: &str, at: u64) {
    qemu_io(path, &format!("read -P {pattern} {at} 64k"));
}
