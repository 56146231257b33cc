//! The API's description, generated from the handlers; `docs/openapi.json` is a copy that a test compares.

use super::{
    audit, console, copies, fleet, grants, guardians, hosts, images, jobs, metrics, recover, tpm,
    vms,
};
use axum::Json;
use fleetward_api::controller::{Access, ENDPOINTS};
use fleetward_model::Failure;
use serde_json::{Value, json};
use std::sync::LazyLock;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Fleetward controller",
        description = "Virtual machines with TPMs across a fleet of hosts. Errors are a `Failure` with a stable `code`."
    ),
    paths(
        fleet::status,
        fleet::join,
        fleet::host_token,
        fleet::admin,
        fleet::rebuild,
        openapi,
        hosts::host_list,
        hosts::host_show,
        hosts::host_remove,
        hosts::host_drain,
        hosts::host_resume,
        images::image_list,
        images::image_import,
        images::image_delete,
        vms::vm_list,
        vms::vm_create,
        vms::vm_show,
        vms::vm_delete,
        vms::vm_start,
        vms::vm_stop,
        vms::vm_migrate,
        vms::check,
        tpm::tpm_enable,
        tpm::tpm_disable,
        tpm::tpm_restore,
        tpm::tpm_roll,
        tpm::tpm_history,
        copies::vm_clone,
        recover::vm_recover,
        copies::template_list,
        copies::template_create,
        copies::template_show,
        copies::template_delete,
        console::vm_console,
        jobs::job_kinds,
        jobs::job_list,
        jobs::job_show,
        jobs::job_events,
        jobs::job_cancel,
        guardians::guardian_list,
        grants::guardian_grant,
        grants::guardian_revoke,
        grants::guardian_rotate,
        metrics::metrics,
        guardians::guardian_show,
        audit::audit_list,
        audit::audit_verify,
    ),
    components(schemas(Failure))
)]
struct Description;

static DESCRIPTION: LazyLock<Value> = LazyLock::new(describe);

#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "This description.")))]
pub(super) async fn openapi() -> Json<&'static Value> {
    Json(&DESCRIPTION)
}

/// The description as it lies in `docs/openapi.json`.
pub fn openapi_json() -> String {
    let mut text = serde_json::to_string_pretty(&*DESCRIPTION).expect("JSON is JSON");
    text.push('\n');
    text
}

/// What is generated, and what holds for every endpoint: who may call it, and how it fails.
fn describe() -> Value {
    let mut description =
        serde_json::to_value(Description::openapi()).expect("the description is JSON");
    for endpoint in ENDPOINTS {
        let method = endpoint.method.to_ascii_lowercase();
        let Some(operation) = description["paths"][endpoint.path].get_mut(&method) else {
            continue; // a test says so
        };
        operation["x-fleetward-access"] = match endpoint.access {
            Access::JoinToken => json!("join-token"),
            Access::Role(role) => json!(role.as_str()),
        };
        operation["responses"]["default"] = json!({
            "description": "Refused or failed; the status follows from the code's class.",
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Failure" } } }
        });
    }
    description
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_description_has_exactly_the_endpoints_of_the_list() {
        let mut described = BTreeSet::new();
        for (path, item) in DESCRIPTION["paths"].as_object().expect("paths") {
            for method in item.as_object().expect("methods").keys() {
                described.insert((method.to_ascii_uppercase(), path.clone()));
            }
        }
        let listed = ENDPOINTS
            .iter()
            .map(|e| (e.method.to_owned(), e.path.to_owned()));
        assert_eq!(described, listed.collect());
    }
}
