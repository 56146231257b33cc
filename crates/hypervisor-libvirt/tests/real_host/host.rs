//! Two hosts: this process lives on the first, the second is a libvirtd reached by its socket.

use async_trait::async_trait;
use fleetward_hypervisor::conformance::Fixture;
use fleetward_hypervisor::{DomainDefinition, DomainObserved, Error, Hypervisor, Volumes};
use fleetward_hypervisor_libvirt::{LibvirtConfig, LibvirtHost};
use fleetward_model::host::Accelerator;
use fleetward_model::vm::{
    DiskBus, DiskSpec, Firmware, FirmwareKind, NicSpec, Profile, VmMetadata, VmSpec,
};
use fleetward_model::{ByteSize, VmId};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Makes this program enter a host and become its libvirtd.
pub(crate) const BECOME_LIBVIRTD: &str = "--become-libvirtd";
/// The name of a host that has been entered already.
const HERE: &str = "here";

/// What every private host gets of its own: place under its directory, place on the machine.
const PRIVATE: [(&str, &str); 6] = [
    ("run", "/run"),
    ("lib", "/var/lib/libvirt"),
    ("etc", "/etc/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("log", "/var/log/libvirt"),
    ("swtpm-log", "/var/log/swtpm"),
];

/// Why this test cannot run here.
pub(crate) fn missing() -> Option<&'static str> {
    let installed = |path: &str| Path::new(path).exists();
    if !nix::unistd::getuid().is_root() {
        Some("not root")
    } else if !installed("/usr/sbin/libvirtd") || !installed("/usr/bin/swtpm_setup") {
        Some("no libvirtd or no swtpm_setup")
    } else if !installed("/usr/share/OVMF/OVMF_CODE_4M.fd") {
        Some("no OVMF")
    } else if unshare(CloneFlags::CLONE_FS).is_err() {
        Some("no namespaces")
    } else {
        None
    }
}

/// Both hosts and the directory they lie in.
pub(crate) struct Lab {
    here: Arc<LocalHost>,
    there: Arc<LocalHost>,
    _directory: tempfile::TempDir,
}

impl Lab {
    /// Makes both hosts and moves this process, still of one thread, onto the first.
    pub(crate) fn enter() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fleetward-hosts-")
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir_in("/var/tmp")
            .expect("a directory");
        let sockets = directory.path().join("sockets");
        fs::create_dir(&sockets).expect("sockets");
        // QEMU listens there, under its own user.
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o777)).expect("mode");
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        let elsewhere = spawn_libvirtd(&b, "b");
        enter_host(&a, "a");
        let local = spawn_libvirtd(&a, HERE);
        let lab = Self {
            here: Arc::new(LocalHost::new(&a, &sockets, local)),
            there: Arc::new(LocalHost::new(&b, &sockets, elsewhere)),
            _directory: directory,
        };
        for host in [&lab.here, &lab.there] {
            wait_for("libvirtd to listen", || {
                UnixStream::connect(host.socket()).is_ok()
            });
        }
        lab
    }

    pub(crate) fn here(&self) -> Arc<LocalHost> {
        Arc::clone(&self.here)
    }

    pub(crate) fn there(&self) -> Arc<LocalHost> {
        Arc::clone(&self.there)
    }

    /// Stops whatever claims left running, then both libvirtds.
    pub(crate) async fn leave(self) {
        for host in [&self.here, &self.there] {
            for domain in host.libvirt.list().await.unwrap_or_default() {
                let _ = host.libvirt.destroy(domain.id).await;
            }
            host.kill_libvirtd();
        }
    }
}

/// Becomes the other host's libvirtd. Never returns.
pub(crate) fn become_libvirtd(directory: &Path, name: &str) -> ! {
    if name != HERE {
        enter_host(directory, name);
    }
    // Whatever happens to the test, it leaves no libvirtd behind.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("prctl");
    let log = fs::File::create(directory.join("libvirtd.log")).expect("log");
    let error = Command::new("/usr/sbin/libvirtd")
        .stdout(log)
        .stderr(Stdio::null())
        .exec();
    panic!("libvirtd: {error}");
}

fn spawn_libvirtd(directory: &Path, name: &str) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args([
            BECOME_LIBVIRTD.as_ref(),
            directory.as_os_str(),
            name.as_ref(),
        ])
        .stdin(Stdio::null())
        .spawn()
        .expect("libvirtd")
}

/// Enters namespaces in which this is a machine of its own.
fn enter_host(directory: &Path, name: &str) {
    for (part, _) in PRIVATE {
        fs::create_dir_all(directory.join(part)).expect("directory");
    }
    for part in ["run/libvirt", "run/lock", "lib/images"] {
        let part = directory.join(part);
        fs::create_dir_all(&part).expect("directory");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o711)).expect("mode");
    }
    let swtpm_log = nix::unistd::User::from_name("tss").ok().flatten();
    if let Some(user) = swtpm_log {
        chown(directory.join("swtpm-log"), Some(user.uid.as_raw()), None).expect("owner");
    }
    fs::write(
        directory.join("etc/libvirtd.conf"),
        format!(
            "host_uuid = \"{}\"\nauth_unix_rw = \"none\"\n",
            Uuid::new_v4()
        ),
    )
    .expect("libvirtd.conf");
    let packaged = fs::read_to_string("/etc/libvirt/qemu.conf").unwrap_or_default();
    fs::write(
        directory.join("etc/qemu.conf"),
        format!(
            "{packaged}\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n\
             remember_owner = 0\nstdio_handler = \"file\"\n"
        ),
    )
    .expect("qemu.conf");
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).expect("namespaces");
    nix::unistd::sethostname(name).expect("hostname");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    for (part, place) in PRIVATE {
        if Path::new(place).exists() {
            let part = directory.join(part);
            mount(Some(&part), place, none, MsFlags::MS_BIND, none).expect("bind mount");
        }
    }
}

/// One host as the claims see it.
pub(crate) struct LocalHost {
    pub(crate) libvirt: LibvirtHost,
    /// Where its private places lie; the second host's are reached through it.
    pub(crate) directory: PathBuf,
    /// Where migrations' sockets go; the same directory on both hosts.
    pub(crate) sockets: PathBuf,
    libvirtd: Mutex<Child>,
}

impl LocalHost {
    fn new(directory: &Path, sockets: &Path, libvirtd: Child) -> Self {
        let socket = directory.join("run/libvirt/libvirt-sock");
        let libvirt = LibvirtHost::start(LibvirtConfig {
            uri: format!("qemu+unix:///system?socket={}", socket.display()),
            accelerator: Accelerator::Tcg,
            run_dir: directory.join("run"),
            memory_reserve: ByteSize::gib(1),
            ek_certificate_tool: env!("CARGO_BIN_EXE_swtpm-ek-certificate").into(),
        })
        .expect("programs");
        Self {
            libvirt,
            directory: directory.to_owned(),
            sockets: sockets.to_owned(),
            libvirtd: Mutex::new(libvirtd),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("run/libvirt/libvirt-sock")
    }

    /// A power cut for libvirtd; its VMs run on.
    pub(crate) fn kill_libvirtd(&self) {
        let mut libvirtd = self.libvirtd.lock().expect("no panic");
        let _ = libvirtd.kill();
        let _ = libvirtd.wait();
    }

    /// Starts it again; only on the host this process lives on.
    pub(crate) fn restart_libvirtd(&self) {
        let again = spawn_libvirtd(&self.directory, HERE);
        *self.libvirtd.lock().expect("no panic") = again;
    }

    pub(crate) async fn domain(&self, id: VmId) -> fleetward_hypervisor::Result<DomainObserved> {
        Hypervisor::inspect(&self.libvirt, id).await
    }

    fn inactive_xml(&self, id: VmId) -> String {
        let output = Command::new("virsh")
            .arg("-c")
            .arg(format!(
                "qemu+unix:///system?socket={}",
                self.socket().display()
            ))
            .args(["dumpxml", "--inactive", "--security-info", &id.to_string()])
            .output()
            .expect("virsh");
        assert!(output.status.success(), "virsh dumpxml");
        String::from_utf8(output.stdout).expect("XML is UTF-8")
    }

    fn virsh(&self, arguments: &[&str]) {
        let status = Command::new("virsh")
            .arg("-q")
            .arg("-c")
            .arg(format!(
                "qemu+unix:///system?socket={}",
                self.socket().display()
            ))
            .args(arguments)
            .stdout(Stdio::null())
            .status()
            .expect("virsh");
        assert!(status.success(), "virsh {arguments:?}");
    }
}

#[async_trait]
impl Fixture for LocalHost {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.libvirt
    }

    async fn definition(&self, name: &str) -> DomainDefinition {
        let id = VmId(Uuid::new_v4());
        let volume = format!("{id}-vda.qcow2");
        let path = Path::new("/var/lib/libvirt/images").join(&volume);
        let size = ByteSize::mib(16);
        self.libvirt
            .create_empty(&path, size)
            .await
            .expect("a volume");
        let name = name.parse().expect("a name");
        DomainDefinition {
            metadata: VmMetadata {
                spec: VmSpec {
                    memory: ByteSize::mib(128),
                    firmware: Firmware {
                        kind: FirmwareKind::Uefi,
                        secure_boot: false,
                    },
                    tpm: false,
                    disks: vec![DiskSpec::new(
                        "vda",
                        DiskBus::Virtio,
                        Default::default(),
                        volume,
                        size,
                    )],
                    nics: vec![NicSpec::first(Profile::Linux, "52:54:00:12:34:56")],
                    ..VmSpec::bare(id, name, Profile::Linux, time::OffsetDateTime::UNIX_EPOCH)
                },
                generation: 1,
                key_protector: None,
                ek_certificate: None,
                transit: None,
                revoked: Vec::new(),
                former_certificates: None,
                unknown: Default::default(),
            },
            disk_paths: vec![path],
            drive_paths: Vec::new(),
            nic_places: vec![fleetward_model::network::NetworkPlace::Nat],
            serial_log: Some(format!("/var/log/libvirt/{id}.log").into()),
            nvram_path: format!("/var/lib/libvirt/qemu/nvram/{id}.fd").into(),
            carried: None,
        }
    }

    async fn define_foreign(&self) -> VmId {
        let id = VmId(Uuid::new_v4());
        let xml = format!(
            "<domain type='qemu'><name>Somebody else's VM</name><uuid>{id}</uuid><memory unit='MiB'>64</memory>\
             <os><type arch='x86_64'>hvm</type></os></domain>"
        );
        let file = self.directory.join("foreign.xml");
        fs::write(&file, xml).expect("written");
        self.virsh(&["define", &file.to_string_lossy()]);
        id
    }

    async fn remove_foreign(&self, id: VmId) {
        self.virsh(&["undefine", &id.to_string()]);
    }

    async fn edit_by_hand(&self, id: VmId) {
        let mut xml = self.inactive_xml(id);
        let memory = xml.find("<memory").expect("a memory");
        let end = xml.find("</currentMemory>").expect("its end");
        xml.replace_range(
            memory..end,
            "<memory unit='MiB'>600</memory><currentMemory unit='MiB'>600",
        );
        for (place, text, _) in BY_HAND {
            let at = xml.find(place).expect("a place to edit");
            xml.insert_str(at, text);
        }
        let file = self.directory.join("edited.xml");
        fs::write(&file, xml).expect("written");
        self.virsh(&["define", &file.to_string_lossy()]);
    }

    async fn lost_of_the_edit(&self, id: VmId) -> Vec<&'static str> {
        let xml = self.inactive_xml(id);
        let kept = BY_HAND.iter().map(|(_, _, kept)| *kept);
        kept.filter(|kept| !xml.contains(kept)).collect()
    }

    async fn write_newer(&self, id: VmId) {
        let version = fleetward_model::spec::KNOWN + 1;
        let record = format!(
            "<vm version='1'><record>{{\"spec\":{{\"v{version}\":{{}}}},\"generation\":1}}</record></vm>"
        );
        self.virsh(&[
            "metadata",
            &id.to_string(),
            fleetward_hypervisor_libvirt::NAMESPACE,
            "--key",
            fleetward_hypervisor_libvirt::PREFIX,
            "--set",
            &record,
        ]);
    }
}

/// Edits of a definition: in front of what, which text, and what libvirt makes of it.
const BY_HAND: [(&str, &str, &str); 8] = [
    (
        "</devices>",
        "<sound model='ich9'/>",
        "<sound model='ich9'>",
    ),
    (
        "</devices>",
        "<interface type='bridge'><mac address='52:54:00:aa:bb:cc'/><source bridge='br-lan'/><model type='virtio'/></interface>",
        "<source bridge='br-lan'/>",
    ),
    (
        "<os ",
        "<cputune><shares>777</shares></cputune>",
        "<shares>777</shares>",
    ),
    (
        "<metadata>",
        "<title>\u{7d4c}\u{7406} &amp; co</title><description>by hand</description>",
        "<title>\u{7d4c}\u{7406} &amp; co</title>",
    ),
    (
        "</metadata>",
        "<x:other xmlns:x='urn:other'><x:kept>1</x:kept></x:other>",
        "<x:kept>1</x:kept>",
    ),
    (
        "</devices>",
        "<watchdog model='i6300esb' action='reset'/>",
        "i6300esb",
    ),
    (
        "</domain>",
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:env name='KEPT' value='1'/></qemu:commandline>",
        "<qemu:env name='KEPT' value='1'/>",
    ),
    (
        "</os>",
        "<bootmenu enable='yes' timeout='1000'/>",
        "<bootmenu enable='yes' timeout='1000'/>",
    ),
];

pub(crate) async fn volumes_are_what_they_seem(host: &LocalHost) {
    let volumes: &dyn Volumes = &host.libvirt;
    let pool = Path::new("/var/lib/libvirt/images");
    let volume = pool.join("claim.qcow2");
    let size = ByteSize::mib(8);
    for _ in 0..2 {
        volumes.create_empty(&volume, size).await.expect("made");
    }
    let info = volumes.inspect(&volume, None).await.expect("ours");
    assert_eq!((info.format.as_str(), info.virtual_size), ("qcow2", size));
    assert!(info.allocated < size, "an empty volume is sparse");
    let other = volumes.create_empty(&volume, ByteSize::mib(9)).await;
    assert!(matches!(other, Err(Error::BadImage { .. })), "{other:?}");

    let image = pool.join("image.raw");
    fs::write(&image, vec![7_u8; 1 << 20]).expect("written");
    let copy = pool.join("copy.qcow2");
    volumes
        .create_from_image(&image, "raw", &copy, size)
        .await
        .expect("copied and grown");
    let info = volumes.inspect(&copy, Some("qcow2")).await.expect("ours");
    assert_eq!(info.virtual_size, size);
    assert!(info.allocated >= ByteSize::mib(1));

    let overlay = pool.join("overlay.qcow2");
    let linked = pool.join("link.qcow2");
    std::os::unix::fs::symlink(&volume, &linked).expect("link");
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([&volume, &overlay])
        .status();
    assert!(status.expect("qemu-img").success());
    for refused in [&overlay, &linked] {
        let answer = volumes.inspect(refused, None).await;
        assert!(matches!(answer, Err(Error::BadImage { .. })), "{answer:?}");
    }
    for path in [&volume, &copy, &overlay, &linked, &image] {
        volumes.delete(path).await.expect("deleted");
        volumes.delete(path).await.expect("gone already");
    }
}

/// Waits for a condition, at most twenty seconds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
