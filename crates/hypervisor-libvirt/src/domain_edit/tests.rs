use super::*;
use crate::domain_xml::tests::sample;
use crate::domain_xml::{NEWEST_MACHINE, domain_xml};
use fleetward_hypervisor::{NicDefinition, NicDeviceChange};
use fleetward_model::change::MachineChange;
use fleetward_model::change::NicPart;
use fleetward_model::machine::{BootFirst, Clock, MachineSettings};
use fleetward_model::vm::{NicSpec, Profile};
use fleetward_model::{DeviceId, NicLink};
use std::path::PathBuf;

fn changed(xml: &str, metadata: &VmMetadata, change: &DomainChange) -> Result<String, String> {
    super::changed(xml, metadata, change, &IoOfVolumes::default())
}

fn adapted(
    carried: &str,
    definition: &DomainDefinition,
    accelerator: Accelerator,
    exists: impl Fn(&Path) -> bool,
) -> Result<String, String> {
    super::adapted(
        carried,
        definition,
        accelerator,
        &IoOfVolumes::default(),
        exists,
    )
}

/// What an administrator writes into a definition with `virsh edit`: the place it goes in front of, and the text.
const EDITS: [(&str, &str, &str); 9] = [
    ("a sound device", "</devices>", "<sound model='ich9'/>"),
    (
        "a card on a bridge",
        "</devices>",
        "<interface type='bridge'><mac address='52:54:00:aa:bb:cc'/><source bridge='br0'/><model type='virtio'/></interface>",
    ),
    (
        "processors pinned",
        "<os ",
        "<cputune><vcpupin vcpu='0' cpuset='1'/></cputune>",
    ),
    (
        "arguments for QEMU",
        "</domain>",
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-newarg'/></qemu:commandline>",
    ),
    (
        "a comment",
        "<os ",
        "<!-- agreed with the storage team & co -->",
    ),
    (
        "metadata of another program",
        "</metadata>",
        "<libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'><libosinfo:os id='x'/></libosinfo:libosinfo>",
    ),
    (
        "another disk",
        "</devices>",
        "<disk type='block' device='disk'><source dev='/dev/sdx'/><target dev='vdz' bus='virtio'/></disk>",
    ),
    (
        "a title in Japanese",
        "<os ",
        "<title>経理サーバー 01</title>",
    ),
    (
        "another boot menu",
        "</os>",
        "<bootmenu enable='yes' timeout='3000'/>",
    ),
];

/// Every kind of change that Fleetward makes.
fn changes() -> Vec<(&'static str, DomainChange)> {
    let nothing = DomainChange::default();
    vec![
        ("metadata", nothing.clone()),
        (
            "processors",
            DomainChange {
                machine: MachineChange {
                    cpus: Some(6),
                    ..MachineChange::default()
                },
                ..nothing.clone()
            },
        ),
        (
            "memory",
            DomainChange {
                machine: MachineChange {
                    memory: Some(ByteSize::gib(8)),
                    ..MachineChange::default()
                },
                ..nothing.clone()
            },
        ),
        (
            "TPM on",
            DomainChange {
                tpm: Some(true),
                ..nothing.clone()
            },
        ),
        (
            "TPM off",
            DomainChange {
                tpm: Some(false),
                ..nothing.clone()
            },
        ),
        (
            "disks",
            DomainChange {
                disks: vec![("sda".into(), "/srv/overlay.qcow2".into())],
                ..nothing.clone()
            },
        ),
        (
            "serial log",
            DomainChange {
                serial_log: Some("/var/log/vm/new.log".into()),
                ..nothing.clone()
            },
        ),
        ("another card", with_nic(nic(7, Some("br-lan")))),
        (
            "the card on a bridge",
            with_nic(NicDeviceChange {
                parts: vec![NicPart::Network, NicPart::Vlan, NicPart::Link],
                ..nic(0, Some("br-lan"))
            }),
        ),
        ("no card", with_nic(nic(0, None))),
        (
            "its drives first",
            DomainChange {
                machine: MachineChange {
                    boot: Some(BootFirst::Iso),
                    ..MachineChange::default()
                },
                ..nothing.clone()
            },
        ),
        (
            "another clock",
            DomainChange {
                machine: MachineChange {
                    clock: Some(Clock::Utc),
                    ..MachineChange::default()
                },
                ..nothing.clone()
            },
        ),
    ]
}

fn with_nic(change: NicDeviceChange) -> DomainChange {
    DomainChange {
        devices: vec![DeviceChange::Nic(change)],
        ..DomainChange::default()
    }
}

/// Card 0 is the sample's.
fn nic(number: u8, bridge: Option<&str>) -> NicDeviceChange {
    let mac = match number {
        0 => "52:54:00:12:34:56".to_owned(),
        number => format!("52:54:00:00:00:{number:02x}"),
    };
    let id: DeviceId = format!("nic-{number}").parse().expect("a name");
    let to = bridge.map(|bridge| NicDefinition {
        spec: NicSpec {
            id: id.clone(),
            network: "lan".parse().expect("a name"),
            vlan: Some("7".parse().expect("a number")),
            link: NicLink::Down,
            ..NicSpec::first(Profile::Linux, mac.clone())
        },
        place: NetworkPlace::Bridge {
            bridge: bridge.to_owned(),
        },
    });
    NicDeviceChange {
        id,
        macs: vec![mac],
        to,
        parts: Vec::new(),
    }
}

fn before() -> String {
    domain_xml(
        &sample(),
        Accelerator::Kvm,
        NEWEST_MACHINE,
        &IoOfVolumes::default(),
    )
}

fn edited(place: &str, text: &str) -> String {
    let xml = before();
    let at = xml.find(place).expect("a place to edit");
    format!("{}{text}{}", &xml[..at], &xml[at..])
}

fn next_metadata() -> VmMetadata {
    let mut metadata = sample().metadata;
    metadata.generation = 9;
    metadata
}

fn metadata_in(xml: &str) -> VmMetadata {
    let document = Document::parse(xml).expect("well-formed");
    child(document.root_element(), "metadata")
        .and_then(metadata::find)
        .and_then(metadata::read)
        .expect("ours")
        .expect("of a version that is known")
}

#[test]
fn a_foreign_edit_survives_every_change() {
    for (what, place, edit) in EDITS {
        let xml = edited(place, edit);
        for (kind, change) in changes() {
            let after = changed(&xml, &next_metadata(), &change).expect("changed");
            assert!(after.contains(edit), "{what} is lost by {kind}: {after}");
            assert_eq!(metadata_in(&after), next_metadata(), "{what}, {kind}");
        }
        let after = portable(&xml).expect("portable");
        assert!(after.contains(edit), "{what} does not travel: {after}");
        let definition = elsewhere();
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let there = adapted(&after, &definition, accelerator, |_| false).expect("adapted");
            assert!(there.contains(edit), "{what} does not arrive: {there}");
            assert_eq!(metadata_in(&there), definition.metadata);
        }
    }
}

#[test]
fn a_memory_that_somebody_set_stays_until_it_is_asked_for() {
    let xml = before().replace(">4194304<", ">614400<");
    for (kind, change) in changes() {
        let after = changed(&xml, &next_metadata(), &change).expect("changed");
        let wanted = change.machine.memory.unwrap_or(ByteSize::mib(600));
        assert_eq!(defined(&after).expect("read").memory, wanted, "{kind}");
    }
}

#[test]
fn a_change_of_nothing_changes_nothing_but_our_element() {
    let xml = before();
    let same = changed(&xml, &sample().metadata, &DomainChange::default()).expect("changed");
    assert_eq!(same, xml);
    let raised = changed(&xml, &next_metadata(), &DomainChange::default()).expect("changed");
    let back = changed(&raised, &sample().metadata, &DomainChange::default()).expect("changed");
    assert_eq!(back, xml);
}

#[test]
fn each_change_does_what_it_says() {
    let xml = before();
    for (kind, change) in changes() {
        let after = changed(&xml, &next_metadata(), &change).expect("changed");
        let seen = defined(&after).expect("read");
        assert_eq!(seen.cpus, change.machine.cpus.unwrap_or(2), "{kind}");
        assert_eq!(
            seen.memory,
            change.machine.memory.unwrap_or(ByteSize::gib(4)),
            "{kind}"
        );
        assert_eq!(seen.tpm, change.tpm.unwrap_or(true), "{kind}");
        let settings = MachineSettings {
            boot: change.machine.boot.or(Some(BootFirst::Disk)),
            clock: change.machine.clock.or(Some(Clock::Local)),
        };
        assert_eq!(seen.settings, settings, "{kind}");
        for (target, path) in &change.disks {
            let place = format!("<source file='{}'/>", path.display());
            assert!(
                after.contains(&place),
                "{kind}: {target} lies elsewhere: {after}"
            );
        }
        // Twice is as once.
        assert_eq!(
            changed(&after, &next_metadata(), &change).expect("changed"),
            after
        );
    }
    let cores = changes()
        .into_iter()
        .find_map(|(_, c)| c.machine.cpus.map(|_| c));
    let after = changed(&xml, &next_metadata(), &cores.expect("one")).expect("changed");
    assert!(after.contains(r#"cores="6""#), "{after}");
}

#[test]
fn a_tpm_comes_and_goes_and_somebody_elses_stays() {
    let mut definition = sample();
    definition.metadata.spec.tpm = false;
    let without = domain_xml(
        &definition,
        Accelerator::Kvm,
        NEWEST_MACHINE,
        &IoOfVolumes::default(),
    );
    let on = DomainChange {
        tpm: Some(true),
        ..DomainChange::default()
    };
    let off = DomainChange {
        tpm: Some(false),
        ..DomainChange::default()
    };
    let with = changed(&without, &definition.metadata, &on).expect("on");
    assert!(with.contains("<tpm model=\"tpm-crb\">"));
    assert_eq!(
        changed(&with, &definition.metadata, &off).expect("off"),
        without
    );

    // A model that somebody chose stays; the secret is ours.
    let tis = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>";
    let chosen = without.replace("</devices>", &format!("{tis}</devices>"));
    let kept = changed(&chosen, &definition.metadata, &off).expect("off");
    assert!(kept.contains(tis));
    let ours = changed(&chosen, &definition.metadata, &on).expect("on");
    let id = definition.metadata.spec.id;
    assert!(ours.contains("tpm-tis") && ours.contains(&format!("<encryption secret='{id}'/>")));

    let real = "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>";
    let real = without.replace("</devices>", &format!("{real}</devices>"));
    assert!(changed(&real, &definition.metadata, &on).is_err());
}

#[test]
fn what_stands_against_a_change_is_named() {
    let numa = "<cpu mode='host-model'><numa><cell id='0' cpus='0-1' memory='4194304' unit='KiB'/></numa></cpu>";
    let xml = {
        let xml = before();
        let start = xml.find("<cpu ").expect("a cpu");
        let end = xml.find("</cpu>").expect("its end") + "</cpu>".len();
        format!("{}{numa}{}", &xml[..start], &xml[end..])
    };
    let cpus = |cpus| DomainChange {
        machine: MachineChange {
            cpus: Some(cpus),
            ..MachineChange::default()
        },
        ..DomainChange::default()
    };
    let memory = DomainChange {
        machine: MachineChange {
            memory: Some(ByteSize::gib(8)),
            ..MachineChange::default()
        },
        ..DomainChange::default()
    };
    for change in [cpus(4), memory] {
        let refused = changed(&xml, &next_metadata(), &change).expect_err("refused");
        assert!(refused.contains("NUMA"), "{refused}");
    }
    let threads = before().replace(r#"cores="2" threads="1""#, r#"cores="1" threads="2""#);
    assert!(changed(&threads, &next_metadata(), &cpus(3)).is_err());
    let four = changed(&threads, &next_metadata(), &cpus(4)).expect("two cores");
    assert!(four.contains(r#"cores="2" threads="2""#), "{four}");
}

#[test]
fn a_guest_that_begins_with_less_memory_goes_on_to_do_so() {
    let ballooned = before().replace(
        "<vcpu>",
        "<currentMemory unit='KiB'>1048576</currentMemory><vcpu>",
    );
    let ballooned = ballooned.replace("<memory unit=\"KiB\">", "<memory unit='KiB'>");
    let to = |memory| DomainChange {
        machine: MachineChange {
            memory: Some(memory),
            ..MachineChange::default()
        },
        ..DomainChange::default()
    };
    let more = changed(&ballooned, &next_metadata(), &to(ByteSize::gib(8))).expect("changed");
    assert!(more.contains("<currentMemory unit='KiB'>1048576<"));
    let less = changed(&ballooned, &next_metadata(), &to(ByteSize::mib(512))).expect("changed");
    assert!(less.contains("<currentMemory unit='KiB'>524288<"), "{less}");
}

/// The sample on another host.
fn elsewhere() -> DomainDefinition {
    let mut definition = sample();
    definition.metadata.generation = 11;
    definition.disk_paths = vec![PathBuf::from("/other/it's here.qcow2")];
    definition.drive_paths = vec![Some(PathBuf::from("/cache/win11.iso"))];
    definition.nvram_path = PathBuf::from("/other/nvram.fd");
    definition.serial_log = None;
    definition
}

#[test]
fn a_definition_that_travels_takes_no_path_and_no_secret_along() {
    let mut home = before();
    home = home.replace(
        "<nvram>",
        "<loader readonly='yes' secure='yes' type='pflash'>/home/OVMF.fd</loader><nvram template='/home/VARS.fd'>",
    );
    home = home.replace("<devices>", "<devices><emulator>/home/qemu</emulator>");
    let carried = portable(&home).expect("portable");
    for secret in ["MIIK", "fleetward:vm"] {
        assert!(!carried.contains(secret), "{secret} travels");
    }
    let there = adapted(&carried, &elsewhere(), Accelerator::Kvm, |_| false).expect("adapted");
    for path in [
        "/home/OVMF.fd",
        "/home/VARS.fd",
        "/home/qemu",
        "/srv/a &amp; b/sda.qcow2",
        "/srv/win11.iso",
        "/var/log/vm/",
    ] {
        assert!(!there.contains(path), "{path} is the other host's: {there}");
    }
    let document = Document::parse(&there).expect("well-formed");
    let files: Vec<_> = document
        .descendants()
        .filter(|node| node.has_tag_name("source"))
        .filter_map(|source| source.attribute("file"))
        .collect();
    assert_eq!(files, ["/other/it's here.qcow2", "/cache/win11.iso"]);
    let kept = adapted(&carried, &elsewhere(), Accelerator::Kvm, |_| true).expect("adapted");
    assert!(kept.contains("/home/qemu"), "a program that is here too");
}

#[test]
fn a_definition_of_another_domain_is_not_taken_over() {
    let carried = portable(&before()).expect("portable");
    let other = carried.replace(
        "6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01",
        "6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b02",
    );
    assert!(adapted(&other, &elsewhere(), Accelerator::Kvm, |_| true).is_err());
}

#[test]
fn without_kvm_nothing_is_left_that_only_kvm_has() {
    let carried = portable(&before()).expect("portable");
    let there = adapted(&carried, &elsewhere(), Accelerator::Tcg, |_| true).expect("adapted");
    assert!(!there.contains("hyperv") && there.contains("maximum"));
    assert!(there.starts_with(r#"<domain type="qemu""#));
}

#[test]
fn a_name_is_escaped() {
    let renamed = named(&before(), "a & b").expect("named");
    assert_eq!(name_of(&renamed).as_deref(), Some("a & b"));
}

fn cards(xml: &str) -> Vec<fleetward_hypervisor::NicSeen> {
    defined(xml).expect("whole").nics
}

#[test]
fn of_a_card_only_what_is_asked_for_changes() {
    // As an older program wrote it, without an id, and with a limit that an administrator gave it.
    let limit = "<bandwidth><inbound average='1000'/></bandwidth>";
    let old = before()
        .replace("<alias name=\"ua-nic-0\"/>", limit)
        .replace("type=\"e1000e\"", "type=\"rtl8139\"");
    let change = NicDeviceChange {
        parts: vec![NicPart::Network, NicPart::Link],
        ..nic(0, Some("br-lan"))
    };
    let after = changed(&old, &next_metadata(), &with_nic(change.clone())).expect("possible");
    let card = &cards(&after)[0];
    assert_eq!(cards(&after).len(), 1);
    assert!(after.contains(limit), "{after}");
    assert_eq!(card.model, "rtl8139", "not named");
    assert_eq!(card.vlan, None, "not named");
    assert_eq!(card.link, NicLink::Down);
    assert_eq!(
        card.place.as_ref().and_then(NetworkPlace::bridge),
        Some("br-lan")
    );
    let again = changed(&after, &next_metadata(), &with_nic(change)).expect("possible");
    assert_eq!(cards(&again), cards(&after), "a repeat changes nothing");
}

#[test]
fn cards_are_found_by_id_before_address() {
    let with_two = changed(
        &before(),
        &next_metadata(),
        &with_nic(nic(7, Some("br-lan"))),
    );
    let with_two = with_two.expect("possible");
    assert_eq!(
        cards(&with_two)[1].id.as_ref().map(DeviceId::as_str),
        Some("nic-7")
    );
    let again = changed(
        &with_two,
        &next_metadata(),
        &with_nic(nic(7, Some("br-lan"))),
    );
    assert_eq!(cards(&again.expect("possible")).len(), 2, "added once");
    // Another card has the address that this one is said to have had.
    let removed = NicDeviceChange {
        macs: vec!["52:54:00:12:34:56".into()],
        ..nic(7, None)
    };
    let left = changed(&with_two, &next_metadata(), &with_nic(removed)).expect("possible");
    assert_eq!(cards(&left).len(), 1);
    assert_eq!(cards(&left)[0].mac, "52:54:00:12:34:56");
}

#[test]
fn a_card_moves_to_the_bridge_that_its_network_is_there() {
    let bridge = |name: &str| NetworkPlace::Bridge {
        bridge: name.to_owned(),
    };
    let here = changed(&before(), &next_metadata(), &with_nic(nic(7, Some("br0"))));
    let places = [
        ("52:54:00:00:00:07".to_owned(), bridge("br1")),
        ("52:54:00:12:34:56".to_owned(), bridge("br1")),
    ];
    let there = with_nic_places(&here.expect("possible"), &places).expect("whole");
    let cards = cards(&there);
    assert_eq!(cards[0].place, Some(NetworkPlace::Nat), "user mode stays");
    assert_eq!(cards[1].place, Some(bridge("br1")));
    assert_eq!(cards[1].vlan.map(u16::from), Some(7));
}
