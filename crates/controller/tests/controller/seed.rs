//! What a guest finds at its first boot: it reaches the host, follows a move, and is nowhere in the controller's files.

use crate::fleet::Controller;
use fleetward_api::controller::VmView;
use fleetward_model::ErrorCode;
use http::Method;
use serde_json::{Value, json};
use std::path::Path;

const SECRET: &str = "correct horse battery staple";

fn request(name: &str) -> Value {
    json!({
        "name": name, "host": "a",
        "seed": {
            "user_data": format!("#cloud-config\npassword: {{{{fleetward.password}}}}\n# {SECRET}\n"),
            "values": { "password": SECRET },
        },
    })
}

/// Whether any file below has the bytes.
fn anywhere(directory: &Path, wanted: &str) -> bool {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return anywhere(&path, wanted);
        }
        // Sockets are no files that could be read.
        let content = std::fs::read(&path).unwrap_or_default();
        content
            .windows(wanted.len())
            .any(|part| part == wanted.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reaches_the_host_follows_a_move_and_lies_nowhere_else() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    a.knows(&b);
    let job = controller
        .done(Method::POST, "/v1/vms", &request("web"))
        .await;
    let vm: VmView = controller.get("/v1/vms/web").await;
    let content = a
        .look(|inner| inner.seeds.get(&vm.id).cloned())
        .expect("a medium");
    let text = String::from_utf8_lossy(&content);
    assert!(text.contains(&format!("password: {SECRET}")), "filled in");
    assert!(!format!("{job:?}").contains(SECRET), "shown with the job");

    controller
        .done(
            Method::POST,
            "/v1/vms/web/migrate",
            &json!({ "to": "b", "offline": true }),
        )
        .await;
    let moved = b.look(|inner| inner.seeds.get(&vm.id).cloned());
    assert_eq!(moved, Some(content));
    assert!(
        !anywhere(&controller.data(), SECRET),
        "the controller wrote it down"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_also_in_a_dry_run_and_nothing_is_made() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    for dry_run in [true, false] {
        let mut body = request("web");
        body["dry_run"] = dry_run.into();
        body["seed"]["user_data"] = format!("{SECRET}: no beginning").into();
        let refused = controller.refusal(Method::POST, "/v1/vms", &body).await;
        assert_eq!(refused.code, ErrorCode::SeedInvalid);
        assert!(!refused.to_string().contains(SECRET), "{refused}");
    }
    a.look(|inner| {
        assert!(
            inner.seeds.is_empty() && inner.asked.is_empty(),
            "{:?}",
            inner.asked
        );
    });
}
