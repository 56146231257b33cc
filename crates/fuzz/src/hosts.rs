//! What a host reads that guests, their disks or libvirt wrote.

use crate::Target;
use fleetward_hypervisor_libvirt::fuzzing;
use fleetward_model::guest::{shown_name, shown_nics};
use fleetward_model::image::{self, Content, Layered, NamesOnly, Standalone};
use fleetward_uefi::{Wanted, assess, with_certificates, with_former};

/// Headers that an image from outside may have. What is accepted must be safe for QEMU to open.
pub(crate) const IMAGE_HEADER: Target = Target {
    name: "image_header",
    run: |bytes| {
        let bytes = &bytes[..bytes.len().min(image::HEAD)];
        if let Ok(Content::Qcow2(found)) = image::read::<Standalone>(bytes) {
            assert_eq!(bytes[8..16], [0; 8], "a backing file");
            assert_eq!(bytes[32..36], [0; 4], "encrypted");
            assert!(
                bytes[7] == 2 || bytes[79] & 0b110 == 0,
                "corrupt, or data elsewhere"
            );
            assert!((1..=1 << 50).contains(&found.virtual_size));
        }
        if let Ok(Content::Qcow2(found)) = image::read::<NamesOnly>(bytes) {
            assert!(found.base.is_none_or(|base| base.length <= 1023));
        }
        let _ = image::read::<Layered>(bytes);
    },
    seeds: || {
        let header = |version: u8| {
            let mut head = vec![0_u8; image::HEAD];
            head[..4].copy_from_slice(b"QFI\xfb");
            (head[7], head[23], head[29]) = (version, 16, 1);
            head
        };
        let mut backed = header(3);
        (backed[14], backed[19]) = (2, 9);
        vec![header(2), header(3), backed, b"vhdxfile".to_vec()]
    },
};

/// Bytes of the file that Debian's OVMF takes; inputs have the beginning of it, and the rest is as in erased flash.
const VARIABLES: usize = 528 << 10;

/// The file that a guest's firmware writes. What is added can be read, and taken back.
pub(crate) const UEFI_VARIABLES: Target = Target {
    name: "uefi_variables",
    run: |bytes| {
        let mut file = bytes.to_vec();
        file.resize(VARIABLES.max(bytes.len()), 0xff);
        assess(&file);
        for wanted in [Wanted::Successors, Wanted::All] {
            let Ok(Some(enrolled)) = with_certificates(&file, wanted) else {
                continue;
            };
            let found = assess(&enrolled.variables);
            assert!(found.because.is_none(), "not read again: {found:?}");
            for added in &enrolled.added {
                assert!(
                    found.certificates.iter().any(|name| name == added),
                    "{added}"
                );
            }
            with_former(&enrolled.variables, &enrolled.former).unwrap();
        }
        let _ = with_former(&file, bytes);
    },
    seeds: Vec::new,
};

/// A definition as libvirt tells it, foreign ones too.
pub(crate) const DOMAIN: Target = Target {
    name: "domain",
    run: |bytes| {
        if let Ok(xml) = std::str::from_utf8(bytes) {
            fuzzing::domain(xml);
        }
    },
    seeds: || {
        let foreign = "<domain type='qemu'><name>x</name><memory>1024</memory><vcpu>1</vcpu><metadata><x xmlns='urn:other'/></metadata>\
            <os><type machine='pc'>hvm</type></os><devices><disk device='disk'><source network='x'/></disk>\
            <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='b'/></interface></devices></domain>";
        vec![foreign.into()]
    },
};

/// A guest agent's answers as libvirt hands them on: a field and its value in each line.
pub(crate) const GUEST_ANSWERS: Target = Target {
    name: "guest_answers",
    run: |bytes| {
        const MAC: &str = "52:54:00:00:00:01";
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let fields = text.lines().filter_map(|line| line.split_once('='));
        let told = fuzzing::guest_answer(fields);
        for name in [&told.host_name, &told.os].into_iter().flatten() {
            if let Some(shown) = shown_name(name) {
                assert!(!shown.chars().any(char::is_control), "{shown:?}");
                assert!(shown.chars().count() <= 128);
            }
        }
        let told: Vec<_> = told
            .addresses
            .into_iter()
            .map(|card| (card.mac, card.addresses))
            .collect();
        let shown = shown_nics([MAC].into_iter(), &told);
        assert!(shown.len() <= 1 && shown.iter().all(|nic| nic.addresses.len() <= 16));
    },
    seeds: || {
        let told = "hostname=web\nos.pretty-name=Debian\nos.name=debian\nif.count=1\nif.0.hwaddr=52:54:00:00:00:01\n\
            if.0.addr.count=1\nif.0.addr.0.addr=192.0.2.1\nif.0.addr.1.addr=2001:db8::1";
        vec![told.into()]
    },
};

/// A screenshot as QEMU writes it.
pub(crate) const PICTURE: Target = Target {
    name: "picture",
    run: fuzzing::picture,
    seeds: || vec![b"P6\n2 1\n255\n123456".to_vec()],
};
