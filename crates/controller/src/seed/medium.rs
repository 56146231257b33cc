//! An ISO 9660 volume with Rock Ridge and Joliet names: Linux reads the former, Windows the latter.

use fleetward_model::{ErrorCode, Failure};
use hadris_iso::read::PathSeparator;
use hadris_iso::write::options::{CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};
use std::io::Cursor;
use std::sync::Arc;
use zeroize::Zeroizing;

/// What NoCloud looks for (cloud-init's documentation, "NoCloud").
const LABEL: &str = "cidata";

/// Bytes that the volume has beside the files' own.
const OVERHEAD: usize = 256 << 10;

pub(super) fn iso(files: &[(&str, Zeroizing<String>)]) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let content: usize = files.iter().map(|(_, text)| text.len()).sum();
    let size = (OVERHEAD + content).next_multiple_of(2048);
    let files = files.iter().map(|(name, text)| File::File {
        name: Arc::new((*name).to_owned()),
        contents: text.as_bytes().to_vec(),
    });
    let files = InputFiles {
        path_separator: PathSeparator::ForwardSlash,
        files: files.collect(),
    };
    let options = IsoFormatOptions {
        volume_name: LABEL.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: 2048,
        path_separator: PathSeparator::ForwardSlash,
        features: CreationFeatures::extensions(),
        strict_charset: false,
    };
    let mut image = Zeroizing::new(vec![0; size]);
    IsoImageWriter::create(&mut Cursor::new(image.as_mut_slice()), files, options).map_err(
        |error| {
            Failure::new(ErrorCode::Internal, "the medium for the guest's first boot")
                .because(format!("{error}"))
        },
    )?;
    Ok(image)
}
