//! Every parser of foreign bytes as a function of bytes, which panics where something altered is accepted.
//!
//! ```text
//!   src/*.rs            the targets, defined once
//!   src/main.rs         libFuzzer over them, built with instrumentation by scripts/fuzz
//!   tests/replay.rs     the same over everything in corpus/, with the ordinary compiler
//!   corpus/<target>/    inputs that reach something of their own, and all that ever found a fault
//!   fixtures/           what targets compare with: a guardian and what it made, for tests alone
//! ```
//! Targets take the time from [`NOW`] and keys from `fixtures/`, so that an input does the same on every day.
#![allow(clippy::unwrap_used, reason = "a panic is a finding")]

mod bodies;
mod hosts;
mod kept;
mod keys;

use time::OffsetDateTime;
use time::macros::datetime;

/// When everything here happens.
pub const NOW: OffsetDateTime = datetime!(2026-11-27 00:00 UTC);
/// The password of the PFX files in the corpus.
pub const PASSWORD: &str = "correct horse battery staple";

/// A parser, or a few that read the same bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the name of its directory in `corpus/`.
    pub name: &'static str,
    /// Panics where the parser does, or where it accepts what it must not.
    pub run: fn(&[u8]),
    /// Inputs to begin with, of no corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    keys::PFX,
    keys::KEY_PROTECTOR,
    keys::CERTIFICATES,
    keys::EK_CERTIFICATES,
    keys::JOIN_TOKEN,
    keys::CERTIFICATE_REQUEST,
    kept::TPM_BUNDLE,
    kept::ESCROW_FILE,
    kept::RECORDS,
    bodies::CONTROLLER,
    bodies::AGENT,
    hosts::IMAGE_HEADER,
    hosts::UEFI_VARIABLES,
    hosts::DOMAIN,
    hosts::GUEST_ANSWERS,
    hosts::PICTURE,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
