use super::*;
use crate::machine::{BootFirst, Clock};
use crate::vm::{DiskBus, Profile, VmMetadata};
use crate::{ByteSize, Labels, NicFilter, NicLink, VmId};
use serde_json::json;
use time::OffsetDateTime;

/// What the programs before versions wrote, letter by letter.
const V1: &str = r#"{"id":"6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01","name":"win11-01","group":"default","profile":"windows-11","cpus":2,"memory":4294967296,"firmware":{"type":"uefi","secure_boot":true},"tpm":true,"disks":[{"target":"sda","bus":"sata","pool":"default","volume":"6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01-sda.qcow2","size":68719476736}],"cdrom":{"image":"win11","sha256":"00ab"},"mac":"52:54:00:12:34:56","labels":{"owner":"ops"},"created":"1970-01-01T00:00:00Z"}"#;

/// The same without what may be absent.
const V1_SMALL: &str = r#"{"id":"6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01","name":"web","group":"default","profile":"linux","cpus":1,"memory":1073741824,"firmware":{"type":"uefi","secure_boot":false},"tpm":false,"disks":[],"labels":{},"created":"1970-01-01T00:00:00Z"}"#;

/// What version 2 looks like.
const V2: &str = r#"{"v2":{"id":"6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01","name":"win11-01","group":"default","profile":"windows-11","cpus":2,"memory":4294967296,"firmware":{"type":"uefi","secure_boot":true},"tpm":true,"disks":[{"id":"disk-sda","target":"sda","bus":"sata","pool":"default","volume":"6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01-sda.qcow2","size":68719476736}],"nics":[{"id":"nic-0","network":"nat","model":"e1000e","mac":"52:54:00:12:34:56"}],"drives":[{"id":"drive-sdb","target":"sdb","medium":{"image":"win11","sha256":"00ab"}}],"description":"Schreibmaschine 🔒","autostart":true,"labels":{"owner":"ops"},"created":"1970-01-01T00:00:00Z"}}"#;

fn windows() -> VmSpec {
    let id: VmId = "6b0d7a52-94c8-4f66-b2f4-0f4a5b1f5b01".parse().expect("id");
    let disks = vec![DiskSpec::new(
        "sda",
        DiskBus::Sata,
        Default::default(),
        format!("{id}-sda.qcow2"),
        ByteSize::gib(64),
    )];
    let medium = Medium {
        image: "win11".parse().expect("name"),
        sha256: "00ab".into(),
    };
    let name = "win11-01".parse().expect("name");
    VmSpec {
        cpus: 2,
        memory: ByteSize::gib(4),
        nics: vec![NicSpec::first(Profile::Windows11, "52:54:00:12:34:56")],
        drives: vec![DriveSpec::first(&disks, Some(medium))],
        disks,
        labels: Labels::from_iter([("owner".parse().expect("name"), "ops".to_owned())]),
        ..VmSpec::bare(id, name, Profile::Windows11, OffsetDateTime::UNIX_EPOCH)
    }
}

fn written(spec: &VmSpec) -> String {
    serde_json::to_string(spec).expect("written")
}

fn read(text: &str) -> VmSpec {
    serde_json::from_str(text).expect("read")
}

#[test]
fn a_vm_that_version_1_can_say_is_written_as_old_programs_wrote_it() {
    assert_eq!(written(&windows()), V1);
    assert_eq!(read(V1), windows());
    assert_eq!(written(&read(V1_SMALL)), V1_SMALL);
}

#[test]
fn a_vm_that_version_1_cannot_say_is_written_as_version_2() {
    let mut spec = windows();
    spec.description = "Schreibmaschine 🔒".parse().expect("short");
    spec.autostart = true;
    assert_eq!(written(&spec), V2);
    assert_eq!(read(V2), spec);
}

/// Whatever old programs would lose makes it version 2.
#[test]
fn every_part_that_version_1_lacks_makes_it_version_2() {
    let changes: [fn(&mut VmSpec); 11] = [
        |s| s.description = "x".parse().expect("short"),
        |s| s.autostart = true,
        |s| s.nics.push(s.nics[0].clone()),
        |s| s.nics[0].id = "nic-7".parse().expect("name"),
        |s| s.nics[0].model = NicModel::Virtio,
        |s| s.drives[0].medium = None,
        |s| s.drives[0].target = "sdz".into(),
        |s| s.drives.push(DriveSpec::at("sdc".into(), None)),
        |s| s.disks[0].id = "disk-data".parse().expect("name"),
        |s| drop(s.disks[0].unknown.insert("cache".into(), json!("none"))),
        |s| drop(s.unknown.insert("cores".into(), json!(2))),
    ];
    for change in changes {
        let mut spec = windows();
        change(&mut spec);
        assert_eq!(spec.version(), 2, "{spec:?}");
        assert_eq!(read(&written(&spec)), spec);
    }
    let mut spec = windows();
    spec.drives.clear();
    spec.nics.clear();
    assert_eq!(spec.version(), 1);
    assert_eq!(read(&written(&spec)), spec);
}

/// Whatever programs of version 2 would not carry out makes it version 3.
#[test]
fn every_part_that_version_2_lacks_makes_it_version_3() {
    let changes: [fn(&mut VmSpec); 10] = [
        |s| s.drives[0].bus = DiskBus::Scsi,
        |s| s.restart_on_crash = true,
        |s| s.boot = BootFirst::Iso,
        |s| s.clock = Some(Clock::Utc),
        |s| s.profile = Profile::WindowsServer,
        |s| s.drives[0].seed = true,
        |s| s.nics[0].network = "office".parse().expect("name"),
        |s| s.nics[0].vlan = Some("7".parse().expect("number")),
        |s| s.nics[0].link = NicLink::Down,
        |s| s.nics[0].filter = Some(NicFilter::CleanTraffic),
    ];
    for change in changes {
        let mut spec = windows();
        change(&mut spec);
        assert_eq!(spec.version(), 3, "{spec:?}");
        assert!(written(&spec).starts_with(r#"{"v3":{"#));
        assert_eq!(read(&written(&spec)), spec);
    }
}

#[test]
fn what_is_not_known_is_written_again() {
    let mut text: Value = serde_json::from_str(V2).expect("JSON");
    let v2 = &mut text["v2"];
    v2["watchdog"] = json!(["reset", "pause"]);
    v2["disks"][0]["cache"] = json!("none");
    v2["nics"][0]["queues"] = json!(7);
    v2["drives"][0]["locked"] = json!(true);
    let mut spec: VmSpec = serde_json::from_value(text.clone()).expect("read");
    spec.cpus = 4;
    text["v2"]["cpus"] = json!(4);
    assert_eq!(serde_json::to_value(&spec).expect("written"), text);

    let mut old: Value = serde_json::from_str(V1).expect("JSON");
    old["later"] = json!({ "a": [1] });
    let spec: VmSpec = serde_json::from_value(old).expect("read");
    let again = serde_json::to_value(&spec).expect("written");
    assert_eq!(again["v2"]["later"], json!({ "a": [1] }));
}

#[test]
fn a_record_keeps_what_is_not_known_beside_the_specification() {
    let record = format!(r#"{{"spec":{V1},"generation":3,"later":{{"x":1}}}}"#);
    let metadata = VmMetadata::from_json(&record)
        .expect("whole")
        .expect("known");
    assert_eq!(metadata.generation, 3);
    assert_eq!(serde_json::to_string(&metadata).expect("written"), record);
}

/// A program that knows only version 1 must not take version 2 for a VM without devices.
#[test]
fn version_2_is_nothing_to_a_reader_of_version_1() {
    serde_json::from_str::<v1::VmSpec>(V2).expect_err("no fields of version 1");
}

#[test]
fn what_is_newer_than_known_is_told_apart_from_damage() {
    let record = |spec: &str| format!(r#"{{"spec":{spec},"generation":3}}"#);
    let newer = VmMetadata::from_json(&record(r#"{"v4":{"id":7}}"#));
    assert_eq!(newer, Some(Err(NewerSpec { version: 4 })));
    let value = V2.replace("e1000e", "vmxnet4");
    let newer = VmMetadata::from_json(&record(&value));
    assert_eq!(newer, Some(Err(NewerSpec { version: 2 })));
    let problem = serde_json::from_str::<VmSpec>(r#"{"v4":{}}"#).expect_err("newer");
    assert!(problem.to_string().contains("version 4"), "{problem}");
    for damaged in ["{}", "7", r#"{"id":7}"#, ""] {
        assert_eq!(VmMetadata::from_json(&record(damaged)), None, "{damaged}");
    }
}

#[test]
fn ids_of_old_devices_depend_on_nothing_but_the_devices() {
    let old = V1.replace(
        r#""disks":[{"target":"sda""#,
        r#""disks":[{"target":"vda","bus":"virtio","pool":"default","volume":"a","size":1},{"target":"a/b","bus":"sata","pool":"default","volume":"b","size":1},{"target":"sda""#,
    );
    let spec = read(&old);
    let ids: Vec<_> = spec.disks.iter().map(|disk| disk.id.as_str()).collect();
    assert_eq!(ids, ["disk-vda", "disk-at-1", "disk-sda"]);
    assert_eq!(spec.drives[0].id.as_str(), "drive-sdb");
    assert_eq!(written(&spec), old, "and it is version 1 still");
}

#[test]
fn a_description_is_any_text_of_some_length() {
    let text = "ß".repeat(Description::MAX / 2);
    assert_eq!(text.parse::<Description>().expect("fits").as_str(), text);
    let longer = format!("{text}x");
    assert_eq!(
        longer.parse::<Description>(),
        Err(DescriptionError {
            length: Description::MAX + 1
        })
    );
}
