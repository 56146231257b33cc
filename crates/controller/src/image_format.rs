//! Detects the format of a file from its bytes: a qcow2 disk, a raw disk, an installer medium, or what a host converts.
//!
//! Refuses files that refer to other files (qcow2 backing file, external data file), encrypted files, and other
//! formats. Layout of qcow2: docs/interop/qcow2.txt of QEMU.

use fleetward_model::foreign::{self, Arrived, FORMATS};
use fleetward_model::image::{self, Content, Standalone};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Largest image, bytes.
pub(crate) const MAX_IMAGE: u64 = 2 << 40;

/// A file that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Looked {
    /// `qcow2`, `raw` or `iso`.
    pub(crate) format: &'static str,
    /// Bytes of the disk.
    pub(crate) virtual_size: u64,
}

/// Why a file is no image for us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("unknown format {0:?}; there are {known}", known = FORMATS.join(", "))]
    UnknownFormat(String),
    #[error("it is empty")]
    Empty,
    #[error("it is no disk: no partition table, no file system of an installer, no known format")]
    NoDisk,
    #[error("it is {found}, not {wanted}")]
    OtherFormat {
        found: &'static str,
        wanted: &'static str,
    },
    #[error(transparent)]
    Header(#[from] image::Refusal),
    #[error("a raw disk consists of whole sectors of 512 bytes, this has {0} bytes")]
    PartialSector(u64),
}

/// Finds out what `path` is; with `wanted`, whether it is that.
pub(crate) fn look(path: &Path, wanted: Option<&str>) -> Result<Looked, Refusal> {
    let wanted = wanted.map(known_format).transpose()?;
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if size == 0 {
        return Err(Refusal::Empty);
    }
    let mut head = [0; image::HEAD];
    let read = read_up_to(&mut file, &mut head)?;
    let head = &head[..read];
    let mut volume = [0; 6];
    file.seek(SeekFrom::Start(0x8000))?;
    let is_iso = read_up_to(&mut file, &mut volume)? == 6 && &volume[1..] == b"CD001";

    let content = image::read::<Standalone>(head)?;
    let found = match content {
        Content::Qcow2(_) => "qcow2",
        Content::Other { .. } if is_iso && wanted != Some("raw") => "iso",
        Content::Other { boot_sector } if boot_sector || wanted == Some("raw") => "raw",
        Content::Other { .. } => return Err(Refusal::NoDisk),
    };
    if let Some(wanted) = wanted
        && wanted != found
    {
        return Err(Refusal::OtherFormat { found, wanted });
    }
    let virtual_size = match content {
        Content::Qcow2(header) => header.virtual_size,
        Content::Other { .. } if found == "raw" && !size.is_multiple_of(512) => {
            return Err(Refusal::PartialSector(size));
        }
        Content::Other { .. } => size,
    };
    Ok(Looked {
        format: found,
        virtual_size,
    })
}

/// The format of that name.
pub(crate) fn known_format(name: &str) -> Result<&'static str, Refusal> {
    let known = FORMATS.into_iter().find(|known| *known == name);
    known.ok_or_else(|| Refusal::UnknownFormat(name.chars().take(20).collect()))
}

/// Whether a host must convert the file first.
pub(crate) fn is_foreign(path: &Path, wanted: Option<&str>) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let (mut head, mut tail) = ([0; image::HEAD], [0; foreign::TAIL]);
    let head_length = read_up_to(&mut file, &mut head)?;
    file.seek(SeekFrom::Start(size.saturating_sub(foreign::TAIL as u64)))?;
    let tail_length = read_up_to(&mut file, &mut tail)?;
    let arrived = foreign::recognize(&head[..head_length], &tail[..tail_length], wanted);
    Ok(arrived != Arrived::Plain)
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(content: &[u8], wanted: Option<&str>) -> Result<Looked, Refusal> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), content).expect("write");
        look(file.path(), wanted)
    }

    fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&3u32.to_be_bytes());
        head[23] = 16;
        head[24..32].copy_from_slice(&(64u64 << 20).to_be_bytes());
        change(&mut head);
        head
    }

    #[test]
    fn images_are_known_by_their_content() {
        let disk = looked(&qcow2(|_| {}), None).expect("qcow2");
        assert_eq!(
            disk,
            Looked {
                format: "qcow2",
                virtual_size: 64 << 20
            }
        );
        let mut raw = vec![0; 1024];
        raw[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(looked(&raw, None).expect("raw").virtual_size, 1024);
        let mut iso = vec![0; 0x9000];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        assert_eq!(looked(&iso, None).expect("iso").format, "iso");
    }

    #[test]
    fn what_is_no_image_or_refers_to_others_is_refused() {
        assert!(matches!(looked(b"", None), Err(Refusal::Empty)));
        assert!(matches!(looked(b"hello", None), Err(Refusal::NoDisk)));
        assert!(matches!(
            looked(b"hello", Some("raw")),
            Err(Refusal::PartialSector(5))
        ));
        let header = |content: &[u8]| match looked(content, None) {
            Err(Refusal::Header(refusal)) => refusal,
            other => panic!("{other:?}"),
        };
        assert!(matches!(header(b"QFI\xfb"), image::Refusal::Damaged(_)));
        let backed = qcow2(|head| head[15] = 104);
        assert_eq!(header(&backed), image::Refusal::BackingFile);
        let corrupt = qcow2(|head| head[79] = 2);
        assert_eq!(header(&corrupt), image::Refusal::Corrupt);
        assert_eq!(header(b"vhdxfile"), image::Refusal::Foreign("VHDX"));
        assert!(matches!(
            looked(&qcow2(|_| {}), Some("raw")),
            Err(Refusal::OtherFormat { .. })
        ));
        assert!(matches!(
            looked(b"x", Some("exe")),
            Err(Refusal::UnknownFormat(_))
        ));
    }
}
