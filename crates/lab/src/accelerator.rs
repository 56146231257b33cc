//! Detects which of QEMU's accelerators works. /dev/kvm may exist and still not run a guest with Secure Boot (no
//! system management mode, or a nested KVM that hangs), so the guest image is booted, with a time limit.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::guest::GuestImage;
use crate::programs::tool;
use crate::record::boot_id;

/// KVM boots the guest in some 5 s where it works.
const LIMIT: Duration = Duration::from_secs(30);
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.ms.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The answer found before in this boot of the machine, or a trial.
    pub fn probe(image: &GuestImage, cache: &Path) -> Result<Self> {
        let (known, boot) = (cache.join("accelerator"), boot_id());
        let remembered = fs::read_to_string(&known).unwrap_or_default();
        match remembered.split_once(' ') {
            Some((b, "kvm")) if b == boot => return Ok(Self::Kvm),
            Some((b, "tcg")) if b == boot => return Ok(Self::Tcg),
            _ => {}
        }
        let found = if Path::new("/dev/kvm").exists() && boots_with_kvm(image)? {
            Self::Kvm
        } else {
            Self::Tcg
        };
        fs::create_dir_all(cache)?;
        fs::write(&known, format!("{boot} {}", found.name()))?;
        Ok(found)
    }
}

fn boots_with_kvm(image: &GuestImage) -> Result<bool> {
    let scratch = tempfile::tempdir().context("make a scratch directory")?;
    let (variables, serial) = (
        scratch.path().join("variables.fd"),
        scratch.path().join("serial.log"),
    );
    fs::copy(VARIABLES, &variables).with_context(|| format!("copy {VARIABLES}"))?;
    let mut qemu = Command::new(tool("qemu-system-x86_64")?)
        .args([
            "-machine",
            "q35,smm=on,accel=kvm",
            "-cpu",
            "host",
            "-m",
            "512",
            "-nodefaults",
            "-display",
            "none",
        ])
        .args([
            "-global",
            "driver=cfi.pflash01,property=secure,value=on",
            "-no-reboot",
        ])
        .arg("-drive")
        .arg(format!("if=pflash,format=raw,readonly=on,file={CODE}"))
        .arg("-drive")
        .arg(format!("if=pflash,format=raw,file={}", variables.display()))
        .arg("-drive")
        .arg(format!(
            "if=virtio,format=qcow2,snapshot=on,file={}",
            image.path().display()
        ))
        .arg("-serial")
        .arg(format!("file:{}", serial.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(scratch.path().join("qemu.log"))?)
        .spawn()
        .context("start QEMU")?;
    let deadline = Instant::now() + LIMIT;
    let booted = loop {
        let text = fs::read(&serial).unwrap_or_default();
        if String::from_utf8_lossy(&text).contains("FLEETWARD-GUEST") {
            break true;
        }
        if qemu.try_wait()?.is_some() || Instant::now() > deadline {
            break false;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    // It may have ended by itself.
    let _ = qemu.kill();
    qemu.wait()?;
    Ok(booted)
}
