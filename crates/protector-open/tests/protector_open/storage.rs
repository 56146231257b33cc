//! What the stored form of a guardian promises.

use crate::support::{ALPHA, sealed, vm};
use fleetward_protector_open::{LocalGuardian, StorageError, StorageKey, open};

#[test]
fn a_guardian_comes_back_from_clear_and_from_encrypted_storage() {
    let key = StorageKey::generate().unwrap();
    let protector = sealed(&ALPHA, &[]);
    for key in [None, Some(&key)] {
        let stored = ALPHA.to_storage(key).unwrap();
        let back = LocalGuardian::from_storage(&stored, key).unwrap();
        assert_eq!(back.public(), ALPHA.public());
        assert!(open(&protector, vm(), &back).is_ok());
    }
}

#[test]
fn encrypted_storage_needs_its_own_key() {
    let stored = ALPHA
        .to_storage(Some(&StorageKey::generate().unwrap()))
        .unwrap();
    assert!(matches!(
        LocalGuardian::from_storage(&stored, None),
        Err(StorageError::KeyNeeded)
    ));
    let other = StorageKey::generate().unwrap();
    assert!(matches!(
        LocalGuardian::from_storage(&stored, Some(&other)),
        Err(StorageError::WrongKey)
    ));
}

#[test]
fn encrypted_storage_shows_no_private_key() {
    let clear = ALPHA.to_storage(None).unwrap();
    let sealed = ALPHA
        .to_storage(Some(&StorageKey::generate().unwrap()))
        .unwrap();
    // The last bytes in clear belong to the encryption key's PKCS #8.
    let piece = &clear[clear.len() - 32..];
    assert!(!sealed.windows(piece.len()).any(|w| w == piece));
}

#[test]
fn no_truncation_or_alteration_of_storage_gives_a_guardian() {
    let key = StorageKey::generate().unwrap();
    let stored = ALPHA.to_storage(Some(&key)).unwrap();
    for length in 0..stored.len() {
        assert!(
            LocalGuardian::from_storage(&stored[..length], Some(&key)).is_err(),
            "prefix of {length} bytes"
        );
    }
    for at in 0..stored.len() {
        let mut altered = stored.to_vec();
        altered[at] ^= 0x10;
        assert!(
            LocalGuardian::from_storage(&altered, Some(&key)).is_err(),
            "byte {at}"
        );
    }
}

#[test]
fn debug_output_holds_no_key() {
    let text = format!("{:?} {:?}", *ALPHA, StorageKey::from_bytes(&mut [0x41; 32]));
    assert!(
        text.contains("[redacted]") && !text.contains("65, 65"),
        "{text}"
    );
}
