//! Questions before something is destroyed.

use crate::exit::Stop;
use crate::messages;
use crate::plain;
use fleetward_model::{ErrorCode, Failure};
use std::io::{self, IsTerminal, Write};

/// Asks on the terminal, unless `yes` has answered already.
///
/// # Errors
/// [`Stop::Declined`], or `CONFIRMATION_NEEDED` where there is no terminal to ask on.
pub(crate) fn confirm(yes: bool, question: &str) -> Result<(), Stop> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new(
            ErrorCode::ConfirmationNeeded,
            "not done without confirmation",
        )
        .because(format!("the question would be: {question}"))
        .into());
    }
    let mut stderr = io::stderr();
    let _ = write!(
        stderr,
        "{} {} ",
        plain::text(question),
        messages::QUESTION_SUFFIX
    );
    let _ = stderr.flush();
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Stop::Declined),
    }
}
