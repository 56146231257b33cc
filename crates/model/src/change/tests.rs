use super::machine::MachineDefined;
use super::*;
use crate::disk::DiskMark;
use crate::machine::{BootFirst, Clock, MachineSettings};
use crate::network::{NicFilter, NicLink, NicObserved};
use crate::preflight::samples;
use crate::profile::MAX_CPUS;
use crate::spec::NicModel;
use crate::vm::{DiskBus, Presence};
use crate::vm::{Profile, VmDefined};
use strum::VariantArray;

const STATES: [VmState; 6] = [
    VmState::Unknown,
    VmState::Running,
    VmState::Stopped,
    VmState::Paused,
    VmState::Migrating,
    VmState::Failed,
];

/// The sample, which has one CPU and 1 GiB.
fn vm(state: VmState) -> VmObserved {
    let mut vm = samples::vm("a");
    vm.state = state;
    vm.defined = Some(VmDefined {
        cpus: vm.cpus,
        memory: vm.memory,
        nics: None,
        settings: MachineSettings::default(),
    });
    let metadata = vm.metadata.as_mut().expect("ours");
    metadata
        .spec
        .labels
        .insert("old".parse().expect("a key"), "1".into());
    vm
}

fn spec(vm: &VmObserved) -> &VmSpec {
    &vm.metadata.as_ref().expect("ours").spec
}

fn asked(network: &str, mac: &str) -> NicAsked {
    NicAsked {
        network: network.parse().expect("a name"),
        model: None,
        mac: Some(mac.parse().expect("an address")),
        vlan: None,
        link: NicLink::Up,
        filter: None,
    }
}

fn label(key: &str, value: Option<&str>) -> (LabelKey, Option<LabelValue>) {
    let value = value.map(|text| LabelValue::try_from(text.to_owned()).expect("a value"));
    (key.parse().expect("a key"), value)
}

fn disks(disks: Vec<DiskChange>) -> Wanted {
    Wanted {
        disks,
        ..Wanted::default()
    }
}

fn drives(drives: Vec<DriveChange>) -> Wanted {
    let medium = |name: &str| Medium {
        image: name.parse().expect("a name"),
        sha256: name.repeat(8),
    };
    Wanted {
        drives,
        media: ["win", "drv"]
            .map(|name| (name.parse().expect("a name"), medium(name)))
            .into(),
        ..Wanted::default()
    }
}

fn add_disk(mark: u32, bus: Option<DiskBus>) -> DiskChange {
    DiskChange::Add(DiskAsked {
        size_bytes: ByteSize::gib(1),
        pool: None,
        bus,
        mark: Some(DiskMark::of(mark)),
    })
}

/// One request for each kind.
fn one_of_each() -> Vec<(ChangeKind, Wanted)> {
    let wanted = |kind| match kind {
        ChangeKind::Tpm => Wanted {
            tpm: Some(false),
            ..Wanted::default()
        },
        ChangeKind::Cpus => Wanted {
            cpus: Some(Cpus(4)),
            ..Wanted::default()
        },
        ChangeKind::Memory => Wanted {
            memory: Some(Memory(ByteSize::gib(2))),
            ..Wanted::default()
        },
        ChangeKind::Description => Wanted {
            description: Some("経理サーバー 🔒".parse().expect("a text")),
            ..Wanted::default()
        },
        ChangeKind::Labels => Wanted {
            labels: [label("old", None), label("new", Some("値"))].into(),
            ..Wanted::default()
        },
        ChangeKind::RestartOnCrash => Wanted {
            restart_on_crash: Some(true),
            ..Wanted::default()
        },
        ChangeKind::Autostart => Wanted {
            autostart: Some(true),
            ..Wanted::default()
        },
        ChangeKind::Name => Wanted {
            name: Some("other".parse().expect("a name")),
            ..Wanted::default()
        },
        ChangeKind::Nics => Wanted {
            nics: vec![NicChange::Add(asked("lan", "52:54:00:00:00:07"))],
            ..Wanted::default()
        },
        ChangeKind::Disks => disks(vec![add_disk(1, None)]),
        ChangeKind::Drives => drives(vec![DriveChange::Add(DriveAsked { image: None })]),
        ChangeKind::Boot => Wanted {
            boot: Some(BootFirst::Disk),
            ..Wanted::default()
        },
        ChangeKind::Clock => Wanted {
            clock: Some(Clock::Local),
            ..Wanted::default()
        },
    };
    ChangeKind::VARIANTS
        .iter()
        .copied()
        .map(|kind| (kind, wanted(kind)))
        .collect()
}

#[test]
fn the_table_says_when_each_change_takes_effect() {
    use Effect::{NextStart, Now};
    for (kind, wanted) in one_of_each() {
        for state in STATES {
            let mut vm = vm(state);
            // Somebody let it boot from the network, so that there is something to change.
            vm.defined.as_mut().expect("defined").settings.boot = Some(BootFirst::Network);
            let planned = plan(&vm, &wanted);
            let expected = match (kind, state) {
                (_, VmState::Migrating) => Err(ErrorCode::VmBusy),
                (_, VmState::Unknown) => Err(ErrorCode::HostUnreachable),
                (_, VmState::Stopped) => Ok(Now),
                (
                    ChangeKind::Cpus | ChangeKind::Memory | ChangeKind::Boot | ChangeKind::Clock,
                    _,
                ) => Ok(NextStart),
                (ChangeKind::Drives, _) => Ok(NextStart),
                (ChangeKind::Tpm | ChangeKind::Name, _) => Err(ErrorCode::VmRunning),
                _ => Ok(Now),
            };
            match (planned, expected) {
                (Ok(plan), Ok(effect)) => {
                    assert!(!plan.steps.is_empty(), "{kind} {state}");
                    assert!(
                        plan.steps
                            .iter()
                            .all(|s| s.effect == effect && s.step.kind() == kind),
                        "{kind} {state}: {plan:?}"
                    );
                }
                (Err(failure), Err(code)) => assert_eq!(failure.code, code, "{kind} {state}"),
                (planned, expected) => panic!("{kind} {state}: {planned:?}, not {expected:?}"),
            }
        }
    }
}

#[test]
fn a_refusal_names_a_command_that_can_be_pasted() {
    let wanted = Wanted {
        name: Some("other".parse().expect("a name")),
        ..Wanted::default()
    };
    let refused = plan(&vm(VmState::Running), &wanted).expect_err("it runs");
    assert!(refused.fix.contains("fleetward vm stop web"), "{refused}");
    let refused = plan(&vm(VmState::Running), &Wanted::default()).expect_err("nothing");
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
}

#[test]
fn a_vm_that_is_as_wanted_has_nothing_to_do() {
    let wanted = Wanted {
        cpus: Some(Cpus(1)),
        memory: Some(Memory(ByteSize::gib(1))),
        labels: [label("old", Some("1")), label("never-there", None)].into(),
        autostart: Some(false),
        restart_on_crash: Some(false),
        name: Some("web".parse().expect("a name")),
        tpm: Some(true),
        description: Some(Description::default()),
        nics: Vec::new(),
        ..Wanted::default()
    };
    for state in [VmState::Running, VmState::Stopped] {
        assert_eq!(plan(&vm(state), &wanted), Ok(Plan::default()));
    }
}

#[test]
fn steps_taken_and_taken_back_leave_what_was_there() {
    let mut before = vm(VmState::Stopped);
    before.metadata.as_mut().expect("ours").spec.boot = BootFirst::Network;
    for (kind, wanted) in one_of_each() {
        let steps: Vec<_> = plan(&before, &wanted)
            .expect("planned")
            .steps
            .into_iter()
            .map(|planned| planned.step)
            .collect();
        let after = apply(spec(&before), &steps, Direction::Forward);
        assert_ne!(&after, spec(&before), "{kind}");
        assert_eq!(
            apply(&after, &steps, Direction::Forward),
            after,
            "{kind} twice"
        );
        if kind != ChangeKind::Tpm {
            let back = apply(&after, &steps, Direction::Back);
            assert_eq!(&back, spec(&before), "{kind}");
            let never = apply(spec(&before), &steps, Direction::Back);
            assert_eq!(&never, spec(&before), "{kind} was never taken");
        }
    }
}

#[test]
fn what_somebody_else_changed_meanwhile_is_not_taken_back() {
    let before = vm(VmState::Stopped);
    let wanted = Wanted {
        cpus: Some(Cpus(4)),
        labels: [label("new", Some("1"))].into(),
        ..Wanted::default()
    };
    let steps = plan(&before, &wanted).expect("planned").of_the_definition();
    let mut after = apply(spec(&before), &steps, Direction::Forward);
    after.cpus = 8;
    after
        .labels
        .insert("new".parse().expect("a key"), "2".into());
    let back = apply(&after, &steps, Direction::Back);
    assert_eq!((back.cpus, back.labels.len()), (8, 2));
    let defined = |cpus| MachineDefined {
        cpus,
        memory: ByteSize::gib(1),
        settings: MachineSettings::default(),
    };
    let back = |has| defined_after(Some(defined(has)), &steps, Direction::Back);
    assert_eq!(back(8), MachineChange::default());
    let ours = MachineChange {
        cpus: Some(1),
        ..MachineChange::default()
    };
    assert_eq!(back(4), ours);
}

#[test]
fn a_definition_that_was_edited_is_named_and_brought_in_line_when_asked() {
    let mut edited = vm(VmState::Stopped);
    edited.defined = Some(VmDefined {
        cpus: 1,
        memory: ByteSize::mib(600),
        nics: None,
        settings: MachineSettings::default(),
    });
    edited.domain_name = Some("evil".into());
    let codes: Vec<_> = differing(&edited).iter().map(|f| f.code).collect();
    assert_eq!(codes, [ErrorCode::NameDiffers, ErrorCode::DefinitionEdited]);
    assert!(differing(&edited).iter().all(|f| !f.blocking));
    assert!(differing(&edited)[1].fix.contains("vm set web --memory 1G"));
    let wanted = Wanted {
        memory: Some(Memory(ByteSize::gib(1))),
        name: Some("web".parse().expect("a name")),
        ..Wanted::default()
    };
    let steps = plan(&edited, &wanted).expect("planned").of_the_definition();
    assert_eq!(steps.len(), 2, "{steps:?}");
    let has = Some(MachineDefined {
        cpus: 1,
        memory: ByteSize::gib(1),
        settings: MachineSettings::default(),
    });
    let edit = MachineChange {
        memory: Some(ByteSize::mib(600)),
        ..MachineChange::default()
    };
    let back = defined_after(has, &steps, Direction::Back);
    assert_eq!(back, edit, "the edit comes back");
    assert!(differing(&vm(VmState::Running)).is_empty());
}

#[test]
fn a_running_vm_shows_what_waits() {
    let mut running = vm(VmState::Running);
    assert!(pending(&running).is_empty());
    running.defined = Some(VmDefined {
        cpus: 2,
        memory: ByteSize::gib(1),
        nics: None,
        settings: MachineSettings::default(),
    });
    let waits = pending(&running);
    assert_eq!(waits.len(), 1);
    assert_eq!((&waits[0].now, &waits[0].wanted), (&1.into(), &2.into()));
    running.state = VmState::Stopped;
    assert!(pending(&running).is_empty());
    running.defined = None;
    running.state = VmState::Running;
    assert!(pending(&running).is_empty(), "its host does not tell");
}

#[test]
fn a_profile_keeps_what_it_requires() {
    let mut windows = vm(VmState::Stopped);
    let spec = &mut windows.metadata.as_mut().expect("ours").spec;
    spec.profile = Profile::Windows11;
    for (kind, wanted) in [
        (
            ChangeKind::Cpus,
            Wanted {
                cpus: Some(Cpus(1)),
                ..Wanted::default()
            },
        ),
        (
            ChangeKind::Memory,
            Wanted {
                memory: Some(Memory(ByteSize::gib(2))),
                ..Wanted::default()
            },
        ),
        (
            ChangeKind::Tpm,
            Wanted {
                tpm: Some(false),
                ..Wanted::default()
            },
        ),
    ] {
        let refused = plan(&windows, &wanted).expect_err("refused");
        assert_eq!(refused.code, ErrorCode::ProfileRefuses, "{kind}");
        assert!(refused.fix.contains("web"), "{refused}");
    }
    // What it misses already does not stand against another change.
    let labels = Wanted {
        labels: [label("new", Some("1"))].into(),
        ..Wanted::default()
    };
    assert!(plan(&windows, &labels).is_ok());
}

#[test]
fn sizes_that_no_vm_can_have_are_no_sizes() {
    for bad in [0, MAX_CPUS + 1, u32::MAX] {
        assert!(Cpus::try_from(bad).is_err(), "{bad}");
    }
    let odd = ByteSize(ByteSize::gib(1).bytes() + 1);
    for bad in [ByteSize(0), ByteSize::mib(63), ByteSize(u64::MAX), odd] {
        assert!(Memory::try_from(bad).is_err(), "{bad}");
    }
    assert!(LabelValue::try_from("a\nb".to_owned()).is_err());
    assert!(LabelValue::try_from("値".repeat(86)).is_err());
}

#[test]
fn a_plan_reads_back_as_it_was_written() {
    for (kind, wanted) in one_of_each() {
        let planned = plan(&vm(VmState::Stopped), &wanted).expect("planned");
        let text = serde_json::to_string(&planned).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Plan>(&text).expect("a plan"),
            planned,
            "{kind}"
        );
        assert!(text.contains(r#""change":"#), "{text}");
    }
}

/// A VM with one card in `lan` that runs, as its definition says.
fn with_card() -> VmObserved {
    let mut vm = vm(VmState::Running);
    let spec = &mut vm.metadata.as_mut().expect("ours").spec;
    let first = asked("lan", "52:54:00:00:00:01");
    spec.nics = nic::cards(&[first], NicModel::Virtio).expect("possible");
    let seen: Vec<NicObserved> = spec.nics.iter().map(NicObserved::from).collect();
    vm.nics = Some(seen.clone());
    vm.defined.as_mut().expect("told").nics = Some(seen);
    vm
}

fn set(nic: &str) -> NicSet {
    NicSet {
        nic: nic.parse().expect("a name"),
        network: None,
        model: None,
        mac: None,
        vlan: None,
        link: None,
        filter: None,
    }
}

fn nics(changes: impl Into<Vec<NicChange>>) -> Wanted {
    Wanted {
        nics: changes.into(),
        ..Wanted::default()
    }
}

#[test]
fn a_card_is_added_changed_and_removed_and_all_of_it_is_taken_back() {
    let vm = with_card();
    let down = NicSet {
        link: Some(NicLink::Down),
        ..set("nic-0")
    };
    let wanted = nics([
        NicChange::Add(asked("nat", "52:54:00:00:00:02")),
        NicChange::Set(down),
        NicChange::Remove(NicRemove {
            nic: "nic-1".parse().expect("a name"),
        }),
        NicChange::Add(asked("dmz", "52:54:00:00:00:03")),
    ]);
    let plan = plan(&vm, &wanted).expect("possible");
    let steps = plan.of_the_definition();
    let after = apply(spec(&vm), &steps, Direction::Forward);
    let ids: Vec<&str> = after.nics.iter().map(|nic| nic.id.as_str()).collect();
    assert_eq!(ids, ["nic-0", "nic-1"], "a free id is used again");
    assert_eq!(after.nics[0].link, NicLink::Down);
    assert_eq!(after.nics[1].network.as_str(), "dmz");
    let mut steps = steps;
    steps.reverse();
    assert_eq!(&apply(&after, &steps, Direction::Back), spec(&vm));
}

#[test]
fn what_qemu_cannot_change_while_it_runs_waits_for_the_next_start() {
    let vm = with_card();
    let of = |set: NicSet| {
        plan(&vm, &nics([NicChange::Set(set)]))
            .expect("possible")
            .steps
    };
    let now = of(NicSet {
        network: Some("dmz".parse().expect("a name")),
        vlan: Some(Some("7".parse().expect("a number"))),
        ..set("nic-0")
    });
    assert!(now.iter().all(|step| step.effect == Effect::Now));
    for later in [
        NicSet {
            model: Some(NicModel::E1000e),
            ..set("nic-0")
        },
        NicSet {
            mac: Some("52:54:00:00:00:09".parse().expect("an address")),
            ..set("nic-0")
        },
        NicSet {
            network: Some("nat".parse().expect("a name")),
            ..set("nic-0")
        },
    ] {
        assert_eq!(of(later)[0].effect, Effect::NextStart);
    }
    assert!(of(set("nic-0")).is_empty(), "nothing was named");
    let same = NicSet {
        link: Some(NicLink::Up),
        ..set("nic-0")
    };
    assert!(of(same).is_empty(), "it is so already");
}

#[test]
fn cards_that_cannot_be_are_refused_by_name() {
    let vm = with_card();
    let mut in_nat = asked("nat", "52:54:00:00:00:02");
    in_nat.filter = Some(NicFilter::CleanTraffic);
    let many = (0..nic::MAX_NICS).map(|at| {
        let mac = format!("52:54:00:00:01:{at:02x}");
        NicChange::Add(asked("lan", &mac))
    });
    for (wanted, code) in [
        (nics([NicChange::Add(in_nat)]), ErrorCode::InvalidArgument),
        (
            nics([NicChange::Add(asked("lan", "52:54:00:00:00:01"))]),
            ErrorCode::MacTaken,
        ),
        (
            nics([NicChange::Set(set("nic-9"))]),
            ErrorCode::DeviceMissing,
        ),
        (nics(many.collect::<Vec<_>>()), ErrorCode::InvalidArgument),
    ] {
        assert_eq!(plan(&vm, &wanted).expect_err("refused").code, code);
    }
}

#[test]
fn a_card_that_the_guest_holds_on_to_is_pending() {
    let mut vm = with_card();
    vm.defined.as_mut().expect("told").nics = Some(Vec::new());
    let waits = pending(&vm);
    assert_eq!(waits.len(), 1);
    assert_eq!(
        waits[0].device.as_ref().map(|id| id.as_str()),
        Some("nic-0")
    );
    assert!(waits[0].wanted.is_null() && waits[0].now["network"] == "lan");
    vm.state = VmState::Stopped;
    assert!(pending(&vm).is_empty());
}

#[test]
fn a_card_that_was_edited_by_hand_is_told_with_the_way_back() {
    let mut vm = with_card();
    let seen = vm
        .defined
        .as_mut()
        .expect("told")
        .nics
        .as_mut()
        .expect("told");
    seen[0].network = None;
    seen[0].bridge = Some("br9".into());
    let findings = differing(&vm);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].what.contains("bridge br9"));
    assert_eq!(
        findings[0].fix,
        format!("fleetward vm nic set {} nic-0 --network lan", vm.name)
    );
    let back = NicSet {
        network: Some("lan".parse().expect("a name")),
        ..set("nic-0")
    };
    let steps = plan(&vm, &nics([NicChange::Set(back)]))
        .expect("possible")
        .steps;
    assert_eq!(
        steps.len(),
        1,
        "the specification says it, the definition does not"
    );
}

/// The VM after a change that it has taken at once.
fn changed(mut vm: VmObserved, wanted: &Wanted) -> VmObserved {
    let plan = plan(&vm, wanted).expect("planned");
    let steps: Vec<_> = plan.steps.into_iter().map(|planned| planned.step).collect();
    let metadata = vm.metadata.as_mut().expect("ours");
    metadata.spec = apply(&metadata.spec, &steps, Direction::Forward);
    vm
}

#[test]
fn a_disk_that_comes_or_goes_moves_the_name_of_no_other() {
    let all = [
        add_disk(1, None),
        add_disk(2, Some(DiskBus::Sata)),
        add_disk(3, Some(DiskBus::Scsi)),
        add_disk(4, None),
    ];
    let vm = changed(vm(VmState::Stopped), &disks(all.into()));
    let names = |vm: &VmObserved| -> Vec<String> {
        let targets = spec(vm).targets();
        targets.map(str::to_owned).collect()
    };
    assert_eq!(names(&vm), ["vda", "vdb", "sda", "sdb", "vdc"]);
    assert_eq!(spec(&vm).version(), 3, "what older programs do not know");
    let serial = |at: usize| spec(&vm).disks[at].serial.clone().map(String::from);
    assert_eq!(
        serial(0),
        None,
        "the guest of a VM that is there sees no change"
    );
    assert_eq!(serial(1).as_deref(), Some("disk-00000001"));
    let removed = DiskChange::Remove(DiskRemove {
        disk: "vdb".into(),
        keep: false,
    });
    let less = changed(vm.clone(), &disks(vec![removed]));
    assert_eq!(names(&less), ["vda", "sda", "sdb", "vdc"]);
    let again = changed(less.clone(), &disks(vec![add_disk(5, None)]));
    assert_eq!(names(&again), ["vda", "sda", "sdb", "vdc", "vdb"]);
    let volume = |vm: &VmObserved, at: usize| spec(vm).disks[at].volume.clone();
    assert_ne!(
        volume(&again, 4),
        volume(&vm, 1),
        "a kept volume is not taken"
    );
    let drive = changed(
        again,
        &drives(vec![DriveChange::Add(DriveAsked { image: None })]),
    );
    assert_eq!(names(&drive).last().map(String::as_str), Some("sdc"));
}

#[test]
fn a_change_of_a_disk_that_would_lose_something_is_refused() {
    let resize = |size_bytes| {
        DiskChange::Resize(DiskResize {
            disk: "vda".into(),
            size_bytes,
        })
    };
    let remove = |disk: &str| {
        DiskChange::Remove(DiskRemove {
            disk: disk.into(),
            keep: true,
        })
    };
    let has = spec(&vm(VmState::Running)).disks[0].size;
    let less = ByteSize(has.bytes() - 512);
    for (change, code) in [
        (resize(less), ErrorCode::InvalidArgument),
        (
            resize(ByteSize(has.bytes() + 1)),
            ErrorCode::InvalidArgument,
        ),
        (remove("vda"), ErrorCode::InvalidArgument),
        (remove("vdz"), ErrorCode::DeviceMissing),
    ] {
        let what = format!("{change:?}");
        let refused = plan(&vm(VmState::Running), &disks(vec![change])).expect_err(&what);
        assert_eq!(refused.code, code, "{what}");
        assert!(!refused.fix.is_empty(), "{what}");
    }
    let same = plan(&vm(VmState::Running), &disks(vec![resize(has)]));
    assert_eq!(same, Ok(Plan::default()));

    let mut sata = changed(
        vm(VmState::Stopped),
        &disks(vec![add_disk(1, Some(DiskBus::Sata))]),
    );
    sata.state = VmState::Running;
    let refused = plan(&sata, &disks(vec![remove("sda")])).expect_err("it runs");
    assert_eq!(refused.code, ErrorCode::VmRunning);
    // Before its first start with the disk the machine does not have it.
    let mut seen = sata.disks[0].clone();
    seen.target = "sda".into();
    seen.presence = Presence::Comes;
    sata.disks.push(seen);
    let planned = plan(&sata, &disks(vec![remove("sda")])).expect("planned");
    assert_eq!(planned.left_over(), [], "kept");
    assert_eq!(pending(&sata)[0].wanted, "sda");
}

#[test]
fn a_drive_is_chosen_where_only_one_can_be_meant() {
    let insert = |image: &str, drive: Option<&str>| {
        DriveChange::Insert(DriveInsert {
            drive: drive.map(str::to_owned),
            image: image.parse().expect("a name"),
        })
    };
    let eject = |drive: Option<&str>| {
        DriveChange::Eject(DriveEject {
            drive: drive.map(str::to_owned),
        })
    };
    let held = |vm: &VmObserved| -> Vec<String> {
        let media = spec(vm).media();
        media.map(|medium| medium.image.to_string()).collect()
    };
    let bare = vm(VmState::Stopped);
    let refused = plan(&bare, &drives(vec![eject(None)])).expect_err("no drive");
    assert_eq!(refused.code, ErrorCode::DeviceMissing);
    let one = changed(bare, &drives(vec![insert("win", None)]));
    assert_eq!(held(&one), ["win"]);
    assert_eq!(
        held(&changed(one.clone(), &drives(vec![insert("drv", None)]))),
        ["drv"]
    );
    let more = DriveChange::Add(DriveAsked { image: None });
    let two = changed(one, &drives(vec![more, insert("drv", None)]));
    assert_eq!(held(&two), ["win", "drv"]);
    for change in [insert("win", None), eject(None)] {
        let unclear = plan(&two, &drives(vec![change])).expect_err("which?");
        assert_eq!(unclear.code, ErrorCode::InvalidArgument);
        assert!(unclear.because.contains("sda, sdb"), "{unclear}");
    }
    let one = changed(two, &drives(vec![eject(Some("sda"))]));
    assert_eq!(held(&one), ["drv"]);
    let none = changed(one, &drives(vec![eject(None)]));
    assert!(held(&none).is_empty());
    let nothing = plan(&none, &drives(vec![eject(Some("sdb"))]));
    assert_eq!(nothing, Ok(Plan::default()));
}

#[test]
fn a_machine_boots_first_from_what_it_has_and_a_running_one_after_its_next_start() {
    let boot = |first| Wanted {
        boot: Some(first),
        ..Wanted::default()
    };
    let mut running = vm(VmState::Running);
    let settings = |first| MachineSettings {
        boot: Some(first),
        clock: Some(Clock::Utc),
    };
    running.settings = settings(BootFirst::Disk);
    running.defined.as_mut().expect("defined").settings = running.settings;
    let refused = plan(&running, &boot(BootFirst::Iso)).expect_err("no drive");
    assert_eq!(refused.code, ErrorCode::DeviceMissing);
    assert_eq!(refused.fix, "fleetward vm media add web");
    // The drive may come in the same request.
    let wanted = Wanted {
        drives: vec![DriveChange::Add(DriveAsked { image: None })],
        ..boot(BootFirst::Iso)
    };
    let planned = plan(&running, &wanted).expect("planned");
    assert!(
        planned
            .steps
            .iter()
            .all(|step| step.effect == Effect::NextStart)
    );
    let after = apply(
        spec(&running),
        &planned.of_the_definition(),
        Direction::Forward,
    );
    assert_eq!(after.boot, BootFirst::Iso);
    let back = apply(&after, &planned.of_the_definition(), Direction::Back);
    assert_eq!(&back, spec(&running));
    assert!(
        plan(&running, &boot(BootFirst::Disk))
            .expect("is so")
            .steps
            .is_empty()
    );

    running.defined.as_mut().expect("defined").settings = settings(BootFirst::Network);
    let waits = pending(&running);
    assert_eq!(waits.len(), 1);
    assert_eq!(
        (&waits[0].now, &waits[0].wanted),
        (&"disk".into(), &"network".into())
    );
    let edited = differing(&running);
    assert_eq!(edited[0].fix, "fleetward vm set web --boot disk");
    assert_eq!(
        plan(&running, &boot(BootFirst::Disk))
            .expect("repaired")
            .steps
            .len(),
        1
    );
}

#[test]
fn a_clock_that_is_the_profiles_is_not_written_down() {
    let stopped = vm(VmState::Stopped);
    let clock = |to| Wanted {
        clock: Some(to),
        ..Wanted::default()
    };
    let planned = plan(&stopped, &clock(Clock::Local)).expect("planned");
    let after = apply(
        spec(&stopped),
        &planned.of_the_definition(),
        Direction::Forward,
    );
    assert_eq!(after.clock, Some(Clock::Local));
    let back = apply(&after, &planned.of_the_definition(), Direction::Back);
    assert_eq!(
        &back,
        spec(&stopped),
        "programs of every version know it again"
    );
}
