//! The private half of Fleetward's key handling: TPM keys, a host's own guardians with their private keys, and sealing,
//! opening and re-wrapping key protectors. Only the agent links this crate; the dependency tree is checked.
//!
//! This crate does not use files, network, libvirt or clocks. Randomness comes from aws-lc, whose OAEP and PSS accept
//! no other source. Secrets are wiped when dropped, print as `[redacted]`, and are not cloned.

mod aead;
pub mod half;
pub mod local_guardian;
pub mod pfx;
pub mod protector;
pub mod record;
pub mod rsa_key;
pub mod storage;
pub mod tpm_key;

pub use half::GuardianHalf;
pub use local_guardian::{GuardianMakeError, LocalGuardian};
pub use protector::{
    OpenError, Opened, Rewrap, SealError, SealRequest, grant, open, open_with_any, revoke, rewrap,
    seal, take_over,
};
pub use storage::{StorageError, StorageKey};
pub use tpm_key::{RandomError, TpmKey};
