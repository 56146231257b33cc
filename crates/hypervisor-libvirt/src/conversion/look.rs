//! Looks at files before and after a conversion, by magic numbers and headers only.

use super::{Result, blocking, file_error, unusable};
use fleetward_hypervisor::ConversionError;
use fleetward_model::foreign::{self, Arrived};
use fleetward_model::image::{self, Content, Standalone};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(super) async fn recognize(path: &Path, wanted: Option<&str>) -> Result<Arrived> {
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
pub(super) async fn plain_format(path: &Path, wanted: Option<&str>) -> Result<&'static str> {
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

pub(super) fn require_wanted(wanted: Option<&str>, found: &[&'static str]) -> Result<()> {
    match wanted {
        Some(wanted) if !found.contains(&wanted) => Err(unusable(format!(
            "it is {}, not {wanted}",
            found.join(" with ")
        ))),
        _ => Ok(()),
    }
}

/// The result is what was meant to be made, and builds on nothing.
pub(super) fn require_made(mut output: File, size: u64) -> Result<()> {
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

pub(super) fn descriptor_only() -> ConversionError {
    ConversionError::NeedsOthers(
        "it is only the descriptor of a VMDK; the content lies in the files that it names. Import the one that ends in \
         -flat.vmdk with --format raw, or make one file of them: qemu-img convert -O qcow2"
            .into(),
    )
}
