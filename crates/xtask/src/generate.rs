//! Files made from code: the reference of commands and error codes, OpenAPI, man pages, completions.
//!
//! A crate with such files has an integration test named `generated`, which compares them with what the code gives,
//! and writes them instead where `FLEETWARD_GENERATE` is set. So the check is an ordinary test, and generating builds
//! nothing that the tests would not build.

use crate::step::cargo;
use anyhow::Result;

pub(crate) fn write() -> Result<()> {
    cargo(
        &[
            "test",
            "--workspace",
            "--locked",
            "--quiet",
            "--test=generated",
        ],
        &[("FLEETWARD_GENERATE", "1")],
    )
}
