//! TPMs made beforehand: what lies in them, and that libvirt takes them as they are.

use crate::Host;
use fleetward_hypervisor::conformance::Fixture;
use fleetward_hypervisor::{
    DomainState, EkIssuer, EkPublic, Error, Hypervisor, SecretText, TpmFactory,
};
use fleetward_model::ByteSize;
use fleetward_model::error::chain;
use fleetward_model::vm::{DiskBus, DriveSpec, Medium, Profile};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use zeroize::Zeroizing;

/// Issues bytes that cannot be mistaken; a TPM stores what it is given.
pub(crate) struct MarkedIssuer;

impl EkIssuer for MarkedIssuer {
    fn issue(&self, public: &EkPublic) -> Result<Vec<u8>, String> {
        Ok(match public {
            EkPublic::Rsa { modulus } => {
                assert_eq!(modulus.len(), 256);
                [b"RSA EK ".as_slice(), modulus, &[0xee; 700]].concat()
            }
            EkPublic::Ecc { x, y } => [b"ECC EK ".as_slice(), x, y].concat(),
        })
    }
}

struct RefusingIssuer;

impl EkIssuer for RefusingIssuer {
    fn issue(&self, _: &EkPublic) -> Result<Vec<u8>, String> {
        Err("the authority is closed".into())
    }
}

pub(crate) const KEY: &str = "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=";

pub(crate) fn key() -> SecretText {
    SecretText::new(Zeroizing::new(KEY.to_owned()))
}

pub(crate) async fn the_ek_certificate_lands_in_the_tpm(host: &Host) {
    let directory = host.directory.join("made");
    let made = host
        .libvirt
        .manufacture(&directory, &key(), &MarkedIssuer)
        .await
        .expect("made");
    assert!(made.ek_certificate.starts_with(b"RSA EK "));
    assert!(
        ek_certificate_in(&directory, KEY) == Some(made.ek_certificate),
        "the TPM holds another certificate"
    );
    for other in ["another key", ""] {
        let read = ek_certificate_in(&directory, other);
        assert!(read.is_none(), "readable without its key");
    }
    let again = host
        .libvirt
        .manufacture(&directory, &key(), &MarkedIssuer)
        .await;
    assert!(again.is_err(), "a TPM was made over another");
    std::fs::remove_dir_all(&directory).expect("removed");

    let refused = host
        .libvirt
        .manufacture(&directory, &key(), &RefusingIssuer)
        .await;
    let Err(Error::Tpm(reason)) = refused else {
        panic!("{refused:?}");
    };
    let reason = chain(reason.as_ref());
    assert!(reason.contains("the authority is closed"), "{reason}");
    assert!(!directory.exists(), "half a TPM was left");
}

pub(crate) async fn libvirt_uses_the_tpm_it_is_given(host: &Host) {
    let libvirt = &host.libvirt;
    let directory = host.directory.join("given");
    let made = libvirt
        .manufacture(&directory, &key(), &MarkedIssuer)
        .await
        .expect("made");
    let mut definition = host.definition("with-tpm").await;
    definition.metadata.spec.tpm = true;
    let id = definition.metadata.spec.id;
    libvirt.define(&definition).await.expect("defined");
    libvirt.load_secret(id, &key()).await.expect("loaded");
    let refused = libvirt.start(id).await;
    assert!(matches!(refused, Err(Error::Tpm(_))), "{refused:?}");
    for _ in 0..2 {
        libvirt.install(id, &directory).await.expect("installed");
    }
    libvirt.drop_secret(id).await.expect("dropped");
    assert!(libvirt.start(id).await.is_err(), "started without the key");
    libvirt.load_secret(id, &key()).await.expect("loaded");
    libvirt.start(id).await.expect("started");
    let seen = host.domain(id).await.expect("there");
    assert!(seen.tpm && seen.state == DomainState::Running);
    libvirt.destroy(id).await.expect("destroyed");
    libvirt.undefine(id).await.expect("undefined");
    libvirt.drop_secret(id).await.expect("dropped");

    let kept = libvirt.read_state(id).await.expect("kept");
    let state = libvirt.state(id).await.expect("looked").expect("there");
    let directory = state.parent().expect("a directory");
    assert!(
        ek_certificate_in(directory, KEY) == Some(made.ek_certificate),
        "libvirt made a TPM of its own"
    );
    libvirt.remove(id).await.expect("removed");
    libvirt.remove(id).await.expect("gone already");
    libvirt.write_state(id, &kept).await.expect("restored");
    libvirt.write_state(id, &kept).await.expect("once is twice");
    assert!(
        libvirt.write_state(id, b"other").await.is_err(),
        "replaced state"
    );
    libvirt.remove(id).await.expect("removed");
}

pub(crate) async fn state_changes_its_key(host: &Host) {
    let libvirt = &host.libvirt;
    let directory = host.directory.join("rolled");
    let made = libvirt
        .manufacture(&directory, &key(), &MarkedIssuer)
        .await
        .expect("made");
    let before = std::fs::read(directory.join("tpm2-00.permall")).expect("read");
    let text = "bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmU=";
    let new = SecretText::new(Zeroizing::new(text.to_owned()));
    libvirt.prove_state(&before, &key()).await.expect("opens");
    let after = libvirt
        .reencrypt_state(&before, &key(), &new)
        .await
        .expect("encrypted anew");
    libvirt.prove_state(&after, &new).await.expect("opens");
    for (state, wrong) in [(&before, &new), (&after, &key())] {
        let refused = libvirt.prove_state(state, wrong).await;
        assert!(
            matches!(refused, Err(Error::TpmStateUnreadable(_))),
            "{refused:?}"
        );
    }
    let refused = libvirt.reencrypt_state(&before, &new, &key()).await;
    assert!(
        matches!(refused, Err(Error::TpmStateUnreadable(_))),
        "{refused:?}"
    );
    for damage in [after.len() / 2, after.len() - 1] {
        let mut damaged = after.clone();
        damaged[damage] ^= 1;
        let refused = libvirt.prove_state(&damaged, &new).await;
        assert!(refused.is_err(), "damage at byte {damage} was not seen");
    }
    std::fs::write(directory.join("tpm2-00.permall"), &after).expect("written");
    assert!(
        ek_certificate_in(&directory, text) == Some(made.ek_certificate),
        "it is another TPM now"
    );
    assert!(ek_certificate_in(&directory, KEY).is_none());
    std::fs::remove_dir_all(&directory).expect("removed");
    let left = std::fs::read_dir(host.directory.join("run"))
        .expect("listed")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("tpm-"))
        .count();
    assert_eq!(left, 0, "a bench was left");
}

pub(crate) async fn a_windows_vm_starts_with_secure_boot(host: &Host) {
    let libvirt = &host.libvirt;
    let mut definition = host.definition("windows").await;
    let medium = host.directory.join("lib/images/setup.iso");
    std::fs::write(&medium, vec![0; 1 << 20]).expect("written");
    definition.drive_paths = vec![Some("/var/lib/libvirt/images/setup.iso".into())];
    let spec = &mut definition.metadata.spec;
    spec.profile = Profile::Windows11;
    spec.cpus = 2;
    spec.memory = ByteSize::mib(256);
    spec.firmware.secure_boot = true;
    spec.disks[0].bus = DiskBus::Sata;
    spec.disks[0].target = "sda".into();
    let medium = Medium {
        image: "setup".parse().expect("name"),
        sha256: "00".repeat(32),
    };
    spec.drives = vec![DriveSpec::first(&spec.disks, Some(medium))];
    let id = spec.id;
    libvirt.define(&definition).await.expect("defined");
    libvirt.start(id).await.expect("started");
    let seen = host.domain(id).await.expect("there");
    assert_eq!(seen.firmware, Some(definition.metadata.spec.firmware));
    let disk = ("sda".to_owned(), definition.disk_paths[0].clone());
    assert_eq!(seen.disks, [disk], "the installer's medium is no disk");
    assert!(seen.console.is_some_and(|pty| pty.starts_with("/dev/pts")));
    libvirt.destroy(id).await.expect("destroyed");
    libvirt.undefine(id).await.expect("undefined");
}

/// Starts swtpm on a copy of the state and reads the NV index of the RSA EK's certificate; none when it does not start.
fn ek_certificate_in(state: &Path, key: &str) -> Option<Vec<u8>> {
    let place = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let copy = place.path().join("tpm2-00.permall");
    std::fs::copy(state.join("tpm2-00.permall"), copy).expect("copied");
    let socket = place.path().join("tpm.sock");
    // The name the TPM tools expect beside it.
    let control = place.path().join("tpm.sock.ctrl");
    let mut swtpm = Running(
        Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", place.path().display()))
            .args(["--key", "pwdfd=0,mode=aes-256-cbc"])
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm"),
    );
    let mut input = swtpm.0.stdin.take().expect("piped");
    input.write_all(key.as_bytes()).expect("the key");
    drop(input);
    // The sockets' files are there before swtpm has read the state: only an answer, or its end, says what became of it.
    let mut read = None;
    crate::host::wait_for("an answer of swtpm, or its end", || {
        if swtpm.0.try_wait().expect("a child").is_some() {
            return true;
        }
        if !(socket.exists() && control.exists()) {
            return false;
        }
        let output = Command::new("tpm2_nvread")
            .arg("0x01c00002")
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", socket.display()))
            .output()
            .expect("tpm2_nvread");
        read = output.status.success().then_some(output.stdout);
        read.is_some()
    });
    read
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
