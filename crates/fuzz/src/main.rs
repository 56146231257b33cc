//! libFuzzer over one target: `FLEETWARD_FUZZ_TARGET` names it, the arguments are libFuzzer's. Without a name it lists the
//! targets. scripts/fuzz builds and runs it.
#![no_main]

use fleetward_fuzz::{TARGETS, Target, target};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CHOSEN: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("FLEETWARD_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        for target in TARGETS {
            println!("{}", target.name);
        }
        std::process::exit(if name.is_empty() { 0 } else { 2 });
    })
});

fuzz_target!(
    init: {
        let _ = *CHOSEN;
    },
    |bytes: &[u8]| (CHOSEN.run)(bytes)
);
