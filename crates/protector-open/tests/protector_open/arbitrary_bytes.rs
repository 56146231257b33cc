//! No bytes make a parser panic, and no mutation of real ones is taken for real.

use crate::support::{ALPHA, BETA, sealed, vm};
use fleetward_protector::envelope::Envelope;
use fleetward_protector::{Guardian, KeyProtector};
use fleetward_protector_open::{LocalGuardian, open};
use proptest::prelude::*;
use std::sync::LazyLock;

static PROTECTOR: LazyLock<KeyProtector> =
    LazyLock::new(|| sealed(&ALPHA, &[BETA.public().clone()]));
static STORED: LazyLock<Vec<u8>> = LazyLock::new(|| ALPHA.to_storage(None).unwrap().to_vec());

/// Bytes cut out, doubled, overwritten: what damage and malice do to DER.
fn mutated(original: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let edit = (
        0..original.len(),
        0usize..64,
        prop::collection::vec(any::<u8>(), 0..8),
    );
    prop::collection::vec(edit, 1..5).prop_map(move |edits| {
        let mut bytes = original.to_vec();
        for (at, cut, insert) in edits {
            let at = at.min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, insert);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(KeyProtector::from_der(&bytes).is_err());
        prop_assert!(Envelope::from_der(&bytes).is_err());
        prop_assert!(Guardian::from_der(&bytes, &bytes).is_err());
        prop_assert!(LocalGuardian::from_storage(&bytes, None).is_err());
    }

    #[test]
    fn arbitrary_text_is_refused(text in ".{0,400}") {
        prop_assert!(KeyProtector::from_base64(&text).is_err());
    }

    #[test]
    fn a_mutated_protector_is_refused(bytes in mutated(PROTECTOR.der())) {
        prop_assume!(bytes != PROTECTOR.der());
        prop_assert!(KeyProtector::from_der(&bytes).is_err());
    }

    #[test]
    fn a_mutated_envelope_does_not_panic(bytes in mutated(ENVELOPE.as_slice())) {
        // Parsing may succeed: the envelope alone is not signed. Nothing panics.
        let _ = Envelope::from_der(&bytes);
    }

    #[test]
    fn a_mutated_certificate_is_another_guardian(bytes in mutated(ALPHA.public().signing().der())) {
        prop_assume!(bytes != ALPHA.public().signing().der());
        if let Ok(guardian) = Guardian::from_der(&bytes, ALPHA.public().encryption().der()) {
            prop_assert_ne!(guardian.id(), ALPHA.id());
        }
    }

    #[test]
    fn a_mutated_stored_guardian_never_passes_for_the_original(bytes in mutated(STORED.as_slice())) {
        prop_assume!(bytes != *STORED);
        if let Ok(guardian) = LocalGuardian::from_storage(&bytes, None) {
            prop_assert!(guardian.id() != ALPHA.id() || open(&PROTECTOR, vm(), &guardian).is_ok());
        }
    }
}

static ENVELOPE: LazyLock<Vec<u8>> = LazyLock::new(|| PROTECTOR.envelope().to_der().unwrap());
