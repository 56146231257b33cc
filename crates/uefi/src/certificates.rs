//! Microsoft's certificates for Secure Boot, those of 2011 and their successors.
//!
//! They are public. The files lie in `certificates/`, DER; they come from virt-firmware 26.10 (PyPI, `virt/firmware/certs/
//! microsoft.com`), and their SHA-1 is the one that Microsoft names for each in `FirmwareDefaults.toml` of
//! `github.com/microsoft/secureboot_objects`. `certificates/README.md` lists source, SHA-1 and SHA-256; a test compares.

/// A database of Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// Who may change the others.
    Kek,
    /// Who may sign what boots.
    Db,
}

impl Database {
    pub(crate) const BOTH: [Self; 2] = [Self::Kek, Self::Db];

    /// The variable's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kek => "KEK",
            Self::Db => "db",
        }
    }
}

/// A certificate of Microsoft's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// Its common name.
    pub name: &'static str,
    pub database: Database,
    /// The certificate of 2011 that it follows; none: it is one of 2011.
    pub follows: Option<&'static str>,
    pub der: &'static [u8],
}

const KEK_2011: &str = "Microsoft Corporation KEK CA 2011";
const WINDOWS_2011: &str = "Microsoft Windows Production PCA 2011";
const UEFI_2011: &str = "Microsoft Corporation UEFI CA 2011";

/// All of them, in the order in which they are added.
pub const KNOWN: &[Certificate] = &[
    Certificate {
        name: KEK_2011,
        database: Database::Kek,
        follows: None,
        der: include_bytes!("../certificates/ms-kek-2011.der"),
    },
    Certificate {
        name: WINDOWS_2011,
        database: Database::Db,
        follows: None,
        der: include_bytes!("../certificates/windows-2011.der"),
    },
    Certificate {
        name: UEFI_2011,
        database: Database::Db,
        follows: None,
        der: include_bytes!("../certificates/ms-uefi-2011.der"),
    },
    Certificate {
        name: "Microsoft Corporation KEK 2K CA 2023",
        database: Database::Kek,
        follows: Some(KEK_2011),
        der: include_bytes!("../certificates/ms-kek-2023.der"),
    },
    Certificate {
        name: "Windows UEFI CA 2023",
        database: Database::Db,
        follows: Some(WINDOWS_2011),
        der: include_bytes!("../certificates/windows-2023.der"),
    },
    Certificate {
        name: "Microsoft UEFI CA 2023",
        database: Database::Db,
        follows: Some(UEFI_2011),
        der: include_bytes!("../certificates/ms-uefi-2023.der"),
    },
    Certificate {
        name: "Microsoft Option ROM UEFI CA 2023",
        database: Database::Db,
        follows: Some(UEFI_2011),
        der: include_bytes!("../certificates/ms-uefi-rom-2023.der"),
    },
];
