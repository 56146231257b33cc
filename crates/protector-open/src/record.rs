//! The encrypted record of a key protector: one JSON document that a person can read in an emergency.

use crate::tpm_key::TpmKey;
use fleetward_model::{KeyId, VmId};
use fleetward_protector::Binding;
use fleetward_protector::key_protector::{RECORD_TYPE, RECORD_VERSION};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Larger than any record, so that writing one never moves it in memory.
const CAPACITY: usize = 1024;

/// Why a decrypted record is not one.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The cause is not kept: a parser's message may quote what it read.
    #[error("the decrypted record is not the expected JSON")]
    Malformed,
    #[error(
        "the decrypted record has version {version}, this program reads version {RECORD_VERSION}"
    )]
    Version { version: u32 },
    #[error("the decrypted record holds no TPM key of 32 bytes")]
    NoKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    version: u32,
    vm_id: VmId,
    key_id: KeyId,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    tpm_key: &'a str,
}

#[derive(Deserialize)]
struct RecordVersion<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    version: u32,
}

pub(crate) fn write(binding: &Binding, tpm_key: &TpmKey) -> Zeroizing<Vec<u8>> {
    let text = tpm_key.expose_base64();
    let record = Record {
        kind: RECORD_TYPE,
        version: RECORD_VERSION,
        vm_id: binding.vm_id,
        key_id: binding.key_id,
        created: binding.created,
        tpm_key: &text,
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(CAPACITY));
    serde_json::to_writer(&mut *bytes, &record).expect("a record is plain JSON");
    bytes.push(b'\n');
    bytes
}

/// Reads a record, borrowing from `bytes` so that no copy of the key is left behind.
pub(crate) fn read(bytes: &[u8]) -> Result<(Binding, TpmKey), RecordError> {
    let found: RecordVersion<'_> =
        serde_json::from_slice(bytes).map_err(|_| RecordError::Malformed)?;
    if found.kind != RECORD_TYPE {
        return Err(RecordError::Malformed);
    }
    if found.version != RECORD_VERSION {
        return Err(RecordError::Version {
            version: found.version,
        });
    }
    let record: Record<'_> = serde_json::from_slice(bytes).map_err(|_| RecordError::Malformed)?;
    let tpm_key = TpmKey::from_base64(record.tpm_key).ok_or(RecordError::NoKey)?;
    Ok((
        Binding {
            vm_id: record.vm_id,
            key_id: record.key_id,
            created: record.created,
        },
        tpm_key,
    ))
}
