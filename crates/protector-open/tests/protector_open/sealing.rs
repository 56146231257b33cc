//! What sealing, opening, granting and revoking promise.

use crate::support::{ALPHA, BETA, OLD, OLD_VALID, host, key_id, now, sealed, tpm_key, vm};
use fleetward_model::VmId;
use fleetward_protector::{ExpiredAllowed, KeyProtector, KeyProtectorError, rules};
use fleetward_protector_open::{
    LocalGuardian, OpenError, Rewrap, SealError, SealRequest, grant, open, open_with_any, revoke,
    rewrap, seal,
};

#[test]
fn owner_and_recipients_open_and_nobody_else() {
    let protector = sealed(&ALPHA, &[BETA.public().clone()]);
    for guardian in [&*ALPHA, &*BETA] {
        let opened = open(&protector, vm(), guardian).unwrap();
        assert!(opened.tpm_key.same_as(&tpm_key()));
        assert_eq!(opened.binding, protector.inspect().binding);
    }
    assert!(matches!(
        open(&protector, vm(), &OLD),
        Err(OpenError::NotGranted { .. })
    ));
    assert!(open_with_any(&protector, vm(), [&*OLD, &*BETA]).is_ok());
}

#[test]
fn inspection_tells_everything_but_the_key() {
    let protector = sealed(&ALPHA, &[BETA.public().clone()]);
    let inspection = KeyProtector::from_base64(&protector.to_base64())
        .unwrap()
        .inspect()
        .clone();
    assert_eq!(inspection.binding.vm_id, vm());
    assert_eq!(inspection.binding.key_id, key_id());
    assert_eq!(inspection.revision, 1);
    assert_eq!(&inspection.owner, ALPHA.public());
    assert!(
        inspection.is_granted(ALPHA.id())
            && inspection.is_granted(BETA.id())
            && !inspection.is_granted(OLD.id())
    );
    let key = tpm_key().expose_base64();
    assert!(!String::from_utf8_lossy(protector.der()).contains(key.as_str()));
    assert!(!format!("{protector:?} {:?}", open(&protector, vm(), &BETA)).contains(key.as_str()));
}

#[test]
fn a_protector_opens_only_on_its_own_vm() {
    let other = VmId(uuid::Uuid::from_u128(9));
    assert!(matches!(
        open(&sealed(&ALPHA, &[]), other, &ALPHA),
        Err(OpenError::OtherVm { .. })
    ));
    let refused = grant(
        &sealed(&ALPHA, &[]),
        other,
        &ALPHA,
        &[BETA.public().clone()],
        now(),
        &ExpiredAllowed::none(),
    );
    assert!(matches!(
        refused,
        Err(SealError::Open(OpenError::OtherVm { .. }))
    ));
}

#[test]
fn a_grant_keeps_the_key_and_repeating_it_changes_nothing() {
    let before = sealed(&ALPHA, &[]);
    let granted = grant(
        &before,
        vm(),
        &ALPHA,
        &[BETA.public().clone(), BETA.public().clone()],
        now(),
        &ExpiredAllowed::none(),
    )
    .unwrap();
    assert!(
        open(&granted, vm(), &BETA)
            .unwrap()
            .tpm_key
            .same_as(&tpm_key())
    );
    assert!(open(&granted, vm(), &ALPHA).is_ok());
    assert_eq!(granted.inspect().binding, before.inspect().binding);
    assert_eq!(granted.inspect().revision, 2);
    let again = grant(
        &granted,
        vm(),
        &ALPHA,
        &[BETA.public().clone()],
        now(),
        &ExpiredAllowed::none(),
    )
    .unwrap();
    assert_eq!(again, granted);
}

#[test]
fn only_the_owner_grants_and_revokes() {
    let protector = sealed(&ALPHA, &[BETA.public().clone()]);
    let refused = grant(
        &protector,
        vm(),
        &BETA,
        &[OLD.public().clone()],
        now(),
        &ExpiredAllowed::none(),
    );
    assert!(matches!(refused, Err(SealError::NotOwner { .. })));
    assert!(matches!(
        revoke(&protector, vm(), &BETA, ALPHA.id(), now()),
        Err(SealError::NotOwner { .. })
    ));
}

#[test]
fn a_revoked_guardian_no_longer_opens_and_the_owner_stays() {
    let protector = sealed(&ALPHA, &[BETA.public().clone()]);
    let revoked = revoke(&protector, vm(), &ALPHA, BETA.id(), now()).unwrap();
    assert!(matches!(
        open(&revoked, vm(), &BETA),
        Err(OpenError::NotGranted { .. })
    ));
    assert!(open(&revoked, vm(), &ALPHA).is_ok());
    assert_eq!(
        revoke(&revoked, vm(), &ALPHA, BETA.id(), now()).unwrap(),
        revoked
    );
    assert!(matches!(
        revoke(&revoked, vm(), &ALPHA, ALPHA.id(), now()),
        Err(SealError::OwnerRevoked { .. })
    ));
}

#[test]
fn whoever_signs_next_keeps_all_recipients_and_the_key() {
    let gamma =
        fleetward_protector_open::LocalGuardian::generate(&crate::support::host("gamma"), now())
            .unwrap();
    let before = sealed(&ALPHA, &[BETA.public().clone()]);
    let change = Rewrap {
        opener: &BETA,
        owner: &BETA,
        add: &[gamma.public().clone()],
        drop: &[],
        now: now(),
        expired: &ExpiredAllowed::none(),
    };
    let after = rewrap(&before, vm(), &change).unwrap();
    assert_eq!(&after.inspect().owner, BETA.public());
    assert_eq!(after.inspect().binding, before.inspect().binding);
    assert_eq!(after.inspect().revision, 2);
    for guardian in [&*ALPHA, &*BETA, &gamma] {
        let opened = open(&after, vm(), guardian).unwrap();
        assert!(opened.tpm_key.same_as(&tpm_key()));
    }
    let nothing = Rewrap { add: &[], ..change };
    assert_eq!(rewrap(&before, vm(), &nothing).unwrap().der(), before.der());
}

#[test]
fn a_pair_is_exchanged_for_its_successor_in_one_step() {
    let before = sealed(&OLD_VALID, &[BETA.public().clone()]);
    let change = Rewrap {
        opener: &OLD_VALID,
        owner: &ALPHA,
        add: &[],
        drop: &[OLD_VALID.id().clone()],
        now: now(),
        expired: &ExpiredAllowed::none(),
    };
    let after = rewrap(&before, vm(), &change).unwrap();
    assert_eq!(&after.inspect().owner, ALPHA.public());
    assert!(!after.inspect().is_granted(OLD_VALID.id()));
    for guardian in [&*ALPHA, &*BETA] {
        assert!(open(&after, vm(), guardian).is_ok());
    }
    let again = rewrap(
        &after,
        vm(),
        &Rewrap {
            opener: &ALPHA,
            ..change
        },
    )
    .unwrap();
    assert_eq!(again.der(), after.der());
}

#[test]
fn nobody_rewraps_what_it_cannot_open_or_signs_itself_away() {
    let before = sealed(&ALPHA, &[]);
    let change = Rewrap {
        opener: &BETA,
        owner: &BETA,
        add: &[BETA.public().clone()],
        drop: &[],
        now: now(),
        expired: &ExpiredAllowed::none(),
    };
    let refused = rewrap(&before, vm(), &change);
    assert!(matches!(
        refused,
        Err(SealError::Open(OpenError::NotGranted { .. }))
    ));
    let away = Rewrap {
        opener: &ALPHA,
        owner: &ALPHA,
        drop: &[ALPHA.id().clone()],
        ..change
    };
    assert!(matches!(
        rewrap(&before, vm(), &away),
        Err(SealError::OwnerRevoked { .. })
    ));
}

#[test]
fn expired_guardians_open_and_are_granted_only_by_name() {
    let protector = sealed(&ALPHA, &[]);
    let old = [OLD.public().clone()];
    let refused = grant(
        &protector,
        vm(),
        &ALPHA,
        &old,
        now(),
        &ExpiredAllowed::none(),
    );
    assert!(matches!(refused, Err(SealError::Certificate(_))));
    let named = ExpiredAllowed::named([OLD.id().clone()]);
    let granted = grant(&protector, vm(), &ALPHA, &old, now(), &named).unwrap();
    assert!(open(&granted, vm(), &OLD).is_ok());
    let request = SealRequest {
        vm_id: vm(),
        key_id: key_id(),
        tpm_key: &tpm_key(),
        owner: &OLD,
        recipients: &[],
        now: now(),
        expired: &ExpiredAllowed::none(),
    };
    assert!(matches!(seal(&request), Err(SealError::Certificate(_))));
}

#[test]
fn what_was_sealed_opens_for_ever_and_a_new_guardian_leads_back_after_the_end() {
    let begun = now();
    let later = |days| begun + time::Duration::days(days);
    let protector = sealed(&ALPHA, &[BETA.public().clone()]);
    let none = ExpiredAllowed::none();
    let others = [OLD_VALID.public().clone()];

    // Guardians begin before they are made, for clocks that are behind.
    for guardian in [&ALPHA, &BETA] {
        let early = begun - guardian.public().not_before();
        assert!(early >= time::Duration::minutes(50), "{early}");
    }
    // 9 years and 200 days: they end soon, and are used.
    let soon = later(9 * 365 + 200);
    let beta = [BETA.public().clone()];
    assert!(matches!(
        rules::validity(ALPHA.public(), soon),
        rules::Validity::EndsSoon { .. }
    ));
    assert!(grant(&protector, vm(), &ALPHA, &beta, soon, &none).is_ok());

    // 11 years: every guardian is over. Each still opens; nothing is granted to one.
    let end = later(11 * 365);
    for guardian in [&*ALPHA, &*BETA] {
        assert!(matches!(
            rules::validity(guardian.public(), end),
            rules::Validity::Expired { .. }
        ));
        assert!(open(&protector, vm(), guardian).is_ok());
    }
    let refused = grant(&protector, vm(), &ALPHA, &others, end, &none);
    assert!(matches!(refused, Err(SealError::Certificate(_))));

    // The way back: a new guardian on the host, for which the former one wraps the key.
    let successor = LocalGuardian::generate(&host("alpha"), end).unwrap();
    let change = Rewrap {
        opener: &ALPHA,
        owner: &successor,
        add: &[],
        drop: &[ALPHA.id().clone()],
        now: end,
        expired: &none,
    };
    let exchanged = rewrap(&protector, vm(), &change).unwrap();
    let opened = open(&exchanged, vm(), &successor).unwrap();
    assert_eq!(opened.binding.key_id, key_id());
    assert!(!exchanged.inspect().is_granted(ALPHA.id()));
}

#[test]
fn every_changed_bit_of_a_protector_is_noticed() {
    let protector = sealed(&ALPHA, &[]);
    // Every byte once, another bit each time; 2 kB of RSA verifications.
    for at in 0..protector.der().len() {
        let mut altered = protector.der().to_vec();
        altered[at] ^= 1 << (at % 8);
        assert!(
            KeyProtector::from_der(&altered).is_err(),
            "byte {at} altered unnoticed"
        );
    }
}

#[test]
fn no_prefix_and_no_extension_of_a_protector_is_one() {
    let der = sealed(&ALPHA, &[BETA.public().clone()]).der().to_vec();
    for length in 0..der.len() {
        assert!(
            KeyProtector::from_der(&der[..length]).is_err(),
            "prefix of {length} bytes"
        );
    }
    assert!(KeyProtector::from_der(&[&der[..], &[0]].concat()).is_err());
    assert!(matches!(
        KeyProtector::from_der(&vec![0x30; 300_000]),
        Err(KeyProtectorError::TooLarge { .. })
    ));
}

#[test]
fn fifty_hosts_fit_and_more_than_the_limit_are_refused() {
    let protector = sealed(&ALPHA, &[BETA.public().clone()]);
    let one_more = protector.der().len() - sealed(&ALPHA, &[]).der().len();
    assert!(one_more < 750, "one more guardian costs {one_more} bytes");
    assert!(
        one_more * fleetward_protector::envelope::MAX_RECIPIENTS
            < fleetward_protector::envelope::MAX_ENVELOPE
    );
}

/// The keys' share of a host that joins a group of 1,000 VMs; libvirt and the disk come on top. One thread, so one core.
#[test]
#[ignore = "a measurement: cargo test --release -p fleetward-protector-open --test protector_open -- --ignored --nocapture"]
fn a_thousand_protectors_are_rewrapped_within_twenty_seconds() {
    let text = sealed(&ALPHA, &[OLD_VALID.public().clone()]).to_base64();
    let begun = std::time::Instant::now();
    for _ in 0..1_000 {
        // as an agent does it: read and verified, opened, wrapped, signed
        let before = KeyProtector::from_base64(&text).unwrap();
        let change = Rewrap {
            opener: &ALPHA,
            owner: &ALPHA,
            add: &[BETA.public().clone()],
            drop: &[],
            now: now(),
            expired: &ExpiredAllowed::none(),
        };
        let after = rewrap(&before, vm(), &change).unwrap();
        assert!(after.inspect().is_granted(BETA.id()));
    }
    let took = begun.elapsed();
    eprintln!("1,000 key protectors re-wrapped in {took:?}");
    assert!(took < std::time::Duration::from_secs(20));
}
