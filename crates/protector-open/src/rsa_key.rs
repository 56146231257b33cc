//! One RSA private key of a guardian: signs, unwraps, and is stored as PKCS #8.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaSignatureEncoding};
use fleetward_protector::GuardianCertificate;
use fleetward_protector::key_protector::SigningFailed;
use std::fmt;
use zeroize::Zeroizing;

/// Size of new keys. The certificates last ten years; 2048 bits (112-bit strength) are no longer recommended after 2030
/// (NIST SP 800-57 part 1, table 4), 3072 bits are. Costs 128 bytes more per grant and a slower signature.
const NEW_KEY_SIZE: KeySize = KeySize::Rsa3072;

/// A private key was refused or could not be made. The library gives no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the RSA private key cannot be used")]
pub struct RsaKeyError;

pub(crate) struct RsaPrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: KeyPair,
    decrypting: OaepPrivateDecryptingKey,
}

impl RsaPrivateKey {
    /// Makes a new key. Takes up to some seconds.
    pub(crate) fn generate() -> Result<Self, RsaKeyError> {
        let pair = KeyPair::generate(NEW_KEY_SIZE).map_err(|_| RsaKeyError)?;
        let der =
            AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| RsaKeyError)?;
        Self::from_pkcs8(Zeroizing::new(der.as_ref().to_vec()))
    }

    pub(crate) fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, RsaKeyError> {
        let pair = KeyPair::from_pkcs8(&pkcs8).map_err(|_| RsaKeyError)?;
        let decrypting = PrivateDecryptingKey::from_pkcs8(&pkcs8).map_err(|_| RsaKeyError)?;
        let decrypting = OaepPrivateDecryptingKey::new(decrypting).map_err(|_| RsaKeyError)?;
        Ok(Self {
            pkcs8,
            pair,
            decrypting,
        })
    }

    /// PKCS #8 in DER.
    pub(crate) fn pkcs8(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }

    /// Whether `certificate` is for this key.
    pub(crate) fn belongs_to(&self, certificate: &GuardianCertificate) -> bool {
        self.pair.public_key().as_ref() == certificate.rsa_public_key()
    }

    /// RSASSA-PSS, SHA-256, salt of 32 bytes.
    pub(crate) fn sign_pss(&self, message: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        self.sign_with(&RSA_PSS_SHA256, message)
    }

    /// RSA-OAEP, SHA-256.
    pub(crate) fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RsaKeyError> {
        let mut room = Zeroizing::new(vec![0; self.decrypting.min_output_size()]);
        let length = self
            .decrypting
            .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut room, None)
            .map_err(|_| RsaKeyError)?
            .len();
        room.truncate(length);
        Ok(room)
    }

    fn sign_with(
        &self,
        encoding: &'static RsaSignatureEncoding,
        message: &[u8],
    ) -> Result<Vec<u8>, SigningFailed> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(
                encoding,
                &aws_lc_rs::rand::SystemRandom::new(),
                message,
                &mut signature,
            )
            .map_err(|_| SigningFailed)?;
        Ok(signature)
    }
}

/// Wraps `key` for the holder of `certificate`: RSA-OAEP, SHA-256.
pub(crate) fn wrap(certificate: &GuardianCertificate, key: &[u8]) -> Result<Vec<u8>, RsaKeyError> {
    let public = PublicEncryptingKey::from_der(&certificate.subject_public_key_info())
        .map_err(|_| RsaKeyError)?;
    let public = OaepPublicEncryptingKey::new(public).map_err(|_| RsaKeyError)?;
    let mut wrapped = vec![0; public.ciphertext_size()];
    let length = public
        .encrypt(&OAEP_SHA256_MGF1SHA256, key, &mut wrapped, None)
        .map_err(|_| RsaKeyError)?
        .len();
    wrapped.truncate(length);
    Ok(wrapped)
}

/// Certificates are signed the way every reader knows: PKCS #1 v1.5 with SHA-256.
impl rcgen::SigningKey for RsaPrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign_with(&RSA_PKCS1_SHA256, message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl rcgen::PublicKeyData for RsaPrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl fmt::Debug for RsaPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RsaPrivateKey([redacted])")
    }
}
