//! The guardian store on the disk: encrypted where there is a key for it, and whole after a kill -9 at any line.
//!
//! What is killed is a child process: this test program, called for one test that does what the environment says.

use fleetward_agent::audit::AuditLog;
use fleetward_agent::keyring::pfx::{self, Found, Protection};
use fleetward_agent::keyring::{HalfImported, Keyring, KeyringError, Purpose};
use fleetward_failpoint::{HOLD_DIR_VARIABLE, HoldPoints};
use fleetward_model::guardian::{CertificateRole, GuardianStanding};
use fleetward_model::{ErrorCode, GuardianId, HostName};
use fleetward_protector_open::LocalGuardian;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use time::OffsetDateTime;
use zeroize::Zeroizing;

const STORE: &str = "GUARDIAN_STORE_TEST_DIR";
const WHAT: &str = "GUARDIAN_STORE_TEST_WHAT";
const PATIENCE: Duration = Duration::from_secs(60);

static OTHER: LazyLock<LocalGuardian> =
    LazyLock::new(|| LocalGuardian::generate(&host("b"), OffsetDateTime::now_utc()).unwrap());

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn by_hand() -> Purpose {
    Purpose {
        actor: "local:0".into(),
        reason: "by hand".into(),
        job: None,
    }
}

/// A host's store, the key that may encrypt it, and another host's PFX files.
struct Bench {
    dir: TempDir,
}

impl Bench {
    /// With an own guardian, made without a key as `join` in a root shell does.
    fn new() -> Self {
        let bench = Self::empty();
        bench.ensure_own(OffsetDateTime::now_utc());
        bench
    }

    /// What a join at this time makes sure of; the guardians after that, the own one first.
    fn ensure_own(&self, now: OffsetDateTime) -> Vec<(GuardianId, GuardianStanding)> {
        let audit = self.audit();
        Keyring::ensure_own(&self.store(), &host("a"), &audit, &by_hand(), None, now).unwrap();
        let facts = Keyring::open_with(&self.store(), host("a"), Arc::new(audit), None)
            .unwrap()
            .facts();
        facts
            .into_iter()
            .map(|one| (one.id, one.standing))
            .collect()
    }

    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["guardians", "points"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("key"), [7; 32]).unwrap();
        std::fs::write(dir.path().join("wrong-key"), [8; 32]).unwrap();
        for role in [CertificateRole::Signing, CertificateRole::Encryption] {
            let file = pfx::export(&OTHER, role, &password(), Protection::Aes256).unwrap();
            std::fs::write(dir.path().join(pfx::file_name(role)), &file).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("guardians")
    }

    fn audit(&self) -> AuditLog {
        AuditLog::new(self.path("audit.log"), host("a"))
    }

    fn open(&self, key: Option<&str>) -> Result<Keyring, KeyringError> {
        let key = key.map(|name| self.path(name));
        let audit = Arc::new(self.audit());
        Keyring::open_with(&self.store(), host("a"), audit, key.as_deref())
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.store())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "keyring.lock" && name != "keyring.json")
            .collect();
        names.sort();
        names
    }

    /// Everything that lies in the store, whatever it is called.
    fn bytes(&self) -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(self.store()).unwrap();
        entries
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect()
    }

    /// Whether a private key of `guardian` can be read off the disk.
    fn shows_keys_of(&self, guardian: &LocalGuardian) -> bool {
        // The exported key is PKCS #8 of some 1,800 bytes: a piece from its middle is secret and unmistakable.
        let clear = guardian.to_storage(None).unwrap();
        let piece = &clear[clear.len() - 400..clear.len() - 300];
        self.bytes()
            .iter()
            .any(|bytes| bytes.windows(piece.len()).any(|window| window == piece))
    }

    /// Does `what` in a child, which is killed at `point`; without one it runs to its end. The points it passed.
    fn child(&self, what: &str, point: Option<&str>) -> BTreeSet<String> {
        let points = HoldPoints::in_directory(self.path("points"));
        for entry in std::fs::read_dir(self.path("points")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        if let Some(point) = point {
            points.set(point).unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "guardian_store::child", "--ignored"])
            .env(STORE, self.dir.path())
            .env(WHAT, what)
            .env(HOLD_DIR_VARIABLE, self.path("points"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        match point {
            None => assert!(child.wait().unwrap().success(), "{what}"),
            Some(point) => {
                while !points.is_reached(point) {
                    assert!(begun.elapsed() < PATIENCE, "{what} does not reach {point}");
                    assert!(child.try_wait().unwrap().is_none(), "{what} has ended");
                    std::thread::sleep(Duration::from_millis(5));
                }
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
        points.reached().unwrap().into_iter().collect()
    }
}

fn password() -> Zeroizing<String> {
    Zeroizing::new("a long password".to_owned())
}

/// Imports what the files hold, as `import-pfx` does; the guardian that is whole now.
fn import(directory: &Path, keyring: &Keyring, roles: &[CertificateRole]) -> Option<GuardianId> {
    let keys = roles.iter().flat_map(|role| {
        let file = std::fs::read(directory.join(pfx::file_name(*role))).unwrap();
        pfx::read(&file, &password()).unwrap()
    });
    match pfx::sort_out(keys.collect()).unwrap() {
        Found::Guardian(guardian) => {
            let imported = keyring.import(&guardian, &by_hand());
            Some(
                imported
                    .map_err(|trouble| trouble.failure)
                    .unwrap()
                    .guardian,
            )
        }
        Found::Half(half) => {
            let imported = keyring.import_half(*half, &by_hand());
            match imported.map_err(|trouble| trouble.failure).unwrap() {
                HalfImported::Guardian(imported) => Some(imported.guardian),
                HalfImported::Waits { .. } => None,
            }
        }
    }
}

/// What a child does.
#[test]
fn a_guardian_that_was_made_under_a_wrong_clock_is_not_the_one_that_joins() {
    let now = OffsetDateTime::now_utc();
    let hours = time::Duration::hours;
    for (wrong, again) in [
        // Its certificates begin an hour early, so two hours behind is within their time.
        (now - hours(2), false),
        (now + hours(2), true),
        (now - time::Duration::days(16 * 365), true),
        (now - time::Duration::days(9 * 365 + 200), false),
        (now - time::Duration::days(11 * 365), true),
    ] {
        let bench = Bench::empty();
        let first = bench.ensure_own(wrong);
        assert_eq!(first.len(), 1);
        assert_eq!(first, bench.ensure_own(wrong), "{wrong}");
        let second = bench.ensure_own(now);
        if again {
            // The former one stays, for whatever it may still open.
            let [(id, own), (former, retired)] = second.as_slice() else {
                panic!("{wrong}: {second:?}")
            };
            assert_ne!(*id, first[0].0, "{wrong}");
            assert_eq!(*former, first[0].0, "{wrong}");
            assert_eq!(
                (*own, *retired),
                (GuardianStanding::Own, GuardianStanding::Retired)
            );
        } else {
            assert_eq!(second, first, "{wrong}");
        }
        assert_eq!(second, bench.ensure_own(now), "{wrong}");
    }
}

#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn child() {
    use CertificateRole::{Encryption, Signing};
    let Some(directory) = std::env::var_os(STORE).map(PathBuf::from) else {
        return;
    };
    let what = std::env::var(WHAT).unwrap();
    let key = (what == "seal").then(|| directory.join("key"));
    let audit = Arc::new(AuditLog::new(directory.join("audit.log"), host("a")));
    let store = directory.join("guardians");
    let keyring = Keyring::open_with(&store, host("a"), audit, key.as_deref()).unwrap();
    match what.as_str() {
        "seal" => drop(keyring.seal_what_lies_in_clear().unwrap()),
        "import" => drop(import(&directory, &keyring, &[Signing, Encryption])),
        "import-half" => drop(import(&directory, &keyring, &[Signing])),
        "import-other-half" => drop(import(&directory, &keyring, &[Encryption])),
        "remove" => {
            let id = keyring.facts()[1].id.clone();
            let removed = keyring.remove(&id, &[], &by_hand());
            removed.map_err(|trouble| trouble.failure).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn keys_made_without_a_credential_are_encrypted_by_the_first_start_that_has_one() {
    let bench = Bench::new();
    import(
        &bench.path(""),
        &bench.open(None).unwrap(),
        &[CertificateRole::Signing],
    );
    let without = bench.open(None).unwrap();
    assert_eq!(
        without.lying_in_clear().len(),
        2,
        "the own one and half another"
    );
    assert!(!without.is_sealed());
    assert_eq!(without.seal_what_lies_in_clear().unwrap(), 0);
    let own = without.facts()[0].id.clone();

    // The credential alone encrypts nothing, and is not taken for it.
    let with = bench.open(Some("key")).unwrap();
    assert!(!with.is_sealed(), "{:?}", with.lying_in_clear());
    assert_eq!(with.seal_what_lies_in_clear().unwrap(), 2);
    assert!(with.is_sealed(), "{:?}", with.lying_in_clear());
    assert_eq!(with.seal_what_lies_in_clear().unwrap(), 0);
    assert_eq!(bench.files().len(), 2, "{:?}", bench.files());
    assert!(!bench.shows_keys_of(&OTHER));

    let again = bench.open(Some("key")).unwrap();
    assert_eq!(again.facts()[0].id, own);
    assert_eq!(again.halves().unwrap().len(), 1);
    let whole = import(&bench.path(""), &again, &[CertificateRole::Encryption]);
    assert_eq!(whole.as_ref(), Some(OTHER.id()));
    assert!(again.is_sealed(), "{:?}", again.lying_in_clear());
    assert!(!bench.shows_keys_of(&OTHER));
}

#[test]
fn a_sealed_store_says_what_it_needs_and_takes_no_other_key() {
    let bench = Bench::new();
    let keyring = bench.open(Some("key")).unwrap();
    keyring.seal_what_lies_in_clear().unwrap();
    for key in [None, Some("wrong-key")] {
        let refused = bench.open(key).unwrap_err().failure("the guardian store");
        assert_eq!(refused.code, ErrorCode::GuardianStoreSealed, "{refused}");
        for word in ["--credential-file", "fleetward-guardian-key"] {
            assert!(refused.fix.contains(word), "{refused}");
        }
    }
    std::fs::write(bench.path("short"), [7; 31]).unwrap();
    std::fs::write(bench.path("long"), [7; 33]).unwrap();
    for name in ["short", "long"] {
        let error = bench.open(Some(name)).unwrap_err();
        assert!(matches!(error, KeyringError::StorageKey { .. }), "{error}");
    }
    // A file that is named must be there: going on without it would write keys in clear.
    let error = bench.open(Some("no-such-file")).unwrap_err();
    assert!(matches!(error, KeyringError::File { .. }), "{error}");
}

#[test]
fn a_mixed_store_is_neither_called_sealed_nor_sealed_under_a_second_key() {
    let bench = Bench::new();
    // Own one in clear, another one encrypted: what an import with the credential beside a store without one makes.
    let both = [CertificateRole::Signing, CertificateRole::Encryption];
    import(&bench.path(""), &bench.open(Some("key")).unwrap(), &both);
    assert!(!bench.shows_keys_of(&OTHER));
    assert_eq!(bench.open(None).unwrap().lying_in_clear().len(), 1);
    let before = bench.bytes();

    let wrong = bench.open(Some("wrong-key")).unwrap();
    let error = wrong.seal_what_lies_in_clear().unwrap_err();
    assert!(matches!(error, KeyringError::OtherKey { .. }), "{error}");
    let successor = LocalGuardian::generate(&host("a"), OffsetDateTime::now_utc()).unwrap();
    assert!(wrong.replace_own(&successor, &by_hand()).is_err());
    assert_eq!(bench.bytes(), before);

    let right = bench.open(Some("key")).unwrap();
    assert_eq!(right.seal_what_lies_in_clear().unwrap(), 1);
    assert!(right.is_sealed());
    assert_eq!(right.facts().len(), 2);
}

#[test]
fn one_damaged_file_keeps_no_other_in_clear_and_is_said() {
    let bench = Bench::new();
    let stray = format!("{}.guardian", "ab".repeat(32));
    std::fs::write(bench.store().join(&stray), "no guardian").unwrap();
    let keyring = bench.open(Some("key")).unwrap();
    assert!(keyring.seal_what_lies_in_clear().is_err());
    assert_eq!(keyring.lying_in_clear(), [stray]);
}

#[test]
fn sealing_that_is_killed_anywhere_loses_no_key_and_goes_on() {
    let fresh = || {
        let bench = Bench::new();
        let both = [CertificateRole::Signing, CertificateRole::Encryption];
        import(&bench.path(""), &bench.open(None).unwrap(), &both);
        bench
    };
    let points = fresh().child("seal", None);
    assert!(points.len() >= 3, "{points:?}");
    for point in points.iter().filter(|point| point.contains(".seal.")) {
        let bench = fresh();
        bench.child("seal", Some(point));
        // Nothing is lost in between, and nothing is called sealed that is not.
        let between = bench.open(Some("key")).unwrap();
        assert_eq!(between.facts().len(), 2, "{point}");
        assert!(!between.is_sealed(), "{point}");
        between.seal_what_lies_in_clear().unwrap();
        assert!(
            between.is_sealed(),
            "{point}: {:?}",
            between.lying_in_clear()
        );
        assert_eq!(bench.files().len(), 2, "{point}: {:?}", bench.files());
        assert!(!bench.shows_keys_of(&OTHER), "{point}");
        assert_eq!(bench.open(Some("key")).unwrap().facts().len(), 2, "{point}");
    }
}

#[test]
fn a_key_that_was_being_written_is_wiped_at_the_next_change_or_start() {
    let bench = Bench::new();
    let clear = OTHER.to_storage(None).unwrap();
    let rest = bench
        .store()
        .join(format!("{}.{}.new", OTHER.id(), "0".repeat(32)));
    std::fs::write(&rest, &clear).unwrap();
    assert!(bench.shows_keys_of(&OTHER));
    let keyring = bench.open(Some("key")).unwrap();
    keyring.seal_what_lies_in_clear().unwrap();
    assert!(!rest.exists() && !bench.shows_keys_of(&OTHER));
}

#[test]
fn an_import_that_is_killed_anywhere_counts_whole_or_not_at_all_and_can_be_repeated() {
    use CertificateRole::{Encryption, Signing};
    for (first, what, roles) in [
        (None, "import", &[Signing, Encryption][..]),
        (None, "import-half", &[Signing]),
        (Some("import-half"), "import-other-half", &[Encryption]),
    ] {
        let fresh = || {
            let bench = Bench::new();
            if let Some(first) = first {
                bench.child(first, None);
            }
            bench
        };
        let points = fresh().child(what, None);
        // The file with the keys, the index, and what goes afterwards.
        assert!(points.len() >= 3, "{what}: {points:?}");
        for point in &points {
            let bench = fresh();
            bench.child(what, Some(point));
            let keyring = bench.open(None).unwrap();
            let halves = keyring.halves().unwrap().len();
            let facts = keyring.facts();
            match facts.len() {
                1 => assert!(halves <= 1, "{what} {point}"),
                2 => {
                    assert_eq!(facts[1].id, *OTHER.id(), "{what} {point}");
                    assert_eq!(facts[1].standing, GuardianStanding::Imported);
                    assert_eq!(facts[1].certificates.len(), 2);
                    assert_eq!(halves, 0, "{what} {point}");
                }
                more => panic!("{what} {point}: {more} guardians"),
            }
            let whole = import(&bench.path(""), &keyring, roles);
            let waits = what == "import-half";
            assert_eq!(whole.as_ref(), (!waits).then_some(OTHER.id()), "{point}");
            let again = bench.open(None).unwrap();
            let found = (again.facts().len(), again.halves().unwrap().len());
            assert_eq!(found, if waits { (1, 1) } else { (2, 0) }, "{what} {point}");
            assert_eq!(
                bench.files().len(),
                2,
                "{what} {point}: {:?}",
                bench.files()
            );
        }
    }
}

#[test]
fn a_removal_that_is_killed_anywhere_leaves_the_guardian_or_no_key_after_the_next_start() {
    let fresh = || {
        let bench = Bench::new();
        bench.child("import", None);
        bench
    };
    let points = fresh().child("remove", None);
    assert!(!points.is_empty());
    for point in &points {
        let bench = fresh();
        bench.child("remove", Some(point));
        let keyring = bench.open(None).unwrap();
        keyring.seal_what_lies_in_clear().unwrap();
        assert_eq!(keyring.facts().len(), 1, "{point}");
        assert_eq!(bench.files().len(), 1, "{point}: {:?}", bench.files());
        assert!(!bench.shows_keys_of(&OTHER), "{point}");
        // And it can come again.
        bench.child("import", None);
        keyring.seal_what_lies_in_clear().unwrap();
        assert_eq!(bench.open(None).unwrap().facts().len(), 2, "{point}");
    }
}
