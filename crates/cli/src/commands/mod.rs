//! The commands: one module for each noun. They call the API, wait, and print.

mod admin;
mod alert;
mod audit;
mod check;
mod ek;
mod fleet;
mod grants;
mod guardian;
mod host;
mod image;
mod job;
mod local;
mod network;
mod secure_boot;
mod seed;
mod template;
mod token;
mod tpm;
mod user;
mod vm;
pub(crate) mod vm_disk;
pub(crate) mod vm_screen;
pub(crate) mod vm_set;

use crate::args::{Command, ControllerCommand, Global};
use crate::controller::Controller;
use crate::exit::{Exit, Stop};
use crate::output::Output;
use crate::progress::Progress;
use fleetward_model::{ErrorCode, Failure, GroupName};
use std::collections::BTreeSet;

/// What every command works with.
pub(crate) struct Context {
    pub(crate) controller: Controller,
    pub(crate) output: Output,
    pub(crate) progress: Progress,
    /// Questions are answered already.
    pub(crate) yes: bool,
}

impl Context {
    pub(crate) fn new(options: Global) -> Result<Self, Failure> {
        Ok(Self {
            controller: Controller::from_options(&options)?,
            output: Output::new(options.output, options.quiet),
            progress: Progress::new(options.quiet),
            yes: options.yes,
        })
    }
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<Exit, Stop> {
    match command {
        Command::Controller(ControllerCommand::Run(_)) => Err(Failure::new(
            ErrorCode::Internal,
            "this program does not hold the controller",
        )
        .into()),
        Command::Controller(ControllerCommand::Rebuild) => fleet::rebuild(context).await,
        Command::Status => fleet::status(context).await,
        Command::Host(command) => host::run(context, command).await,
        Command::Image(command) => image::run(context, command).await,
        Command::Network(command) => network::run(context, command).await,
        Command::Template(command) => template::run(context, command).await,
        Command::Vm(command) => vm::run(context, command).await,
        Command::Tpm(command) => tpm::run(context, command).await,
        Command::SecureBoot(command) => secure_boot::run(context, command).await,
        Command::Check(args) => check::run(context, args).await,
        Command::Job(command) => job::run(context, command).await,
        Command::Audit(args) => audit::run(context, args).await,
        Command::Guardian(command) => guardian::run(context, command).await,
        Command::Ek(command) => ek::run(context, command).await,
        Command::Admin(command) => admin::run(context, command).await,
        Command::Token(command) => token::run(context, command).await,
        Command::User(command) => user::run(context, command).await,
        Command::Alert(command) => alert::run(context, command).await,
        Command::Explain { code } => local::explain(context, code.as_deref()),
        Command::Completion { shell } => local::completion(shell),
        Command::Man { out } => local::man(&out),
    }
}

/// Groups that were named; none: the whole fleet.
fn some_groups(named: Vec<GroupName>) -> Option<BTreeSet<GroupName>> {
    (!named.is_empty()).then(|| named.into_iter().collect())
}
