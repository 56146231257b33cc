//! The public half of Fleetward's key handling: certificates of guardians, key protectors as far as they can be read
//! without a private key, endorsements, the rules over them, and the certificates of the fleet's EK authority.
//!
//! This crate cannot open a key protector. The crate `fleetward-protector-open` does that, and the controller and the
//! command line never link it. This crate does not use files, network, clocks, randomness (times and random bytes are
//! arguments) or TPM keys.

pub mod algorithm;
pub mod certificate;
mod der_limits;
pub mod ek;
pub mod endorsement;
pub mod envelope;
pub mod guardian;
pub mod key_protector;
pub mod owners;
pub mod possession;
pub mod rules;

pub use certificate::{CertificateError, GuardianCertificate};
pub use endorsement::{AuthorityKey, Endorsement, EndorsementError, EndorsementStatement};
pub use guardian::{Guardian, GuardianError};
pub use key_protector::{Binding, Inspection, KeyProtector, KeyProtectorError, Recipient};
pub use owners::KnownOwners;
pub use rules::{ExpiredAllowed, GrantRefusal};
