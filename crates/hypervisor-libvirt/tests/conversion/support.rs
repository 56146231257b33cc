//! Makes disks with real programs, and converts them.

use fleetward_hypervisor::{Conversion, ConversionError, ConversionProgress, Converted, Converter};
use fleetward_hypervisor_libvirt::{ConfinedConverter, ConversionLimits};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub(crate) const USER: &str = "nobody";
pub(crate) const MIB: u64 = 1 << 20;

/// Small enough for a test to meet them.
pub(crate) const LIMITS: ConversionLimits = ConversionLimits {
    memory: 1 << 30,
    time: Duration::from_secs(20),
    disk: 1 << 36,
    unpacked: 64 << 20,
};

/// A disk of 24 MiB with a boot sector, some content and holes.
pub(crate) fn disk(directory: &Path) -> PathBuf {
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
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Made by qemu-img from the disk.
pub(crate) fn foreign(disk: &Path, format: &str, options: &str) -> PathBuf {
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
pub(crate) fn packed(path: &Path, program: &str, arguments: &[&str]) -> PathBuf {
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
pub(crate) fn ova(disks: &[&Path]) -> PathBuf {
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
pub(crate) async fn convert_with(
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

pub(crate) async fn convert(path: &Path) -> Result<Vec<&'static str>, ConversionError> {
    let converted = convert_with(&ConfinedConverter::find(USER), path, None, None).await;
    converted.map(|(found, ..)| found)
}

pub(crate) async fn refused(path: &Path) -> ConversionError {
    match convert(path).await {
        Ok(found) => panic!("{} was taken as {found:?}", path.display()),
        Err(refused) => refused,
    }
}

/// Waits until no process has the directory in its command line.
pub(crate) fn nothing_runs(directory: &Path) {
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
pub(crate) fn is_open(path: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let others = processes.filter(|entry| entry.file_name() != *std::process::id().to_string());
    let descriptors = others.filter_map(|entry| fs::read_dir(entry.path().join("fd")).ok());
    let mut files = descriptors.flatten().flatten();
    files.any(|file| fs::read_link(file.path()).is_ok_and(|link| link == path))
}

pub(crate) fn same(one: &Path, other: &Path, disk_is_longer: bool) {
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
