//! Reads and writes our element in a domain's `<metadata>`. Does not call libvirt.
//!
//! ```xml
//! <fleetward:vm xmlns:fleetward="https://fleetward.dev/ns/vm/1" version="1">
//!   <fleetward:record>{"spec":{...},"generation":3}</fleetward:record>
//!   <fleetward:key_protector>MIIK...</fleetward:key_protector>
//! </fleetward:vm>
//! ```
//! The record is JSON, and its specification has its own version. Additions go into the record, where a program keeps the
//! fields it does not know; the element's version changes only when the element itself does. The key protector is a
//! separate element, so that an administrator can extract it with `virsh dumpxml` and a text tool in an emergency.

use fleetward_model::vm::{NewerSpec, VmMetadata};
use quick_xml::Writer;
use quick_xml::events::BytesText;
use std::io;

/// Namespace of our element.
pub const NAMESPACE: &str = "https://fleetward.dev/ns/vm/1";
/// Prefix of our element, also libvirt's key for it.
pub const PREFIX: &str = "fleetward";
/// The form described above.
const VERSION: u32 = 1;

/// What a domain holds of ours: none where it holds nothing, or nothing that can be read.
pub(crate) type Found = Option<Result<VmMetadata, NewerSpec>>;

/// The element by itself, as it stands in a domain definition.
pub(crate) fn element(metadata: &VmMetadata) -> String {
    render(metadata, true)
}

/// The element as `virDomainSetMetadata` wants it: libvirt adds the namespace to it and all within.
pub(crate) fn element_for_set(metadata: &VmMetadata) -> String {
    render(metadata, false)
}

fn render(metadata: &VmMetadata, namespaced: bool) -> String {
    let mut record = metadata.clone();
    let key_protector = record.key_protector.take();
    let record = serde_json::to_string(&record).expect("names and numbers always serialise");
    let record = xml_safe(&record);
    let name = |local: &str| {
        if namespaced {
            format!("{PREFIX}:{local}")
        } else {
            local.to_owned()
        }
    };
    let mut writer = Writer::new(Vec::new());
    let mut root = writer.create_element(name("vm"));
    let declaration = format!("xmlns:{PREFIX}");
    if namespaced {
        root = root.with_attribute((declaration.as_str(), NAMESPACE));
    }
    root.with_attribute(("version", VERSION.to_string().as_str()))
        .write_inner_content(|inner| -> io::Result<()> {
            inner
                .create_element(name("record"))
                .write_text_content(BytesText::new(&record))?;
            if let Some(key_protector) = &key_protector {
                inner
                    .create_element(name("key_protector"))
                    .write_text_content(BytesText::new(key_protector))?;
            }
            Ok(())
        })
        .expect("writing to memory");
    String::from_utf8(writer.into_inner()).expect("written from strings")
}

/// The JSON without the two characters that JSON permits and XML does not; they only occur in strings.
fn xml_safe(json: &str) -> String {
    json.replace('\u{fffe}', "\\ufffe")
        .replace('\u{ffff}', "\\uffff")
}

/// Our element among the children of a `<metadata>` element.
pub(crate) fn find<'a, 'i>(metadata: roxmltree::Node<'a, 'i>) -> Option<roxmltree::Node<'a, 'i>> {
    metadata
        .children()
        .find(|child| child.has_tag_name((NAMESPACE, "vm")))
}

/// Reads our element, with or without its namespace; none when it is damaged.
pub(crate) fn read(vm: roxmltree::Node<'_, '_>) -> Found {
    let version: u32 = vm.attribute("version")?.parse().ok()?;
    if version > VERSION {
        return Some(Err(NewerSpec { version }));
    }
    let text_of = |name: &str| {
        vm.children()
            .find(|child| child.is_element() && child.tag_name().name() == name)
            .map(|child| child.text().unwrap_or_default().trim())
    };
    let read = VmMetadata::from_json(text_of("record")?)?;
    Some(read.map(|mut metadata| {
        metadata.key_protector = text_of("key_protector").map(str::to_owned);
        metadata
    }))
}

/// Reads what `virDomainGetMetadata` returns.
pub(crate) fn parse(xml: &str) -> Found {
    let document = roxmltree::Document::parse(xml).ok()?;
    read(document.root_element())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain_xml::tests::sample;

    #[test]
    fn metadata_survives_the_round_trip_in_both_forms() {
        let mut metadata = sample().metadata;
        metadata.key_protector = Some("MIIK".repeat(25_000));
        let label = "<&\"'>\u{fffd} \n";
        let description = "日本語 \u{1f512}\u{0}\u{1b}\r\n\u{fffe}\u{ffff} ]]>";
        metadata.spec.description = description.parse().unwrap();
        metadata
            .spec
            .labels
            .insert("note".parse().unwrap(), label.to_owned());
        assert_eq!(parse(&element(&metadata)), Some(Ok(metadata.clone())));
        assert_eq!(parse(&element_for_set(&metadata)), Some(Ok(metadata)));
    }

    #[test]
    fn what_a_newer_program_wrote_is_ours_and_not_guessed_at() {
        let text = element(&sample().metadata).replace("version=\"1\"", "version=\"2\"");
        assert_eq!(parse(&text), Some(Err(NewerSpec { version: 2 })));
        let record = |spec: &str| {
            format!("<vm version='1'><record>{{\"spec\":{spec},\"generation\":1}}</record></vm>")
        };
        assert_eq!(
            parse(&record("{\"v3\":{\"cores\":4}}")),
            Some(Err(NewerSpec { version: 3 }))
        );
    }

    #[test]
    fn damage_is_not_guessed_at() {
        assert_eq!(parse("<vm version='1'><record>{}</record></vm>"), None);
    }
}
