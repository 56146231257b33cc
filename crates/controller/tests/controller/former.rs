//! A controller's data directory as an earlier version left it, with jobs under way: today's controller shows what that one
//! showed, and brings its jobs to their end.

use crate::fleet::Controller;
use crate::fleet::agent::{FakeAgent, FakeVm};
use fleetward_api::controller::JobState;
use fleetward_api::tpm::TpmVersion;
use fleetward_model::vm::{VmMetadata, VmState};
use fleetward_model::{ErrorCode, Failure, JobId, VmId};
use fleetward_store::{SqliteStore, Store, Txn};
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/7917ca9")
}

fn json(path: &str) -> Value {
    let path = recorded().join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    serde_json::from_str(&text).expect("JSON")
}

fn shown(what: &str) -> Vec<Value> {
    let found = json(&format!("shown/{what}.json"));
    found.as_array().expect("a list").clone()
}

/// Keys and values of the store.
fn rows() -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(recorded().join("controller/store.jsonl")).expect("rows");
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        let key = line["key"].as_str().expect("a key").to_owned();
        (key, line["value"].take())
    });
    // The engine that had the jobs held this by a lease, which ended with it.
    lines.filter(|(key, _)| key != "job-engine/owner").collect()
}

/// Where the header of a SQLite file has the number of its layout, big-endian.
const LAYOUT: std::ops::Range<usize> = 60..64;

/// Makes the store of a controller that does not run one of that layout.
fn set_layout(data: &Path, layout: u32) {
    wait_closed(data);
    let path = data.join("store.db");
    let mut bytes = std::fs::read(&path).expect("the store");
    bytes[LAYOUT].copy_from_slice(&layout.to_be_bytes());
    std::fs::write(&path, bytes).expect("written");
}

/// Tasks that were under way close the store a moment after the controller has ended.
fn wait_closed(data: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while data.join("store.db-wal").exists() {
        assert!(std::time::Instant::now() < deadline, "it is in the file");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The bytes of the store, its side files included.
fn store_bytes(data: &Path) -> Vec<u8> {
    let files = ["store.db", "store.db-wal", "store.db-shm"].map(|name| data.join(name));
    let found = files.iter().filter(|path| path.exists());
    let read = found.flat_map(|path| std::fs::read(path).expect("a file"));
    read.collect()
}

/// Every text of a key protector or of an EK certificate in the recorded rows.
fn custody() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    let is_custody = name == "key_protector" || name == "ek_certificate";
                    match value {
                        Value::String(text) if is_custody && text.len() > 100 => {
                            found.push(text.clone());
                        }
                        _ => collect(value, found),
                    }
                }
            }
            Value::Array(elements) => elements.iter().for_each(|e| collect(e, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (_, value) in rows() {
        collect(&value, &mut found);
    }
    found.sort();
    found.dedup();
    found
}

/// How many pieces of those texts are in `bytes`. A text is longer than a page of the file, so pieces are looked for, and
/// not those of the guardians' certificates, which are in the rows of the hosts, too.
fn pieces_in(bytes: &[u8], texts: &[String]) -> usize {
    const PIECE: usize = 48;
    let of_hosts = |key: &str| key.starts_with("host/") || key.starts_with("seen-facts/");
    let hosts = rows().into_iter().filter(|(key, _)| of_hosts(key));
    let hosts: String = hosts.map(|(_, value)| value.to_string()).collect();
    let public: HashSet<&[u8]> = hosts.as_bytes().windows(PIECE).collect();
    let known: HashSet<&[u8]> = texts
        .iter()
        .flat_map(|text| text.as_bytes().chunks_exact(PIECE))
        .filter(|piece| !public.contains(piece))
        .collect();
    bytes.windows(PIECE).filter(|w| known.contains(w)).count()
}

/// Puts the rows that are wanted into the store of a controller that does not run.
fn fill_store(data: &Path, wanted: impl Fn(&str) -> bool) {
    let path = data.join("store.db");
    let rows: Vec<_> = rows().into_iter().filter(|(key, _)| wanted(key)).collect();
    let fill = async move {
        let store = SqliteStore::open(path).await.expect("the store");
        for (key, value) in rows {
            let put = Txn::new().put(key, value.to_string().into_bytes());
            let outcome = store.commit(put).await.expect("a write");
            assert!(outcome.committed().is_some());
        }
    };
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| handle.block_on(fill));
    set_layout(data, 1);
}

/// The files beside the store.
fn copy_files(data: &Path) {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).expect("directory");
        for entry in std::fs::read_dir(from).expect("directory").flatten() {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).expect("copy");
            }
        }
    }
    for name in ["hosts", "templates", "images", "escrow"] {
        copy(&recorded().join("controller").join(name), &data.join(name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_knew_is_shown_as_that_version_showed_it() {
    let controller = Controller::start().await;
    let controller = controller
        .restart_after(|data| {
            for name in ["store.db", "store.db-wal", "store.db-shm"] {
                let _ = std::fs::remove_file(data.join(name));
            }
            fill_store(data, |_| true);
            copy_files(data);
        })
        .await;

    let vms = shown("vms");
    assert_eq!(vms.len(), 10);
    for old in &vms {
        let name = old["name"].as_str().expect("a name");
        let mut new: Value = controller.get(&format!("/v1/vms/{name}")).await;
        // That version told key protectors apart by their text.
        let tpm = new["tpm"].as_object_mut().expect("a TPM");
        let digest = tpm.remove("protector_sha256");
        assert_eq!(digest.is_some(), old["tpm"]["enabled"] == true, "{name}");
        for member in [
            "id",
            "host",
            "group",
            "managed",
            "cpus",
            "memory_bytes",
            "firmware",
            "disks",
            "tpm",
            "labels",
            "profile",
            "created",
        ] {
            assert_eq!(new[member], old[member], "{member} of {name}");
        }
        // A host that has not answered yet does not say what state its VMs are in.
        let state = match new["state"].as_str() {
            Some("unknown") => &new["last_seen"]["state"],
            _ => &new["state"],
        };
        let moving = old["state"] == "migrating";
        assert!(moving || *state == old["state"], "{name}: {new}");
    }

    for old in shown("jobs") {
        let id = old["id"].as_str().expect("an id");
        let new: Value = controller.get(&format!("/v1/jobs/{id}")).await;
        assert_eq!(
            (&new["kind"], &new["target"]),
            (&old["kind"], &old["target"])
        );
        assert_eq!(new["state"], old["state"], "{new}");
    }
    for vm in ["base1", "off1"] {
        let kept: Vec<TpmVersion> = controller.get(&format!("/v1/vms/{vm}/tpm/history")).await;
        let kept = serde_json::to_value(kept).expect("JSON");
        assert_eq!(kept, json(&format!("shown/history-{vm}.json")), "{vm}");
    }
    let templates: Vec<Value> = controller.get("/v1/templates").await;
    assert_eq!(templates[0]["name"], "gold");
    let hosts: Vec<Value> = controller.get("/v1/hosts").await;
    assert_eq!(hosts.len(), 3);
    // By two keys the store's rows say so: the copy on the lost host counts for nothing.
    let lost: Value = controller.get("/v1/vms/lost1").await;
    assert_eq!(lost["host"], "a");
    let records: Vec<Value> = controller.get("/v1/audit?vm=revoked1").await;
    let revoked = |record: &Value| {
        let reason = record["reason"].as_str();
        reason.is_some_and(|reason| reason.contains("guardian-revoke"))
    };
    assert!(records.iter().any(revoked), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_earlier_store_no_key_protector_remains() {
    let texts = custody();
    assert!(texts.len() > 10, "{} texts", texts.len());
    let controller = Controller::start().await;
    let mut controller = controller
        .restart_after(|data| {
            // Two versions of each key: of the former one, too, nothing may remain.
            fill_store(data, |_| true);
            fill_store(data, |_| true);
            assert!(pieces_in(&store_bytes(data), &texts) > 1000);
        })
        .await;
    let vm: Value = controller.get("/v1/vms/desk1").await;
    assert_eq!(vm["tpm"]["enabled"], true, "{vm}");
    assert_eq!(pieces_in(&store_bytes(&controller.data()), &texts), 0);
    controller.end().await;
    let bytes = store_bytes(&controller.data());
    assert_eq!(pieces_in(&bytes, &texts), 0);
    assert_eq!(bytes[LAYOUT], 2_u32.to_be_bytes());
}

fn options(data: &Path) -> fleetward_controller::Options {
    fleetward_controller::Options {
        data: data.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        socket: None,
        trust: None,
        retention: Default::default(),
        alert_every: crate::fleet::ALERT_EVERY,
        console: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_ends_when_its_store_turns_out_to_be_damaged() {
    let mut controller = Controller::start().await;
    controller.end().await;
    let data = controller.data().to_owned();
    wait_closed(&data);
    let path = data.join("store.db");
    let store = SqliteStore::open(&path).await.expect("the store");
    for i in 0..200 {
        let put = Txn::new().put(format!("filler/{i}"), vec![7; 3500]);
        let _ = store.commit(put).await.expect("a write");
    }
    drop(store);
    wait_closed(&data);
    let mut bytes = std::fs::read(&path).expect("the store");
    let leaves = bytes.chunks_mut(4096).filter(|page| page[0] == 0x0d);
    let mut filler = leaves.filter(|page| page.ends_with(&[7; 1000]));
    filler.nth(50).expect("many pages").fill(0x5a);
    std::fs::write(&path, &bytes).expect("damaged");

    let run = fleetward_controller::run_until(options(&data), Default::default(), |_| {});
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), run).await;
    let error = ended.expect("it ends").expect_err("a damaged store");
    assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
    assert!(std::fs::read(&path).expect("the store") == bytes, "left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_controller_is_refused_and_left_as_it_is() {
    let mut controller = Controller::start().await;
    controller.end().await;
    let data = controller.data().to_owned();
    set_layout(&data, 99);
    let before = std::fs::read(data.join("store.db")).expect("the store");
    let run = fleetward_controller::run_until(options(&data), Default::default(), |_| {});
    let error = run.await.expect_err("a newer store");
    let refusal = error.downcast_ref::<Failure>().expect("a coded error");
    assert_eq!(refusal.code, ErrorCode::StoreNewer);
    assert!(refusal.because.contains("layout 99"), "{refusal}");
    assert!(refusal.fix.contains("newer controller"), "{refusal}");
    let after = std::fs::read(data.join("store.db")).expect("the store");
    assert!(before == after, "it was changed");
}

/// The VMs that a host had, on the fake of that name.
fn give_vms(agent: &FakeAgent) {
    let prefix = format!("seen-vm/{}/", agent.host);
    for (_, seen) in rows()
        .into_iter()
        .filter(|(key, _)| key.starts_with(&prefix))
    {
        let metadata: VmMetadata =
            serde_json::from_value(seen["metadata"].clone()).expect("metadata");
        let state: VmState = serde_json::from_value(seen["state"].clone()).expect("a state");
        let guardians = serde_json::from_value(seen["tpm"]["guardians"].clone()).expect("ids");
        agent.look(|inner| {
            let id = metadata.spec.id;
            let disks = metadata.spec.disks.iter();
            inner.volumes.extend(disks.map(|disk| disk.volume.clone()));
            if metadata.spec.tpm {
                inner.tpms.insert(id, guardians);
            }
            inner.vms.insert(id, FakeVm::new(metadata, state));
        });
    }
}

/// What both hosts know of the VMs that were on their way: `to` expects them, and `from` knows of those that have left it.
fn know_of_moves(from: &FakeAgent, to: &FakeAgent) {
    let jobs = shown("jobs");
    let moves = jobs.iter().filter(|job| {
        let kind = job["kind"].as_str().expect("a kind");
        job["state"] == "running" && kind.starts_with("vm-migrate")
    });
    for job in moves {
        let id: JobId = serde_json::from_value(job["id"].clone()).expect("an id");
        let on = |agent: &FakeAgent| {
            agent.look(|inner| {
                let mut there = inner.vms.iter();
                let found = there.find(|(_, vm)| job["target"] == vm.metadata.spec.name.as_str());
                found.map(|(vm, _)| *vm)
            })
        };
        let (here, there) = (on(from), on(to));
        let vm = here.or(there).expect("one of them has it");
        to.look(|inner| inner.arriving.insert(vm, id));
        if there.is_some() {
            from.look(|inner| inner.left.insert(vm, id));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_an_earlier_version_began_are_brought_to_their_end() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    a.knows(&b);
    give_vms(&a);
    give_vms(&b);
    know_of_moves(&a, &b);
    let controller = controller
        .restart_after(|data| {
            // The fleet is another one: its hosts and what they said of themselves stay.
            let other = ["host/", "token/", "seen-facts/", "audit/"];
            fill_store(data, |key| {
                key == "host/c" || !other.iter().any(|prefix| key.starts_with(prefix))
            });
        })
        .await;
    controller.wait_online(&a.host, true).await;
    controller.wait_online(&b.host, true).await;

    let under_way = shown("jobs");
    let under_way = under_way.iter().filter(|job| job["state"] == "running");
    let mut ended = 0;
    for old in under_way {
        let id: JobId = serde_json::from_value(old["id"].clone()).expect("an id");
        let job = controller.ended(id).await;
        assert_eq!(job.state, JobState::Done, "{job:#?}");
        ended += 1;
    }
    assert_eq!(ended, 6);
    for (name, host, state) in [
        ("desk1", "b", "running"),
        ("moving1", "b", "running"),
        ("sending1", "b", "stopped"),
        ("rolling1", "a", "stopped"),
        ("copying1", "a", "stopped"),
        ("making1", "a", "stopped"),
    ] {
        let vm: Value = controller.get(&format!("/v1/vms/{name}")).await;
        assert_eq!(
            (&vm["host"], &vm["state"]),
            (&host.into(), &state.into()),
            "{vm}"
        );
        assert_eq!(vm["tpm"]["enabled"], true, "{name}");
        let id: VmId = serde_json::from_value(vm["id"].clone()).expect("an id");
        let (from, to) = if host == "a" { (&b, &a) } else { (&a, &b) };
        assert!(to.look(|inner| inner.vms.contains_key(&id)), "{name}");
        assert!(!from.look(|inner| inner.vms.contains_key(&id)), "{name}");
    }
}
