//! Where EK certificates' authorities and the list of revoked ones are published, for whoever verifies TPMs from outside.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The name of the EK root's certificate, DER, there.
pub const ROOT_FILE: &str = "ek-root.cer";
/// The name of the list of revoked EK certificates, DER, there.
pub const CRL_FILE: &str = "ek.crl";

/// The name of the certificate of a host's EK authority, DER, there. `sha256` is its digest in hex.
pub fn authority_file(sha256: &str) -> String {
    format!("{sha256}.cer")
}

/// Longest address taken, bytes: two of them are in a certificate that has to fit into a TPM.
const MAX_LENGTH: usize = 200;

/// The address of a directory on a web server, such as `http://pki.example/fleetward/`, in which an administrator publishes
/// what `fleetward ek publish` writes. EK certificates name it (RFC 5280 sections 4.2.1.13 and 4.2.2.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EkAddress(String);

/// What is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no address of a directory on a web server, such as http://pki.example/fleetward/, of at most {MAX_LENGTH} bytes"
)]
pub struct NoEkAddress;

impl EkAddress {
    /// Where the certificate of the authority with that digest (hex) is.
    pub fn of_authority(&self, sha256: &str) -> String {
        format!("{}{}", self.0, authority_file(sha256))
    }

    /// Where the list of revoked certificates is.
    pub fn of_crl(&self) -> String {
        format!("{}{CRL_FILE}", self.0)
    }
}

impl FromStr for EkAddress {
    type Err = NoEkAddress;

    fn from_str(text: &str) -> Result<Self, NoEkAddress> {
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        let (server, _) = rest
            .and_then(|rest| rest.split_once('/'))
            .ok_or(NoEkAddress)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:/[]".contains(c);
        let fits = text.len() <= MAX_LENGTH && text.ends_with('/') && !server.is_empty();
        match fits && text.chars().all(plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(NoEkAddress),
        }
    }
}

impl TryFrom<String> for EkAddress {
    type Error = NoEkAddress;

    fn try_from(text: String) -> Result<Self, NoEkAddress> {
        text.parse()
    }
}

impl From<EkAddress> for String {
    fn from(address: EkAddress) -> Self {
        address.0
    }
}

impl fmt::Display for EkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_web_servers_are_taken() {
        let address: EkAddress = "http://pki.example/fleetward/".parse().expect("one");
        assert_eq!(
            address.of_authority("ab12"),
            "http://pki.example/fleetward/ab12.cer"
        );
        assert_eq!(address.of_crl(), "http://pki.example/fleetward/ek.crl");
        assert!("https://[2001:db8::1]:8443/".parse::<EkAddress>().is_ok());
        let long = format!("http://pki.example/{}/", "x".repeat(MAX_LENGTH));
        for text in [
            "",
            "http://",
            "http:///",
            "http://pki.example",
            "http://pki.example/fleetward",
            "ftp://pki.example/",
            "pki.example/",
            "http://user@pki.example/",
            "http://pki.example/?a=/",
            "http://pki.example/#/",
            "http://pki.example/a b/",
            "http://pki.example/é/",
            &long,
        ] {
            assert_eq!(text.parse::<EkAddress>(), Err(NoEkAddress), "{text}");
        }
    }
}
