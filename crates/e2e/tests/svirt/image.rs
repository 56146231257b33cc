//! The disk of a machine whose kernel has AppArmor, with libvirt as Debian installs it. Made once from Debian's packages, as
//! root, and cached beside the guests' images.

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::run;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CACHE: &str = "/var/cache/fleetward-lab";
const ROOT_BYTES: u64 = 3 << 30;
const PACKAGES: &str = "linux-image-cloud-amd64,tini,initramfs-tools,kmod,apparmor,libvirt-daemon-system,\
    libvirt-daemon-config-nwfilter,libvirt-clients,qemu-system-x86,qemu-utils,ovmf,swtpm,swtpm-tools,bubblewrap,bzip2,\
    unzip,iproute2,iptables,socat,procps,util-linux,mount,e2fsprogs,dmidecode,openssl,ca-certificates";
/// As `scripts/install-packages` does on Debian 12; elsewhere there is nothing of that name.
const NEWER: &str = "Package: src:libvirt src:qemu src:seabios\nPin: release n=bookworm-backports\nPin-Priority: 900\n";
/// Process 1: only what programs of a host need, and then the script on the second disk.
const INIT: &str = "\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -o remount,rw /
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /dev/pts /dev/shm /mnt/given
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t securityfs securityfs /sys/kernel/security
mount -o ro /dev/vdb /mnt/given
# Some process has to take note of the end of those that libvirt ends, or they count as alive.
exec tini -- /mnt/given/start
";

/// What QEMU boots such a machine from.
pub(crate) struct Image {
    pub(crate) disk: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl Image {
    pub(crate) fn get() -> Result<Self> {
        let mut hash = DefaultHasher::new();
        include_str!("image.rs").hash(&mut hash);
        let place = Path::new(CACHE).join(format!("machine-{:016x}", hash.finish()));
        if !place.exists() {
            eprintln!("making {} from Debian's packages", place.display());
            // Renamed when it is whole.
            let work = place.with_extension("new");
            let _ = fs::remove_dir_all(&work);
            fs::create_dir_all(&work)?;
            build(&work)?;
            fs::rename(&work, &place)?;
        }
        let file = |name| place.join(name);
        Ok(Self {
            disk: file("disk.img"),
            kernel: file("vmlinuz"),
            initrd: file("initrd"),
        })
    }
}

fn build(work: &Path) -> Result<()> {
    let root = work.join("root");
    let release = fs::read_to_string("/etc/os-release")?;
    let release = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("this machine's release has no name")?
        .trim_matches('"')
        .to_owned();
    let pin = work.join("pin");
    fs::write(&pin, NEWER)?;
    let hook = format!(
        "mkdir -p \"$1/etc/apt/preferences.d\" && cp '{}' \"$1/etc/apt/preferences.d/newer\"",
        pin.display()
    );
    let mut make = Command::new("mmdebstrap");
    make.args(["--variant=minbase", "--format=directory"])
        .arg(format!("--include={PACKAGES}"))
        .arg(format!("--setup-hook={hook}"))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg("--aptopt=Acquire::Languages \"none\"");
    for left_out in ["doc", "man", "locale", "info"] {
        make.arg(format!("--dpkgopt=path-exclude=/usr/share/{left_out}/*"));
    }
    run(make.arg(&release).arg(&root).args(sources(&release)?))?.ok()?;

    let init = root.join("sbin/machine-init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        let found = fs::read_dir(root.join("boot"))?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .with_context(|| format!("no {prefix} was installed"))?;
        fs::copy(found.path(), work.join(name))?;
    }
    file_system(&root, &work.join("disk.img"), ROOT_BYTES)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// The sources of this release that the machine itself has, its updates and backports among them.
fn sources(release: &str) -> Result<Vec<String>> {
    let mut list = Command::new("apt-get");
    list.args([
        "indextargets",
        "--format",
        "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
    ]);
    let said = run(list.arg("Created-By: Packages"))?.ok()?;
    let mut found: Vec<String> = said
        .stdout
        .lines()
        .filter(|line| line.contains(&format!(" {release}")))
        .map(str::to_owned)
        .collect();
    found.sort();
    found.dedup();
    ensure!(!found.is_empty(), "no source of packages for {release}");
    Ok(found)
}

/// A file with an ext4 of that size that holds what lies in `from`.
pub(crate) fn file_system(from: &Path, to: &Path, bytes: u64) -> Result<()> {
    File::create(to)?.set_len(bytes)?;
    let mut make = Command::new("mkfs.ext4");
    run(make.args(["-q", "-F", "-d"]).arg(from).arg(to))?.ok()?;
    Ok(())
}
