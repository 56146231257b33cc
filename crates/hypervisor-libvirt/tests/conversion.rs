//! Disks from elsewhere, made by real programs, through the real confinement: content byte for byte, refusals, limits, and
//! many damaged files of each kind. Needs root, bubblewrap and qemu-img.
//!
//! `FLEETWARD_MUTANTS` says how many damaged files of each kind there are (default 6).

#![allow(clippy::unwrap_used, reason = "a panic here is a failed claim")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_hypervisor::{Conversion, ConversionError, ConversionProgress, Converted, Converter};
use fleetward_hypervisor_libvirt::{ConfinedConverter, ConversionLimits};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const USER: &str = "nobody";
const MIB: u64 = 1 << 20;

/// A disk of 24 MiB with a boot sector, some content and holes.
fn disk(directory: &Path) -> PathBuf {
    let path = directory.join("disk.raw");
    let file = File::create(&path).unwrap();
    file.set_len(24 * MIB).unwrap();
    let mut random = Random(7);
    let noise: Vec<u8> = (0..3 * MIB).map(|_| random.next() as u8).collect();
    file.write_all_at(&noise, MIB).unwrap();
    file.write_all_at(&noise[..4096], 23 * MIB + 512).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    path
}

/// Numbers that are the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Made by qemu-img from the disk.
fn foreign(disk: &Path, format: &str, options: &str) -> PathBuf {
    let path = disk.with_file_name(format!("{format}-{}", options.replace(['=', ','], "-")));
    let mut arguments = vec!["convert", "-f", "raw", "-O", format];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    run(
        "qemu-img",
        &[&arguments[..], &[text(disk), text(&path)]].concat(),
    );
    path
}

/// Compressed by the program, into a file with a name that says nothing.
fn packed(path: &Path, program: &str, arguments: &[&str]) -> PathBuf {
    let into = path.with_file_name(format!("{}-{program}", path.file_name().unwrap().display()));
    let output = Command::new(program)
        .args(arguments)
        .stdin(File::open(path).unwrap())
        .stdout(File::create(&into).unwrap())
        .status();
    assert!(output.unwrap().success());
    into
}

const ENVELOPE: &str = r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<References>FILES</References><DiskSection>DISKS</DiskSection></Envelope>"#;

/// An OVA of those disks, whose files are called `disk1.vmdk` and so on.
fn ova(disks: &[&Path]) -> PathBuf {
    let directory = disks[0].with_file_name("ova.d");
    fs::create_dir_all(&directory).unwrap();
    let (mut files, mut sections, mut names) = (String::new(), String::new(), Vec::new());
    for (number, disk) in (1..).zip(disks) {
        let name = format!("disk{number}.vmdk");
        fs::copy(disk, directory.join(&name)).unwrap();
        files += &format!(r#"<File ovf:id="file{number}" ovf:href="{name}"/>"#);
        sections += &format!(r#"<Disk ovf:diskId="id{number}" ovf:fileRef="file{number}"/>"#);
        names.push(name);
    }
    let descriptor = ENVELOPE
        .replace("FILES", &files)
        .replace("DISKS", &sections);
    fs::write(directory.join("vm.ovf"), descriptor).unwrap();
    let into = directory.with_file_name(format!("ova-{}", disks.len()));
    let mut arguments = vec![
        "--format=ustar",
        "-C",
        text(&directory),
        "-cf",
        text(&into),
        "vm.ovf",
    ];
    arguments.extend(names.iter().map(String::as_str));
    run("tar", &arguments);
    into
}

/// Converts a copy of the file; gives what was found and the disk as a raw file, or the refusal. No process is left.
async fn convert_with(
    converter: &ConfinedConverter,
    path: &Path,
    wanted: Option<&str>,
    disk: Option<&str>,
) -> Result<
    (
        Vec<&'static str>,
        tempfile::NamedTempFile,
        Vec<ConversionProgress>,
    ),
    ConversionError,
> {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::copy(path, &source).unwrap();
    let conversion = Conversion {
        source: &source,
        directory: directory.path(),
        wanted,
        disk,
    };
    let progress = Mutex::new(Vec::new());
    let converted = converter
        .convert(conversion, &|told| progress.lock().unwrap().push(told))
        .await;
    nothing_runs(directory.path());
    let Converted { path, found } = converted?;
    let raw = tempfile::NamedTempFile::new().unwrap();
    run(
        "qemu-img",
        &["convert", "-O", "raw", text(&path), text(raw.path())],
    );
    Ok((found, raw, progress.into_inner().unwrap()))
}

async fn convert(path: &Path) -> Result<Vec<&'static str>, ConversionError> {
    let converted = convert_with(&ConfinedConverter::find(USER), path, None, None).await;
    converted.map(|(found, ..)| found)
}

async fn refused(path: &Path) -> ConversionError {
    match convert(path).await {
        Ok(found) => panic!("{} was taken as {found:?}", path.display()),
        Err(refused) => refused,
    }
}

/// Waits until no process has the directory in its command line.
fn nothing_runs(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let running: Vec<_> = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains("bwrap") && line.contains(text(directory)))
            .collect();
        if running.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{running:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a program other than this one has the file open.
fn is_open(path: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let others = processes.filter(|entry| entry.file_name() != *std::process::id().to_string());
    let descriptors = others.filter_map(|entry| fs::read_dir(entry.path().join("fd")).ok());
    let mut files = descriptors.flatten().flatten();
    files.any(|file| fs::read_link(file.path()).is_ok_and(|link| link == path))
}

fn same(one: &Path, other: &Path, disk_is_longer: bool) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    File::open(one).unwrap().read_to_end(&mut a).unwrap();
    File::open(other).unwrap().read_to_end(&mut b).unwrap();
    // Some formats round the size up.
    assert!(
        b.len() == a.len() || disk_is_longer && b.len() > a.len(),
        "{} {}",
        a.len(),
        b.len()
    );
    assert!(a == b[..a.len()], "the content differs");
    assert!(b[a.len()..].iter().all(|byte| *byte == 0));
}

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
    let before = fs::read(&path).unwrap();
    let mut writer = Command::new("qemu-io")
        .args(["-f", "vhdx", text(&path)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = writer.stdin.take().unwrap();
    input.write_all(b"write -P 0xab 0 1M\nflush\n").unwrap();
    drop(input);
    assert!(writer.wait().unwrap().success());
    // As if the cut had come after the log was written, and before the table was.
    let mut cut = fs::read(&path).unwrap();
    const TABLE: usize = 2 << 20;
    const LOG: usize = 1 << 20;
    cut[TABLE..TABLE + 65536].copy_from_slice(&before[TABLE..TABLE + 65536]);
    assert_eq!(cut[LOG..LOG + 4], *b"loge");
    let log = cut[LOG + 32..LOG + 48].to_vec();
    for header in [64 << 10, 128 << 10] {
        cut[header + 48..header + 64].copy_from_slice(&log);
        cut[header + 4..header + 8].fill(0);
        let sum = crc32c(&cut[header..header + 4096]);
        cut[header + 4..header + 8].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(&path, &cut).unwrap();
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

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| match sum & 1 {
            1 => sum >> 1 ^ 0x82f6_3b78,
            _ => sum >> 1,
        })
    })
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
    let limits = ConversionLimits {
        memory: 1 << 30,
        time: Duration::from_secs(20),
        disk: 1 << 40,
        unpacked: 64 << 20,
    };
    let converter = ConfinedConverter::find(USER).with_limits(limits);
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
        ..limits
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
    let begun = async {
        while !is_open(&source) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = converter.convert(conversion, &tell) => panic!("it takes longer"),
        () = begun => {}
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_open(&source) {
        assert!(Instant::now() < deadline, "a process reads on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Header bytes flipped, fields at their extremes, files cut off: each ends in an error or a disk, within its limits.
#[tokio::test]
async fn damaged_files_of_each_kind_end_in_an_error_or_a_disk() {
    let count = std::env::var("FLEETWARD_MUTANTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(6);
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let stream = foreign(&disk, "vmdk", "subformat=streamOptimized");
    let kinds = [
        foreign(&disk, "vhdx", "subformat=dynamic"),
        foreign(&disk, "vhdx", "subformat=fixed"),
        foreign(&disk, "vpc", "subformat=dynamic"),
        foreign(&disk, "vmdk", "subformat=monolithicSparse"),
        ova(&[&stream]),
        foreign(&disk, "vdi", ""),
        packed(&disk, "gzip", &["-1c"]),
        packed(&disk, "xz", &["-1c"]),
        packed(&disk, "zstd", &["-qc"]),
        packed(&disk, "bzip2", &["-1c"]),
        stream,
    ];
    let limits = ConversionLimits {
        memory: 1 << 30,
        time: Duration::from_secs(15),
        disk: 1 << 36,
        unpacked: 64 << 20,
    };
    let converter = ConfinedConverter::find(USER).with_limits(limits);
    for path in kinds {
        let whole = fs::read(&path).unwrap();
        let mut random = Random(whole.len() as u64 | 1);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..count {
            let mutant = mutate(&whole, &mut random);
            let directory = tempfile::tempdir().unwrap();
            let source = directory.path().join("source");
            fs::write(&source, mutant).unwrap();
            let conversion = Conversion {
                source: &source,
                directory: directory.path(),
                wanted: None,
                disk: None,
            };
            let began = Instant::now();
            match converter.convert(conversion, &|_| {}).await {
                Ok(_) => taken += 1,
                Err(ConversionError::Unable(why)) => panic!("{path:?}: {why}"),
                Err(ConversionError::File {
                    attempt, source, ..
                }) => panic!("{path:?}: {attempt}: {source}"),
                Err(_) => refused += 1,
            }
            assert!(began.elapsed() < Duration::from_secs(90), "{path:?}");
            let made = fs::read_dir(directory.path()).unwrap().flatten();
            let largest = made
                .map(|file| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512)
                .max();
            assert!(
                largest.unwrap_or_default() < 256 << 20,
                "{path:?}: {largest:?}"
            );
            nothing_runs(directory.path());
        }
        println!(
            "{}: {taken} taken, {refused} refused",
            path.file_name().unwrap().display()
        );
    }
}

/// One to four changes, most of them where formats keep their headers and tables.
fn mutate(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut file = whole.to_vec();
    let places = [512, 4096, 64 << 10, 320 << 10, 3 << 20 | 128 << 10];
    for _ in 0..=random.below(4) {
        let end = places[random.below(places.len() as u64) as usize].min(file.len() as u64);
        let at = random.below(end) as usize & !3;
        let extremes = [
            0,
            1,
            u64::MAX,
            i64::MAX as u64,
            1 << 31,
            u64::from(u32::MAX),
            1 << 62,
            random.next(),
        ];
        let value = extremes[random.below(extremes.len() as u64) as usize];
        match random.below(8) {
            0..=2 => file[at] ^= 1 << random.below(8),
            3 if at + 4 <= file.len() => {
                file[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes())
            }
            4 if at + 4 <= file.len() => {
                file[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes())
            }
            5 if at + 8 <= file.len() => file[at..at + 8].copy_from_slice(&value.to_le_bytes()),
            6 if at + 8 <= file.len() => file[at..at + 8].copy_from_slice(&value.to_be_bytes()),
            _ => file.truncate(random.below(file.len() as u64) as usize + 1),
        }
    }
    // What says which format it is stays: else hardly any would be read as one.
    let magic = whole.len().min(file.len()).min(8);
    file[..magic].copy_from_slice(&whole[..magic]);
    file
}
