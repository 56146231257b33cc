//! Disks and drives of a VM change on its host: forward, back, repeated, broken off, and refused with nothing lost.

use crate::support::{Fleet, Job, Node, create_running};
use fleetward_api::agent::operation::{ChangeVm, DropVolumes, Stop};
use fleetward_model::change::{ChangeStep, Direction, DiskStep, DriveStep};
use fleetward_model::disk::DiskMark;
use fleetward_model::vm::{DiskBus, DiskSpec, DriveSpec, Presence, Profile, VmReport};
use fleetward_model::{ByteSize, ErrorCode, VmId};
use std::path::PathBuf;

/// A VM that runs, or not, with its host.
async fn vm(runs: bool) -> (Fleet, Node, VmId) {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "vm1").await;
    if !runs {
        let stop = Stop {
            force: true,
            deadline_seconds: 1,
            tell: false,
        };
        Job::new(spec.id, 2).on(&node, stop).await.unwrap();
    }
    (fleet, node, spec.id)
}

async fn seen(node: &Node, id: VmId) -> VmReport {
    node.detail(id).await.unwrap().vm
}

async fn first(node: &Node, id: VmId) -> DiskSpec {
    seen(node, id).await.metadata.unwrap().spec.disks[0].clone()
}

fn new_disk(id: VmId, target: &str, bus: DiskBus) -> DiskSpec {
    let pool = "default".parse().unwrap();
    let mark = DiskMark::of(7);
    DiskSpec::added(id, &mark, target.into(), bus, pool, ByteSize::mib(8))
}

fn step(at: usize, from: Option<&DiskSpec>, to: Option<&DiskSpec>) -> ChangeStep {
    ChangeStep::Disk(DiskStep {
        at,
        from: from.cloned().map(Box::new),
        to: to.cloned().map(Box::new),
        keep: false,
        path: None,
    })
}

/// Moved to the other pool.
fn elsewhere(disk: &DiskSpec, id: VmId) -> DiskSpec {
    DiskSpec {
        pool: "other".parse().unwrap(),
        volume: DiskMark::of(9).volume(id, &disk.target),
        ..disk.clone()
    }
}

fn change(step: &ChangeStep, direction: Direction) -> ChangeVm {
    ChangeVm {
        steps: vec![step.clone()],
        direction,
    }
}

fn file(node: &Node, disk: &DiskSpec) -> PathBuf {
    let pool = if disk.pool.as_str() == "other" {
        "other"
    } else {
        "pool"
    };
    node.fake.root.join(pool).join(&disk.volume)
}

fn targets(vm: &VmReport) -> Vec<(&str, Presence)> {
    let disks = vm.disks.iter();
    disks.map(|d| (d.target.as_str(), d.presence)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_comes_and_is_taken_back_twice_is_as_once() {
    for (runs, target, bus, presence) in [
        (true, "vdb", DiskBus::Virtio, Presence::Here),
        (true, "sda", DiskBus::Sata, Presence::Comes),
        (false, "sda", DiskBus::Sata, Presence::Here),
    ] {
        let (_fleet, node, id) = vm(runs).await;
        let before = seen(&node, id).await.metadata.unwrap().spec;
        let disk = new_disk(id, target, bus);
        let step = step(1, None, Some(&disk));
        let job = Job::new(id, 3);
        for _ in 0..2 {
            job.on(&node, change(&step, Direction::Forward))
                .await
                .unwrap();
            let vm = seen(&node, id).await;
            assert_eq!(targets(&vm), [("vda", Presence::Here), (target, presence)]);
            assert_eq!(vm.disks[1].id.as_ref(), Some(&disk.id));
            assert!(file(&node, &disk).exists());
        }
        for _ in 0..2 {
            job.on(&node, change(&step, Direction::Back)).await.unwrap();
            let vm = seen(&node, id).await;
            assert_eq!(vm.metadata.unwrap().spec, before);
            assert_eq!(vm.disks.len(), 1);
            assert!(!file(&node, &disk).exists());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_a_guest_holds_stays_and_so_does_its_volume() {
    let (_fleet, node, id) = vm(true).await;
    let disk = new_disk(id, "vdb", DiskBus::Virtio);
    let job = Job::new(id, 3);
    let come = step(1, None, Some(&disk));
    job.on(&node, change(&come, Direction::Forward))
        .await
        .unwrap();
    node.fake.with(|s| s.held.push("vdb".into()));
    let go = step(1, Some(&disk), None);
    let refused = job
        .on(&node, change(&go, Direction::Forward))
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::DeviceHeld);
    job.on(&node, change(&go, Direction::Back)).await.unwrap();
    let vm = seen(&node, id).await;
    assert_eq!(
        targets(&vm),
        [("vda", Presence::Here), ("vdb", Presence::Here)]
    );
    let drop_it = DropVolumes {
        disks: vec![disk.clone()],
    };
    let refused = job.on(&node, drop_it.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::DeviceHeld, "it is the VM's");
    assert!(file(&node, &disk).exists());

    node.fake.with(|s| s.held.clear());
    for _ in 0..2 {
        job.on(&node, change(&go, Direction::Forward))
            .await
            .unwrap();
        assert!(file(&node, &disk).exists(), "not before it is certain");
    }
    for _ in 0..2 {
        job.on(&node, drop_it.clone()).await.unwrap();
        assert!(!file(&node, &disk).exists());
    }
    let foreign = DiskSpec {
        volume: "somebody-elses.qcow2".into(),
        ..disk
    };
    let disks = vec![foreign];
    let refused = job.on(&node, DropVolumes { disks }).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_grows_and_is_never_cut_off() {
    for runs in [true, false] {
        let (_fleet, node, id) = vm(runs).await;
        let disk = first(&node, id).await;
        let to = DiskSpec {
            size: ByteSize(disk.size.bytes() * 2),
            ..disk.clone()
        };
        let job = Job::new(id, 3);
        let grow = step(0, Some(&disk), Some(&to));
        // Nothing has been done: there is nothing to keep.
        job.on(&node, change(&grow, Direction::Back)).await.unwrap();
        assert_eq!(first(&node, id).await.size, disk.size);
        for direction in [Direction::Forward, Direction::Forward, Direction::Back] {
            job.on(&node, change(&grow, direction)).await.unwrap();
            assert_eq!(first(&node, id).await.size, to.size, "{runs} {direction:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_moves_and_what_the_guest_writes_to_stays() {
    for runs in [true, false] {
        let (_fleet, node, id) = vm(runs).await;
        let disk = first(&node, id).await;
        let to = elsewhere(&disk, id);
        let job = Job::new(id, 3);
        let moving = step(0, Some(&disk), Some(&to));
        for direction in [Direction::Forward, Direction::Forward, Direction::Back] {
            job.on(&node, change(&moving, direction)).await.unwrap();
            let vm = seen(&node, id).await;
            assert_eq!(vm.disks[0].path, file(&node, &to).display().to_string());
            assert_eq!(vm.metadata.unwrap().spec.disks[0], to);
        }
        let disks = vec![disk.clone()];
        job.on(&node, DropVolumes { disks }).await.unwrap();
        assert!(!file(&node, &disk).exists() && file(&node, &to).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_breaks_off_leaves_the_disk_where_it_is() {
    let (_fleet, node, id) = vm(true).await;
    let disk = first(&node, id).await;
    let to = elsewhere(&disk, id);
    node.fake.with(|s| s.mirrors_break = true);
    let job = Job::new(id, 3);
    let moving = step(0, Some(&disk), Some(&to));
    let failed = job
        .on(&node, change(&moving, Direction::Forward))
        .await
        .unwrap_err();
    assert_eq!(failed.code, ErrorCode::HypervisorFailed);
    for _ in 0..2 {
        job.on(&node, change(&moving, Direction::Back))
            .await
            .unwrap();
        assert_eq!(first(&node, id).await, disk);
        assert!(file(&node, &disk).exists() && !file(&node, &to).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_comes_with_the_next_start_and_goes_empty() {
    let (_fleet, node, id) = vm(true).await;
    let drive = DriveSpec::next(Profile::Windows11, ["vda"].into_iter(), None).unwrap();
    let come = ChangeStep::Drive(DriveStep {
        at: 0,
        from: None,
        to: Some(Box::new(drive.clone())),
    });
    let job = Job::new(id, 3);
    for _ in 0..2 {
        job.on(&node, change(&come, Direction::Forward))
            .await
            .unwrap();
        let vm = seen(&node, id).await;
        assert_eq!(
            (vm.drives.len(), vm.drives[0].presence),
            (1, Presence::Comes)
        );
    }
    job.on(&node, change(&come, Direction::Back)).await.unwrap();
    assert!(seen(&node, id).await.drives.is_empty());
}
