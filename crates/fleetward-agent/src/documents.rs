//! Tests that the commands of this program in the documents are valid.

#[path = "../../cli/tests/documents/commands.rs"]
mod commands;

use crate::Arguments;
use clap::Parser;
use clap::error::ErrorKind;

#[test]
fn every_command_line_of_the_agent_in_the_documents_parses() {
    let shown = commands::shown("fleetward-agent");
    assert!(
        shown.len() > 10,
        "only {} command lines were found",
        shown.len()
    );
    let mut wrong = Vec::new();
    for shown in shown {
        let parses =
            commands::readings(&shown.words).any(|words| match Arguments::try_parse_from(words) {
                Ok(_) => true,
                Err(error) => {
                    shown.inline
                        && matches!(
                            error.kind(),
                            ErrorKind::MissingRequiredArgument
                                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                                | ErrorKind::MissingSubcommand
                        )
                }
            });
        if !parses {
            wrong.push(format!("{}: {}", shown.place, shown.words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
