//! Which place in a row is whose: a file of keys, the key of place n at 16 n. Zeros: the place is free.
//!
//! The file may be lost or damaged: a cell says itself whose it is, so that what is left is history that nobody finds.

use super::cell::Key;
use fleetward_durable as durable;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Most places. A row of as many cells has 4.5 MiB.
const MOST: usize = 1 << 18;

const FREE: Key = [0; 16];

#[derive(Debug)]
pub(super) struct Slots {
    path: PathBuf,
    file: Option<File>,
    places: HashMap<Key, u32>,
    free: BTreeSet<u32>,
    /// Places, those that are free included.
    width: u32,
}

impl Slots {
    /// What the file holds, as far as it can be read.
    pub(super) fn open(path: PathBuf) -> Self {
        let content = std::fs::read(&path).unwrap_or_default();
        let (mut places, mut free) = (HashMap::new(), BTreeSet::new());
        let keys = content.as_chunks::<16>().0.iter().take(MOST);
        let mut width = 0;
        for (place, key) in (0..).zip(keys) {
            width = place + 1;
            let is_taken = *key != FREE && !places.contains_key(key);
            match is_taken {
                true => drop(places.insert(*key, place)),
                false => drop(free.insert(place)),
            }
        }
        Self {
            path,
            file: None,
            places,
            free,
            width,
        }
    }

    pub(super) const fn width(&self) -> u32 {
        self.width
    }

    pub(super) fn of(&self, key: &Key) -> Option<u32> {
        self.places.get(key).copied()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Key, u32)> {
        self.places.iter().map(|(key, place)| (key, *place))
    }

    /// The place of a key, which gets one where it has none. None: there is none left.
    pub(super) fn take(&mut self, key: &Key) -> io::Result<Option<u32>> {
        if let Some(place) = self.of(key) {
            return Ok(Some(place));
        }
        if *key == FREE {
            return Ok(None);
        }
        let place = match self.free.first() {
            Some(place) => *place,
            None if (self.width as usize) < MOST => self.width,
            None => return Ok(None),
        };
        self.put(place, key)?;
        self.free.remove(&place);
        self.width = self.width.max(place + 1);
        self.places.insert(*key, place);
        Ok(Some(place))
    }

    /// Frees the places of all others.
    pub(super) fn retain(&mut self, live: &HashSet<Key>) -> io::Result<()> {
        let gone = self.all().filter(|(key, _)| !live.contains(*key));
        let gone: Vec<(Key, u32)> = gone.map(|(key, place)| (*key, place)).collect();
        for (key, place) in gone {
            self.put(place, &FREE)?;
            self.places.remove(&key);
            self.free.insert(place);
        }
        Ok(())
    }

    fn put(&mut self, place: u32, key: &Key) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path)?,
        };
        let written = file.write_all_at(key, u64::from(place) * 16);
        self.file = Some(file);
        written
    }
}

/// For writing; makes it where it is missing.
fn open(path: &Path) -> io::Result<File> {
    match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => durable::create_fresh(path),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        [n; 16]
    }

    #[test]
    fn places_are_kept_freed_and_given_again() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("places");
        let mut slots = Slots::open(path.clone());
        let mut take = |n| slots.take(&key(n)).expect("written");
        assert_eq!(
            [take(1), take(2), take(3), take(1)],
            [Some(0), Some(1), Some(2), Some(0)]
        );
        assert_eq!(take(0), None, "no key");
        slots.retain(&[key(1), key(3)].into()).expect("written");

        let mut again = Slots::open(path.clone());
        assert_eq!((again.of(&key(3)), again.of(&key(2))), (Some(2), None));
        assert_eq!(again.take(&key(4)).expect("written"), Some(1));
        assert_eq!(again.width(), 3);

        // cut in the middle of a key, and with a key twice
        let mut content = std::fs::read(&path).expect("read");
        content.truncate(40);
        content[16..32].copy_from_slice(&key(1));
        std::fs::write(&path, content).expect("write");
        let mut cut = Slots::open(path);
        assert_eq!(
            (cut.of(&key(1)), cut.of(&key(3)), cut.width()),
            (Some(0), None, 2)
        );
        assert_eq!(cut.take(&key(3)).expect("written"), Some(1));
    }
}
