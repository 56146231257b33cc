//! Generated files: the reference of commands and error codes, OpenAPI, man pages, completions.
//!
//! A crate with such files has an integration test named `generated`, or a module of that name in its one test program. It
//! compares them with the code's output, or writes them if `FLEETWARD_GENERATE` is set. So the check is an ordinary test,
//! and generating needs no additional build.

use crate::step::cargo;
use anyhow::Result;

pub(crate) fn write() -> Result<()> {
    for tests in [
        &["--test=generated"][..],
        &["--test=controller", "generated::"],
    ] {
        let command = ["test", "--workspace", "--locked", "--quiet"];
        cargo(
            &[&command[..], tests].concat(),
            &[("FLEETWARD_GENERATE", "1")],
        )?;
    }
    Ok(())
}
