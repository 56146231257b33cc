//! Builds the guest image: a disk with Debian's signed shim, GRUB and kernel, and one program of ours. Works without
//! root, and needs the network once, for three Debian packages. The sources are in `guest/`.
//!
//! ```text
//! 1 MiB   EFI system partition   EFI/BOOT/BOOTX64.EFI (shim), grubx64.efi, EFI/debian/grub.cfg, vmlinuz, initrd
//! 41 MiB  ext4 "lab-state"       the sealed secret and the boot counter
//! ```

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::debian;
use crate::disk::{self, MIB, Part, files_in, run_with_input};
use crate::programs::{run, tool};

const PROGRAM: &str = include_str!("../../../guest/lab-guest.rs");
const AGENT: &str = include_str!("../../../guest/guest-agent.rs");
const INIT: &str = include_str!("../../../guest/init");
const GRUB: &str = include_str!("../../../guest/grub.cfg");
/// The builder too: a change of the layout must make a new image.
const BUILDER: [&str; 2] = [include_str!("guest.rs"), include_str!("disk.rs")];

const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "/bin/busybox";
const DRIVERS: [&str; 9] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_scsi",
    "sd_mod",
    "ahci",
    "virtio_console",
    "button",
    "evdev",
];

const ESP_BYTES: u64 = 40 * MIB;
const STATE_BYTES: u64 = 16 * MIB;
const DISK_BYTES: u64 = 64 * MIB;

/// The images that the lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ImageKind {
    /// Some drivers and one program of ours
    LabGuest,
    /// A whole Debian with cloud-init
    LabDebian,
}

impl ImageKind {
    /// Its name in a lab's library.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LabGuest => "lab-guest",
            Self::LabDebian => "lab-debian",
        }
    }

    /// Built only when the cache does not have it.
    pub fn build(self) -> Result<GuestImage> {
        let cache = GuestImage::cache_dir();
        match self {
            Self::LabGuest => GuestImage::build(&cache),
            Self::LabDebian => GuestImage::build_debian(&cache),
        }
    }
}

/// A built image (qcow2).
#[derive(Debug, Clone)]
pub struct GuestImage {
    path: PathBuf,
}

impl GuestImage {
    /// The image for these sources; built only when the cache does not have it.
    pub fn build(cache: &Path) -> Result<Self> {
        let name = format!("lab-guest-{}.qcow2", sources_hash());
        Self::cached(cache, &name, |work| build_disk(cache, work))
    }

    /// A whole Debian with cloud-init, see [`crate::debian`]; built only when the cache does not have it.
    pub fn build_debian(cache: &Path) -> Result<Self> {
        Self::cached(cache, &debian::file_name()?, debian::build)
    }

    fn cached(
        cache: &Path,
        name: &str,
        build: impl FnOnce(&Path) -> Result<PathBuf>,
    ) -> Result<Self> {
        let path = cache.join(name);
        if !path.exists() {
            fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
            let work = tempfile::tempdir_in(cache).context("make a scratch directory")?;
            let built = build(work.path())?;
            fleetward_durable::put(&built, &path)?;
        }
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where images and Debian's packages are kept between labs.
    pub fn cache_dir() -> PathBuf {
        if let Some(dir) = std::env::var_os("FLEETWARD_LAB_CACHE") {
            return PathBuf::from(dir);
        }
        match std::env::var_os("HOME") {
            Some(home) if !nix::unistd::geteuid().is_root() => {
                PathBuf::from(home).join(".cache/fleetward-lab")
            }
            _ => PathBuf::from("/var/cache/fleetward-lab"),
        }
    }
}

fn sources_hash() -> String {
    let mut hash = Sha256::new();
    for part in [PROGRAM, AGENT, INIT, GRUB].into_iter().chain(BUILDER) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

fn build_disk(cache: &Path, work: &Path) -> Result<PathBuf> {
    let system = unpack_packages(cache, work)?;
    let initrd = build_initrd(&system, work)?;
    let esp = disk::system_partition(&system, &initrd, GRUB, ESP_BYTES, work)?;
    let state = build_state(work)?;

    disk::assemble(
        &[
            Part {
                content: &esp,
                mib: ESP_BYTES / MIB,
                kind: "uefi",
            },
            Part {
                content: &state,
                mib: STATE_BYTES / MIB,
                kind: "linux",
            },
        ],
        DISK_BYTES / MIB,
        work,
    )
}

// ---- Debian's part -----------------------------------------------------------------------------------------

/// Downloads what is not in the cache and unpacks it; nothing is installed.
fn unpack_packages(cache: &Path, work: &Path) -> Result<PathBuf> {
    let packages = cache.join("packages");
    if !packages.join("complete").exists() {
        let fresh = work.join("packages");
        fs::create_dir(&fresh)?;
        if download(&fresh).is_err() {
            // The lists may be missing (a fresh machine) or name a version that is gone.
            run(Command::new(tool("apt-get")?).args(["update", "-q"]))?;
            download(&fresh)?;
        }
        File::create(fresh.join("complete"))?;
        let _ = fs::remove_dir_all(&packages);
        fs::rename(&fresh, &packages)?;
    }
    let system = work.join("system");
    fs::create_dir(&system)?;
    for package in files_in(&packages, |name| name.ends_with(".deb"))? {
        run(Command::new(tool("dpkg-deb")?)
            .arg("-x")
            .arg(package)
            .arg(&system))?;
    }
    Ok(system)
}

fn download(into: &Path) -> Result<()> {
    let depends = run(Command::new(tool("apt-cache")?).args(["depends", KERNEL_PACKAGE]))?;
    let text = String::from_utf8_lossy(&depends.stdout).into_owned();
    let kernel = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("the package {KERNEL_PACKAGE} names no kernel"))?;
    run(Command::new(tool("apt-get")?)
        .args([
            "-q",
            "-o",
            "APT::Sandbox::User=",
            "download",
            "shim-signed",
            "grub-efi-amd64-signed",
            kernel,
        ])
        .current_dir(into))
    .map(drop)
}

// ---- the initial file system -------------------------------------------------------------------------------

fn build_initrd(system: &Path, work: &Path) -> Result<PathBuf> {
    let root = work.join("initrd.d");
    for directory in ["bin", "dev", "proc", "sys", "tmp", "state", "modules"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("copy busybox-static")?;
    compile_program(&root.join("bin/lab-guest"), work)?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut order = Vec::new();
    let modules = system.join("lib/modules");
    let modules = if modules.exists() {
        modules
    } else {
        system.join("usr/lib/modules")
    };
    for driver in DRIVERS {
        add_module(&modules, &root.join("modules"), driver, &mut order)?;
    }
    fs::write(root.join("modules/order"), order.join("\n") + "\n")?;

    let mut names: Vec<String> = Vec::new();
    list_tree(&root, &root, &mut names)?;
    names.sort();
    let archive = run_with_input(
        Command::new(tool("cpio")?)
            .args([
                "-o",
                "-H",
                "newc",
                "--quiet",
                "--owner",
                "0:0",
                "--reproducible",
            ])
            .current_dir(&root),
        (names.join("\n") + "\n").as_bytes(),
    )?;
    let initrd = work.join("initrd");
    let packed = run_with_input(Command::new(tool("gzip")?).args(["-9", "-n"]), &archive)?;
    fs::write(&initrd, packed)?;
    Ok(initrd)
}

/// The compiler that built the lab builds this too.
fn compile_program(target: &Path, work: &Path) -> Result<()> {
    let source = work.join("lab-guest.rs");
    fs::write(&source, PROGRAM)?;
    fs::write(work.join("guest-agent.rs"), AGENT)?;
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    run(Command::new(compiler)
        .args([
            "--edition",
            "2024",
            "-C",
            "opt-level=2",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "target-feature=+crt-static", "-o"])
        .arg(target)
        .arg(&source))
    .context("compile the guest's program")
    .map(drop)
}

/// Adds a driver after those it needs. A driver that is no file is part of the kernel.
fn add_module(modules: &Path, into: &Path, name: &str, order: &mut Vec<String>) -> Result<()> {
    let file = format!("{name}.ko");
    if order.contains(&file) {
        return Ok(());
    }
    let Some(source) = find_module(modules, name)? else {
        return Ok(());
    };
    let target = into.join(&file);
    match source.extension().and_then(|e| e.to_str()) {
        Some("xz") => fs::write(
            &target,
            run(Command::new(tool("xz")?).arg("-dc").arg(&source))?.stdout,
        )?,
        Some("zst") => fs::write(
            &target,
            run(Command::new(tool("zstd")?).arg("-dcq").arg(&source))?.stdout,
        )?,
        _ => fs::copy(&source, &target).map(drop)?,
    }
    let needs = run(Command::new(tool("modinfo")?)
        .args(["-F", "depends"])
        .arg(&target))?;
    for need in String::from_utf8_lossy(&needs.stdout)
        .trim()
        .split(',')
        .filter(|n| !n.is_empty())
    {
        add_module(modules, into, need, order)?;
    }
    order.push(file);
    Ok(())
}

fn find_module(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)
        .with_context(|| format!("read {}", dir.display()))?
        .flatten()
    {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if let Some((stem, rest)) = entry.file_name().to_string_lossy().split_once('.')
            && stem.replace('-', "_") == name
            && rest.starts_with("ko")
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

// ---- partitions --------------------------------------------------------------------------------------------

fn build_state(work: &Path) -> Result<PathBuf> {
    let state = work.join("state.img");
    File::create(&state)?.set_len(STATE_BYTES)?;
    run(Command::new(tool("mkfs.ext4")?)
        .args(["-q", "-F", "-m", "0", "-L", "lab-state"])
        .arg(&state))?;
    Ok(state)
}

// ---- files and processes -----------------------------------------------------------------------------------

fn list_tree(root: &Path, dir: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        names.push(path.strip_prefix(root)?.to_string_lossy().into_owned());
        if entry.file_type()?.is_dir() {
            list_tree(root, &path, names)?;
        }
    }
    Ok(())
}
