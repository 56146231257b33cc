use super::*;
use fleetward_api::tpm::BundleParts;
use fleetward_model::host::Version;
use fleetward_model::vm::{DiskBus, DiskSpec, VmMetadata, VmReport};
use fleetward_model::{ByteSize, KeyId};
use fleetward_protector::ExpiredAllowed;
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, seal};
use fleetward_store::SqliteStore;
use std::sync::LazyLock;
use uuid::Uuid;

const VM: VmId = VmId(Uuid::from_u128(7));

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

static PROTECTOR: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let owner = LocalGuardian::generate(&host(), now()).expect("guardian");
    let request = SealRequest {
        vm_id: VM,
        key_id: KeyId(Uuid::from_u128(1)),
        tpm_key: &TpmKey::generate().expect("key"),
        owner: &owner,
        recipients: &[],
        now: now(),
        expired: &ExpiredAllowed::none(),
    };
    seal(&request).expect("seal").der().to_vec()
});

fn host() -> HostName {
    "a".parse().expect("name")
}

fn writer() -> TpmWriter {
    TpmWriter::of(&host(), None)
}

fn metadata(vm: VmId) -> VmMetadata {
    serde_json::from_value(serde_json::json!({
        "spec": {
            "id": vm, "name": "web", "group": "default", "profile": "linux", "cpus": 1,
            "memory": 1 << 30, "firmware": { "type": "uefi", "secure_boot": true }, "tpm": true,
            "disks": [], "created": "2026-01-01T00:00:00Z"
        },
        "generation": 1
    }))
    .expect("metadata")
}

fn bundle(content: u8) -> TpmBundle {
    bundle_of(content, None)
}

fn bundle_of(content: u8, ek: Option<&[u8]>) -> TpmBundle {
    let parts = BundleParts {
        state: vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 11, content],
        key_protector: PROTECTOR.clone(),
        ek_certificate: ek.map(<[u8]>::to_vec),
        uefi_variables: Some(vec![0xff; 4096]),
    };
    TpmBundle::new(metadata(VM), &parts)
}

async fn open(data: &Path) -> Escrow {
    let store = SqliteStore::open(data.join("store.db"))
        .await
        .expect("store");
    Escrow::open(Arc::new(store), data, Retention::default())
        .await
        .expect("escrow")
}

async fn keep(escrow: &Escrow, content: u8, why: VersionReason) -> TpmVersion {
    let kept = escrow.keep(&bundle(content), &writer(), why, "test").await;
    kept.expect("kept")
}

fn only_file(data: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(data.join("escrow").join(VM.to_string())).expect("directory");
    let mut files = files.map(|file| file.expect("file").path());
    let file = files.next().expect("a file");
    assert!(files.next().is_none(), "there is one file");
    file
}

#[tokio::test]
async fn what_was_kept_comes_back_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    let first = keep(&escrow, 1, VersionReason::Created).await;
    let again = keep(&escrow, 1, VersionReason::Stopped).await;
    assert_eq!(first, again, "unchanged, so no new version");
    assert_eq!(keep(&escrow, 2, VersionReason::Stopped).await.version, 2);
    drop(escrow);
    let escrow = open(dir.path()).await;
    assert_eq!(escrow.list(VM).len(), 2);
    assert_eq!(escrow.bundle(VM, 1).await.expect("first"), bundle(1));
    assert_eq!(escrow.bundle(VM, 2).await.expect("second"), bundle(2));
    let missing = escrow.bundle(VM, 3).await.expect_err("no third");
    assert_eq!(missing.code, ErrorCode::TpmVersionNotFound);
}

#[tokio::test]
async fn the_tpm_that_was_switched_off_outlasts_every_stop_of_its_successor() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    let keep = async |content, ek: &'static [u8], why| {
        let (bundle, writer) = (bundle_of(content, Some(ek)), writer());
        let kept = escrow.keep(&bundle, &writer, why, "test").await;
        kept.expect("kept").version
    };
    keep(1, b"former", VersionReason::Stopped).await;
    let last = keep(2, b"former", VersionReason::Disabled).await;
    keep(3, b"new", VersionReason::Enabled).await;
    for content in 4..30 {
        keep(content, b"new", VersionReason::Stopped).await;
    }
    escrow
        .prune(now() + time::Duration::days(500))
        .await
        .expect("pruned");
    let bundle = escrow.bundle(VM, last).await.expect("it is still there");
    assert_eq!(bundle, bundle_of(2, Some(b"former")));
    let versions: Vec<_> = escrow.list(VM).iter().map(|v| v.version).collect();
    assert_eq!(versions, [last, 29], "one for each TPM");
}

#[tokio::test]
async fn a_lost_database_loses_no_version() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    let kept = keep(&escrow, 1, VersionReason::Created).await;
    drop(escrow);
    std::fs::remove_file(dir.path().join("store.db")).expect("lost");
    let escrow = open(dir.path()).await;
    assert_eq!(escrow.list(VM), [kept]);
    assert_eq!(keep(&escrow, 2, VersionReason::Stopped).await.version, 2);
}

#[tokio::test]
async fn a_changed_file_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    keep(&escrow, 1, VersionReason::Created).await;
    let file = only_file(dir.path());
    let mut bytes = std::fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).expect("write");
    let refused = escrow.bundle(VM, 1).await.expect_err("changed");
    assert_eq!(refused.code, ErrorCode::EscrowCorrupt);
    assert!(refused.because.contains("was changed"), "{refused}");
    assert!(refused.what.contains("version 1"), "{refused}");
    std::fs::remove_file(&file).expect("remove");
    let refused = escrow.bundle(VM, 1).await.expect_err("missing");
    assert_eq!(refused.code, ErrorCode::EscrowCorrupt);
}

#[tokio::test]
async fn a_bundle_that_is_not_whole_is_refused_and_remembered() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    keep(&escrow, 1, VersionReason::Created).await;
    let mut half = bundle(2);
    half.state.truncate(8);
    half.sha256 = half.digest();
    let writer = writer();
    let refused = escrow.keep(&half, &writer, VersionReason::Stopped, "test");
    let refused = refused.await.expect_err("half");
    assert_eq!(refused.code, ErrorCode::EscrowCorrupt);
    assert_eq!(escrow.missed(VM).expect("remembered"), refused);
    assert_eq!(escrow.list(VM).len(), 1, "the good one stays");
    keep(&escrow, 3, VersionReason::Stopped).await;
    assert!(escrow.missed(VM).is_none());
}

#[tokio::test]
async fn what_wrote_a_state_is_noted_once_and_stays_until_it_is_written_again() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    let keep = async |content, libtpms| {
        let writer = TpmWriter {
            libtpms,
            ..writer()
        };
        let bundle = bundle(content);
        let kept = escrow.keep(&bundle, &writer, VersionReason::Stopped, "test");
        kept.await.expect("kept").libtpms
    };
    let (old, new) = (Some(Version::new(0, 9, 2)), Some(Version::new(0, 10, 1)));
    assert_eq!(keep(1, None).await, None, "of an agent that does not tell");
    assert_eq!(keep(1, old).await, old);
    assert_eq!(keep(1, new).await, old, "no byte of it is newer");
    assert_eq!(keep(2, new).await, new);
}

#[tokio::test]
async fn a_protector_of_another_vm_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    let other = VmId(Uuid::from_u128(8));
    let parts = bundle(1).check().expect("parts");
    let foreign = TpmBundle::new(metadata(other), &parts);
    let writer = writer();
    let kept = escrow.keep(&foreign, &writer, VersionReason::Stopped, "test");
    let refused = kept.await.expect_err("foreign");
    assert!(refused.because.contains("key protector"), "{refused}");
}

#[tokio::test]
async fn a_deleted_vm_leaves_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    keep(&escrow, 1, VersionReason::Created).await;
    escrow.forget(VM).await.expect("forgotten");
    escrow.forget(VM).await.expect("twice");
    assert!(escrow.list(VM).is_empty());
    assert!(!dir.path().join("escrow").join(VM.to_string()).exists());
}

#[tokio::test]
async fn a_stop_names_the_write_before_it_and_writes_do_not_pile_up() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    keep(&escrow, 1, VersionReason::Created).await;
    for content in 2..6 {
        keep(&escrow, content, VersionReason::Written).await;
    }
    assert_eq!(escrow.list(VM).len(), 2);
    keep(&escrow, 5, VersionReason::Stopped).await;
    let newest = escrow.newest(VM).expect("newest");
    assert_eq!((newest.version, newest.why), (5, VersionReason::Stopped));
}

async fn confirmed(
    escrow: &Escrow,
    host: &str,
    why: VersionReason,
) -> (u64, VersionReason, String) {
    let writer = TpmWriter::of(&host.parse().expect("name"), None);
    let kept = escrow.keep(&bundle(1), &writer, why, "somebody").await;
    let kept = kept.expect("kept");
    assert_eq!(
        escrow.newest(VM).as_ref(),
        Some(&kept),
        "what it says is kept"
    );
    (kept.version, kept.why, kept.host.to_string())
}

#[tokio::test]
async fn what_became_of_a_vm_is_noted_although_its_tpm_did_not_change() {
    use VersionReason as Why;
    let steps = [
        // the host, the reason given, the reason that is kept
        ("a", Why::Created, Why::Created),
        ("a", Why::Stopped, Why::Created),
        ("b", Why::Migrated, Why::Migrated),
        ("b", Why::Disabled, Why::Disabled),
        ("b", Why::Restored, Why::Restored),
        ("b", Why::Granted, Why::Restored),
        ("a", Why::Recovered, Why::Recovered),
        ("a", Why::Deleted, Why::Deleted),
        // it was not deleted after all
        ("a", Why::Stopped, Why::Stopped),
        ("a", Why::Deleted, Why::Deleted),
    ];
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    for (host, given, kept) in steps {
        let wanted = (1, kept, host.to_owned());
        assert_eq!(confirmed(&escrow, host, given).await, wanted, "{given}");
        only_file(dir.path());
    }
    drop(escrow);
    // Neither index nor file goes back to an earlier word.
    let escrow = open(dir.path()).await;
    assert_eq!(escrow.newest(VM).expect("newest").why, Why::Deleted);
    drop(escrow);
    std::fs::remove_file(dir.path().join("store.db")).expect("lost");
    let escrow = open(dir.path()).await;
    assert_eq!(escrow.newest(VM).expect("newest").why, Why::Deleted);
    assert_eq!(escrow.bundle(VM, 1).await.expect("whole"), bundle(1));
}

#[tokio::test]
async fn a_host_s_vms_are_those_that_were_there_last() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    confirmed(&escrow, "a", VersionReason::Stopped).await;
    confirmed(&escrow, "b", VersionReason::Migrated).await;
    let last_from = |host: &str| {
        escrow
            .last_from(&host.parse().expect("name"), |_| true)
            .len()
    };
    assert_eq!((last_from("a"), last_from("b")), (0, 1));
}

/// The VM of [`bundle`] as its host reports it.
fn observed(content: u8, metadata: VmMetadata) -> VmObserved {
    let bundle = bundle(content);
    let state = bundle.check().expect("whole").state;
    let mut metadata = metadata;
    metadata.key_protector = Some(bundle.key_protector);
    let report: VmReport = serde_json::from_value(serde_json::json!({
        "id": VM, "name": "web", "host": "a", "state": "running", "reason": "booted",
        "metadata": metadata, "cpus": 1, "memory": 1 << 30, "firmware": null, "machine": "q35",
        "accelerator": "kvm", "disks": [], "observed": "2026-01-01T00:00:00Z",
        "tpm": {
            "enabled": true, "version": "2.0", "model": "tpm-crb", "state_present": true,
            "state_sha256": sha256(&state), "key_id": null, "owner": null, "guardians": [],
            "ek_certificate": null
        }
    }))
    .expect("a VM");
    report.digested()
}

/// The VM of [`bundle`] with one disk in that file.
fn with_disk(volume: &str, size: u64) -> VmMetadata {
    let mut metadata = metadata(VM);
    let (bus, pool) = (DiskBus::Virtio, Default::default());
    let disk = DiskSpec::new("vda", bus, pool, volume, ByteSize(size));
    metadata.spec.disks = vec![disk];
    metadata
}

#[tokio::test]
async fn a_copy_follows_the_vm_s_disks_too() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    let lacks = |content, metadata| escrow.lacks(&observed(content, metadata));
    let before = with_disk("web-vda.qcow2", 1 << 30);
    assert_eq!(lacks(1, before.clone()), Some(Lacking::Everything));
    let keep = async |metadata| {
        let bundle = TpmBundle::new(metadata, &bundle(1).check().expect("parts"));
        let writer = writer();
        let kept = escrow.keep(&bundle, &writer, VersionReason::Redefined, "test");
        kept.await.expect("kept").version
    };
    assert_eq!(keep(before.clone()).await, 1);
    assert_eq!(lacks(1, before.clone()), None);
    assert_eq!(lacks(2, before), Some(Lacking::State));
    for (number, changed) in [
        (2, with_disk("web-vda.1.qcow2", 1 << 30)),
        (3, with_disk("web-vda.1.qcow2", 2 << 30)),
        (4, metadata(VM)),
    ] {
        assert_eq!(lacks(1, changed.clone()), Some(Lacking::Specification));
        assert_eq!(keep(changed.clone()).await, number);
        assert_eq!(lacks(1, changed.clone()), None);
        let bundle = escrow.bundle(VM, number).await.expect("the bundle");
        assert_eq!(bundle.metadata.spec.disks, changed.spec.disks);
    }
}

#[tokio::test]
async fn a_newest_copy_that_is_damaged_or_gone_is_taken_again_under_a_new_number() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    let now = observed(2, metadata(VM));
    keep(&escrow, 1, VersionReason::Created).await;
    keep(&escrow, 2, VersionReason::Stopped).await;
    assert!(escrow.verify(None, 9).await.0.is_empty(), "all is well");
    let directory = dir.path().join("escrow").join(VM.to_string());
    let file_of = |number: u64| {
        let files = std::fs::read_dir(&directory).expect("directory");
        let mut files = files.map(|file| file.expect("file").path());
        let begin = format!("{number:020}-");
        let found = files.find(|path| path.to_string_lossy().contains(&begin));
        found.expect("the version's file")
    };
    let newest = file_of(2);
    let mut bytes = std::fs::read(&newest).expect("read");
    bytes[9] ^= 1;
    std::fs::write(&newest, bytes).expect("write");
    assert_eq!(escrow.lacks(&now), None, "nobody has looked");
    assert_eq!(escrow.verify(None, 9).await.0, [VM]);
    assert_eq!(escrow.newest(VM).expect("the one before").version, 1);
    assert_eq!(escrow.lacks(&now), Some(Lacking::State));
    let told = escrow.missed(VM).expect("vm show says so");
    assert_eq!(told.code, ErrorCode::EscrowCorrupt);
    assert!(told.what.contains("version 2"), "{told}");
    assert!(
        file_of(2).to_string_lossy().ends_with(".damaged"),
        "what is left of it stays"
    );
    // its number is spent, over a restart too
    drop(escrow);
    let escrow = open(dir.path()).await;
    assert_eq!(keep(&escrow, 2, VersionReason::Written).await.version, 3);
    assert!(escrow.missed(VM).is_none());
    std::fs::remove_file(file_of(3)).expect("gone");
    std::fs::remove_file(file_of(1)).expect("gone");
    assert_eq!(escrow.verify(None, 9).await.0, [VM]);
    assert_eq!(escrow.lacks(&now), Some(Lacking::Everything));
    assert_eq!(keep(&escrow, 2, VersionReason::Written).await.version, 4);
    escrow.forget(VM).await.expect("forgotten");
    assert_eq!(keep(&escrow, 2, VersionReason::Found).await.version, 1);
}

#[tokio::test]
async fn changes_of_one_vm_follow_each_other_and_hold_up_no_other() {
    let dir = tempfile::tempdir().expect("directory");
    let escrow = open(dir.path()).await;
    keep(&escrow, 1, VersionReason::Created).await;
    let other = VmId(Uuid::from_u128(8));
    // a change of the other VM that does not end
    let slow = escrow.turns.of(other).await;
    let read = tokio::time::timeout(std::time::Duration::from_secs(30), escrow.bundle(VM, 1));
    read.await.expect("it does not wait").expect("the copy");
    drop(slow);
    let bundles: Vec<_> = (2..10).map(bundle).collect();
    let writer = writer();
    let kept = bundles
        .iter()
        .map(|bundle| escrow.keep(bundle, &writer, VersionReason::Stopped, "test"));
    let kept = futures_util::future::try_join_all(kept)
        .await
        .expect("kept");
    let numbers: BTreeSet<_> = kept.iter().map(|version| version.version).collect();
    assert_eq!(numbers, (2..10).collect(), "each number once");
}
