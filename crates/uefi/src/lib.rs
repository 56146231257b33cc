//! UEFI variables of VMs: which certificates Secure Boot trusts, and the same variables with more of them.
//!
//! ```text
//!  file of QEMU's flash ── store ──► variables ── signatures ──► certificates ── keys ──► SecureBootObserved
//!                            ▲                                                    │
//!                            └──────────────── with_certificates, with_former ◄───┘
//! ```
//! The variables are bytes that a guest wrote. Everything here is pure, takes memory in proportion to its input, and answers
//! what it does not understand with an error. Which file it is, and who may write it, is the agent's matter.
//!
//! `store` knows the form of the file, `signatures` that of a database of Secure Boot, `certificates` Microsoft's, and
//! `keys` what follows from them. Reasons: decision 0048.

mod certificates;
mod keys;
mod signatures;
mod store;

pub use certificates::{Certificate, Database, KNOWN};
pub use keys::{Enrolled, KeysProblem, Wanted, assess, with_certificates, with_former};
pub use signatures::SignatureProblem;
pub use store::{MAX_FILE, StoreProblem};
