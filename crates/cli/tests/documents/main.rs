//! Tests of the documents: commands parse, translations show the same commands, decisions have one form.

mod adding;
mod commands;
mod decisions;
mod languages;
mod threats;

use clap::Parser;
use clap::error::ErrorKind;
use fleetward_cli::args::Cli;

#[test]
fn every_command_line_in_the_documents_parses() {
    let shown = commands::shown("fleetward");
    assert!(
        shown.len() > 50,
        "only {} command lines were found",
        shown.len()
    );
    let mut wrong = Vec::new();
    for shown in shown {
        let mut first = None;
        let parses =
            commands::readings(&shown.words).any(|words| match Cli::try_parse_from(words) {
                Ok(_) => true,
                Err(error) => {
                    let named_only = matches!(
                        error.kind(),
                        ErrorKind::MissingRequiredArgument
                            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                            | ErrorKind::MissingSubcommand
                    );
                    let help = error.kind() == ErrorKind::DisplayHelp;
                    first.get_or_insert(error);
                    help || (shown.inline && named_only)
                }
            });
        if let (false, Some(error)) = (parses, first) {
            let error = error.to_string();
            let error = error.lines().next().unwrap_or_default().to_owned();
            wrong.push(format!(
                "{}: {}: {error}",
                shown.place,
                shown.words.join(" ")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
