//! Messages about API tokens.

use crate::table::moment;
use fleetward_api::controller::{ApiTokenMade, ApiTokenView};
use std::fmt::Display;
use std::path::Path;

/// Where a console's certificate is of no authority that this machine believes.
pub(crate) const WHOM_TO_BELIEVE: &str = "name the certificate to believe with --ca FILE; one that the controller made itself is in console-ca.pem, beside the token";

const NO_CONSOLE: &str = "It is good nowhere yet: start the controller with --console ADDR:PORT";

/// Where an API token is good, and how it is used.
pub(crate) fn token_made(made: &ApiTokenMade) -> String {
    let until = moment(made.view.expires);
    match &made.console {
        Some(console) => format!(
            "this is shown once: keep it in a file that only you can read\n\
             it is good until {until} at {}; --token-file names that file",
            console.url
        ),
        None => format!("this is shown once, and good until {until}. {NO_CONSOLE}"),
    }
}

/// The same of one whose text is in `file`. `controller` is where it is good, `authority` whom to believe.
pub(crate) fn token_kept(
    token: &ApiTokenView,
    file: &Path,
    controller: Option<&str>,
    authority: Option<&Path>,
) -> String {
    let (name, file, until) = (&token.name, file.display(), moment(token.expires));
    let Some(controller) = controller else {
        return format!("{file} has the API token {name}, until {until}. {NO_CONSOLE}");
    };
    let mut text = format!(
        "{name} can use the controller until {until} with:\n\
         export FLEETWARD_CONTROLLER={controller}\n\
         export FLEETWARD_TOKEN_FILE={file}"
    );
    if let Some(authority) = authority {
        text.push_str(&format!("\nexport FLEETWARD_CA={}", authority.display()));
    }
    text
}

pub(crate) fn confirm_revoke_token(name: &impl Display) -> String {
    format!("Revoke API token {name}? Whoever uses it loses their connections")
}

pub(crate) fn token_revoked(name: &impl Display) -> String {
    format!("{name}: API token revoked")
}
