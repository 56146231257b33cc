//! The command line of Fleetward as a library: parse, call the controller's API, print.
//!
//! The crate does not know what is behind the API: no hypervisor, no store, no key. The program links the controller
//! and runs it; this crate has only its arguments.
//!
//! | module | owns |
//! |---|---|
//! | [`args`] | commands, options and help texts |
//! | `controller` | the API's endpoints as functions |
//! | `commands` | what each command does |
//! | `wait`, `progress`, `bulk` | jobs: following them, showing them, many at once |
//! | `output`, `table` | results on stdout |
//! | `messages` | every other sentence a person reads |
//! | `console` | the terminal as a serial console |
//! | `screen` | a VM's screen for viewers of this machine |
//! | [`reference`] | pages made from the definitions |

pub mod args;
mod bulk;
mod commands;
mod confirm;
mod console;
mod controller;
mod exit;
mod fetch;
mod interrupt;
mod messages;
mod output;
mod plain;
mod progress;
pub mod reference;
mod screen;
mod table;
mod wait;
mod way;

pub use args::{Cli, Command, ControllerCommand, ControllerRun};

use crate::commands::Context;
use crate::exit::Stop;
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// Parses a command line. What is no command (help, version, errors) is printed, and the exit code given.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(arguments).map_err(|error| {
        // Nothing can be done for a reader who has gone.
        let _ = error.print();
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE))
    })
}

/// Does what the command line says and gives the exit code of the contract.
///
/// `controller run` is not for here: it is the caller's, and refused.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match Context::new(cli.global) {
        Ok(context) => commands::run(&context, cli.command).await,
        Err(failure) => Err(Stop::Failure(failure)),
    };
    exit::report(result)
}
