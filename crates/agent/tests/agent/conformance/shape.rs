//! What of a message is compared: its fields, the kinds of their values, and the words that mean something. Ids, times, digests,
//! sizes and sentences differ by themselves.

use fleetward_model::ErrorCode;
use serde_json::{Map, Value, json};
use std::str::FromStr;

/// Fields that hold a sentence, or a name that whoever set a host up has chosen.
const FREE: [&str; 19] = [
    "because",
    "what",
    "fix",
    "text",
    "reason",
    "path",
    "volume",
    "agent",
    "issuer",
    "cpu_model",
    "csr",
    "owner",
    "host",
    "serial",
    "subject",
    "serial_number",
    "thumbprint",
    "address",
    "token",
];

/// Fields that hold base64, where it is long enough.
const SECRET: [&str; 4] = ["state", "key_protector", "ek_certificate", "uefi_variables"];

/// A value with what differs by itself taken out. Lists hold each shape once.
pub fn of(value: &Value) -> Value {
    match value {
        Value::Null | Value::Bool(_) => value.clone(),
        Value::Number(_) => json!("<number>"),
        Value::String(text) => Value::String(of_text(text)),
        Value::Array(items) => {
            let mut shapes: Vec<Value> = items.iter().map(of).collect();
            shapes.sort_by_key(Value::to_string);
            shapes.dedup();
            Value::Array(shapes)
        }
        Value::Object(fields) => {
            let of_field = |(name, value): (&String, &Value)| {
                let shape = match value {
                    Value::String(text) if SECRET.contains(&name.as_str()) && text.len() > 40 => {
                        json!("<base64>")
                    }
                    Value::String(_) if FREE.contains(&name.as_str()) => json!("<text>"),
                    Value::Array(items) if name == "warnings" && !items.is_empty() => {
                        json!(["<text>"])
                    }
                    other => of(other),
                };
                (name.clone(), shape)
            };
            Value::Object(fields.iter().map(of_field).collect::<Map<_, _>>())
        }
    }
}

fn of_text(text: &str) -> String {
    let is_hex = text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_time = text.len() >= 20 && text.as_bytes()[4] == b'-' && text.as_bytes()[10] == b'T';
    let is_base64 = text.len() > 200 && !text.contains(' ');
    let kind = match text {
        _ if uuid::Uuid::from_str(text).is_ok() => "<id>",
        _ if is_hex => "<hex>",
        _ if is_time => "<time>",
        _ if text.starts_with("-----BEGIN") => "<PEM>",
        _ if is_base64 => "<base64>",
        other => other,
    };
    kind.to_owned()
}

/// What is left of a refusal: whether it came as a status or in a last line, and its code.
pub fn refusal(how: &str, code: ErrorCode) -> Value {
    json!({ how: code.as_str() })
}

/// Where two shapes differ, as `field: one / other`.
pub fn differences(one: &Value, other: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", one, other, &mut found);
    found
}

fn compare(at: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let at = format!("{at}/{name}");
                match (a.get(name), b.get(name)) {
                    (Some(a), Some(b)) => compare(&at, a, b, found),
                    (Some(a), None) => found.push(format!("{at}: {a} / is missing")),
                    (None, Some(b)) => found.push(format!("{at}: is missing / {b}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (a, b) in a.iter().zip(b) {
                compare(&format!("{at}[]"), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{at}: {a} / {b}")),
    }
}

#[test]
fn what_differs_by_itself_is_left_out_and_everything_else_is_told() {
    let one = json!({
        "id": "00000000-0000-0000-0000-000000000007", "state": "running", "because": "of this", "cpus": 4,
        "disks": [{ "target": "vda" }, { "target": "vda" }], "lockout": null
    });
    let other = json!({
        "id": "00000000-0000-0000-0000-000000000009", "state": "stopped", "because": "of that", "cpus": 2,
        "disks": [{ "target": "vda" }], "newer": true
    });
    assert_eq!(
        differences(&of(&one), &of(&other)),
        [
            "/lockout: null / is missing",
            "/newer: is missing / true",
            "/state: \"running\" / \"stopped\""
        ]
    );
}
