//! The API's description, put together from the declarations of all verbs; `docs/openapi.json` is a copy that a test
//! compares.

use crate::work;
use axum::Json;
use fleetward_api::each_verb;
use fleetward_api::verbs::{self, Access, Endpoint, Verb};
use fleetward_model::Failure;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use utoipa::OpenApi;

serves! {
    ApiDescription => description,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Fleetward controller",
        description = "Virtual machines with TPMs across a fleet of hosts. Errors are a `Failure` with a stable `code`."
    ),
    components(schemas(Failure))
)]
struct Frame;

static DESCRIPTION: LazyLock<Value> = LazyLock::new(describe);

async fn description() -> Json<&'static Value> {
    Json(&DESCRIPTION)
}

/// The description as it lies in `docs/openapi.json`.
pub fn openapi_json() -> String {
    let mut text = serde_json::to_string_pretty(&*DESCRIPTION).expect("JSON is JSON");
    text.push('\n');
    text
}

fn describe() -> Value {
    let mut whole = Frame::openapi();
    macro_rules! add_all {
        ($($verb:ident)*) => { $(add::<verbs::$verb>(&mut whole);)* };
    }
    each_verb!(add_all);
    let by_kind = add_reports(&mut whole);
    let mut whole = serde_json::to_value(whole).expect("the description is JSON");
    for endpoint in verbs::ENDPOINTS {
        let method = endpoint.method.to_ascii_lowercase();
        add_common(&mut whole["paths"][endpoint.path][method], endpoint);
    }
    let schemas = &mut whole["components"]["schemas"];
    schemas["JobView"]["properties"]["result"] = result(&by_kind);
    whole
}

/// The schemas of what jobs report; gives the name of each, by kind of job.
fn add_reports(whole: &mut utoipa::openapi::OpenApi) -> BTreeMap<&'static str, String> {
    let components = whole.components.get_or_insert_default();
    let add = |(kind, report): (_, work::ReportSchema)| {
        components.schemas.extend(report.schemas);
        (kind, report.name)
    };
    work::report_schemas().map(add).collect()
}

/// What a job reports: one of the reports, as its kind says.
fn result(by_kind: &BTreeMap<&'static str, String>) -> Value {
    let reference = |name: &String| format!("#/components/schemas/{name}");
    let reports: BTreeSet<_> = by_kind.values().map(reference).collect();
    let reports = reports.into_iter().map(|report| json!({ "$ref": report }));
    let kinds: Map<_, _> = by_kind
        .iter()
        .map(|(kind, name)| ((*kind).to_owned(), json!(reference(name))))
        .collect();
    json!({
        "description": "What it reports, by kind; null before its end, and of kinds that have nothing to tell.",
        "anyOf": reports.chain([json!({ "type": "null" })]).collect::<Vec<_>>(),
        "x-fleetward-reports": kinds,
    })
}

fn add<V: Verb>(whole: &mut utoipa::openapi::OpenApi) {
    let mut described = V::describe();
    described.operation.tags = Some(vec![V::TAG.to_owned()]);
    let paths = &mut whole.paths;
    paths.add_path_operation(V::PATH, described.methods, described.operation);
    let components = whole.components.get_or_insert_default();
    components.schemas.extend(described.schemas);
}

/// What holds for every verb: who may call it, about what, and how it fails.
fn add_common(operation: &mut Value, endpoint: &Endpoint) {
    operation["x-fleetward-reach"] = json!(endpoint.reach.into_str());
    operation["x-fleetward-access"] = match endpoint.access {
        Access::JoinToken => json!("join-token"),
        Access::Password => json!("password"),
        Access::Role(role) => json!(role.into_str()),
    };
    operation["responses"]["default"] = json!({
        "description": "Refused or failed; the status follows from the code's class.",
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Failure" } } }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_described_under_its_own_method_path_and_operation() {
        let mut operations = BTreeSet::new();
        let mut methods = 0;
        for item in DESCRIPTION["paths"].as_object().expect("paths").values() {
            for operation in item.as_object().expect("methods").values() {
                methods += 1;
                let id = operation["operationId"].as_str().expect("an operationId");
                assert!(operations.insert(id.to_owned()), "{id} is there twice");
            }
        }
        assert_eq!(methods, verbs::ENDPOINTS.len());
    }

    /// Lists that do not grow with the fleet, by operation, and why each does not.
    const SHORT: [(&str, &str); 1] = [("job_kinds", "a kind of job is a part of the program")];

    #[test]
    fn a_list_that_grows_with_the_fleet_comes_in_pages() {
        let resolve = |schema: &'static Value| {
            let name = schema["$ref"]
                .as_str()
                .and_then(|text| text.rsplit('/').next());
            name.map_or(schema, |name| &DESCRIPTION["components"]["schemas"][name])
        };
        let mut short = BTreeSet::new();
        let paths = DESCRIPTION["paths"].as_object().expect("paths").values();
        let operations = paths.flat_map(|item| item.as_object().expect("methods").values());
        for operation in operations {
            let id = operation["operationId"].as_str().expect("an operationId");
            let responses = operation["responses"].as_object().expect("responses");
            let contents = responses.values().map(|response| &response["content"]);
            let mut lists = contents.filter(|content| {
                resolve(&content["application/json"]["schema"])["type"] == "array"
            });
            let Some(list) = lists.next() else {
                continue;
            };
            if SHORT.iter().any(|(known, _)| *known == id) {
                short.insert(id);
                continue;
            }
            let parameters = operation["parameters"].as_array();
            let names = parameters.into_iter().flatten().map(|one| &one["name"]);
            let names: Vec<_> = names.filter_map(Value::as_str).collect();
            assert!(
                names.contains(&"limit") && names.contains(&"after"),
                "{id} gives a list and takes neither `limit` nor `after`: declare it as pages"
            );
            assert!(
                !list["application/x-ndjson"].is_null(),
                "{id} does not give its rows as lines: declare it as pages"
            );
        }
        let known = BTreeSet::from(SHORT.map(|(id, _)| id));
        assert_eq!(short, known, "these are no lists any more");
    }

    #[test]
    fn every_kind_of_job_that_reports_says_in_which_form() {
        let result = &DESCRIPTION["components"]["schemas"]["JobView"]["properties"]["result"];
        let of = |kind: &str| result["x-fleetward-reports"][kind].as_str();
        for (kind, report) in [
            ("vm-migrate", "MigrateReport"),
            ("guardian-grant", "GrantReport"),
            ("tpm-roll", "TpmReport"),
        ] {
            assert_eq!(of(kind), Some(&*format!("#/components/schemas/{report}")));
        }
        assert_eq!(of("vm-start"), None, "it has nothing to tell");
    }

    #[test]
    fn every_schema_that_is_referred_to_is_there() {
        let text = DESCRIPTION.to_string();
        let known = &DESCRIPTION["components"]["schemas"];
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(known.get(name).is_some(), "there is no schema {name}");
        }
    }
}
