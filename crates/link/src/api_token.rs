//! API tokens: what a program shows in each request instead of a certificate (RFC 6750).
//!
//! Text form: `fwt1.<secret>.<checksum>`, both base64url. The beginning lets scanners of repositories know it; the checksum
//! detects a token that was cut or mistyped, and does not protect against forgery, which 256 random bits do. The controller
//! stores only the [`SecretHash`].

use crate::token::{SecretHash, TokenError, checksum};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::str::FromStr;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const PREFIX: &str = "fwt1";
/// `fwt1.`, 43 characters, a point, 8 characters.
const LENGTH: usize = 57;

/// Longest text that is read for one, with blanks around it, in bytes.
pub const MAX_API_TOKEN: usize = 256;

/// The secret of an API token.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ApiToken([u8; 32]);

impl ApiToken {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn random() -> Result<Self, TokenError> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TokenError::Randomness)?;
        Ok(Self(bytes))
    }

    /// The text that its owner gets, once.
    pub fn encode(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0));
        Zeroizing::new(format!(
            "{PREFIX}.{}.{}",
            secret.as_str(),
            checksum(&secret)
        ))
    }

    /// What the controller keeps.
    pub fn hash(&self) -> SecretHash {
        SecretHash::of("fleetward API token", &self.0)
    }
}

impl FromStr for ApiToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > LENGTH {
            return Err(TokenError::Malformed("it is too long"));
        }
        let rest = text
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_prefix('.'))
            .ok_or(TokenError::Malformed("it does not begin with fwt1."))?;
        let (secret, sum) = rest.split_once('.').ok_or(TokenError::Altered)?;
        if checksum(secret) != sum {
            return Err(TokenError::Altered);
        }
        // Room for all of it at once, so that no part stays behind in memory that was given back.
        let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH));
        URL_SAFE_NO_PAD
            .decode_vec(secret, &mut bytes)
            .map_err(|_| TokenError::Altered)?;
        <[u8; 32]>::try_from(bytes.as_slice())
            .map(Self)
            .map_err(|_| TokenError::Altered)
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_survives_its_text_and_is_never_shown() {
        let token = ApiToken::random().expect("random numbers");
        let text = token.encode();
        assert_eq!(text.len(), LENGTH);
        let read: ApiToken = text.parse().expect("own token");
        assert_eq!(read.hash(), token.hash());
        assert_ne!(ApiToken::random().expect("another").hash(), token.hash());
        assert!(!format!("{token:?}").contains(&text[5..48]));
        assert!(!token.hash().to_string().contains(&hex::encode(token.0)));
    }

    proptest! {
        #[test]
        fn any_other_text_is_refused_without_panic(text in "(fwt1\\.)?.{0,80}") {
            prop_assert!(text.parse::<ApiToken>().is_err());
        }

        #[test]
        fn a_changed_character_is_noticed(place in 5usize..LENGTH, new in "[A-Za-z0-9_-]") {
            let text = ApiToken::random().expect("random numbers").encode();
            let mut changed = text.to_string();
            changed.replace_range(place..=place, &new);
            prop_assume!(changed != *text);
            prop_assert!(changed.parse::<ApiToken>().is_err());
        }
    }
}
