//! Join tokens: what an administrator carries from the controller to a new host.
//!
//! Text form: `fwj1.<base64url of a JSON record>.<base64url of a checksum>`. The checksum detects a token that was cut
//! or mistyped; it does not protect against forgery. The controller stores only the [`SecretHash`].

use crate::trust::Fingerprint;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fleetward_model::HostName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Longest token read, in bytes.
pub const MAX_TOKEN: usize = 2048;

const PREFIX: &str = "fwj1";
const CHECKSUM_BYTES: usize = 6;
const MAX_ADDRESS: usize = 300;

/// Permission for one host to join a fleet, once.
#[derive(Debug)]
pub struct JoinToken {
    /// Where the controller listens, `host:port`.
    pub controller: String,
    /// The only authority to believe.
    pub authority: Fingerprint,
    /// The name the host will have.
    pub host: HostName,
    /// What proves that the bearer got the token.
    pub secret: JoinSecret,
    /// When the controller stops accepting it.
    pub expires: OffsetDateTime,
}

impl JoinToken {
    /// Parses a token that is valid at `now`.
    pub fn parse(text: &str, now: OffsetDateTime) -> Result<Self, TokenError> {
        let token = Self::parse_any_age(text)?;
        if token.expires <= now {
            return Err(TokenError::Expired { at: token.expires });
        }
        Ok(token)
    }

    /// The text to carry.
    pub fn encode(&self) -> Zeroizing<String> {
        let record = Record {
            controller: self.controller.clone(),
            authority: self.authority.to_string(),
            host: self.host.clone(),
            secret: self.secret.encode().to_string(),
            expires: self.expires.unix_timestamp(),
        };
        let json = Zeroizing::new(serde_json::to_vec(&record).expect("plain fields are JSON"));
        let payload = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*json));
        Zeroizing::new(format!(
            "{PREFIX}.{}.{}",
            payload.as_str(),
            checksum(&payload)
        ))
    }

    fn parse_any_age(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Malformed("it is too long"));
        }
        let (version, rest) = text
            .split_once('.')
            .ok_or(TokenError::Malformed("it does not begin with fwj1."))?;
        if version != PREFIX {
            return Err(TokenError::Malformed("it does not begin with fwj1."));
        }
        let (payload, sum) = rest.split_once('.').ok_or(TokenError::Altered)?;
        if checksum(payload) != sum {
            return Err(TokenError::Altered);
        }
        let json = URL_SAFE_NO_PAD
            .decode(payload)
            .map(Zeroizing::new)
            .map_err(|_| TokenError::Malformed("it is not base64url"))?;
        let record: Record = serde_json::from_slice(&json)
            .map_err(|_| TokenError::Malformed("its record cannot be read"))?;
        record.try_into()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    controller: String,
    authority: String,
    host: HostName,
    secret: String,
    expires: i64,
}

impl TryFrom<Record> for JoinToken {
    type Error = TokenError;

    fn try_from(mut record: Record) -> Result<Self, TokenError> {
        let controller = std::mem::take(&mut record.controller);
        let has_port = controller
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port || controller.len() > MAX_ADDRESS || controller.contains(char::is_whitespace) {
            return Err(TokenError::Malformed("its controller is no address:port"));
        }
        Ok(Self {
            controller,
            authority: record
                .authority
                .parse()
                .map_err(|_| TokenError::Malformed("its authority is no fingerprint"))?,
            secret: record.secret.parse()?,
            expires: OffsetDateTime::from_unix_timestamp(record.expires)
                .map_err(|_| TokenError::Malformed("its expiry is no time"))?,
            host: record.host.clone(),
        })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident, $purpose:literal) => {
        $(#[$doc])*
        #[derive(Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// A new secret.
            ///
            /// # Errors
            /// The system gives no random numbers.
            pub fn random() -> Result<Self, TokenError> {
                let mut bytes = [0; 32];
                aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TokenError::Randomness)?;
                Ok(Self(bytes))
            }

            /// As sent to the controller: base64url, 43 characters.
            pub fn encode(&self) -> Zeroizing<String> {
                Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0))
            }

            /// What the controller keeps.
            pub fn hash(&self) -> SecretHash {
                SecretHash::of($purpose, &self.0)
            }
        }

        impl FromStr for $name {
            type Err = TokenError;

            fn from_str(text: &str) -> Result<Self, TokenError> {
                bytes_of_secret(text).map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret!(
    /// 32 random bytes that prove possession of a token.
    JoinSecret,
    "fleetward join secret"
);
secret!(
    /// 32 random bytes by which a browser shows in each request who has logged in.
    SessionSecret,
    "fleetward session"
);

fn bytes_of_secret(text: &str) -> Result<[u8; 32], TokenError> {
    const WRONG: TokenError = TokenError::Malformed("its secret is not 32 bytes of base64url");
    let mut bytes = Zeroizing::new(Vec::with_capacity(64));
    if text.len() > 64 {
        return Err(WRONG);
    }
    URL_SAFE_NO_PAD
        .decode_vec(text, &mut bytes)
        .map_err(|_| WRONG)?;
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| WRONG)
}

/// SHA-256 over what a secret is for, a zero byte, and the secret; as text 64 hex digits. Compares in constant time.
#[derive(Clone, Copy, Eq)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    pub(crate) fn of(purpose: &str, secret: &[u8; 32]) -> Self {
        let mut digest = Sha256::new();
        digest.update(purpose);
        digest.update([0]);
        digest.update(secret);
        Self(digest.finalize().into())
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({self})")
    }
}

impl FromStr for SecretHash {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| TokenError::Malformed("its hash is not 64 hex digits"))?;
        Ok(Self(bytes))
    }
}

impl Serialize for SecretHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

pub(crate) fn checksum(payload: &str) -> String {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(payload.as_bytes())[..CHECKSUM_BYTES])
}

/// Why a text is not a usable token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of a version we know.
    #[error("this is no token: {0}")]
    Malformed(&'static str),
    /// A token that was cut or changed.
    #[error("the token was altered: its checksum does not fit")]
    Altered,
    /// A token past its time.
    #[error("the token expired at {at}")]
    Expired {
        /// When.
        at: OffsetDateTime,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Randomness,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::Duration;

    fn token(now: OffsetDateTime) -> JoinToken {
        JoinToken {
            controller: "[fd00::1]:7440".to_owned(),
            authority: Fingerprint([7; 32]),
            host: "host-1".parse().expect("name"),
            secret: JoinSecret::random().expect("secret"),
            expires: now + Duration::HOUR,
        }
    }

    #[test]
    fn a_token_survives_its_text() {
        let now = OffsetDateTime::now_utc();
        let token = token(now);
        let text = token.encode();
        let read = JoinToken::parse(&format!(" {}\n", text.as_str()), now).expect("own token");
        assert_eq!(read.controller, token.controller);
        assert_eq!(read.authority, token.authority);
        assert_eq!(read.host, token.host);
        assert_eq!(read.secret.hash(), token.secret.hash());
        assert_eq!(
            read.expires.unix_timestamp(),
            token.expires.unix_timestamp()
        );
        assert!(text.len() < MAX_TOKEN);
    }

    #[test]
    fn an_expired_token_says_so() {
        let now = OffsetDateTime::now_utc();
        let text = token(now).encode();
        let later = now + Duration::hours(2);
        assert!(matches!(
            JoinToken::parse(&text, later),
            Err(TokenError::Expired { .. })
        ));
    }

    #[test]
    fn the_secret_is_never_shown() {
        let token = token(OffsetDateTime::now_utc());
        let shown = format!("{token:?}");
        assert!(!shown.contains(token.secret.encode().as_str()), "{shown}");
        assert!(shown.contains("redacted"));
    }

    #[test]
    fn a_token_presented_twice_has_the_hash_the_controller_struck_off() {
        let now = OffsetDateTime::now_utc();
        let text = token(now).encode();
        let first = JoinToken::parse(&text, now).expect("first");
        let second = JoinToken::parse(&text, now).expect("second");
        assert_eq!(first.secret.hash(), second.secret.hash());
        let kept: SecretHash = first.secret.hash().to_string().parse().expect("hash");
        assert_eq!(kept, second.secret.hash());
        assert_ne!(kept, token(now).secret.hash());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_without_panic(text in "(fwj1\\.)?.{0,400}") {
            prop_assert!(JoinToken::parse(&text, OffsetDateTime::UNIX_EPOCH).is_err());
        }

        #[test]
        fn a_changed_character_is_noticed(place in 5usize..300, new in "[A-Za-z0-9_-]") {
            let now = OffsetDateTime::now_utc();
            let text = token(now).encode();
            let place = place % (text.len() - 5) + 5;
            let mut changed = text.to_string();
            changed.replace_range(place..=place, &new);
            prop_assume!(changed != *text);
            let error = JoinToken::parse(&changed, now).expect_err("altered");
            prop_assert_eq!(error, TokenError::Altered);
        }

        #[test]
        fn a_cut_token_is_refused(length in 0usize..300) {
            let now = OffsetDateTime::now_utc();
            let text = token(now).encode();
            let cut = &text[..length.min(text.len() - 1)];
            prop_assert!(JoinToken::parse(cut, now).is_err());
        }
    }
}
