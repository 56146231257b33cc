//! Passwords: which are taken, and their hashes. Argon2id with 19 MiB, two passes and one lane.
//!
//! Source: RFC 9106; the parameters are those that OWASP's Password Storage Cheat Sheet asks for at least.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use fleetward_api::controller::{MAX_PASSWORD, MIN_PASSWORD, Password};
use fleetward_model::{ErrorCode, Failure, UserName};

/// Costs as much as any other, and is the hash of nothing that is known: for names that nobody has.
const OF_NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGhhcyB0aGlz$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// # Errors
/// It is too short or too long, or is little more than the user's name.
pub(super) fn require_good(user: &UserName, password: &Password) -> Result<(), Failure> {
    let text = password.expose();
    let refused = |because: String| {
        Err(
            Failure::new(ErrorCode::InvalidArgument, "the password is not taken")
                .because(because)
                .fix(format!(
                    "choose one of at least {MIN_PASSWORD} characters; some words that do not belong together are good"
                )),
        )
    };
    if text.chars().count() < MIN_PASSWORD {
        return refused(format!("it has fewer than {MIN_PASSWORD} characters"));
    }
    if text.len() > MAX_PASSWORD {
        return refused(format!("it has more than {MAX_PASSWORD} bytes"));
    }
    let without_name = text
        .to_lowercase()
        .replace(&user.as_str().to_lowercase(), "");
    let mut different: Vec<char> = without_name.chars().collect();
    different.sort_unstable();
    different.dedup();
    if different.len() < 5 {
        return refused("it is the user's name, or the same few characters again and again".into());
    }
    Ok(())
}

/// As a PHC string, with a salt of its own.
///
/// # Errors
/// The system gives no random numbers, or no memory.
pub(super) fn hash(password: &Password) -> Result<String, Failure> {
    let hashed = Argon2::default().hash_password(password.expose().as_bytes());
    let hashed = hashed.map_err(|error| {
        Failure::new(ErrorCode::Internal, "cannot make a hash of the password")
            .because(error.to_string())
    })?;
    Ok(hashed.to_string())
}

/// Whether it is the password of this hash. Takes as long without one.
pub(super) fn is_right(password: &Password, hash: Option<String>) -> bool {
    let known = hash.is_some();
    let hash = hash.unwrap_or_else(|| OF_NOBODY.to_owned());
    let Ok(hash) = PasswordHash::new(&hash) else {
        return false;
    };
    let text = password.expose();
    // What is longer is nobody's, and hashing it would be work for nothing.
    text.len() <= MAX_PASSWORD
        && Argon2::default()
            .verify_password(text.as_bytes(), &hash)
            .is_ok()
        && known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::from(text.to_owned())
    }

    #[test]
    fn only_the_right_password_is_right_and_its_hash_tells_nothing() {
        let right = password("correct horse battery");
        let first = hash(&right).expect("a hash");
        assert!(is_right(&right, Some(first.clone())));
        for wrong in ["correct horse batterz", "", "Correct horse battery"] {
            assert!(!is_right(&password(wrong), Some(first.clone())), "{wrong}");
        }
        assert!(!is_right(&right, None), "of nobody");
        assert_ne!(hash(&right).expect("a hash"), first, "salted");
        assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(!is_right(&right, Some("rubbish".to_owned())));
    }

    #[test]
    fn the_hash_for_nobody_is_one_that_is_computed() {
        let hash = PasswordHash::new(OF_NOBODY).expect("readable");
        assert!(hash.salt.is_some() && hash.hash.is_some());
    }

    #[test]
    fn passwords_that_are_guessed_first_are_not_taken() {
        let user: UserName = "kim".parse().expect("a name");
        let code = |text: &str| require_good(&user, &password(text)).map_err(|f| f.code);
        for bad in [
            "",
            "short",
            "aaaaaaaaaaaaaaa",
            "kimkimkimkim",
            "KimKimKim1234",
        ] {
            assert_eq!(code(bad), Err(ErrorCode::InvalidArgument), "{bad}");
        }
        assert!(code(&"é".repeat(MAX_PASSWORD)).is_err(), "too long");
        for good in ["correct horse battery", "ひらがなとカタカナとかんじ"] {
            assert_eq!(code(good), Ok(()), "{good}");
        }
    }
}
