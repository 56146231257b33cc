//! Converts files from elsewhere: looks what a file is, takes off one layer after the other, and makes a qcow2 disk of
//! what is inside.
//!
//! ```text
//!   recognize ──► compressed ──► unpack (confined) ──┐
//!      ▲     ├──► OVA, ZIP ────► take its disk out ──┤
//!      └─────│───────────────────────────────────────┘
//!            ├──► vhdx, vhd, vmdk, vdi; raw from a compressed file ──► require_whole ──► qemu-img (confined) ──► qcow2
//!            └──► qcow2, iso from a compressed file ──► as it is
//! ```
//! Safe code of ours reads magic numbers, an archive's index, its descriptor and a few header fields. Everything else is
//! read by programs in a [confinement](crate::confined).

mod ova;
mod rules;

use crate::confined::{Confinement, Ended, Limits, Running, Shown};
use crate::program::Program;
use crate::said;
use async_trait::async_trait;
use fleetward_durable::{self as durable, Access};
use fleetward_hypervisor::{Conversion, ConversionError, ConversionProgress, Converted, Converter};
use fleetward_model::foreign::{self, Arrived, Disk, Packing};
use fleetward_model::image::{self, Content, Standalone};
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

/// Layers taken off: a compressed archive with a compressed disk has three.
const MAX_LAYERS: usize = 4;
/// Bytes of a pipe that are looked at, and written, at once.
const PIECE: usize = 1 << 20;
/// What is written as a hole when it is zero.
const BLOCK: usize = 64 << 10;
/// Room that stays free where conversions are made: VMs may need it.
const RESERVE: u64 = 1 << 30;
/// Largest answer of a program about a file, bytes.
const MAX_SAID: u64 = 1 << 20;
/// Names of an archive's files in a message.
const MAX_NAMES: usize = 20;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);

const INPUT: &str = "/in";
const OUTPUT: &str = "/out";

type Result<T, E = ConversionError> = std::result::Result<T, E>;
type Tell<'a> = &'a (dyn Fn(ConversionProgress) + Send + Sync);

/// What conversions may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversionLimits {
    /// Bytes of memory of a program.
    pub memory: u64,
    /// Time of a program beside what the size of its input needs.
    pub time: Duration,
    /// Bytes of a disk, empty parts included: as much as a VHDX can have.
    pub disk: u64,
    /// Bytes of an unpacked file, empty parts included.
    pub unpacked: u64,
}

impl Default for ConversionLimits {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            time: Duration::from_secs(30 * 60),
            disk: 64 << 40,
            unpacked: 4 << 40,
        }
    }
}

/// The converter of this host.
#[derive(Debug)]
pub struct ConfinedConverter {
    programs: std::result::Result<Programs, String>,
    limits: ConversionLimits,
    /// One at a time: they share a user, and the host has VMs to run.
    turn: Semaphore,
}

#[derive(Debug)]
struct Programs {
    confinement: Confinement,
    qemu_img: Program,
}

impl ConfinedConverter {
    /// Finds the programs; `user` is who runs them in the confinement. What is missing is told when somebody asks.
    pub fn find(user: &str) -> Self {
        let programs = Confinement::find(user).and_then(|confinement| {
            Ok(Programs {
                confinement,
                qemu_img: Program::find("qemu-img")
                    .ok_or("the program qemu-img is not installed (Debian package qemu-utils)")?,
            })
        });
        Self {
            programs,
            limits: ConversionLimits::default(),
            turn: Semaphore::new(1),
        }
    }

    /// The same within other limits.
    #[must_use]
    pub fn with_limits(self, limits: ConversionLimits) -> Self {
        Self { limits, ..self }
    }

    fn programs(&self) -> Result<&Programs> {
        let programs = self.programs.as_ref();
        programs.map_err(|missing| ConversionError::Unable(missing.clone()))
    }
}

#[async_trait]
impl Converter for ConfinedConverter {
    async fn ready(&self) -> Result<()> {
        let Programs { confinement, .. } = self.programs()?;
        let nothing = Program::find("true")
            .ok_or_else(|| ConversionError::Unable("the program true is not installed".into()))?;
        let limits = Limits {
            memory: self.limits.memory,
            time: Duration::from_secs(10),
            output: 0,
        };
        let running = confinement
            .start(&nothing, &[] as &[&str], &[], None, limits)
            .map_err(|error| ConversionError::Unable(error.to_string()))?;
        match running.end(async { Ok::<_, ConversionError>(()) }).await? {
            Ok(()) => Ok(()),
            Err(ended) => Err(ConversionError::Unable(format!(
                "foreign files cannot be confined here: {ended:?}"
            ))),
        }
    }

    async fn convert(&self, conversion: Conversion<'_>, tell: Tell<'_>) -> Result<Converted> {
        let Programs {
            confinement,
            qemu_img,
        } = self.programs()?;
        let _turn = self.turn.acquire().await.expect("it is never closed");
        let work = Work {
            confinement,
            qemu_img,
            limits: self.limits,
            conversion,
            tell,
        };
        work.run().await
    }
}

/// One conversion.
struct Work<'a> {
    confinement: &'a Confinement,
    qemu_img: &'a Program,
    limits: ConversionLimits,
    conversion: Conversion<'a>,
    tell: Tell<'a>,
}

impl Work<'_> {
    async fn run(&self) -> Result<Converted> {
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

    /// Undoes a compression.
    async fn unpack(&self, packing: Packing, path: &Path, into: &Path) -> Result<()> {
        let (name, package, arguments): (_, _, &[&str]) = match packing {
            Packing::Gzip => ("gzip", "gzip", &["-dc"]),
            Packing::Xz => ("xz", "xz-utils", &["-dc", "-T1"]),
            Packing::Zstd => ("zstd", "zstd", &["-dcq", "--no-progress"]),
            Packing::Bzip2 => ("bzip2", "bzip2", &["-dc"]),
        };
        let program = find_program(name, package)?;
        let input = File::open(path).map_err(file_error("open", path))?;
        let length = input.metadata().map_err(file_error("look at", path))?.len();
        // Both have one position, so that this one tells how far the program has read.
        let position = input.try_clone().map_err(file_error("open", path))?;
        let output = self.make_file(into)?;
        let mut running = self.start(&program, arguments, &[], Some(input), length, 0)?;
        let from = running.output();
        let told = || {
            let at = (&position).stream_position().unwrap_or_default();
            self.told("unpack", at, length);
        };
        let written = self.write_sparse(from, output, into, &told);
        match running.end(written).await? {
            Ok(()) => Ok(()),
            Err(ended) => Err(self.ended(packing.name(), ended)),
        }
    }

    /// Takes the one file out of a ZIP archive, or the one that is asked for. Says whether there was a choice.
    async fn unzip(&self, path: &Path, into: &Path) -> Result<bool> {
        let program = find_program("unzip", "unzip")?;
        let input = self.give(path)?;
        let shown = [shown(path, INPUT, false)];
        let length = input.len();
        let running = self.start(&program, &["-Z1", INPUT], &shown, None, length, 0)?;
        let names = self.said(running, "zip", path).await?;
        let names = String::from_utf8_lossy(&names).into_owned();
        let (name, is_choice) = one_of(&names, self.conversion.disk)?;
        let output = self.make_file(into)?;
        let arguments = ["-p", INPUT, &literally(name)];
        let mut running = self.start(&program, &arguments, &shown, None, length, 0)?;
        let from = running.output();
        let written = self.write_sparse(from, output, into, &|| {});
        match running.end(written).await? {
            Ok(()) => Ok(is_choice),
            Err(ended) => Err(self.ended("zip", ended)),
        }
    }

    /// Starts a program in the confinement, within the limits for an input of that length.
    fn start(
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
        };
        self.confinement
            .start(program, arguments, shown, input, limits)
            .map_err(|error| ConversionError::Unable(error.to_string()))
    }

    /// What a program says, at most [`MAX_SAID`] bytes.
    async fn said(&self, mut running: Running, format: &str, path: &Path) -> Result<Vec<u8>> {
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
    fn give(&self, path: &Path) -> Result<std::fs::Metadata> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.and_then(|file| self.confinement.give(&file).and_then(|()| file.metadata()))
            .map_err(file_error("give away", path))
    }

    async fn write_sparse(
        &self,
        mut from: impl AsyncRead + Unpin,
        to: File,
        path: &Path,
        told: &(impl Fn() + Send + Sync),
    ) -> Result<()> {
        let (mut at, mut piece) = (0u64, Vec::with_capacity(PIECE));
        let mut to = Some(to);
        let mut last = tokio::time::Instant::now();
        loop {
            piece.clear();
            (&mut from)
                .take(PIECE as u64)
                .read_to_end(&mut piece)
                .await
                .map_err(file_error("unpack into", path))?;
            let length = piece.len() as u64;
            if at + length > self.limits.unpacked {
                return Err(ConversionError::OverLimits(format!(
                    "what is packed in it has more than {} bytes",
                    self.limits.unpacked
                )));
            }
            let file = to.take().expect("it comes back each time");
            // What comes is written where it may block; the buffer and the file travel there and back.
            let mine = std::mem::take(&mut piece);
            let (file, mine, written) = blocking(move || {
                let written = write_piece(&file, &mine, at);
                (file, mine, written)
            })
            .await;
            written.map_err(|error| self.not_written(path, error))?;
            (to, piece) = (Some(file), mine);
            at += length;
            if length < PIECE as u64 {
                let file = to.take().expect("it came back");
                return file.set_len(at).map_err(file_error("write", path));
            }
            if last.elapsed() > TELL {
                last = tokio::time::Instant::now();
                self.require_room()?;
                told();
            }
        }
    }

    /// Copies the disk of an OVA out of it.
    async fn copy_out(&self, path: &Path, into: &Path) -> Result<()> {
        let mut output = self.make_file(into)?;
        let mut archive = File::open(path).map_err(file_error("open", path))?;
        let disk = self.conversion.disk.map(str::to_owned);
        let found = blocking(move || {
            let found = ova::find_disk(&mut archive, disk.as_deref());
            found.map(|member| (archive, member))
        });
        let (mut archive, member) = found.await?;
        if member.length > self.room()? {
            return Err(self.no_space());
        }
        let copied = blocking(move || {
            archive.seek(SeekFrom::Start(member.offset))?;
            let copied = io::copy(&mut archive.take(member.length), &mut output)?;
            output.flush().map(|()| copied)
        });
        match copied.await {
            Ok(copied) if copied == member.length => Ok(()),
            Ok(_) => Err(unusable("its archive is cut off")),
            Err(error) => Err(self.not_written(into, error)),
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

    fn told(&self, step: &'static str, done: u64, total: u64) {
        let permille = done.saturating_mul(1000).checked_div(total);
        let permille = permille.unwrap_or_default().min(1000) as u32;
        (self.tell)(ConversionProgress { step, permille });
    }

    /// A slow disk and a slow compression manage a mebibyte a second.
    fn time_for(&self, input: u64) -> Duration {
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

    fn room(&self) -> Result<u64> {
        let directory = self.conversion.directory;
        let found = nix::sys::statvfs::statvfs(directory);
        let found = found.map_err(|error| file_error("look at", directory)(error.into()))?;
        let available = found
            .blocks_available()
            .saturating_mul(found.fragment_size());
        Ok(available.saturating_sub(RESERVE))
    }

    fn require_room(&self) -> Result<()> {
        match self.room()? {
            0 => Err(self.no_space()),
            _ => Ok(()),
        }
    }

    fn no_space(&self) -> ConversionError {
        ConversionError::NoSpace(self.conversion.directory.to_owned())
    }

    fn not_written(&self, path: &Path, error: io::Error) -> ConversionError {
        if durable::is_full(&error) {
            self.no_space()
        } else {
            file_error("write", path)(error)
        }
    }

    /// An empty file that the user in the confinement may write, when it is shown to it.
    fn make_file(&self, path: &Path) -> Result<File> {
        durable::create(path, b"", Access::PRIVATE)
            .map_err(|error| self.not_written(path, error))?;
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(file_error("open", path))?;
        let given = self.confinement.give(&file);
        given.map_err(file_error("give away", path))?;
        Ok(file)
    }

    fn ended(&self, format: &str, ended: Ended) -> ConversionError {
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

async fn recognize(path: &Path, wanted: Option<&str>) -> Result<Arrived> {
    let (path, wanted) = (path.to_owned(), wanted.map(str::to_owned));
    blocking(move || {
        let read = || {
            let mut file = File::open(&path)?;
            let mut head = Vec::new();
            (&mut file)
                .take(image::HEAD as u64)
                .read_to_end(&mut head)?;
            let length = file.metadata()?.len();
            let mut tail = Vec::new();
            file.seek(SeekFrom::Start(length.saturating_sub(foreign::TAIL as u64)))?;
            file.take(foreign::TAIL as u64).read_to_end(&mut tail)?;
            Ok((head, tail))
        };
        let (head, tail) = read().map_err(file_error("read", &path))?;
        Ok(foreign::recognize(&head, &tail, wanted.as_deref()))
    })
    .await
}

/// What an unpacked file is that needs no conversion, or is a raw disk.
async fn plain_format(path: &Path, wanted: Option<&str>) -> Result<&'static str> {
    let (path, raw) = (path.to_owned(), wanted == Some("raw"));
    blocking(move || {
        let failed = file_error("read", &path);
        let read = || {
            let mut file = File::open(&path)?;
            let mut head = Vec::new();
            (&mut file).take(image::HEAD as u64).read_to_end(&mut head)?;
            let mut volume = [0; 6];
            let is_iso = file.read_exact_at(&mut volume, 0x8000).is_ok() && volume[1..] == *b"CD001";
            Ok((head, is_iso, file.metadata()?.len()))
        };
        let (head, is_iso, length) = read().map_err(failed)?;
        let content = image::read::<Standalone>(&head);
        match content.map_err(|refusal| unusable(refusal.to_string()))? {
            Content::Qcow2(_) => Ok("qcow2"),
            Content::Other { .. } if is_iso && !raw => Ok("iso"),
            Content::Other { .. } if length == 0 || !length.is_multiple_of(512) => Err(unusable(
                format!("what is packed in it is no disk: it has {length} bytes"),
            )),
            Content::Other { boot_sector } if boot_sector || raw => Ok("raw"),
            Content::Other { .. } => Err(unusable(
                "what is packed in it is no disk: no partition table, no file system of an installer, no known format",
            )),
        }
    })
    .await
}

fn require_wanted(wanted: Option<&str>, found: &[&'static str]) -> Result<()> {
    match wanted {
        Some(wanted) if !found.contains(&wanted) => Err(unusable(format!(
            "it is {}, not {wanted}",
            found.join(" with ")
        ))),
        _ => Ok(()),
    }
}

/// The result is what was meant to be made, and builds on nothing.
fn require_made(mut output: File, size: u64) -> Result<()> {
    let mut head = Vec::new();
    let read = output.rewind().and_then(|()| {
        (&mut output)
            .take(image::HEAD as u64)
            .read_to_end(&mut head)
    });
    read.map_err(|error| unusable(error.to_string()))?;
    match image::read::<Standalone>(&head) {
        Ok(Content::Qcow2(made)) if made.virtual_size >= size => Ok(()),
        other => Err(unusable(format!("no disk came of it: {other:?}"))),
    }
}

/// The name of the archive's one file, or of the one that is wanted, and whether there are several.
fn one_of<'a>(names: &'a str, wanted: Option<&str>) -> Result<(&'a str, bool)> {
    let files: Vec<_> = names.lines().filter(|name| !name.ends_with('/')).collect();
    match (files.as_slice(), wanted) {
        ([], _) => Err(unusable("its archive has no file")),
        ([one], _) => Ok((one, false)),
        (several, Some(wanted)) if several.contains(&wanted) => {
            let at = several.iter().position(|name| *name == wanted);
            Ok((several[at.expect("it is among them")], true))
        }
        (several, _) => {
            let shown = several.iter().take(MAX_NAMES).map(|name| plain(name));
            Err(ConversionError::SeveralDisks(shown.collect()))
        }
    }
}

/// A name of the archive's author, as it may be shown.
fn plain(name: &str) -> String {
    let plain = name.chars().filter(|c| !c.is_control());
    plain.take(100).collect()
}

/// A pattern of unzip that only that name matches.
fn literally(name: &str) -> String {
    let mut pattern = String::new();
    for (at, c) in name.chars().enumerate() {
        if matches!(c, '\\' | '*' | '?' | '[' | ']') || at == 0 && c == '-' {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

fn find_program(name: &'static str, package: &str) -> Result<Program> {
    Program::find(name).ok_or_else(|| {
        ConversionError::Unable(format!(
            "the program {name} is not installed (Debian package {package})"
        ))
    })
}

fn write_piece(file: &File, piece: &[u8], at: u64) -> io::Result<()> {
    for (number, block) in piece.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, at + (number * BLOCK) as u64)?;
        }
    }
    Ok(())
}

fn shown<'a>(path: &'a Path, inside: &'static str, writable: bool) -> Shown<'a> {
    Shown {
        path,
        inside,
        writable,
    }
}

fn descriptor_only() -> ConversionError {
    ConversionError::NeedsOthers(
        "it is only the descriptor of a VMDK; the content lies in the files that it names. Import the one that ends in \
         -flat.vmdk with --format raw, or make one file of them: qemu-img convert -O qcow2"
            .into(),
    )
}

fn unusable(because: impl Into<String>) -> ConversionError {
    ConversionError::Unusable(because.into())
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

fn file_error(
    attempt: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ConversionError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| ConversionError::File {
        attempt,
        path,
        source,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("reading and writing files does not panic")
}
