//! A database of Secure Boot: lists of signatures, each of one kind and one size.
//!
//! Source: UEFI 2.10, section 32.4.1 (`EFI_SIGNATURE_LIST`).

use crate::store::{Guid, Reader};

/// `a5c059a1-94e4-4aa7-87b5-ab155c2bf072`: X.509 certificates.
const X509: Guid = Guid([
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
]);
/// `77fa9abd-0359-4d32-bd60-28f4e78f784b`: Microsoft, as the owner of a signature.
const MICROSOFT: Guid = Guid([
    0xbd, 0x9a, 0xfa, 0x77, 0x59, 0x03, 0x32, 0x4d, 0xbd, 0x60, 0x28, 0xf4, 0xe7, 0x8f, 0x78, 0x4b,
]);
const LIST_HEADER: usize = 28;
const OWNER: usize = 16;

/// A database that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its list of signatures at byte {at} is damaged")]
pub struct SignatureProblem {
    pub at: usize,
}

/// What a database holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Signatures<'a> {
    /// DER.
    pub(crate) certificates: Vec<&'a [u8]>,
    /// All entries: certificates, and digests of programs.
    pub(crate) entries: usize,
}

/// Reads a database.
pub(crate) fn parse(database: &[u8]) -> Result<Signatures<'_>, SignatureProblem> {
    let mut found = Signatures::default();
    let mut at = 0;
    while at < database.len() {
        let rest = Reader(database.get(at..).unwrap_or_default());
        let size = read_list(rest, &mut found).ok_or(SignatureProblem { at })?;
        at += size;
    }
    Ok(found)
}

/// Reads one list; the answer is its length.
fn read_list<'a>(rest: Reader<'a>, found: &mut Signatures<'a>) -> Option<usize> {
    let kind = rest.guid(0)?;
    let [size, header, each] = [16, 20, 24].map(|at| rest.u32(at).map(|size| size as usize));
    let (size, header, each) = (size?, header?, each?);
    let list = rest.bytes(0, size)?;
    let entries = list.get(LIST_HEADER.checked_add(header)?..)?;
    if each <= OWNER || entries.len() % each != 0 {
        return None;
    }
    for entry in entries.chunks_exact(each) {
        found.entries += 1;
        if kind == X509 {
            found.certificates.push(&entry[OWNER..]);
        }
    }
    Some(size)
}

/// Adds a certificate of Microsoft's to a database, in a list of its own: a list holds signatures of one size.
pub(crate) fn add_certificate(database: &mut Vec<u8>, der: &[u8]) {
    let each = OWNER + der.len();
    database.extend(X509.0);
    // Certificates have some kB.
    for number in [LIST_HEADER + each, 0, each] {
        database.extend((number as u32).to_le_bytes());
    }
    database.extend(MICROSOFT.0);
    database.extend(der);
}
