//! A TPM's endorsement key, public half: RSA, or a point on P-256 or P-384.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1};
use der::asn1::{BitString, Null, UintRef};
use der::{Any, Decode, Encode};
use pkcs1::RsaPublicKey;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// Longest text taken from swtpm, in bytes: an RSA modulus of 4096 bits in hex.
const MAX_TEXT: usize = 1024;

/// Exponent of every RSA endorsement key (TCG EK Credential Profile, template L-1).
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];

/// Why something is not an endorsement key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EkPublicKeyError {
    #[error("endorsement key is neither a modulus in hex nor `x=..,y=..,id=secp256r1|secp384r1`")]
    Text,
    #[error("endorsement key is not a public key in DER")]
    Malformed,
    #[error(
        "endorsement key is of a kind or size that is not supported; RSA of 2048 to 4096 bits, P-256 and P-384 are"
    )]
    Unsupported,
}

/// A public endorsement key, as DER `SubjectPublicKeyInfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EkPublicKey {
    der: Vec<u8>,
    rsa: bool,
}

impl EkPublicKey {
    /// From what swtpm_setup passes as `--ek` to its certificate program: the RSA modulus in hex, or
    /// `x=<hex>,y=<hex>,id=secp384r1`.
    pub fn from_swtpm(text: &str) -> Result<Self, EkPublicKeyError> {
        if text.len() > MAX_TEXT {
            return Err(EkPublicKeyError::Text);
        }
        if !text.contains('=') {
            return Self::from_rsa_modulus(&hex::decode(text).map_err(|_| EkPublicKeyError::Text)?);
        }
        let (mut x, mut y, mut curve) = (None, None, None);
        for field in text.split(',') {
            match field.split_once('=').ok_or(EkPublicKeyError::Text)? {
                ("x", value) => x = Some(value),
                ("y", value) => y = Some(value),
                ("id", value) => curve = Some(value),
                _ => return Err(EkPublicKeyError::Text),
            }
        }
        let (oid, size) = match curve {
            Some("secp384r1") => (SECP_384_R_1, 48),
            // swtpm leaves the curve out for the one that came first.
            Some("secp256r1") | None => (SECP_256_R_1, 32),
            Some(_) => return Err(EkPublicKeyError::Unsupported),
        };
        let point = [vec![0x04], coordinate(x, size)?, coordinate(y, size)?].concat();
        Self::assemble(ID_EC_PUBLIC_KEY, Any::from(oid), &point, false)
    }

    /// From the modulus alone; the exponent of endorsement keys is 65537.
    pub fn from_rsa_modulus(modulus: &[u8]) -> Result<Self, EkPublicKeyError> {
        let key = RsaPublicKey {
            modulus: UintRef::new(modulus).map_err(|_| EkPublicKeyError::Malformed)?,
            public_exponent: UintRef::new(&RSA_EXPONENT)
                .map_err(|_| EkPublicKeyError::Malformed)?,
        };
        if !is_supported_modulus(&key) {
            return Err(EkPublicKeyError::Unsupported);
        }
        let bytes = key.to_der().map_err(|_| EkPublicKeyError::Malformed)?;
        Self::assemble(RSA_ENCRYPTION, Any::from(Null), &bytes, true)
    }

    /// From DER `SubjectPublicKeyInfo`.
    pub fn from_der(der: &[u8]) -> Result<Self, EkPublicKeyError> {
        let info =
            SubjectPublicKeyInfoOwned::from_der(der).map_err(|_| EkPublicKeyError::Malformed)?;
        let bytes = info
            .subject_public_key
            .as_bytes()
            .ok_or(EkPublicKeyError::Malformed)?;
        let rsa = info.algorithm.oid == RSA_ENCRYPTION;
        let supported = if rsa {
            RsaPublicKey::from_der(bytes).is_ok_and(|key| is_supported_modulus(&key))
        } else if info.algorithm.oid == ID_EC_PUBLIC_KEY {
            let curve = info
                .algorithm
                .parameters
                .as_ref()
                .and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
            let length = match curve {
                Some(SECP_256_R_1) => 65,
                Some(SECP_384_R_1) => 97,
                _ => 0,
            };
            bytes.len() == length && bytes.first() == Some(&0x04)
        } else {
            false
        };
        if supported {
            Ok(Self {
                der: der.to_vec(),
                rsa,
            })
        } else {
            Err(EkPublicKeyError::Unsupported)
        }
    }

    /// DER `SubjectPublicKeyInfo`.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn is_rsa(&self) -> bool {
        self.rsa
    }

    fn assemble(
        oid: ObjectIdentifier,
        parameters: Any,
        key: &[u8],
        rsa: bool,
    ) -> Result<Self, EkPublicKeyError> {
        let info = SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned {
                oid,
                parameters: Some(parameters),
            },
            subject_public_key: BitString::from_bytes(key)
                .map_err(|_| EkPublicKeyError::Malformed)?,
        };
        Ok(Self {
            der: info.to_der().map_err(|_| EkPublicKeyError::Malformed)?,
            rsa,
        })
    }
}

fn is_supported_modulus(key: &RsaPublicKey<'_>) -> bool {
    let modulus = key.modulus.as_bytes();
    matches!(modulus.len(), 256 | 384 | 512) && modulus[0] & 0x80 != 0
}

/// A coordinate in hex, filled up with zeros in front: swtpm prints it without them.
fn coordinate(text: Option<&str>, size: usize) -> Result<Vec<u8>, EkPublicKeyError> {
    let text = text.ok_or(EkPublicKeyError::Text)?;
    if text.is_empty() || text.len() > size * 2 {
        return Err(EkPublicKeyError::Text);
    }
    hex::decode(format!("{text:0>width$}", width = size * 2)).map_err(|_| EkPublicKeyError::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_that_swtpm_prints_are_read() {
        assert!(EkPublicKey::from_swtpm(&"c8".repeat(256)).unwrap().is_rsa());
        let ecc =
            EkPublicKey::from_swtpm(&format!("x={},y=1,id=secp384r1", "ab".repeat(48))).unwrap();
        assert_eq!(EkPublicKey::from_der(ecc.der()).unwrap(), ecc);
        assert!(!ecc.is_rsa());
    }

    #[test]
    fn short_moduli_and_strange_texts_are_refused() {
        assert_eq!(
            EkPublicKey::from_swtpm(&"c8".repeat(128)),
            Err(EkPublicKeyError::Unsupported)
        );
        for text in [
            "",
            "zz",
            "x=1",
            "x=1,y=2,z=3",
            "x=,y=,id=secp384r1",
            "x=1,y=ä,id=secp384r1",
            "x=1,y=2,id=secp521r1",
        ] {
            assert!(EkPublicKey::from_swtpm(text).is_err(), "{text}");
        }
        assert!(EkPublicKey::from_swtpm(&"c8".repeat(2000)).is_err());
    }
}
