//! Rows of cells, one for each minute or hour, in files of an hour or a day.
//!
//! ```text
//!   START-WIDTH.load    head (32 bytes) | row 0: WIDTH cells | row 1 | ...        START: Unix seconds of row 0
//! ```
//! Each row is one write, in its place, and is not synced: after a crash some are missing. A fleet that has grown past the width
//! gets another file of the same start. When there are more hours or days than are kept, those farthest from now are removed:
//! a clock that is years off for a while costs no more than it writes.

use super::cell::{self, CELL, Key};
use fleetward_durable as durable;
use fleetward_model::load::{Load, Mean};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const HEAD: usize = 32;
const MAGIC: &[u8; 8] = b"FWLOAD1\n";

/// Free bytes that the file system must have for a row: the controller's store is in it.
const ROOM: u64 = 256 << 20;

#[derive(Debug)]
pub(super) struct Tier {
    directory: PathBuf,
    /// Seconds between two rows.
    step: u64,
    /// Rows of a file.
    rows: u64,
    /// Starts that are kept.
    kept: usize,
    open: Option<(Found, File)>,
}

/// A file, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    start: u64,
    width: u32,
}

impl Tier {
    pub(super) fn new(directory: PathBuf, step: u64, rows: u64, kept: usize) -> Self {
        Self {
            directory,
            step,
            rows,
            kept,
            open: None,
        }
    }

    /// Seconds of a file.
    const fn span(&self) -> u64 {
        self.step * self.rows
    }

    fn path(&self, file: Found) -> PathBuf {
        let Found { start, width } = file;
        self.directory.join(format!("{start}-{width}.load"))
    }

    /// All files, by their start and then their width.
    fn files(&self) -> Vec<Found> {
        let entries = self.directory.read_dir().into_iter().flatten();
        let found = entries.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let (start, width) = name.to_str()?.strip_suffix(".load")?.split_once('-')?;
            let (start, width) = (start.parse().ok()?, width.parse().ok()?);
            Some(Found { start, width })
        });
        let mut files: Vec<_> = found.collect();
        files.sort_unstable();
        files
    }

    /// The newest start that there is.
    pub(super) fn newest(&self) -> Option<u64> {
        self.files().last().map(|file| file.start)
    }

    /// Writes the row of `at`, a multiple of the step, from place 0 on.
    pub(super) fn write(&mut self, at: u64, row: &[[u8; CELL]]) -> io::Result<()> {
        let room = nix::sys::statvfs::statvfs(&self.directory)?;
        let free = room.blocks_available().saturating_mul(room.fragment_size());
        if free < ROOM {
            self.open = None;
            return Err(io::Error::other(format!("only {free} bytes are free")));
        }
        let start = at - at % self.span();
        let width = u32::try_from(row.len()).map_err(io::Error::other)?;
        let fits = |file: &Found| file.start == start && file.width >= width;
        let (file, handle) = match self.open.take().filter(|(file, _)| fits(file)) {
            Some(open) => open,
            None => self.open_for(start, width)?,
        };
        let place = (at - start) / self.step;
        handle.write_all_at(row.as_flattened(), place_of(file, place, 0))?;
        self.open = Some((file, handle));
        Ok(())
    }

    /// A file of that start with room for `width` cells a row.
    fn open_for(&self, start: u64, width: u32) -> io::Result<(Found, File)> {
        let files = self.files();
        let widest = files.iter().rfind(|file| file.start == start);
        if let Some(file) = widest.filter(|file| file.width >= width)
            && let Some(handle) = self.opened(*file, true)
        {
            return Ok((*file, handle));
        }
        self.retire(&files, start);
        let width = width.saturating_add(width / 4).saturating_add(16);
        let file = Found { start, width };
        let handle = durable::create_fresh(&self.path(file))?;
        handle.write_all_at(&self.head(file), 0)?;
        Ok((file, handle))
    }

    /// Removes what is too much beside a file of the start `now`.
    fn retire(&self, files: &[Found], now: u64) {
        let starts: BTreeSet<u64> = files.iter().map(|file| file.start).collect();
        let mut others: Vec<u64> = starts.into_iter().filter(|start| *start != now).collect();
        others.sort_unstable_by_key(|start| start.abs_diff(now));
        let gone: BTreeSet<u64> = others.into_iter().skip(self.kept - 1).collect();
        for file in files.iter().filter(|file| gone.contains(&file.start)) {
            durable::discard(&self.path(*file));
        }
    }

    fn head(&self, file: Found) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        head[8..16].copy_from_slice(&file.start.to_be_bytes());
        head[16..24].copy_from_slice(&self.step.to_be_bytes());
        head[24..28].copy_from_slice(&file.width.to_be_bytes());
        head
    }

    /// None where it is not what its name says.
    fn opened(&self, file: Found, writing: bool) -> Option<File> {
        let handle = OpenOptions::new()
            .read(true)
            .write(writing)
            .open(self.path(file));
        let handle = handle.ok()?;
        let mut head = [0; HEAD];
        handle.read_exact_at(&mut head, 0).ok()?;
        (head == self.head(file)).then_some(handle)
    }

    /// What a key in `place` has in that time, by Unix seconds.
    pub(super) fn read(&self, key: &Key, place: u32, time: &Range<u64>) -> BTreeMap<u64, Load> {
        let mut found = BTreeMap::new();
        for file in self.files() {
            let end = file.start.saturating_add(self.span());
            let (from, to) = (time.start.max(file.start), time.end.min(end));
            if place >= file.width || from >= to {
                continue;
            }
            let Some(handle) = self.opened(file, false) else {
                continue;
            };
            let first = (from - file.start).div_ceil(self.step);
            for row in first..(to - file.start).div_ceil(self.step) {
                let mut cell = [0; CELL];
                if handle
                    .read_exact_at(&mut cell, place_of(file, row, place))
                    .is_err()
                {
                    break; // the file goes no further
                }
                let at = file.start + row * self.step;
                if let Some(load) = cell::read(&cell, key, at) {
                    found.insert(at, load);
                }
            }
        }
        found
    }

    /// The mean of all rows of the files of `start`, for each key.
    pub(super) fn means(&self, start: u64, keys: &[(Key, u32)]) -> Vec<Option<Load>> {
        let mut means = vec![Mean::default(); keys.len()];
        let files = self.files().into_iter().filter(|file| file.start == start);
        for (file, handle) in files.filter_map(|file| Some((file, self.opened(file, false)?))) {
            let mut row = vec![0; file.width as usize * CELL];
            for number in 0..self.rows {
                row.fill(0);
                read_up_to(&handle, &mut row, place_of(file, number, 0));
                let cells = row.as_chunks::<CELL>().0;
                let at = start + number * self.step;
                for ((key, place), mean) in keys.iter().zip(&mut means) {
                    let cell = cells.get(*place as usize);
                    if let Some(load) = cell.and_then(|cell| cell::read(cell, key, at)) {
                        mean.add(&load);
                    }
                }
            }
        }
        means.iter().map(Mean::load).collect()
    }
}

/// Where a cell is in its file.
const fn place_of(file: Found, row: u64, place: u32) -> u64 {
    HEAD as u64 + (row * file.width as u64 + place as u64) * CELL as u64
}

/// Reads as much as there is.
fn read_up_to(file: &File, mut to: &mut [u8], mut at: u64) {
    while !to.is_empty() {
        match file.read_at(to, at) {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                to = &mut to[read..];
                at += read as u64;
            }
        }
    }
}
