//! The layouts of what the controller stores, and the conversion from the first to the second.
//!
//! | layout | key protectors |
//! |---|---|
//! | 1 | their text, in what was last seen of each VM (`seen-vm/`) and in job records (`jobs/`, `debts/`) |
//! | 2 | their SHA-256 |
//!
//! The number is that of the store's file. A controller that knows fewer layouts refuses the file; one that knows more
//! converts it when it opens it.

use fleetward_model::vm::protector_sha256;
use serde_json::{Map, Value};

/// The members of a VM's metadata that stay on its host.
const CUSTODY: [&str; 2] = ["key_protector", "ek_certificate"];

/// A value of layout 1 as layout 2 has it; none where it is the same.
pub(crate) fn convert(key: &str, value: &[u8]) -> Option<Vec<u8>> {
    let (kind, _) = key.split_once('/')?;
    let mut json: Value = serde_json::from_slice(value).ok()?;
    let before = json.clone();
    match kind {
        "seen-vm" => convert_vm(&mut json),
        "jobs" | "debts" => convert_record(&mut json),
        _ => return None,
    }
    (json != before).then(|| json.to_string().into_bytes())
}

/// `tpm` has digests of everything else already.
fn convert_vm(vm: &mut Value) {
    let digest = vm.get_mut("metadata").and_then(take_custody);
    if let (Some(digest), Some(Value::Object(tpm))) = (digest, vm.get_mut("tpm")) {
        tpm.entry("protector_sha256").or_insert(digest.into());
    }
}

/// Inputs and outputs of all kinds of job name a key protector `key_protector`, or have it in `metadata`.
fn convert_record(record: &mut Value) {
    match record {
        Value::Object(members) => {
            let of_metadata = members.get_mut("metadata").and_then(take_custody);
            let own = take_text(members, "key_protector");
            if let Some(digest) = of_metadata.or(own) {
                members.entry("protector").or_insert(digest.into());
            }
            members.values_mut().for_each(convert_record);
        }
        Value::Array(elements) => elements.iter_mut().for_each(convert_record),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The digest of the key protector that was in metadata.
fn take_custody(metadata: &mut Value) -> Option<String> {
    let members = metadata.as_object_mut()?;
    let [protector, _] = CUSTODY.map(|name| take_text(members, name));
    protector
}

/// The digest of a text that is removed.
fn take_text(members: &mut Map<String, Value>, name: &str) -> Option<String> {
    match members.remove(name)? {
        Value::String(text) => Some(protector_sha256(&text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn converted(key: &str, value: &Value) -> Option<Value> {
        let bytes = convert(key, value.to_string().as_bytes())?;
        Some(serde_json::from_slice(&bytes).expect("JSON"))
    }

    #[test]
    fn a_vm_keeps_all_but_what_its_host_keeps() {
        let vm = json!({
            "name": "web", "metadata": { "generation": 4, "key_protector": "MIIK", "ek_certificate": "ZWs=" },
            "tpm": { "enabled": true, "ek_certificate": "ab" }
        });
        let wanted = json!({
            "name": "web", "metadata": { "generation": 4 },
            "tpm": { "enabled": true, "ek_certificate": "ab", "protector_sha256": protector_sha256("MIIK") }
        });
        assert_eq!(converted("seen-vm/a/1", &vm), Some(wanted.clone()));
        assert_eq!(converted("seen-vm/a/1", &wanted), None, "once is enough");
    }

    #[test]
    fn job_records_name_key_protectors_by_digest_wherever_they_were() {
        let digest = protector_sha256("MIIK");
        let record = json!({
            "input": { "metadata": { "key_protector": "MIIK" } },
            "steps": [
                { "output": { "key_protector": "MIIK" } },
                { "output": { "prepared": { "key_protector": "MIIK", "warning": "none" } } },
                { "output": { "key_protector": null } },
                { "output": null },
            ],
        });
        let wanted = json!({
            "input": { "metadata": {}, "protector": digest },
            "steps": [
                { "output": { "protector": digest } },
                { "output": { "prepared": { "protector": digest, "warning": "none" } } },
                { "output": {} },
                { "output": null },
            ],
        });
        assert_eq!(converted("jobs/1", &record), Some(wanted));
    }

    #[test]
    fn what_holds_no_key_protector_is_not_touched() {
        let other = json!({ "key_protector": "a label of that name" });
        assert_eq!(converted("hosts/a", &other), None);
        assert_eq!(convert("jobs/1", b"no JSON"), None);
        assert_eq!(converted("jobs/1", &json!({ "steps": [1, 2] })), None);
    }
}
