//! One conversion: from layer to layer, and from a foreign disk to qcow2. Owns the limits of each run.

use super::look::{descriptor_only, plain_format, recognize, require_made, require_wanted};
use super::{ConversionLimits, PROCESSES, Result, Tell, blocking, file_error, rules, unusable};
use crate::confined::{Confinement, Ended, Limits, Running, Shown};
use crate::program::Program;
use crate::said;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{Conversion, ConversionError, ConversionProgress, Converted};
use fleetward_model::foreign::{Arrived, Disk};
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Layers taken off: a compressed archive with a compressed disk has three.
const MAX_LAYERS: usize = 4;
/// Room that stays free where conversions are made: VMs may need it.
const RESERVE: u64 = 1 << 30;
/// Largest answer of a program about a file, bytes.
const MAX_SAID: u64 = 1 << 20;

/// Names of the files in the confinement.
pub(super) const INPUT: &str = "/in";
const OUTPUT: &str = "/out";

/// One conversion.
pub(super) struct Work<'a> {
    pub(super) confinement: &'a Confinement,
    pub(super) qemu_img: &'a Program,
    pub(super) limits: ConversionLimits,
    pub(super) conversion: Conversion<'a>,
    pub(super) tell: Tell<'a>,
}

impl Work<'_> {
    pub(super) async fn run(&self) -> Result<Converted> {
        let wanted = self.conversion.wanted;
        let mut path = self.conversion.source.to_owned();
        let mut found = Vec::new();
        // Whether there was something to choose a disk from.
        let mut was_choice = false;
        loop {
            let next = self
                .conversion
                .directory
                .join(format!("layer{}", found.len()));
            match recognize(&path, wanted).await? {
                Arrived::Packed(_) | Arrived::Tar | Arrived::Zip if found.len() >= MAX_LAYERS => {
                    return Err(unusable(format!(
                        "it is packed more than {MAX_LAYERS} times over"
                    )));
                }
                Arrived::Packed(packing) => {
                    self.unpack(packing, &path, &next).await?;
                    found.push(packing.name());
                }
                Arrived::Tar => {
                    self.copy_out(&path, &next).await?;
                    found.push("ova");
                    was_choice = true;
                }
                Arrived::Zip => {
                    was_choice |= self.unzip(&path, &next).await?;
                    found.push("zip");
                }
                Arrived::Disk(disk) => {
                    found.push(disk.name());
                    require_wanted(wanted, &found)?;
                    self.require_chosen(was_choice)?;
                    self.require_whole(disk, &path).await?;
                    self.make_qcow2(Some(disk), &path, &next).await?;
                    return Ok(Converted { path: next, found });
                }
                Arrived::Descriptor => return Err(descriptor_only()),
                Arrived::Plain => {
                    let format = plain_format(&path, wanted).await?;
                    found.push(format);
                    require_wanted(wanted, &found)?;
                    self.require_chosen(was_choice)?;
                    if format != "raw" {
                        return Ok(Converted { path, found });
                    }
                    self.make_qcow2(None, &path, &next).await?;
                    return Ok(Converted { path: next, found });
                }
            }
            durable::discard(&path);
            path = next;
        }
    }

    fn require_chosen(&self, was_choice: bool) -> Result<()> {
        match self.conversion.disk {
            Some(disk) if !was_choice => Err(unusable(format!(
                "it has one disk only, so there is no choice of a disk {disk:?}"
            ))),
            _ => Ok(()),
        }
    }

    async fn require_whole(&self, disk: Disk, path: &Path) -> Result<()> {
        let mut file = File::open(path).map_err(file_error("open", path))?;
        blocking(move || rules::require_whole(disk, &mut file)).await
    }

    /// Makes a qcow2 disk of a foreign one, or of a raw one.
    async fn make_qcow2(&self, disk: Option<Disk>, path: &Path, into: &Path) -> Result<()> {
        let format = match disk {
            None => "raw",
            Some(Disk::Vhdx) => "vhdx",
            Some(Disk::Vhd) => "vpc",
            Some(Disk::Vmdk) => "vmdk",
            Some(Disk::Vdi) => "vdi",
        };
        let input = self.give(path)?;
        let info = match self.info(format, path, &input).await {
            Err(ConversionError::Unusable(because)) if said::of_unplayed_log(&because) => {
                self.replay(path, &input).await?;
                self.info(format, path, &input).await?
            }
            other => other?,
        };
        if info.backing_filename.is_some() {
            return Err(ConversionError::NeedsOthers(
                "it has a backing file; what it would show depends on another file".into(),
            ));
        }
        if info.encrypted {
            return Err(unusable("it is encrypted"));
        }
        if info.virtual_size == 0 {
            return Err(unusable("its disk has no size"));
        }
        if info.virtual_size > self.limits.disk {
            return Err(ConversionError::OverLimits(format!(
                "its disk has {} bytes; at most {} are taken",
                info.virtual_size, self.limits.disk
            )));
        }
        let output = self.make_file(into)?;
        let shown = [shown(path, INPUT, false), shown(into, OUTPUT, true)];
        let arguments = ["convert", "-p", "-f", format, "-O", "qcow2", INPUT, OUTPUT];
        let room = self.output_for(disk, &input, info.virtual_size)?;
        let mut running = self.start(self.qemu_img, &arguments, &shown, None, input.len(), room)?;
        let from = running.output();
        let done = async {
            self.follow(from).await;
            Ok::<_, ConversionError>(())
        };
        if let Err(ended) = running.end(done).await? {
            return Err(self.ended(format, ended));
        }
        durable::discard(path);
        require_made(output, info.virtual_size)
    }

    async fn info(&self, format: &str, path: &Path, input: &std::fs::Metadata) -> Result<Info> {
        let arguments = ["info", "--output=json", "-f", format, INPUT];
        let shown = [shown(path, INPUT, false)];
        let running = self.start(self.qemu_img, &arguments, &shown, None, input.len(), 0)?;
        let said = self.said(running, format, path).await?;
        serde_json::from_slice(&said)
            .map_err(|error| unusable(format!("what it is said to be is no answer: {error}")))
    }

    /// Carries out what a VHDX was about to write when its writer was cut off.
    async fn replay(&self, path: &Path, input: &std::fs::Metadata) -> Result<()> {
        let arguments = ["check", "-q", "-r", "all", "-f", "vhdx", INPUT];
        let shown = [shown(path, INPUT, true)];
        let grown = input.len().saturating_mul(2).saturating_add(1 << 30);
        let room = grown.min(self.room()?);
        let running = self.start(self.qemu_img, &arguments, &shown, None, input.len(), room)?;
        self.said(running, "vhdx", path).await.map(drop)
    }

    /// Tells what `qemu-img convert -p` says: `    (12.34/100%)`, again and again, each with a carriage return.
    async fn follow(&self, mut from: impl AsyncRead + Unpin) {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let text = String::from_utf8_lossy(&piece[..length]);
            let last = text.rsplit('(').find_map(|said| said.split_once("/100%)"));
            if let Some(percent) = last.and_then(|(number, _)| number.trim().parse::<f32>().ok()) {
                let permille = (percent * 10.0).clamp(0.0, 1000.0) as u32;
                (self.tell)(ConversionProgress {
                    step: "convert",
                    permille,
                });
            }
        }
    }
}

/// What every run needs.
impl Work<'_> {
    /// Starts a program in the confinement, within the limits for an input of that length.
    pub(super) fn start(
        &self,
        program: &Program,
        arguments: &[&str],
        shown: &[Shown<'_>],
        input: Option<File>,
        length: u64,
        output: u64,
    ) -> Result<Running> {
        let limits = Limits {
            memory: self.limits.memory,
            time: self.time_for(length),
            output,
            processes: PROCESSES,
        };
        self.confinement
            .start(program, arguments, shown, input, Vec::new(), limits)
            .map_err(|error| ConversionError::Unable(error.to_string()))
    }

    /// What a program says, at most [`MAX_SAID`] bytes.
    pub(super) async fn said(
        &self,
        mut running: Running,
        format: &str,
        path: &Path,
    ) -> Result<Vec<u8>> {
        let mut from = running.output();
        let said = async {
            let mut said = Vec::new();
            let read = (&mut from).take(MAX_SAID).read_to_end(&mut said).await;
            drop(from);
            read.map(|_| said).map_err(file_error("read", path))
        };
        match running.end(said).await? {
            Ok(said) => Ok(said),
            Err(ended) => Err(self.ended(format, ended)),
        }
    }

    /// Gives a file to the user in the confinement, where it is shown for reading or for writing.
    pub(super) fn give(&self, path: &Path) -> Result<std::fs::Metadata> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.and_then(|file| self.confinement.give(&file).and_then(|()| file.metadata()))
            .map_err(file_error("give away", path))
    }

    /// An empty file that the user in the confinement may write, when it is shown to it.
    pub(super) fn make_file(&self, path: &Path) -> Result<File> {
        durable::create(path, b"", Access::PRIVATE)
            .map_err(|error| self.not_written(path, error))?;
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(file_error("open", path))?;
        let given = self.confinement.give(&file);
        given.map_err(file_error("give away", path))?;
        Ok(file)
    }

    pub(super) fn told(&self, step: &'static str, done: u64, total: u64) {
        let permille = done.saturating_mul(1000).checked_div(total);
        let permille = permille.unwrap_or_default().min(1000) as u32;
        (self.tell)(ConversionProgress { step, permille });
    }

    /// A slow disk and a slow compression manage a mebibyte a second.
    pub(super) fn time_for(&self, input: u64) -> Duration {
        self.limits.time + Duration::from_secs(input >> 20)
    }

    /// Bytes that the qcow2 disk may have. A disk without compression holds no more than its file; deflate makes at most
    /// 1,032 bytes of one. Clusters are rounded up, and their tables come on top.
    fn output_for(
        &self,
        disk: Option<Disk>,
        input: &std::fs::Metadata,
        virtual_size: u64,
    ) -> Result<u64> {
        let held = match disk {
            None => input.blocks().saturating_mul(512).saturating_mul(2),
            Some(Disk::Vmdk) => input.len().saturating_mul(1032),
            Some(Disk::Vhdx | Disk::Vhd | Disk::Vdi) => input.len().saturating_mul(2),
        };
        let most = held
            .saturating_add(virtual_size >> 12)
            .saturating_add(64 << 20);
        Ok(most.min(self.room()?))
    }

    pub(super) fn room(&self) -> Result<u64> {
        let directory = self.conversion.directory;
        let found = nix::sys::statvfs::statvfs(directory);
        let found = found.map_err(|error| file_error("look at", directory)(error.into()))?;
        let available = found
            .blocks_available()
            .saturating_mul(found.fragment_size());
        Ok(available.saturating_sub(RESERVE))
    }

    pub(super) fn require_room(&self) -> Result<()> {
        match self.room()? {
            0 => Err(self.no_space()),
            _ => Ok(()),
        }
    }

    pub(super) fn no_space(&self) -> ConversionError {
        ConversionError::NoSpace(self.conversion.directory.to_owned())
    }

    pub(super) fn not_written(&self, path: &Path, error: io::Error) -> ConversionError {
        if durable::is_full(&error) {
            self.no_space()
        } else {
            file_error("write", path)(error)
        }
    }

    pub(super) fn ended(&self, format: &str, ended: Ended) -> ConversionError {
        let ended = match ended {
            Ended::Refused(said) if said::of_too_large_file(&said) => Ended::OverLimit("output"),
            other => other,
        };
        match ended {
            Ended::Refused(said) if said::words_of_full_disk(&said) => self.no_space(),
            Ended::Refused(said) => {
                unusable(format!("it cannot be read as {format}: {}", bare(&said)))
            }
            Ended::OverLimit("output") if self.room().is_ok_and(|room| room < RESERVE) => {
                self.no_space()
            }
            Ended::OverLimit(what) => ConversionError::OverLimits(format!(
                "reading it as {format} takes more {what} than a conversion may use"
            )),
            Ended::Crashed(signal) => unusable(format!(
                "the program that reads {format} was ended by signal {signal} while it read it"
            )),
            Ended::NotConfined(why) => ConversionError::Unable(why),
        }
    }
}

/// What qemu-img says of a foreign disk, as far as we read it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
}

pub(super) fn shown<'a>(path: &'a Path, inside: &'static str, writable: bool) -> Shown<'a> {
    Shown {
        path,
        inside,
        writable,
    }
}

/// Without what only says which program it was, and under which name it saw the file.
fn bare(said: &str) -> String {
    let said = said.replace("Could not open '/in': ", "");
    let mut bare = said.as_str();
    for program in ["qemu-img: ", "gzip: ", "xz: ", "zstd: ", "bzip2: "] {
        bare = bare.strip_prefix(program).unwrap_or(bare);
    }
    bare.replace("qemu-img: ", "")
}
