//! Takes off layers: compressions and archives. Programs in the confinement read them and write into a pipe; here is
//! counted what comes, and zeros become holes.

use super::work::{INPUT, Work, shown};
use super::{Result, blocking, file_error, ova, plain, unusable};
use crate::program::Program;
use fleetward_hypervisor::ConversionError;
use fleetward_model::foreign::Packing;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a pipe that are looked at, and written, at once.
const PIECE: usize = 1 << 20;
/// What is written as a hole when it is zero.
const BLOCK: usize = 64 << 10;
/// Names of an archive's files in a message.
const MAX_NAMES: usize = 20;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);

impl Work<'_> {
    /// Undoes a compression.
    pub(super) async fn unpack(&self, packing: Packing, path: &Path, into: &Path) -> Result<()> {
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
    pub(super) async fn unzip(&self, path: &Path, into: &Path) -> Result<bool> {
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
    pub(super) async fn copy_out(&self, path: &Path, into: &Path) -> Result<()> {
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
