//! What follows from the certificates in a VM's variables, and the variables with more of them.
//!
//! | found | state |
//! |---|---|
//! | no platform key, or Secure Boot switched off | `off` |
//! | no certificate of Microsoft's among the key exchange keys | `custom`: somebody's own keys, which are left alone |
//! | a certificate of 2011 without its successor | `update_available` |
//! | each with its successor | `ok` |
//!
//! A VM whose administrator took the third-party certificate out of `db` does not get its successors either.

use crate::certificates::{Certificate, Database, KNOWN};
use crate::signatures::{self, SignatureProblem, Signatures, add_certificate};
use crate::store::{
    Guid, Reader, StoreProblem, Variable, VariableStore, read_variables, write_variables,
};
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};

/// `8be4df61-93ca-11d2-aa0d-00e098032b8c`: the variables of UEFI itself.
const GLOBAL: Guid = Guid([
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
]);
/// `d719b2cb-3d3a-4596-a3bc-dad00e67656f`: the databases of signatures.
const SECURITY: Guid = Guid([
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
]);
/// `f0a30bc7-af08-4556-99c4-001009c93a44`: edk2's switch for Secure Boot.
const SWITCH: Guid = Guid([
    0xc7, 0x0b, 0xa3, 0xf0, 0x08, 0xaf, 0x56, 0x45, 0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44,
]);

impl Database {
    const fn vendor(self) -> Guid {
        match self {
            Self::Kek => GLOBAL,
            Self::Db => SECURITY,
        }
    }
}

/// Which certificates are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All of them: for a VM that has never started.
    All,
    /// The successors of those that are there.
    Successors,
}

/// Why variables are not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysProblem {
    #[error("{0}")]
    Store(#[from] StoreProblem),
    #[error("{database}: {problem}")]
    Signatures {
        database: &'static str,
        problem: SignatureProblem,
    },
    #[error("Secure Boot is off in them, or has no keys")]
    Off,
    #[error("none of their key exchange keys is Microsoft's: they are somebody's own")]
    Custom,
    #[error("what was kept of the former ones is damaged")]
    Former,
}

/// Variables that were changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub variables: Vec<u8>,
    /// The databases as they were, for [`with_former`].
    pub former: Vec<u8>,
    /// The certificates that were added.
    pub added: Vec<&'static str>,
}

/// Looks at the variables of a VM.
pub fn assess(file: &[u8]) -> SecureBootObserved {
    look(file).unwrap_or_else(|problem| SecureBootObserved {
        because: Some(problem.to_string()),
        ..SecureBootObserved::of(CertificateState::Unreadable)
    })
}

fn look(file: &[u8]) -> Result<SecureBootObserved, KeysProblem> {
    let store = VariableStore::parse(file)?;
    let found = Found::of(&store)?;
    let dbx = store.get(SECURITY, "dbx");
    Ok(SecureBootObserved {
        enforced: found.enforced,
        certificates: found.known().map(|known| known.name.to_owned()).collect(),
        others: u32::try_from(found.others()).unwrap_or(u32::MAX),
        dbx_entries: u32::try_from(found.revoked).unwrap_or(u32::MAX),
        dbx_written: dbx.and_then(|dbx| date(&dbx.time)),
        ..SecureBootObserved::of(found.state())
    })
}

/// The variables with the certificates that they lack; none: they lack none.
///
/// # Errors
/// They cannot be read, or are such that nothing is added to them.
pub fn with_certificates(file: &[u8], wanted: Wanted) -> Result<Option<Enrolled>, KeysProblem> {
    let mut store = VariableStore::parse(file)?;
    let found = Found::of(&store)?;
    match found.state() {
        CertificateState::Off | CertificateState::Unreadable => return Err(KeysProblem::Off),
        CertificateState::Custom => return Err(KeysProblem::Custom),
        CertificateState::Ok | CertificateState::UpdateAvailable => {}
    }
    let missing: Vec<&Certificate> = match wanted {
        Wanted::All => KNOWN.iter().filter(|known| !found.has(known)).collect(),
        Wanted::Successors => found.missing().collect(),
    };
    if missing.is_empty() {
        return Ok(None);
    }
    let added = missing.iter().map(|certificate| certificate.name).collect();
    // What could not be brought back is not changed.
    let former = kept(&store).ok_or(KeysProblem::Off)?;
    for certificate in missing {
        let (vendor, name) = (certificate.database.vendor(), certificate.database.name());
        let variable = store.get_mut(vendor, name).ok_or(KeysProblem::Off)?;
        add_certificate(&mut variable.data, certificate.der);
    }
    Ok(Some(Enrolled {
        variables: store.to_file()?,
        former,
        added,
    }))
}

/// The variables with the databases that were kept by [`with_certificates`]; all else is as it is.
///
/// # Errors
/// One of both cannot be read.
pub fn with_former(file: &[u8], former: &[u8]) -> Result<Vec<u8>, KeysProblem> {
    let mut store = VariableStore::parse(file)?;
    let former = read_variables(former).map_err(|_| KeysProblem::Former)?;
    let [kek, db] = Database::BOTH.map(|database| {
        let name: Vec<u8> = (database.name().encode_utf16().chain([0]))
            .flat_map(u16::to_le_bytes)
            .collect();
        let one =
            |variable: &&Variable| variable.vendor == database.vendor() && variable.name == name;
        former.iter().find(one).cloned()
    });
    let (Some(kek), Some(db), 2) = (kek, db, former.len()) else {
        return Err(KeysProblem::Former);
    };
    for variable in [kek, db] {
        signatures::parse(&variable.data).map_err(|_| KeysProblem::Former)?;
        store.put(variable);
    }
    Ok(store.to_file()?)
}

/// Both databases, for [`with_former`]; none where one of them is not there.
fn kept(store: &VariableStore<'_>) -> Option<Vec<u8>> {
    let databases = Database::BOTH.map(|database| store.get(database.vendor(), database.name()));
    let [Some(kek), Some(db)] = databases else {
        return None;
    };
    Some(write_variables(&[kek.clone(), db.clone()]))
}

/// The certificates of a store.
struct Found<'a> {
    enforced: bool,
    kek: Vec<&'a [u8]>,
    db: Vec<&'a [u8]>,
    /// Entries of the list of what is refused.
    revoked: usize,
}

impl<'a> Found<'a> {
    /// # Errors
    /// One of the three lists is damaged: such variables are not changed either.
    fn of(store: &'a VariableStore<'_>) -> Result<Self, KeysProblem> {
        let platform_key = store
            .get(GLOBAL, "PK")
            .is_some_and(|key| !key.data.is_empty());
        let switch = store.get(SWITCH, "SecureBootEnable");
        let on = switch.is_none_or(|switch| switch.data == [1]);
        let [kek, db] = Database::BOTH.map(|database| {
            read(
                store.get(database.vendor(), database.name()),
                database.name(),
            )
        });
        Ok(Self {
            enforced: platform_key && on,
            kek: kek?.certificates,
            db: db?.certificates,
            revoked: read(store.get(SECURITY, "dbx"), "dbx")?.entries,
        })
    }

    fn has(&self, known: &Certificate) -> bool {
        match known.database {
            Database::Kek => self.kek.contains(&known.der),
            Database::Db => self.db.contains(&known.der),
        }
    }

    fn known(&self) -> impl Iterator<Item = &'static Certificate> {
        KNOWN.iter().filter(|known| self.has(known))
    }

    fn others(&self) -> usize {
        (self.kek.len() + self.db.len()).saturating_sub(self.known().count())
    }

    /// Successors that are not there, of certificates that are.
    fn missing(&self) -> impl Iterator<Item = &'static Certificate> {
        let follows_one = |known: &&Certificate| {
            let former = known.follows;
            former.is_some_and(|former| self.known().any(|there| there.name == former))
        };
        KNOWN
            .iter()
            .filter(move |known| !self.has(known))
            .filter(follows_one)
    }

    fn state(&self) -> CertificateState {
        let microsofts = self.known().any(|known| known.database == Database::Kek);
        match (self.enforced, microsofts) {
            (false, _) => CertificateState::Off,
            (true, false) => CertificateState::Custom,
            (true, true) if self.missing().next().is_some() => CertificateState::UpdateAvailable,
            (true, true) => CertificateState::Ok,
        }
    }
}

fn read<'a>(
    variable: Option<&'a Variable>,
    database: &'static str,
) -> Result<Signatures<'a>, KeysProblem> {
    let data = variable.map_or(&[][..], |variable| &variable.data);
    signatures::parse(data).map_err(|problem| KeysProblem::Signatures { database, problem })
}

/// `2025-03-10`, of an `EFI_TIME`; none where there is none.
fn date(time: &[u8; 16]) -> Option<String> {
    let year = Reader(time).u16(0)?;
    let (month, day) = (time[2], time[3]);
    let is_a_date =
        (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    is_a_date.then(|| format!("{year:04}-{month:02}-{day:02}"))
}
