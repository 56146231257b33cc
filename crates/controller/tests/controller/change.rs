//! `PATCH /v1/vms/{vm}`: what is changed at once, what waits for the next start, what is refused, what is taken back.

use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use fleetward_api::controller::{JobState, VmView};
use fleetward_model::vm::VmState;
use fleetward_model::{ByteSize, ErrorCode};
use http::Method;
use serde_json::{Value, json};

const WEB: &str = "/v1/vms/web";

async fn with_a_vm(start: bool) -> (Controller, FakeAgent) {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let body = json!({"name": "web", "start": start, "cpus": 2, "labels": {"old": "1"}});
    controller.done(Method::POST, "/v1/vms", &body).await;
    (controller, a)
}

async fn change(controller: &Controller, body: Value) -> Value {
    let job = controller.done(Method::PATCH, WEB, &body).await;
    job.result.expect("a result")
}

async fn refused(controller: &Controller, body: Value) -> fleetward_model::Failure {
    controller.refusal(Method::PATCH, WEB, &body).await
}

async fn planned(controller: &Controller, body: Value) -> Value {
    let request = controller.local.request(Method::PATCH, WEB).json(&body);
    let answer = request.send().await.expect("answered");
    answer.json().await.expect("a plan")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_takes_words_at_once_and_its_size_at_the_next_start() {
    let (controller, _a) = with_a_vm(true).await;
    let text = "経理サーバー 🔒\nsecond line";
    let result = change(
        &controller,
        json!({
            "cpus": 4, "memory_bytes": ByteSize::gib(2), "description": text, "autostart": true,
            "labels": {"old": null, "new": "値"},
        }),
    )
    .await;
    assert_eq!(result["next_start"], json!(["cpus", "memory"]), "{result}");
    assert_eq!(
        result["now"],
        json!(["description", "labels", "autostart"]),
        "{result}"
    );
    let seen: Value = controller.get(WEB).await;
    assert_eq!(seen["description"], text);
    assert_eq!(seen["autostart"], true);
    assert_eq!(seen["labels"], json!({"new": "値"}));
    assert_eq!(
        (&seen["cpus"], &seen["memory_bytes"]),
        (&json!(2), &json!(ByteSize::gib(1)))
    );
    let pending = json!([
        {"change": "cpus", "now": 2, "wanted": 4},
        {"change": "memory", "now": ByteSize::gib(1), "wanted": ByteSize::gib(2)},
    ]);
    assert_eq!(seen["pending"], pending);
    assert_eq!(
        seen["findings"],
        json!([]),
        "nobody changed anything past us"
    );

    let stop = "/v1/vms/web/stop";
    controller
        .done(Method::POST, stop, &json!({"force": true}))
        .await;
    let start = "/v1/vms/web/start";
    controller.done(Method::POST, start, &json!({})).await;
    let seen: VmView = controller.get(WEB).await;
    assert_eq!((seen.cpus, seen.memory_bytes), (4, ByteSize::gib(2)));
    assert!(seen.pending.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_as_wanted_needs_no_job_and_a_dry_run_makes_none() {
    let (controller, a) = with_a_vm(false).await;
    let same = planned(&controller, json!({"cpus": 2, "labels": {"old": "1"}})).await;
    assert_eq!(same, json!({"job": null, "steps": []}));
    let dry = planned(&controller, json!({"cpus": 3, "dry_run": true})).await;
    assert_eq!(dry["job"], Value::Null);
    let step = json!({"change": "cpus", "from": 2, "to": 3, "effect": "now"});
    assert_eq!(dry["steps"], json!([step]));
    a.look(|inner| assert!(!inner.asked.contains(&"change-vm")));
    let seen: VmView = controller.get(WEB).await;
    assert_eq!(seen.cpus, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anything_is_done() {
    let (controller, a) = with_a_vm(true).await;
    let body = json!({"name": "taken"});
    controller.done(Method::POST, "/v1/vms", &body).await;
    for (body, code) in [
        (json!({}), ErrorCode::InvalidArgument),
        (json!({"cpu": 3}), ErrorCode::InvalidRequest),
        (json!({"cpus": 0}), ErrorCode::InvalidRequest),
        (json!({"memory_bytes": 5}), ErrorCode::InvalidRequest),
        (json!({"name": "a b"}), ErrorCode::InvalidRequest),
        (json!({"labels": {"k": "a\nb"}}), ErrorCode::InvalidRequest),
        (
            json!({"memory_bytes": ByteSize::gib(100)}),
            ErrorCode::NoMemory,
        ),
        (json!({"name": "other"}), ErrorCode::VmRunning),
        (json!({"tpm": false}), ErrorCode::VmRunning),
    ] {
        let failure = refused(&controller, body.clone()).await;
        assert_eq!(failure.code, code, "{body}: {failure}");
    }
    controller
        .done(Method::POST, "/v1/vms/web/stop", &json!({"force": true}))
        .await;
    let failure = refused(&controller, json!({"name": "taken"})).await;
    assert_eq!(failure.code, ErrorCode::NameTaken);
    a.look(|inner| assert!(!inner.asked.contains(&"change-vm")));
    a.cut();
    controller.wait_online(&a.host, false).await;
    let failure = refused(&controller, json!({"cpus": 3})).await;
    assert_eq!(failure.code, ErrorCode::HostUnreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_vm_has_one_name_and_its_old_one_is_free() {
    let (controller, _a) = with_a_vm(false).await;
    let result = change(&controller, json!({"name": "net"})).await;
    assert_eq!(result["vm"], "net");
    let seen: VmView = controller.get("/v1/vms/net").await;
    assert_eq!((seen.name.as_str(), seen.domain_name), ("net", None));
    let gone = controller.refusal(Method::GET, WEB, &json!({})).await;
    assert_eq!(gone.code, ErrorCode::VmNotFound);
    let body = json!({"name": "web"});
    controller.done(Method::POST, "/v1/vms", &body).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_was_renamed_by_hand_is_found_named_and_brought_in_line() {
    let (controller, a) = with_a_vm(false).await;
    a.look(|inner| {
        let id = *inner.vms.keys().next().expect("a VM");
        inner.vms.get_mut(&id).expect("there").domain = Some("evil".into());
        inner.tell(id);
    });
    controller
        .wait("the rename to be told", async || {
            let seen: VmView = controller.get(WEB).await;
            seen.domain_name.as_deref() == Some("evil")
        })
        .await;
    let seen: VmView = controller.get("/v1/vms/evil").await;
    assert_eq!(seen.name.as_str(), "web", "not silently renamed");
    assert_eq!(seen.findings[0].code, ErrorCode::NameDiffers);
    let roll = "/v1/vms/evil/tpm/roll";
    controller.done(Method::POST, roll, &json!({})).await;
    let body = json!({"name": "evil"});
    let taken = controller.refusal(Method::POST, "/v1/vms", &body).await;
    assert_eq!(taken.code, ErrorCode::NameTaken, "two names of one VM");
    for name in ["web", "evil"] {
        let body = json!({"name": name});
        controller.done(Method::PATCH, "/v1/vms/web", &body).await;
        let seen: VmView = controller.get(&format!("/v1/vms/{name}")).await;
        assert_eq!((seen.name.as_str(), seen.domain_name), (name, None));
        assert!(seen.findings.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_half_way_is_taken_back() {
    let (controller, a) = with_a_vm(false).await;
    // The host has done it, and says that it has not.
    a.look(|inner| inner.fail_after.insert("change-vm"));
    let body = json!({
        "cpus": 4, "memory_bytes": ByteSize::gib(2), "name": "net", "description": "x",
        "labels": {"old": null, "new": "1"}, "tpm": false,
    });
    let before: Value = controller.get(WEB).await;
    let job = controller.job(Method::PATCH, WEB, &body).await;
    assert_eq!(job.state, JobState::Undone, "{job:#?}");
    let after: Value = controller.get(WEB).await;
    for what in [
        "cpus",
        "memory_bytes",
        "name",
        "description",
        "labels",
        "pending",
    ] {
        assert_eq!(after[what], before[what], "{what}");
    }
    assert_eq!(after["tpm"]["enabled"], true);
    assert_eq!(after["tpm"]["state_present"], true, "the same TPM");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_from_before_changes_is_named() {
    let (controller, a) = with_a_vm(false).await;
    a.look(|inner| inner.unknown.insert("change-vm"));
    let job = controller
        .job(Method::PATCH, WEB, &json!({"cpus": 3}))
        .await;
    assert_eq!(job.state, JobState::Undone, "{job:#?}");
    let failure = job.failure.expect("failed");
    assert_eq!(failure.code, ErrorCode::AgentTooOld, "{failure}");
    assert!(failure.fix.contains("host a"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_is_switched_with_everything_else_in_one_job() {
    let (controller, a) = with_a_vm(false).await;
    change(&controller, json!({"tpm": false, "cpus": 3})).await;
    let seen: VmView = controller.get(WEB).await;
    assert_eq!((seen.tpm.enabled, seen.cpus), (false, 3));
    a.look(|inner| assert!(inner.tpms.is_empty(), "it is in the history"));
    change(&controller, json!({"tpm": true, "cpus": 1})).await;
    let seen: VmView = controller.get(WEB).await;
    assert_eq!((seen.tpm.enabled, seen.cpus), (true, 1));
    assert_eq!(seen.state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_and_drives_change_by_one_job_and_leave_nothing_over() {
    let (controller, a) = with_a_vm(false).await;
    let result = change(
        &controller,
        json!({"disks": [
            {"action": "add", "size_bytes": ByteSize::gib(2)},
            {"action": "add", "size_bytes": ByteSize::gib(3), "pool": "fast", "bus": "scsi"},
            {"action": "resize", "disk": "vda", "size_bytes": ByteSize::gib(20)},
        ]}),
    )
    .await;
    assert_eq!(result["now"], json!(["disks"]), "{result}");
    let shown: Value = controller.get(WEB).await;
    let of = |key: &str| -> Vec<Value> {
        let disks = shown["disks"].as_array().expect("disks");
        disks.iter().map(|disk| disk[key].clone()).collect()
    };
    assert_eq!(of("target"), ["vda", "vdb", "sda"]);
    assert_eq!(of("pool"), ["default", "default", "fast"]);
    assert_eq!(of("size")[0], json!(ByteSize::gib(20)));
    assert_eq!(a.look(|inner| inner.volumes.len()), 3);

    let kept = of("path")[1].clone();
    let result = change(
        &controller,
        json!({"disks": [
            {"action": "move", "disk": "vda", "pool": "fast"},
            {"action": "remove", "disk": "vdb", "keep": true},
            {"action": "remove", "disk": "sda"},
        ]}),
    )
    .await;
    assert_eq!(result["kept"], json!([kept]), "{result}");
    let shown: Value = controller.get(WEB).await;
    assert_eq!(shown["disks"].as_array().map(Vec::len), Some(1));
    assert_eq!(shown["disks"][0]["pool"], "fast");
    assert_eq!(
        a.look(|inner| inner.volumes.len()),
        2,
        "the moved one and the kept one"
    );

    for (body, code) in [
        (
            json!({"disks": [{"action": "remove", "disk": "vda"}]}),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({"disks": [{"action": "remove", "disk": "vdx"}]}),
            ErrorCode::DeviceMissing,
        ),
        (
            json!({"disks": [{"action": "move", "disk": "vda", "pool": "none"}]}),
            ErrorCode::PoolMissing,
        ),
        (
            json!({"disks": [{"action": "add", "size_bytes": 5}]}),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({"disks": [{"action": "add"}]}),
            ErrorCode::InvalidRequest,
        ),
        (
            json!({"drives": [{"action": "eject"}]}),
            ErrorCode::DeviceMissing,
        ),
        (
            json!({"drives": [{"action": "insert", "image": "none"}]}),
            ErrorCode::ImageNotFound,
        ),
    ] {
        let failure = refused(&controller, body.clone()).await;
        assert_eq!(failure.code, code, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_from_a_template_has_the_disks_by_the_same_names() {
    let (controller, _a) = with_a_vm(false).await;
    for size in [ByteSize::gib(1), ByteSize::gib(2)] {
        let body = json!({"disks": [{"action": "add", "size_bytes": size}]});
        change(&controller, body).await;
    }
    // The names of the others stay, and leave a gap.
    change(
        &controller,
        json!({"disks": [{"action": "remove", "disk": "vdb"}]}),
    )
    .await;
    let body = json!({"name": "office", "from": "web"});
    controller.done(Method::POST, "/v1/templates", &body).await;
    let body = json!({"name": "made", "template": "office"});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let names = async |vm: &str| {
        let shown: Value = controller.get(&format!("/v1/vms/{vm}")).await;
        let disks = shown["disks"].as_array().expect("disks").iter();
        let of = |disk: &Value| ["id", "target", "serial", "size"].map(|key| disk[key].clone());
        disks.map(of).collect::<Vec<_>>()
    };
    let (web, made) = (names("web").await, names("made").await);
    assert_eq!(made, web);
    assert_eq!(web[1][1], "vdc");
    assert!(web[1][2].is_string(), "{web:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_disks_that_fails_leaves_the_disks_as_they_were() {
    let (controller, a) = with_a_vm(false).await;
    let before: Value = controller.get(WEB).await;
    a.fail_once("change-vm", ErrorCode::DeviceHeld);
    let body = json!({"disks": [{"action": "add", "size_bytes": ByteSize::gib(2)}]});
    let job = controller.job(Method::PATCH, WEB, &body).await;
    assert_eq!(job.state, JobState::Undone);
    let after: Value = controller.get(WEB).await;
    assert_eq!(after["disks"], before["disks"]);
    assert_eq!(a.look(|inner| inner.volumes.len()), 1);
}

/// An ISO 9660 image with nothing on it.
fn iso(mark: u8) -> Vec<u8> {
    let mut bytes = vec![0; 36 * 2048];
    bytes[16 * 2048..16 * 2048 + 6].copy_from_slice(b"\x01CD001");
    bytes[17 * 2048..17 * 2048 + 6].copy_from_slice(b"\xffCD001");
    bytes[35 * 2048] = mark;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_on_a_second_drive_make_a_windows_vm_one_of_virtio_devices() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    for (name, mark) in [("installer", 1), ("virtio-win", 2)] {
        let path = format!("/v1/images/{name}");
        let request = controller.local.request(Method::PUT, &path);
        let put = request.upload(std::io::Cursor::new(iso(mark)), None);
        put.send().await.expect("imported");
    }
    let body = |name: &str, profile: &str| {
        json!({"name": name, "profile": profile, "iso": "installer", "drivers": "virtio-win",
               "more_disks": [{"size_bytes": ByteSize::gib(1)}]})
    };
    for (name, profile) in [("desk", "windows-11"), ("server", "windows-server")] {
        controller
            .done(Method::POST, "/v1/vms", &body(name, profile))
            .await;
        let seen: Value = controller.get(&format!("/v1/vms/{name}")).await;
        let buses: Vec<&Value> = seen["disks"]
            .as_array()
            .expect("disks")
            .iter()
            .map(|d| &d["bus"])
            .collect();
        assert_eq!(buses, ["virtio", "virtio"]);
        assert_eq!(seen["nics"][0]["model"], "virtio");
        let media: Vec<&Value> = seen["drives"]
            .as_array()
            .expect("drives")
            .iter()
            .map(|d| &d["image"])
            .collect();
        assert_eq!(media, ["installer", "virtio-win"]);
        assert_eq!(
            (&seen["boot"], &seen["clock"]),
            (&json!("disk"), &json!("local"))
        );
        assert_eq!(seen["profile"], profile);
    }
    // What comes later is of the kind that is there.
    let later = json!({"disks": [{"action": "add", "size_bytes": ByteSize::gib(1)}],
                       "nics": [{"action": "add", "network": "nat"}]});
    controller.done(Method::PATCH, "/v1/vms/desk", &later).await;
    let seen: Value = controller.get("/v1/vms/desk").await;
    assert_eq!(seen["disks"][2]["bus"], "virtio");
    assert_eq!(seen["nics"][1]["model"], "virtio");

    let refused = controller
        .refusal(Method::POST, "/v1/vms", &body("web", "linux"))
        .await;
    assert_eq!(
        (refused.code, refused.fix.as_str()),
        (ErrorCode::InvalidArgument, "leave out --drivers")
    );
    let plain = json!({"name": "plain", "profile": "windows-server", "iso": "installer"});
    controller.done(Method::POST, "/v1/vms", &plain).await;
    let seen: Value = controller.get("/v1/vms/plain").await;
    assert_eq!(
        (&seen["disks"][0]["bus"], &seen["nics"][0]["model"]),
        (&json!("sata"), &json!("e1000e"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_boots_from_its_drives_after_its_next_start() {
    let (controller, _a) = with_a_vm(true).await;
    let missing = refused(&controller, json!({"boot": "iso"})).await;
    assert_eq!(missing.code, ErrorCode::DeviceMissing);
    assert_eq!(missing.fix, "fleetward vm media add web");
    let both = json!({"boot": "iso", "clock": "local", "drives": [{"action": "add"}]});
    let result = change(&controller, both).await;
    assert_eq!(result["next_start"], json!(["boot", "clock"]), "{result}");
    let seen: Value = controller.get(WEB).await;
    assert_eq!(
        (&seen["boot"], &seen["clock"]),
        (&json!("disk"), &json!("utc"))
    );
    let waits: Vec<&Value> = seen["pending"]
        .as_array()
        .expect("pending")
        .iter()
        .map(|p| &p["change"])
        .collect();
    assert!(
        waits.contains(&&json!("boot")) && waits.contains(&&json!("clock")),
        "{waits:?}"
    );
    let stop = json!({"force": true});
    controller
        .done(Method::POST, "/v1/vms/web/stop", &stop)
        .await;
    controller
        .done(Method::POST, "/v1/vms/web/start", &json!({}))
        .await;
    let seen: Value = controller.get(WEB).await;
    assert_eq!(
        (&seen["boot"], &seen["clock"]),
        (&json!("iso"), &json!("local"))
    );
}
