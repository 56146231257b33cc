//! Doors to the parsers for the fuzz targets, and for nothing else.

use crate::binding::Named;
use crate::domain_read::{Basics, observed, vm_name};
use crate::{domain_edit, guest, picture as pictures};
use fleetward_hypervisor::{DomainState, GuestTold};
use fleetward_model::{ByteSize, VmId};

/// Reads a definition, and makes the changes to it that need to know nothing else.
///
/// # Panics
/// What was changed cannot be read any more, or is not what was asked for.
pub fn domain(xml: &str) {
    let id = VmId(uuid::Uuid::from_u128(7));
    let name = domain_edit::name_of(xml).unwrap_or_default();
    let basics = Basics {
        id,
        name: vm_name(&name, id),
        domain_name: name,
        state: DomainState::Running,
        reason: "booted",
        persistent: true,
        cpus: 1,
        memory: ByteSize::gib(1),
    };
    let seen = observed(basics, xml);
    let _ = domain_edit::defined(xml);
    let _ = domain_edit::with_nic_places(xml, &[]);
    let all = [domain_edit::portable(xml), domain_edit::without_bases(xml)];
    for changed in all.into_iter().flatten() {
        domain_edit::parse(&changed).expect("a changed definition is XML");
    }
    if let Some(metadata) = &seen.metadata {
        let changed = domain_edit::with_metadata(xml, metadata).expect("it was read");
        domain_edit::parse(&changed).expect("a changed definition is XML");
    }
    if let Ok(named) = domain_edit::named(xml, "a<b&c") {
        assert_eq!(domain_edit::name_of(&named).as_deref(), Some("a<b&c"));
    }
}

/// What is made of the fields of a guest agent's answer.
pub fn guest_answer<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> GuestTold {
    let named = fields.map(|(field, value)| Named {
        field: field.to_owned(),
        value: value.to_owned(),
    });
    guest::sorted(named.collect())
}

/// Reads a screenshot.
///
/// # Panics
/// It has another number of pixels than it says.
pub fn picture(file: &[u8]) {
    if let Ok(picture) = pictures::read(file) {
        let pixels = u64::from(picture.width) * u64::from(picture.height);
        assert_eq!(picture.rgb.len() as u64, pixels * 3);
    }
}
