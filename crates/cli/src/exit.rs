//! The end of a command: exit codes, and messages on stderr.

use crate::messages;
use crate::plain;
use fleetward_api::following::goes_on;
use fleetward_model::{Failure, JobId};
use std::io::{self, Write};
use std::process::ExitCode;

/// Exit code of usage errors.
pub(crate) const USAGE: u8 = 2;
const FAILED: u8 = 1;
const SOME_FAILED: u8 = 3;
/// What shells report for a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// A command that came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    /// Several objects were named, and not all went well; each has been reported.
    SomeFailed,
}

/// What ends a command before its end.
#[derive(Debug)]
pub(crate) enum Stop {
    Failure(Failure),
    /// Stdout is closed.
    Output(io::Error),
    /// A question was answered with no.
    Declined,
    /// Ctrl-C while jobs run, which go on.
    Interrupted(Vec<JobId>),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Says on stderr what has to be said, and gives the exit code.
pub(crate) fn report(result: Result<Exit, Stop>) -> ExitCode {
    match result {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::SomeFailed) => SOME_FAILED.into(),
        Err(Stop::Failure(failure)) => {
            say(&messages::failure(&failure));
            failure.code.class().exit_code().into()
        }
        // `fleetward vm list | head -1`: the reader has all it wanted.
        Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Stop::Output(error)) => {
            say(&messages::output_failed(&error));
            FAILED.into()
        }
        Err(Stop::Declined) => {
            say(messages::NOTHING_CHANGED);
            FAILED.into()
        }
        Err(Stop::Interrupted(jobs)) => {
            for job in jobs {
                say(&goes_on(job));
            }
            INTERRUPTED.into()
        }
    }
}

/// One line or more on stderr. Where stderr is closed, nobody listens.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", plain::text(text));
}
