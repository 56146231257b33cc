//! Definitions that libvirt kept for an earlier version: each is still one of ours, and writing back what was read
//! loses nothing.

use crate::domain_edit::with_metadata;
use crate::metadata;
use serde_json::Value;
use std::path::Path;

/// `(file, definition)` of every VM, on both hosts.
fn definitions() -> Vec<(String, String)> {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/7917ca9/hosts");
    let directories = ["a", "b"].map(|host| hosts.join(host).join("domains"));
    let entries = directories
        .iter()
        .flat_map(|directory| std::fs::read_dir(directory).expect("definitions").flatten());
    let mut found: Vec<_> = entries
        .map(|entry| {
            let text = std::fs::read_to_string(entry.path()).expect("a definition");
            (entry.path().display().to_string(), text)
        })
        .collect();
    found.sort();
    assert_eq!(found.len(), 10);
    found
}

/// Our element in a definition, and the JSON and the key protector in it.
fn ours(definition: &str) -> (String, Value, Option<String>) {
    let document = roxmltree::Document::parse(definition).expect("XML");
    let holder = document
        .descendants()
        .find(|node| node.has_tag_name("metadata"))
        .expect("metadata");
    let element = metadata::find(holder).expect("our element");
    let text = |name: &str| {
        let child = element.children().find(|c| c.tag_name().name() == name)?;
        child.text().map(str::to_owned)
    };
    let record = serde_json::from_str(&text("record").expect("a record")).expect("JSON");
    let version = element.attribute("version").expect("a version");
    (version.to_owned(), record, text("key_protector"))
}

#[test]
fn every_definition_of_an_earlier_version_is_managed_and_says_what_it_said() {
    for (file, definition) in definitions() {
        let document = roxmltree::Document::parse(&definition).expect("XML");
        let holder = document
            .descendants()
            .find(|node| node.has_tag_name("metadata"))
            .expect("metadata");
        let read = metadata::find(holder)
            .and_then(metadata::read)
            .and_then(Result::ok)
            .unwrap_or_else(|| panic!("{file} is not read"));
        let (_, record, protector) = ours(&definition);
        assert_eq!(read.key_protector, protector, "{file}");
        assert_eq!(read.spec.tpm, protector.is_some(), "{file}");
        assert_eq!(read.spec.name.as_str(), record["spec"]["name"], "{file}");
        assert_eq!(read.revoked.len(), usize::from(file.contains("revoked1")));
        if file.contains("/a/domains/desk1") {
            assert_eq!(read.spec.labels.len(), 2);
        }
    }
}

#[test]
fn what_is_written_back_is_what_an_earlier_version_reads() {
    for (file, definition) in definitions() {
        let document = roxmltree::Document::parse(&definition).expect("XML");
        let holder = document
            .descendants()
            .find(|node| node.has_tag_name("metadata"))
            .expect("metadata");
        let read = metadata::find(holder)
            .and_then(metadata::read)
            .and_then(Result::ok)
            .expect("read");
        let written = with_metadata(&definition, &read).expect("written");
        assert_eq!(ours(&written), ours(&definition), "{file}");
        // Beside our element nothing has changed.
        let around = |text: &str| {
            let (before, rest) = text.split_once("<fleetward:vm").expect("our element");
            let (_, after) = rest.split_once("</fleetward:vm>").expect("its end");
            (before.to_owned(), after.to_owned())
        };
        assert_eq!(around(&written), around(&definition), "{file}");
    }
}
