//! Guests' disks: an EFI system partition with Debian's signed loaders, and what else there is, as a compressed qcow2.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::programs::{run, tool};

pub(crate) const MIB: u64 = 1 << 20;

/// A partition: a file with its content.
pub(crate) struct Part<'a> {
    pub(crate) content: &'a Path,
    pub(crate) mib: u64,
    /// `sfdisk`'s name for its type.
    pub(crate) kind: &'static str,
}

/// A qcow2 of `mib` MiB with these partitions, the first at 1 MiB. The last MiB is for the second copy of the table.
pub(crate) fn assemble(parts: &[Part<'_>], mib: u64, work: &Path) -> Result<PathBuf> {
    let disk = work.join("disk.raw");
    let mut file = File::create(&disk)?;
    let mut table = "label: gpt\n".to_owned();
    let mut at = 1;
    for part in parts {
        table.push_str(&format!(
            "start={at}MiB, size={}MiB, type={}\n",
            part.mib, part.kind
        ));
        at += part.mib;
    }
    file.set_len(mib * MIB)?;
    run_with_input(
        Command::new(tool("sfdisk")?).arg("-q").arg(&disk),
        table.as_bytes(),
    )?;
    let mut at = 1;
    for part in parts {
        file.seek(SeekFrom::Start(at * MIB))?;
        std::io::copy(&mut File::open(part.content)?, &mut file)?;
        at += part.mib;
    }
    file.sync_all()?;
    let image = work.join("image.qcow2");
    run(Command::new(tool("qemu-img")?)
        .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
        .arg(&disk)
        .arg(&image))?;
    Ok(image)
}

/// An EFI system partition that boots the kernel of `system` with that initrd, as GRUB is told.
pub(crate) fn system_partition(
    system: &Path,
    initrd: &Path,
    grub_config: &str,
    bytes: u64,
    work: &Path,
) -> Result<PathBuf> {
    let esp = work.join("esp.img");
    File::create(&esp)?.set_len(bytes)?;
    run(Command::new(tool("mkfs.vfat")?)
        .args(["-F", "16", "-n", "ESP"])
        .arg(&esp))?;
    for directory in ["::EFI", "::EFI/BOOT", "::EFI/debian"] {
        run(Command::new(tool("mmd")?)
            .arg("-i")
            .arg(&esp)
            .arg(directory))?;
    }
    let grub = work.join("grub.cfg");
    fs::write(&grub, grub_config)?;
    let kernel = files_in(&system.join("boot"), |name| name.starts_with("vmlinuz"))?
        .pop()
        .context("the kernel package holds no kernel")?;
    for (source, target) in [
        (
            system.join("usr/lib/shim/shimx64.efi.signed"),
            "::EFI/BOOT/BOOTX64.EFI",
        ),
        (
            system.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
            "::EFI/BOOT/grubx64.efi",
        ),
        (grub, "::EFI/debian/grub.cfg"),
        (kernel, "::vmlinuz"),
        (initrd.to_owned(), "::initrd"),
    ] {
        run(Command::new(tool("mcopy")?)
            .arg("-i")
            .arg(&esp)
            .arg(source)
            .arg(target))?;
    }
    Ok(esp)
}

pub(crate) fn files_in(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

/// Feeds `input` from a second thread: both pipes may be smaller than what goes through.
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    let mut stdin = child.stdin.take().context("a piped child has an input")?;
    let mut stdout = child.stdout.take().context("a piped child has an output")?;
    let mut output = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let read = stdout.read_to_end(&mut output);
        // A child that stops reading early says why by its exit status.
        let _ = writer.join();
        read
    })?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(output)
}
