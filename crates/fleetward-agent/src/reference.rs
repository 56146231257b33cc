//! Completion and man pages, made from the definition of the command line; the package of the agent has them.

use crate::Arguments;
use clap::CommandFactory;
use clap_complete::Shell;
use fleetward_durable::ensure_directory;
use std::io::{self, Write};
use std::path::Path;

/// Writes the completion script of a shell to standard output.
pub(crate) fn print_completion(shell: Shell) -> io::Result<()> {
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    io::stdout().lock().write_all(&script)
}

/// Writes a man page for each command into `directory`, which is made if it is missing.
pub(crate) fn write_man_pages(directory: &Path) -> io::Result<()> {
    ensure_directory(directory, 0o755)?;
    clap_mangen::generate_to(Arguments::command(), directory)
}
