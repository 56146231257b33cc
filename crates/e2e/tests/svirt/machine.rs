//! One machine under an emulated CPU, and a shell in it: lines of scripts in and their output out, over a serial port.

use crate::image::{Image, file_system};
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_e2e::fleet::run;
use fleetward_e2e::wait::{self, seconds};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

const GIVEN_BYTES: u64 = 400 << 20;
/// Runs each line that arrives, and says its output and how it ended.
const START: &str = "\
#!/bin/sh
hostname $(sed 's/.*machine=\\([a-z]*\\).*/\\1/' /proc/cmdline)
ip link set lo up
modprobe virtio_net
stty raw -echo < /dev/ttyS1
exec 3<>/dev/ttyS1
while IFS= read -r line <&3; do
  echo \"$line\" | base64 -d > /run/script
  sh /run/script </dev/null >/run/said 2>&1; ended=$?
  { cat /run/said; echo; echo \"ended=$ended.\"; } >&3
done
";
const BOOT: Duration = seconds(300);
const ANSWER: Duration = seconds(900);

/// A second disk for all machines: the programs under test, and what runs there.
pub(crate) fn given(place: &Path, files: &[(PathBuf, &str)]) -> Result<PathBuf> {
    let directory = place.join("given");
    fs::create_dir_all(&directory)?;
    for (from, name) in files {
        let to = directory.join(name);
        fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
        // Programs are smaller without what a debugger wants; an image is none.
        let _ = run(Command::new("strip").arg(&to))?;
    }
    let start = directory.join("start");
    fs::write(&start, START)?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
    let disk = place.join("given.img");
    file_system(&directory, &disk, GIVEN_BYTES)?;
    fs::remove_dir_all(&directory)?;
    Ok(disk)
}

pub(crate) struct Machine {
    qemu: Child,
    shell: Mutex<UnixStream>,
    console: PathBuf,
}

impl Machine {
    /// Two machines are on one network, the first of which is `listens`.
    pub(crate) fn boot(
        name: &str,
        listens: bool,
        image: &Image,
        given: &Path,
        place: &Path,
    ) -> Result<Self> {
        let file = |end: &str| place.join(format!("{name}.{end}"));
        let disk = file("qcow2");
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        run(make.arg(&image.disk).arg(&disk))?.ok()?;
        let (socket, console) = (file("sock"), file("console"));
        let shown = |path: &Path| path.display().to_string();
        let server = if listens { "on" } else { "off" };
        let card = if listens {
            "52:54:00:00:00:01"
        } else {
            "52:54:00:00:00:02"
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4G"])
            .args(["-display", "none", "-nodefaults", "-no-reboot", "-kernel"])
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .arg("-append")
            .arg(format!(
                "root=/dev/vda ro console=ttyS0 init=/sbin/machine-init quiet net.ifnames=0 machine={name}"
            ))
            .arg("-serial")
            .arg(format!("file:{}", shown(&console)))
            .arg("-serial")
            .arg(format!("unix:{},server=on,wait=off", shown(&socket)))
            .arg("-drive")
            .arg(format!("if=virtio,file={},cache=unsafe", shown(&disk)))
            .arg("-drive")
            .arg(format!("if=virtio,file={},format=raw,readonly=on", shown(given)))
            .arg("-netdev")
            .arg(format!(
                "stream,id=net,server={server},addr.type=unix,addr.path={}",
                shown(&place.join("net.sock"))
            ))
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=net,mac={card}"))
            .stdin(Stdio::null());
        let qemu = qemu.spawn().context("start a machine")?;
        let shell = wait::until("the machine's serial port", seconds(20), || {
            Ok(UnixStream::connect(&socket).ok())
        })?;
        shell.set_read_timeout(Some(ANSWER))?;
        let machine = Self {
            qemu,
            shell: Mutex::new(shell),
            console,
        };
        // What is sent before anybody reads there waits in the port or is lost; an answer says that it is up.
        wait::until("the machine to boot", BOOT, || {
            let console = fs::read_to_string(&machine.console).unwrap_or_default();
            ensure!(!console.contains("Kernel panic"), "{console}");
            machine.probe()
        })?;
        Ok(machine)
    }

    fn probe(&self) -> Result<Option<()>> {
        let mut shell = self.shell.lock().expect("one at a time");
        shell.set_read_timeout(Some(seconds(5)))?;
        shell.write_all(b"\n")?;
        let mut said = [0; 512];
        let answered = shell.read(&mut said).is_ok_and(|n| n > 0);
        if !answered {
            return Ok(None);
        }
        // Those of the probes before: until nothing comes any more.
        while shell.read(&mut said).is_ok_and(|n| n > 0) {}
        shell.set_read_timeout(Some(ANSWER))?;
        Ok(Some(()))
    }

    /// Runs a script as root; what it said and how it ended.
    pub(crate) fn run(&self, script: &str) -> Result<(i32, String)> {
        let mut shell = self.shell.lock().expect("one at a time");
        let line = STANDARD.encode(script);
        shell.write_all(format!("{line}\n").as_bytes())?;
        let mut said = Vec::new();
        let mut part = [0; 4096];
        loop {
            let n = shell
                .read(&mut part)
                .context("the machine does not answer")?;
            if n == 0 {
                bail!("the machine has ended");
            }
            said.extend_from_slice(&part[..n]);
            let text = String::from_utf8_lossy(&said);
            if let Some((before, end)) = text.rsplit_once("\nended=")
                && let Some(code) = end.trim().strip_suffix('.')
            {
                return Ok((code.parse()?, before.trim().to_owned()));
            }
        }
    }

    /// The same for a script that must succeed.
    pub(crate) fn ok(&self, script: &str) -> Result<String> {
        let (code, said) = self.run(script)?;
        ensure!(code == 0, "exit code {code} of\n{script}\n{said}");
        Ok(said)
    }

    /// As when its power is cut.
    pub(crate) fn kill(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}
