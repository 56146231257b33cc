//! The lab guest's part of QEMU's guest agent: as much of its protocol as Fleetward uses, over the virtio port that libvirt
//! listens on. One JSON object a line, each way.
//!
//! It answers `guest-sync`, `guest-sync-delimited`, `guest-ping`, `guest-info`, `guest-get-host-name`, `guest-get-osinfo`,
//! `guest-network-get-interfaces`, `guest-fsfreeze-freeze`, `-thaw` and `-status`, and `guest-shutdown`; everything else is an
//! error. Freezing is real: the file system of the disk takes no writes until it is thawed.

use super::{BUSYBOX, GUEST_AGENT_SHUTDOWN, STATE, output};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

const PORT: &str = "org.qemu.guest_agent.0";

/// Answers for as long as the guest runs.
pub fn serve() {
    thread::spawn(|| {
        for _ in 0..100 {
            if let Some(port) = open_port() {
                answer_all(port);
            }
            thread::sleep(Duration::from_millis(200));
        }
    });
}

fn open_port() -> Option<File> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        let name = fs::read_to_string(port.path().join("name"));
        name.is_ok_and(|name| name.trim() == PORT)
    })?;
    let device = format!("/dev/{}", port.file_name().to_string_lossy());
    OpenOptions::new().read(true).write(true).open(device).ok()
}

fn answer_all(port: File) {
    let Ok(mut writer) = port.try_clone() else { return };
    let mut frozen = false;
    for line in BufReader::new(port).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line);
        let Some(at) = line.find('{') else { continue };
        let Some(answer) = answer(&line[at..], &mut frozen) else { continue };
        // A byte that no JSON holds marks where the answer begins.
        let begins: &[u8] = if line.contains("guest-sync-delimited") { &[0xff] } else { &[] };
        if writer.write_all(&[begins, answer.as_bytes()].concat()).is_err() {
            return;
        }
    }
}

fn answer(request: &str, frozen: &mut bool) -> Option<String> {
    let command = text(request, "execute").unwrap_or_default();
    let returns = match command.as_str() {
        "guest-sync" | "guest-sync-delimited" => number(request, "id")?,
        "guest-ping" => "{}".to_owned(),
        "guest-info" => "{\"version\": \"lab\", \"supported_commands\": []}".to_owned(),
        "guest-get-host-name" => "{\"host-name\": \"lab-guest\"}".to_owned(),
        "guest-get-osinfo" => osinfo(),
        "guest-network-get-interfaces" => interfaces(),
        "guest-fsfreeze-status" => format!("\"{}\"", if *frozen { "frozen" } else { "thawed" }),
        "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => {
            *frozen = freeze("--freeze");
            println!("FLEETWARD-GUEST-NOTE disks frozen");
            if *frozen { "1" } else { "0" }.to_owned()
        }
        "guest-fsfreeze-thaw" => {
            let thawed = *frozen && freeze("--unfreeze");
            *frozen = *frozen && !thawed;
            println!("FLEETWARD-GUEST-NOTE disks thawed");
            if thawed { "1" } else { "0" }.to_owned()
        }
        "guest-shutdown" => {
            GUEST_AGENT_SHUTDOWN.store(true, Ordering::Relaxed);
            return None;
        }
        other => {
            return Some(format!(
                "{{\"error\": {{\"class\": \"CommandNotFound\", \"desc\": \"no {}\"}}}}\n",
                other.replace(['"', '\\'], "")
            ));
        }
    };
    Some(format!("{{\"return\": {returns}}}\n"))
}

fn osinfo() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{{\"id\": \"lab\", \"name\": \"Lab guest\", \"pretty-name\": \"Fleetward lab guest\", \"kernel-release\": \"{}\"}}",
        kernel.trim()
    )
}

/// From `ip -o addr`: `2: eth0    inet 10.1.2.3/8 ...`.
fn interfaces() -> String {
    let lines = output(&["ip", "-o", "addr"]).unwrap_or_default();
    let mut cards = Vec::new();
    for card in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let name = card.file_name().to_string_lossy().into_owned();
        let mac = fs::read_to_string(card.path().join("address")).unwrap_or_default();
        let addresses: Vec<String> = lines
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace().skip(1);
                let (this, family, address) = (words.next()?, words.next()?, words.next()?);
                let kind = match family {
                    "inet" => "ipv4",
                    "inet6" => "ipv6",
                    _ => return None,
                };
                let (address, prefix) = address.split_once('/')?;
                (this == name).then(|| {
                    format!("{{\"ip-address\": \"{address}\", \"ip-address-type\": \"{kind}\", \"prefix\": {prefix}}}")
                })
            })
            .collect();
        cards.push(format!(
            "{{\"name\": \"{name}\", \"hardware-address\": \"{}\", \"ip-addresses\": [{}]}}",
            mac.trim(),
            addresses.join(", ")
        ));
    }
    format!("[{}]", cards.join(", "))
}

fn freeze(how: &str) -> bool {
    let done = Command::new(BUSYBOX).args(["fsfreeze", how, STATE]).status();
    done.is_ok_and(|status| status.success())
}

/// The text of a member; the requests that are answered here have none with a quote in it.
fn text(request: &str, member: &str) -> Option<String> {
    let (_, rest) = request.split_once(&format!("\"{member}\""))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    Some(rest.split_once('"')?.0.to_owned())
}

fn number(request: &str, member: &str) -> Option<String> {
    let (_, rest) = request.split_once(&format!("\"{member}\""))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}
