//! Detects whether KVM works on this host, by booting firmware with it; the device file alone proves nothing.
//!
//! Inside another virtual machine /dev/kvm may exist and still hang or abort a guest that uses system management mode,
//! as Secure Boot does. So the VMs' firmware is started with KVM until it writes to the serial line.

use crate::program::Program;
use fleetward_model::host::Accelerator;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// With KVM the firmware speaks after a second or two.
const LIMIT: Duration = Duration::from_secs(20);
/// Printed on every console when the firmware looks for something to boot.
const SIGN_OF_LIFE: &[u8] = b"BdsDxe";
/// Firmware with Secure Boot and its variables, where distributions keep them.
const FIRMWARE: [(&str, &str); 2] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
];

/// What starts VMs here. Takes up to twenty seconds where KVM is broken; keep the answer.
pub async fn probe_accelerator() -> Accelerator {
    if Path::new("/dev/kvm").exists() && boots(Accelerator::Kvm, LIMIT).await {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    }
}

/// Whether the firmware comes to life.
#[expect(clippy::disallowed_methods, reason = "a temporary file for one probe")]
async fn boots(accelerator: Accelerator, limit: Duration) -> bool {
    let installed = |pair: &&(&str, &str)| Path::new(pair.0).exists() && Path::new(pair.1).exists();
    let (Some(qemu), Some((code, variables))) = (
        Program::find("qemu-system-x86_64"),
        FIRMWARE.iter().find(installed),
    ) else {
        return false;
    };
    // QEMU writes to the variables, so it gets a copy.
    let Ok(copy) = tempfile::NamedTempFile::new() else {
        return false;
    };
    if std::fs::copy(variables, copy.path()).is_err() {
        return false;
    }
    let answer = tokio::time::timeout(limit, speaks(qemu.path(), accelerator, code, copy.path()));
    answer.await.unwrap_or(false)
}

async fn speaks(qemu: &Path, accelerator: Accelerator, code: &str, variables: &Path) -> bool {
    let (machine, cpu) = match accelerator {
        Accelerator::Kvm => ("q35,smm=on,accel=kvm", "host"),
        Accelerator::Tcg => ("q35,smm=on,accel=tcg", "max"),
    };
    let drive = |unit: u8, file: PathBuf, more: &str| {
        // QEMU reads a doubled comma as one.
        let file = file.to_string_lossy().replace(',', ",,");
        format!("if=pflash,unit={unit},format=raw,file={file}{more}")
    };
    let child = Command::new(qemu)
        .args(["-machine", machine, "-cpu", cpu, "-m", "256"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-global", "driver=cfi.pflash01,property=secure,value=on"])
        .args(["-drive", &drive(0, code.into(), ",readonly=on")])
        .args(["-drive", &drive(1, variables.into(), "")])
        .args(["-serial", "stdio", "-no-reboot"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut child) = child else {
        return false;
    };
    let Some(mut stdout) = child.stdout.take() else {
        return false;
    };
    let mut said = Vec::new();
    let mut buffer = [0_u8; 4096];
    let alive = loop {
        match stdout.read(&mut buffer).await {
            Ok(0) | Err(_) => break false,
            Ok(length) => said.extend_from_slice(&buffer[..length]),
        }
        if said.windows(SIGN_OF_LIFE.len()).any(|w| w == SIGN_OF_LIFE) {
            break true;
        }
        if said.len() > 1 << 20 {
            break false;
        }
    };
    let _ = child.kill().await;
    alive
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The probe's own check: translation works everywhere, so a "no" there would be the probe's fault.
    #[tokio::test]
    async fn firmware_under_translation_is_seen_to_live() {
        if Program::find("qemu-system-x86_64").is_none() || !Path::new(FIRMWARE[0].0).exists() {
            eprintln!("skipped: no QEMU or no firmware here");
            return;
        }
        assert!(boots(Accelerator::Tcg, Duration::from_secs(120)).await);
    }
}
