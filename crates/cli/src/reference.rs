//! Generates completion, man pages, and the reference of commands and error codes.

use crate::args::Cli;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use fleetward_model::ErrorCode;
use std::fmt::Write;
use std::io;
use std::path::Path;

const MADE: &str =
    "<!-- Made by `cargo xtask generate`. Change the definitions, not this file. -->\n";

/// The completion script for a shell.
pub fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fleetward", &mut script);
    script
}

/// Writes a man page for each command into `directory`, which is made if it is missing.
pub fn write_man_pages(directory: &Path) -> io::Result<()> {
    fleetward_durable::ensure_directory(directory, 0o755)?;
    clap_mangen::generate_to(Cli::command(), directory)
}

/// `docs/reference/cli.md`.
pub fn commands_page() -> String {
    let mut root = Cli::command();
    root.build();
    let mut page = format!("{MADE}\n# Commands\n\n");
    push(&mut page, &format!("{}\n", plain(root.get_about())));
    push(&mut page, "## Options of every command\n");
    options(
        &mut page,
        root.get_arguments().filter(|arg| arg.is_global_set()),
    );
    push(&mut page, &format!("{}\n", plain(root.get_after_help())));
    for command in root.get_subcommands() {
        command_section(&mut page, command, "fleetward");
    }
    format!("{}\n", page.trim_end())
}

/// `docs/reference/errors.md`.
pub fn errors_page() -> String {
    let mut page = format!(
        "{MADE}\n# Error codes\n\nWhat `fleetward explain CODE` prints. Codes are stable; scripts may match on them.\n\n\
         | code | exit | HTTP | meaning | what helps |\n|---|---|---|---|---|\n"
    );
    for code in ErrorCode::ALL {
        let class = code.class();
        push(
            &mut page,
            &format!(
                "| `{code}` | {} | {} | {} | {} |",
                class.exit_code(),
                class.http_status(),
                cell(code.summary()),
                cell(&code.usual_fix().documented())
            ),
        );
    }
    page
}

fn command_section(page: &mut String, command: &Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name());
    if command.has_subcommands() {
        push(
            page,
            &format!("## {name}\n\n{}\n", plain(command.get_about())),
        );
        for below in command.get_subcommands() {
            command_section(page, below, &name);
        }
        return;
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage
        .trim_start_matches("Usage: ")
        .replace(" [OPTIONS]", "");
    let level = if parent == "fleetward" { "##" } else { "###" };
    push(
        page,
        &format!("{level} {name}\n\n```\n{usage} [OPTIONS]\n```\n"),
    );
    let about = command.get_long_about().or_else(|| command.get_about());
    push(page, &format!("{}\n", plain(about)));
    options(
        page,
        command
            .get_arguments()
            .filter(|arg| !arg.is_global_set() && !is_help(arg)),
    );
}

fn options<'a>(page: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let mut rows = String::new();
    for argument in arguments.filter(|arg| !is_help(arg)) {
        let mut about = plain(argument.get_help());
        let defaults: Vec<_> = argument
            .get_default_values()
            .iter()
            .map(|v| v.to_string_lossy())
            .collect();
        if !defaults.is_empty() && argument.get_action().takes_values() {
            write!(about, " (default `{}`)", defaults.join(" ")).expect("strings take all writes");
        }
        if let Some(variable) = argument.get_env() {
            write!(about, " (environment `{}`)", variable.to_string_lossy())
                .expect("strings take all writes");
        }
        push(
            &mut rows,
            &format!(
                "| `{}` | {} |",
                cell(&spelling(argument)),
                cell(about.trim())
            ),
        );
    }
    if !rows.is_empty() {
        push(page, &format!("| option | |\n|---|---|\n{rows}"));
    }
}

/// `-o, --output <FORMAT>`.
fn spelling(argument: &Arg) -> String {
    let names: Vec<String> = [
        argument.get_short().map(|short| format!("-{short}")),
        argument.get_long().map(|long| format!("--{long}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let value = argument.get_value_names().unwrap_or_default().join(" ");
    match (names.join(", "), argument.get_action().takes_values()) {
        (names, _) if names.is_empty() => format!("<{value}>"),
        (names, true) => format!("{names} <{value}>"),
        (names, false) => names,
    }
}

fn is_help(argument: &Arg) -> bool {
    use clap::ArgAction;
    matches!(
        argument.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    )
}

fn plain(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn push(page: &mut String, text: &str) {
    page.push_str(text);
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_names_every_command_and_code() {
        let commands = commands_page();
        for name in [
            "fleetward vm migrate",
            "fleetward check",
            "fleetward host token",
        ] {
            assert!(commands.contains(name), "{name}");
        }
        let errors = errors_page();
        for code in ErrorCode::ALL {
            assert!(errors.contains(code.as_str()), "{code}");
        }
    }
}
