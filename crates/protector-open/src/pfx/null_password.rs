//! The MAC of a file without a password, which is not that of an empty one: an empty password still has its final zero
//! (RFC 7292 appendix B.1), none has no bytes at all. The library knows the first alone.

use super::scan::Mac;
use aws_lc_rs::{digest, hmac};
use const_oid::db::rfc5912::{ID_SHA_1, ID_SHA_256, ID_SHA_384, ID_SHA_512};

/// Whether the MAC was made without any password (RFC 7292 appendix B.2, where the MAC's key is one block).
pub(super) fn fits(mac: &Mac<'_>) -> bool {
    let algorithms = [
        (
            ID_SHA_1,
            &digest::SHA1_FOR_LEGACY_USE_ONLY,
            hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        ),
        (ID_SHA_256, &digest::SHA256, hmac::HMAC_SHA256),
        (ID_SHA_384, &digest::SHA384, hmac::HMAC_SHA384),
        (ID_SHA_512, &digest::SHA512, hmac::HMAC_SHA512),
    ];
    let found = algorithms
        .into_iter()
        .find(|(id, ..)| id.as_bytes() == mac.digest);
    let Some((_, digest, hmac)) = found else {
        return false;
    };
    let block = digest.block_len();
    let salt = mac.salt.iter().copied().cycle();
    let mut input = vec![3; block];
    input.extend(salt.take(mac.salt.len().div_ceil(block) * block));
    let mut key = digest::digest(digest, &input);
    for _ in 1..mac.rounds {
        key = digest::digest(digest, key.as_ref());
    }
    let key = hmac::Key::new(hmac, key.as_ref());
    hmac::verify(&key, mac.content, mac.value).is_ok()
}
