//! The image `lab-debian`: a whole Debian with cloud-init, as a cloud's images are, and with what a disk bound to the TPM
//! needs. Built once from Debian's packages, as root; a guest gets its name, its keys and its address from its seed.
//!
//! ```text
//! 1 MiB    EFI system partition   shim, GRUB, kernel, initrd, as in the lab guest's image
//! 97 MiB   ext4 "lab-root"        grows at the first boot with its disk
//! ```
//! Its kernel is the one of Debian's cloud images, which has no driver for SATA. cloud-init looks for its data as Debian's
//! package sets it: a boot without a medium leaves the guest as it is, where a list of one source would set it up anew.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::disk::{self, MIB, Part, files_in};
use crate::programs::{run, tool};

const BUILDER: [&str; 2] = [include_str!("debian.rs"), include_str!("disk.rs")];

const ESP_BYTES: u64 = 96 * MIB;
const ROOT_BYTES: u64 = 1400 * MIB;

const PACKAGES: [&str; 26] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "linux-image-cloud-amd64",
    "shim-signed",
    "grub-efi-amd64-signed",
    "initramfs-tools",
    "cloud-init",
    "cloud-guest-utils",
    "fdisk",
    "netplan.io",
    "openssh-server",
    "sudo",
    "iproute2",
    "iputils-ping",
    "cryptsetup",
    "tpm2-tools",
    "libtss2-rc0",
    "qemu-guest-agent",
    "e2fsprogs",
    "procps",
    "kmod",
    "netbase",
    "login",
    "passwd",
    "ca-certificates",
];

const GRUB: &str = "\
set timeout=0
linux /vmlinuz root=LABEL=lab-root ro console=tty0 console=ttyS0 quiet
initrd /initrd
boot
";

/// Names the release and the sources.
pub(crate) fn file_name() -> Result<String> {
    let mut hash = Sha256::new();
    for part in BUILDER {
        hash.update(part);
    }
    let hash = hex::encode(&hash.finalize()[..8]);
    Ok(format!("lab-debian-{}-{hash}.qcow2", release()?))
}

/// The release of the machine it is built on: its mirror has it.
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("this machine's release has no name")
}

/// Where the machine gets its packages of that release.
fn mirror(release: &str) -> Result<String> {
    let targets = run(Command::new(tool("apt-get")?).args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]))?;
    String::from_utf8_lossy(&targets.stdout)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, of)| *of == release)
        .map(|(uri, _)| uri.to_owned())
        .with_context(|| format!("no source of packages for Debian {release}"))
}

pub(crate) fn build(work: &Path) -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the image lab-debian is built as root: sudo fleetward-lab image build lab-debian");
    }
    let root = work.join("root");
    install(&root)?;
    configure(&root)?;
    let initrd = files_in(&root.join("boot"), |name| name.starts_with("initrd.img"))?
        .pop()
        .context("no initial file system was made")?;
    let esp = disk::system_partition(&root, &initrd, GRUB, ESP_BYTES, work)?;
    let system = work.join("root.img");
    File::create(&system)?.set_len(ROOT_BYTES)?;
    run(Command::new(tool("mkfs.ext4")?)
        .args(["-q", "-F", "-m", "0", "-L", "lab-root", "-d"])
        .arg(&root)
        .arg(&system))?;
    disk::assemble(
        &[
            Part {
                content: &esp,
                mib: ESP_BYTES / MIB,
                kind: "uefi",
            },
            Part {
                content: &system,
                mib: ROOT_BYTES / MIB,
                kind: "linux",
            },
        ],
        (ESP_BYTES + ROOT_BYTES) / MIB + 2,
        work,
    )
}

fn install(root: &Path) -> Result<()> {
    let release = release()?;
    let mut packages = PACKAGES.join(",");
    if release != "bookworm" {
        // Later releases have it apart from systemd.
        packages.push_str(",systemd-cryptsetup");
    }
    let mut command = Command::new(tool("mmdebstrap")?);
    command.args(["--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={packages}"));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    for left_out in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{left_out}/*"));
    }
    run(command.arg(&release).arg(root).arg(mirror(&release)?)).map(drop)
}

fn configure(root: &Path) -> Result<()> {
    for (file, content) in [
        ("etc/fstab", "LABEL=lab-root / ext4 errors=remount-ro 0 1\n"),
        // Each guest gets its own at its first boot.
        ("etc/machine-id", ""),
    ] {
        fs::write(root.join(file), content).with_context(|| format!("write {file}"))?;
    }
    for key in files_in(&root.join("etc/ssh"), |name| name.starts_with("ssh_host_"))? {
        fs::remove_file(key)?;
    }
    Ok(())
}
