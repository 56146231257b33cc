//! Commands that need no controller: `explain`, `completion`, `man`.

use super::Context;
use crate::args;
use crate::exit::{Exit, Stop};
use crate::{reference, table};
use clap_complete::Shell;
use fleetward_model::{ErrorCode, Failure};
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;

/// A code as scripts get it.
#[derive(Debug, Serialize)]
struct Explanation {
    code: ErrorCode,
    exit_code: u8,
    http_status: u16,
    summary: &'static str,
    fix: String,
}

impl From<ErrorCode> for Explanation {
    fn from(code: ErrorCode) -> Self {
        let class = code.class();
        Self {
            code,
            exit_code: class.exit_code(),
            http_status: class.http_status(),
            summary: code.summary(),
            fix: code.usual_fix().documented(),
        }
    }
}

pub(super) fn explain(context: &Context, text: Option<&str>) -> Result<Exit, Stop> {
    let Some(text) = text else {
        let all: Vec<Explanation> = ErrorCode::ALL.iter().copied().map(Into::into).collect();
        context
            .output
            .document(&all, || table::codes(ErrorCode::ALL))?;
        return Ok(Exit::Done);
    };
    let code = args::parse_code(text).ok_or_else(|| {
        Failure::new(
            ErrorCode::CodeNotFound,
            format!("there is no error code {text:?}"),
        )
    })?;
    context
        .output
        .document(&Explanation::from(code), || table::code(code))?;
    Ok(Exit::Done)
}

pub(super) fn completion(shell: Shell) -> Result<Exit, Stop> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(&reference::completion(shell))?;
    stdout.flush()?;
    Ok(Exit::Done)
}

pub(super) fn man(directory: &Path) -> Result<Exit, Stop> {
    reference::write_man_pages(directory).map_err(|error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("cannot write man pages to {}", directory.display()),
        )
        .because(error)
        .fix("--out DIR, a directory that can be written")
    })?;
    Ok(Exit::Done)
}
