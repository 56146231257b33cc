//! Proof that a host still has the private key of its guardian, for a request to the controller: RSA-PSS with SHA-256 by the
//! guardian's signing key, over [`CONTEXT`], the SHA-256 of the token and that of the certificate request.
//!
//! What else that key signs, the attributes of a key protector, begins with a DER SET (0x31): no proof can be used as one.

use crate::guardian::Guardian;
use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use sha2::{Digest, Sha256};

/// Prefix of what is signed.
pub const CONTEXT: &[u8] = b"fleetward host rejoin v1\0";

/// What a host signs: it has this token, asks for this certificate, and is the one with the guardian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejoinProof(Vec<u8>);

impl RejoinProof {
    /// About a token and a certificate request (PEM), each as it is sent.
    pub fn new(token: &str, csr_pem: &str) -> Self {
        let token = Sha256::digest(token.trim());
        Self([CONTEXT, &token, &Sha256::digest(csr_pem)].concat())
    }

    /// The bytes to sign.
    pub fn message(&self) -> &[u8] {
        &self.0
    }

    /// Whether `signature` is this guardian's.
    pub fn is_signed_by(&self, guardian: &Guardian, signature: &[u8]) -> bool {
        let key = guardian.signing().rsa_public_key();
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key)
            .verify(&self.0, signature)
            .is_ok()
    }
}
