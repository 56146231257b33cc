//! Reads the output of the lab guest on its serial console.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

const MARK: &str = "FLEETWARD-GUEST ";

/// One line of the lab guest; `guest/lab-guest.rs` says what the fields mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    pub tick: u64,
    pub uptime: u64,
    /// `ok`, `failed` or `none`.
    pub unseal: String,
    pub boots: u64,
    pub pcr7: String,
    pub ek: String,
    /// Of its first network card; none without one.
    pub address: Option<std::net::Ipv4Addr>,
    /// Other lab guests that it reaches.
    pub peers: Vec<std::net::Ipv4Addr>,
}

impl Tick {
    /// `None` for every other line, a line that is not yet complete included.
    pub fn parse(line: &str) -> Option<Self> {
        // GRUB's control sequences may stand before the first line.
        let text = &line[line.find(MARK)? + MARK.len()..];
        let fields: HashMap<&str, &str> = text
            .split_whitespace()
            .filter_map(|field| field.split_once('='))
            .collect();
        Some(Self {
            tick: fields.get("tick")?.parse().ok()?,
            uptime: fields.get("uptime")?.parse().ok()?,
            unseal: (*fields.get("unseal")?).to_owned(),
            boots: fields.get("boots")?.parse().ok()?,
            pcr7: (*fields.get("pcr7")?).to_owned(),
            ek: (*fields.get("ek")?).to_owned(),
            address: fields.get("address").and_then(|text| text.parse().ok()),
            peers: fields.get("peers").map_or_else(Vec::new, |text| {
                text.split(',')
                    .filter_map(|peer| peer.parse().ok())
                    .collect()
            }),
        })
    }

    /// All complete lines of a serial log, oldest first.
    pub fn parse_all(text: &str) -> Vec<Self> {
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().filter_map(Self::parse).collect()
    }
}

/// The serial log of a VM; the agent names it after the VM.
pub(crate) fn log_of(dir: &Path, vm: &str) -> PathBuf {
    dir.join(format!("{vm}.log"))
}

/// All that the VM printed so far; empty when it never ran.
pub(crate) fn read(dir: &Path, vm: &str) -> Result<String> {
    let path = log_of(dir, vm);
    match fs::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Copies the log to `out` and goes on for ever.
pub(crate) fn follow(dir: &Path, vm: &str, out: &mut impl Write) -> Result<()> {
    let path = log_of(dir, vm);
    let mut at = 0;
    loop {
        if let Ok(mut file) = File::open(&path) {
            file.seek(SeekFrom::Start(at))?;
            let mut fresh = Vec::new();
            at += file.read_to_end(&mut fresh)? as u64;
            out.write_all(&fresh)?;
            out.flush()?;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_between_other_lines() {
        let text = "Welcome\n\x1b[0mFLEETWARD-GUEST tick=1 uptime=3 unseal=ok boots=1 pcr7=aa ek=bb\n\
                    FLEETWARD-GUEST-NOTE something\nFLEETWARD-GUEST tick=2 uptime=4 unseal=failed boots=1 pcr7=aa ek=none\n\
                    FLEETWARD-GUEST tick=3 uptime=5 unseal=ok boots=1 pcr7=aa ek=b";
        let ticks = Tick::parse_all(text);
        assert_eq!(
            ticks.iter().map(|t| t.tick).collect::<Vec<_>>(),
            [1, 2],
            "the last line is not complete"
        );
        assert_eq!(ticks[1].unseal, "failed");
        assert_eq!(ticks[0].ek, "bb");
    }
}
