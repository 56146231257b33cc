//! Disks from elsewhere, made by real programs, through the real confinement: content byte for byte, refusals, limits, and
//! many damaged files of each kind. Needs root, bubblewrap and qemu-img.
//!
//! `FLEETWARD_MUTANTS` says how many damaged files of each kind there are (default 6).

#![allow(clippy::unwrap_used, reason = "a panic here is a failed claim")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

mod damaged;
mod support;

use fleetward_hypervisor::{Conversion, ConversionError, Converter};
use fleetward_hypervisor_libvirt::{ConfinedConverter, ConversionLimits};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::*;

#[tokio::test]
async fn every_format_is_converted_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let vhdx = foreign(&disk, "vhdx", "subformat=dynamic");
    let stream = foreign(&disk, "vmdk", "subformat=streamOptimized");
    let qcow2 = foreign(&disk, "qcow2", "");
    let cases: Vec<(PathBuf, &[&str])> = vec![
        (vhdx.clone(), &["vhdx"]),
        (foreign(&disk, "vhdx", "subformat=fixed"), &["vhdx"]),
        (
            foreign(&disk, "vpc", "subformat=dynamic,force_size=on"),
            &["vhd"],
        ),
        (
            foreign(&disk, "vpc", "subformat=fixed,force_size=on"),
            &["vhd"],
        ),
        (
            foreign(&disk, "vmdk", "subformat=monolithicSparse"),
            &["vmdk"],
        ),
        (stream.clone(), &["vmdk"]),
        (foreign(&disk, "vdi", ""), &["vdi"]),
        (foreign(&disk, "vdi", "static=on"), &["vdi"]),
        (ova(&[&stream]), &["ova", "vmdk"]),
        (packed(&disk, "gzip", &["-c"]), &["gz", "raw"]),
        (packed(&disk, "xz", &["-1c"]), &["xz", "raw"]),
        (packed(&disk, "zstd", &["-qc"]), &["zst", "raw"]),
        (packed(&disk, "bzip2", &["-c"]), &["bz2", "raw"]),
        (packed(&qcow2, "xz", &["-1c"]), &["xz", "qcow2"]),
        (packed(&vhdx, "zstd", &["-qc"]), &["zst", "vhdx"]),
        (
            packed(&ova(&[&stream]), "gzip", &["-c"]),
            &["gz", "ova", "vmdk"],
        ),
    ];
    let converter = ConfinedConverter::find(USER);
    converter.ready().await.unwrap();
    for (path, expected) in cases {
        let converted = convert_with(&converter, &path, None, None).await;
        let (found, raw, progress) = converted.unwrap_or_else(|e| panic!("{path:?}: {e}"));
        assert_eq!(found, expected, "{path:?}");
        same(&disk, raw.path(), found.contains(&"vhd"));
        assert!(progress.iter().all(|told| told.permille <= 1000));
        let converts = found.last() != Some(&"qcow2");
        let at_end = progress.last().map(|told| (told.step, told.permille));
        assert!(
            !converts || at_end == Some(("convert", 1000)),
            "{path:?}: {at_end:?}"
        );
    }
}

#[tokio::test]
async fn a_vhdx_whose_writer_was_cut_off_gets_its_log_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.vhdx");
    run(
        "qemu-img",
        &["create", "-q", "-f", "vhdx", text(&path), "24M"],
    );
    // The cut comes after the log is written, and before the table of blocks at 2 MiB is.
    let file = format!(
        "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
         file.inject-error.0.event=pwritev,file.inject-error.0.sector=4096",
        text(&path)
    );
    let writer = Command::new("qemu-io")
        .args(["-c", "write -P 0xab 0 1M", "--image-opts", &file])
        .output()
        .unwrap();
    assert!(!writer.status.success(), "nothing was cut off: {writer:?}");
    let read = Command::new("qemu-img")
        .args(["info", text(&path)])
        .output();
    let said = String::from_utf8(read.unwrap().stderr).unwrap();
    assert!(
        said.contains("needs to be replayed"),
        "the test's file is as meant: {said}"
    );

    let converter = ConfinedConverter::find(USER);
    let (_, raw, _) = convert_with(&converter, &path, None, None).await.unwrap();
    let content = fs::read(raw.path()).unwrap();
    assert_eq!(content.len() as u64, 24 * MIB);
    assert!(content[..1 << 20].iter().all(|byte| *byte == 0xab));
    assert!(content[1 << 20..].iter().all(|byte| *byte == 0));
}

/// Changes `length` bytes at the offset in a VHDX's region of metadata, where qemu-img puts it.
fn vhdx_with(path: &Path, name: &str, offset: u64, value: u32) -> PathBuf {
    let changed = path.with_file_name(name);
    fs::copy(path, &changed).unwrap();
    let file = File::options().write(true).open(&changed).unwrap();
    file.write_all_at(&value.to_le_bytes(), (3 << 20) + offset)
        .unwrap();
    changed
}

#[tokio::test]
async fn sectors_of_4096_bytes_are_taken_where_they_are_physical_only() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let vhdx = foreign(&disk, "vhdx", "subformat=dynamic");
    let physical = vhdx_with(&vhdx, "512e.vhdx", 65572, 4096);
    let converter = ConfinedConverter::find(USER);
    let (_, raw, _) = convert_with(&converter, &physical, None, None)
        .await
        .unwrap();
    same(&disk, raw.path(), false);
    let native = refused(&vhdx_with(&vhdx, "4kn.vhdx", 65568, 4096)).await;
    assert!(
        matches!(&native, ConversionError::Unusable(because) if because.contains("4K native")),
        "{native}"
    );
}

#[tokio::test]
async fn a_disk_that_needs_other_files_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let vhdx = foreign(&disk, "vhdx", "subformat=dynamic");
    let child = vhdx_with(&vhdx, "child.vhdx", 65536 + 4, 2);
    let sparse = foreign(&disk, "vmdk", "subformat=monolithicSparse");
    let overlay = directory.path().join("overlay.vmdk");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-F",
            "vmdk",
            "-b",
            text(&sparse),
            text(&overlay),
        ],
    );
    let flat = foreign(&disk, "vmdk", "subformat=monolithicFlat");
    let vdi = foreign(&disk, "vdi", "");
    let file = File::options().write(true).open(&vdi).unwrap();
    file.write_all_at(&4u32.to_le_bytes(), 0x4c).unwrap();
    let vpc = foreign(&disk, "vpc", "subformat=dynamic");
    let file = File::options().write(true).open(&vpc).unwrap();
    file.write_all_at(&4u32.to_be_bytes(), 60).unwrap();
    for path in [child, overlay, flat, vdi, vpc] {
        let refused = refused(&path).await;
        assert!(
            matches!(refused, ConversionError::NeedsOthers(_)),
            "{path:?}: {refused}"
        );
    }
}

#[tokio::test]
async fn an_extent_elsewhere_is_not_there_in_the_confinement() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, vec![b's'; MIB as usize]).unwrap();
    let disk = disk(directory.path());
    let sparse = foreign(&disk, "vmdk", "subformat=monolithicSparse");
    // A qcow2 over a file of the host, in a wrapping that hides it from the controller.
    let backed = directory.path().join("backed.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            text(&secret),
            text(&backed),
        ],
    );
    let refused_backed = refused(&packed(&backed, "gzip", &["-c"])).await;
    assert!(
        refused_backed.to_string().contains("backing file"),
        "{refused_backed}"
    );
    // A parent that the check of the header does not see: the confinement holds.
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(&sparse)
        .unwrap();
    let mut head = [0; 4096];
    file.seek(SeekFrom::Start(512)).unwrap();
    file.read_exact(&mut head).unwrap();
    let text_of = String::from_utf8_lossy(&head).into_owned();
    let at = text_of.find("parentCID=ffffffff").expect("a descriptor");
    let hint = format!(
        "PARENTCID=1\nparentCID=00000001 \nparentFileNameHint=\"{}\"\n",
        secret.display()
    );
    file.write_all_at(hint.as_bytes(), 512 + at as u64).unwrap();
    let refused = refused(&sparse).await;
    assert!(
        matches!(
            refused,
            ConversionError::NeedsOthers(_) | ConversionError::Unusable(_)
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn one_disk_of_an_archive_is_taken_and_it_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let stream = foreign(&disk, "vmdk", "subformat=streamOptimized");
    let other = directory.path().join("other.vmdk");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            text(&other),
            "1M",
        ],
    );
    let both = ova(&[&other, &stream]);
    let several = refused(&both).await;
    assert!(
        matches!(&several, ConversionError::SeveralDisks(names) if *names == ["disk1.vmdk", "disk2.vmdk"]),
        "{several}"
    );
    let converter = ConfinedConverter::find(USER);
    let (_, raw, _) = convert_with(&converter, &both, None, Some("disk2.vmdk"))
        .await
        .unwrap();
    same(&disk, raw.path(), false);
    assert!(
        convert_with(&converter, &both, None, Some("disk3.vmdk"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_file_of_a_zip_is_taken_or_it_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let vhdx = foreign(&disk, "vhdx", "subformat=dynamic");
    // As an exported VM lies in its archive, with a name that is a pattern.
    let inside = directory.path().join("vm/Virtual Hard Disks");
    fs::create_dir_all(&inside).unwrap();
    fs::copy(&vhdx, inside.join("w[i]n*.vhdx")).unwrap();
    let zip = |name: &str| {
        let path = directory.path().join(name);
        let arguments = ["-m", "zipfile", "-c", text(&path), "vm"];
        let run = Command::new("python3")
            .args(arguments)
            .current_dir(&directory)
            .status();
        assert!(run.unwrap().success());
        path
    };
    let one = zip("one");
    let converter = ConfinedConverter::find(USER);
    let (found, raw, _) = convert_with(&converter, &one, None, None).await.unwrap();
    assert_eq!(found, ["zip", "vhdx"]);
    same(&disk, raw.path(), false);
    fs::write(directory.path().join("vm/settings.vmcx"), b"settings").unwrap();
    let both = zip("both");
    let several = refused(&both).await;
    assert!(
        matches!(several, ConversionError::SeveralDisks(_)),
        "{several}"
    );
    let name = "vm/Virtual Hard Disks/w[i]n*.vhdx";
    assert!(several.to_string().contains(name), "{several}");
    let (_, raw, _) = convert_with(&converter, &both, None, Some(name))
        .await
        .unwrap();
    same(&disk, raw.path(), false);
    let no_choice = convert_with(&converter, &vhdx, None, Some(name)).await;
    assert!(matches!(no_choice, Err(ConversionError::Unusable(_))));
}

#[tokio::test]
async fn an_archive_with_long_names_is_read_and_none_is_read_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let stream = foreign(&disk, "vmdk", "subformat=streamOptimized");
    let whole = ova(&[&stream]);
    let inside = directory.path().join("ova.d");
    let long = format!("{}.vmdk", "d".repeat(150));
    fs::rename(inside.join("disk1.vmdk"), inside.join(&long)).unwrap();
    let descriptor = fs::read_to_string(inside.join("vm.ovf")).unwrap();
    fs::write(
        inside.join("vm.ovf"),
        descriptor.replace("disk1.vmdk", &long),
    )
    .unwrap();
    let converter = ConfinedConverter::find(USER);
    for format in ["--format=gnu", "--format=pax"] {
        run(
            "tar",
            &[
                format,
                "-C",
                text(&inside),
                "-cf",
                text(&whole),
                "vm.ovf",
                &long,
            ],
        );
        let converted = convert_with(&converter, &whole, None, None).await;
        let (_, raw, _) = converted.unwrap_or_else(|error| panic!("{format}: {error}"));
        same(&disk, raw.path(), false);
    }
    // A name of 8 GiB, of which little is there.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_path("././@LongLink").unwrap();
    header.set_size(8 << 30);
    header.set_cksum();
    let endless = directory.path().join("endless");
    let file = File::create(&endless).unwrap();
    file.write_all_at(header.as_bytes(), 0).unwrap();
    file.set_len(8 << 30).unwrap();
    let source = directory.path().join("alone");
    fs::create_dir(&source).unwrap();
    let moved = source.join("source");
    fs::rename(&endless, &moved).unwrap();
    let conversion = Conversion {
        source: &moved,
        directory: &source,
        wanted: None,
        disk: None,
    };
    assert!(converter.convert(conversion, &|_| {}).await.is_err());
}

#[tokio::test]
async fn a_format_that_is_asked_for_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let vdi = foreign(&disk, "vdi", "");
    let converter = ConfinedConverter::find(USER);
    convert_with(&converter, &vdi, Some("vdi"), None)
        .await
        .unwrap();
    let refused = convert_with(&converter, &vdi, Some("vhdx"), None).await;
    assert!(matches!(refused, Err(ConversionError::Unusable(because)) if because.contains("vdi")));
}

#[tokio::test]
async fn small_files_that_grow_beyond_measure_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let converter = ConfinedConverter::find(USER).with_limits(LIMITS);
    let zeros = directory.path().join("zeros");
    File::create(&zeros).unwrap().set_len(256 << 20).unwrap();
    let huge = directory.path().join("huge.vhdx");
    run(
        "qemu-img",
        &["create", "-q", "-f", "vhdx", text(&huge), "2T"],
    );
    // A table all of whose entries name one block: 4 GiB that lie in some 300 KiB.
    let shared = directory.path().join("shared.vdi");
    run(
        "qemu-img",
        &["create", "-q", "-f", "vdi", text(&shared), "4G"],
    );
    let noise: Vec<u8> = (0..MIB).map(|n| (n * 7 + n / 251) as u8 | 1).collect();
    let file = File::options()
        .read(true)
        .write(true)
        .open(&shared)
        .unwrap();
    let mut head = [0; 512];
    file.read_exact_at(&mut head, 0).unwrap();
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let (map, data) = (u64::from(number(0x154)), u64::from(number(0x158)));
    file.write_all_at(&vec![0; 4 * 4096], map).unwrap();
    file.write_all_at(&noise, data).unwrap();
    file.write_all_at(&1u32.to_le_bytes(), 0x184).unwrap();
    for path in [
        packed(&zeros, "xz", &["-1c"]),
        packed(&zeros, "zstd", &["-qc"]),
        huge,
        shared,
    ] {
        let refused = convert_with(&converter, &path, None, None).await.err();
        assert!(
            matches!(refused, Some(ConversionError::OverLimits(_))),
            "{path:?}: {refused:?}"
        );
    }
    let short = ConversionLimits {
        time: Duration::ZERO,
        ..LIMITS
    };
    let converter = ConfinedConverter::find(USER).with_limits(short);
    let stalled = convert_with(&converter, &packed(&zeros, "bzip2", &["-c"]), None, None).await;
    assert!(matches!(stalled, Err(ConversionError::OverLimits(_))));
}

#[tokio::test]
async fn giving_a_conversion_up_ends_its_processes() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    File::create(directory.path().join("zeros"))
        .unwrap()
        .set_len(8 << 30)
        .unwrap();
    let packed = packed(&directory.path().join("zeros"), "zstd", &["-qc"]);
    fs::rename(packed, &source).unwrap();
    let converter = ConfinedConverter::find(USER);
    let conversion = Conversion {
        source: &source,
        directory: directory.path(),
        wanted: None,
        disk: None,
    };
    let tell = |_| {};
    // Also in its first moments, when nothing of it has asked yet to end with anything else.
    for moment in 0..40 {
        let begun = async {
            while !is_open(&source) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(moment * 500)).await;
        };
        tokio::select! {
            _ = converter.convert(conversion, &tell) => panic!("it takes longer"),
            () = begun => {}
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_open(&source) {
        assert!(Instant::now() < deadline, "a process reads on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
