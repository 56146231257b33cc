//! Finds the disk of an OVA: a tar archive whose OVF descriptor names the files of its disks.
//!
//! Reads the archive's index and the descriptor in safe code; a disk's content is copied, never looked at. Layout of the
//! descriptor: DMTF DSP0243 (OVF 2.1), sections 7 and 9.

use super::plain;
use fleetward_hypervisor::ConversionError;
use roxmltree::{Document, Node, ParsingOptions};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Largest descriptor, bytes.
const MAX_DESCRIPTOR: u64 = 4 << 20;
/// Bytes read of a header that gives the next file a longer name.
const MAX_EXTENSION: u64 = 64 << 10;
/// Most files in an archive.
const MAX_MEMBERS: usize = 10_000;
/// Most elements and attributes of a descriptor.
const MAX_NODES: u32 = 200_000;

/// Where a disk's content lies in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A disk that the descriptor names.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    id: String,
    file: String,
}

/// The one disk of the archive, or the one that `wanted` names by its file or its id.
pub(super) fn find_disk(file: &mut File, wanted: Option<&str>) -> Result<Member, ConversionError> {
    let members = members(file)?;
    let descriptor = members.iter().find(|(name, member)| {
        name.to_ascii_lowercase().ends_with(".ovf") && member.length <= MAX_DESCRIPTOR
    });
    let Some((_, descriptor)) = descriptor else {
        return Err(unusable(
            "it is a tar archive without an OVF descriptor; import the disk that is in it",
        ));
    };
    let mut text = String::new();
    file.seek(SeekFrom::Start(descriptor.offset))
        .and_then(|_| file.take(descriptor.length).read_to_string(&mut text))
        .map_err(|error| unusable(format!("its OVF descriptor cannot be read: {error}")))?;
    let disks = disks(&text)?;
    let disk = choose(disks, wanted)?;
    let Some(member) = members.get(&disk.file) else {
        return Err(ConversionError::NeedsOthers(format!(
            "its OVF descriptor names the disk {}, which is not in the archive",
            plain(&disk.file)
        )));
    };
    Ok(*member)
}

fn choose(mut disks: Vec<Disk>, wanted: Option<&str>) -> Result<Disk, ConversionError> {
    let names = |disks: &[Disk]| disks.iter().map(|disk| plain(&disk.file)).collect();
    match wanted {
        Some(wanted) => {
            let at = disks
                .iter()
                .position(|disk| plain(&disk.file) == wanted || plain(&disk.id) == wanted);
            at.map(|at| disks.swap_remove(at))
                .ok_or_else(|| ConversionError::SeveralDisks(names(&disks)))
        }
        None if disks.len() > 1 => Err(ConversionError::SeveralDisks(names(&disks))),
        None => disks
            .pop()
            .ok_or_else(|| unusable("its OVF descriptor names no disk that has content")),
    }
}

/// The regular files of the archive, by their names.
///
/// Reads each header by itself: the library would read a name that is called long into memory, however long it is.
fn members(file: &mut File) -> Result<BTreeMap<String, Member>, ConversionError> {
    let damaged = |error: std::io::Error| unusable(format!("its archive is damaged: {error}"));
    let size = file.metadata().map_err(damaged)?.len();
    file.rewind().map_err(damaged)?;
    let mut archive = tar::Archive::new(&mut *file);
    let mut members = BTreeMap::new();
    let mut long_name = None;
    let entries = archive.entries_with_seek().map_err(damaged)?.raw(true);
    for (number, entry) in entries.enumerate() {
        let mut entry = entry.map_err(damaged)?;
        if number >= MAX_MEMBERS {
            return Err(unusable(format!(
                "its archive has more than {MAX_MEMBERS} files"
            )));
        }
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let mut said = Vec::new();
            let read = (&mut entry).take(MAX_EXTENSION).read_to_end(&mut said);
            read.map_err(damaged)?;
            long_name = match kind.is_gnu_longname() {
                true => Some(said),
                false => path_in(&said)?,
            };
            continue;
        }
        let name = long_name
            .take()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        if !kind.is_file() {
            continue;
        }
        let member = Member {
            offset: entry.raw_file_position(),
            length: entry.size(),
        };
        let end = member.offset.checked_add(member.length);
        if end.is_none_or(|end| end > size) {
            return Err(unusable("its archive is cut off"));
        }
        let name = String::from_utf8_lossy(&name);
        let name = name.trim_end_matches('\0');
        let name = name.strip_prefix("./").unwrap_or(name).to_owned();
        members.entry(name).or_insert(member);
    }
    Ok(members)
}

/// The name of the next file that a pax header gives, if any.
fn path_in(extensions: &[u8]) -> Result<Option<Vec<u8>>, ConversionError> {
    let mut path = None;
    for extension in tar::PaxExtensions::new(extensions).flatten() {
        match extension.key_bytes() {
            b"path" => path = Some(extension.value_bytes().to_owned()),
            b"size" => {
                return Err(unusable(
                    "its archive gives the size of a file in a pax header, which is not read; tar --format=gnu makes \
                     archives without them",
                ));
            }
            _ => {}
        }
    }
    Ok(path)
}

/// The disks with content, in the descriptor's order.
fn disks(descriptor: &str) -> Result<Vec<Disk>, ConversionError> {
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(descriptor, options)
        .map_err(|error| unusable(format!("its OVF descriptor is no XML: {error}")))?;
    let elements = |name: &'static str| {
        let all = document.root_element().descendants();
        all.filter(move |node| node.is_element() && node.tag_name().name() == name)
    };
    let mut disks = Vec::new();
    for disk in elements("Disk") {
        // Without a file it begins empty.
        let Some(reference) = attribute(disk, "fileRef") else {
            continue;
        };
        let Some(file) = elements("File").find(|file| attribute(*file, "id") == Some(reference))
        else {
            return Err(unusable("a disk in its OVF descriptor has an unknown file"));
        };
        let href = attribute(file, "href").unwrap_or_default();
        if attribute(file, "chunkSize").is_some() {
            return Err(unusable(format!(
                "its disk {} is cut into several files (chunks)",
                plain(href)
            )));
        }
        disks.push(Disk {
            id: attribute(disk, "diskId").unwrap_or_default().to_owned(),
            file: href.to_owned(),
        });
    }
    Ok(disks)
}

/// An attribute by its name, in whichever namespace: producers differ.
fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let mut all = node.attributes();
    all.find(|attribute| attribute.name() == name)
        .map(|attribute| attribute.value())
}

fn unusable(because: impl Into<String>) -> ConversionError {
    ConversionError::Unusable(because.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:id="file1" ovf:href="web-disk1.vmdk" ovf:size="1"/>
    <File ovf:id="file2" ovf:href="web-disk2.vmdk" ovf:size="1"/>
    <File ovf:id="file3" ovf:href="tools.iso" ovf:size="1"/>
  </References>
  <DiskSection>
    <Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:capacity="1"/>
    <Disk ovf:diskId="vmdisk2" ovf:fileRef="file2" ovf:capacity="1"/>
    <Disk ovf:diskId="empty" ovf:capacity="1"/>
  </DiskSection>
</Envelope>"#;

    #[test]
    fn of_several_disks_one_must_be_named() {
        let refused = choose(disks(TWO).unwrap(), None).expect_err("which one");
        assert!(
            matches!(&refused, ConversionError::SeveralDisks(names)
                if *names == ["web-disk1.vmdk", "web-disk2.vmdk"]),
            "{refused}"
        );
        for name in ["web-disk2.vmdk", "vmdisk2"] {
            let chosen = choose(disks(TWO).unwrap(), Some(name)).expect("that one");
            assert_eq!(chosen.file, "web-disk2.vmdk");
        }
        assert!(choose(disks(TWO).unwrap(), Some("tools.iso")).is_err());
    }

    #[test]
    fn descriptors_that_are_none_are_refused() {
        let bomb = r#"<!DOCTYPE a [<!ENTITY b "b">]><Envelope>&b;</Envelope>"#;
        for text in ["", "no xml", "<Envelope", bomb] {
            assert!(disks(text).is_err(), "{text}");
        }
        assert!(choose(disks("<Envelope/>").unwrap(), None).is_err());
        let chunks = TWO.replace(r#"ovf:size="1""#, r#"ovf:chunkSize="1""#);
        assert!(disks(&chunks).is_err());
    }
}
