//! `fleetward token ...`: API tokens, by which programs come in.

use super::{Context, some_groups};
use crate::args::TokenCommand;
use crate::confirm::confirm;
use crate::controller::causes;
use crate::exit::{Exit, Stop, say};
use crate::{messages, table};
use fleetward_api::controller::{ApiTokenMade, ApiTokenRequest, ApiTokenView};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::{TokenCreate, TokenList, TokenRevoke};
use fleetward_durable::{self as durable, Access};
use fleetward_model::{ErrorCode, Failure, TokenName};
use serde::Serialize;
use std::error::Error;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

pub(super) async fn run(context: &Context, command: TokenCommand) -> Result<Exit, Stop> {
    match command {
        TokenCommand::Create {
            name,
            role,
            groups,
            ttl,
            out,
        } => {
            let request = ApiTokenRequest {
                name,
                role,
                groups: some_groups(groups),
                ttl_seconds: seconds(ttl)?,
            };
            create(context, request, out.as_deref()).await
        }
        TokenCommand::List { rows } => {
            let query = LibraryQuery {
                after: rows.after,
                ..LibraryQuery::default()
            };
            let all: Vec<ApiTokenView> = context
                .controller
                .list::<TokenList, _>(query, rows.limit)
                .await?;
            context.output.document(&all, || table::api_tokens(&all))?;
            Ok(Exit::Done)
        }
        TokenCommand::Revoke { name } => {
            confirm(context.yes, &messages::confirm_revoke_token(&name))?;
            let revoked = context
                .controller
                .call::<TokenRevoke>([name.as_str()], &())
                .await?;
            context
                .output
                .success(&revoked, || messages::token_revoked(&name))?;
            Ok(Exit::Done)
        }
    }
}

fn seconds(ttl: Duration) -> Result<u32, Failure> {
    u32::try_from(ttl.as_secs()).map_err(|_| {
        Failure::new(
            ErrorCode::InvalidArgument,
            "an API token is not good for that long",
        )
        .fix("--ttl 366d or less")
    })
}

async fn create(
    context: &Context,
    request: ApiTokenRequest,
    out: Option<&Path>,
) -> Result<Exit, Stop> {
    // Before the token is made, so that none is made in vain.
    if let Some(directory) = out {
        durable::ensure_directory(directory, 0o755)
            .map_err(|error| unwritable(directory, &error))?;
        let file = token_file(directory, &request.name);
        if file.exists() {
            let what = format!("{} exists already", file.display());
            return Err(Failure::new(ErrorCode::NameTaken, what)
                .fix("choose another name or --out DIR")
                .into());
        }
    }
    let made = context.controller.call::<TokenCreate>([], &request).await?;
    match out {
        Some(directory) => keep(context, &made, directory)?,
        None => {
            // The token alone goes to stdout, so that a script can pass it on.
            context.output.document(&made, || made.token.clone())?;
            if context.output.is_table() && std::io::stdout().is_terminal() {
                say(&messages::token_made(&made));
            }
        }
    }
    Ok(Exit::Done)
}

/// Writes the token, and whom to believe, into files.
fn keep(context: &Context, made: &ApiTokenMade, directory: &Path) -> Result<(), Stop> {
    let file = token_file(directory, &made.view.name);
    let text = Zeroizing::new(format!("{}\n", made.token));
    durable::replace(&file, text.as_bytes(), Access::PRIVATE)
        .map_err(|error| lost(directory, &made.view.name, &error))?;
    let authority = match &made.console_certificate {
        None => None,
        Some(pem) => {
            let file = directory.join("console-ca.pem");
            durable::replace(&file, pem.as_bytes(), Access::PUBLIC)
                .map_err(|error| lost(directory, &made.view.name, &error))?;
            Some(file)
        }
    };
    let kept = Kept {
        view: &made.view,
        token_file: &file,
        authority: authority.as_deref(),
        controller: made.console.as_ref().map(|console| console.url.as_str()),
    };
    context.output.document(&kept, || {
        messages::token_kept(kept.view, kept.token_file, kept.controller, kept.authority)
    })?;
    Ok(())
}

/// A token whose text is in a file.
#[derive(Debug, Serialize)]
struct Kept<'a> {
    #[serde(flatten)]
    view: &'a ApiTokenView,
    token_file: &'a Path,
    /// Whom to believe; none: whom the system believes.
    authority: Option<&'a Path>,
    /// Where it is good; none: nowhere yet.
    controller: Option<&'a str>,
}

fn token_file(directory: &Path, name: &TokenName) -> PathBuf {
    directory.join(format!("{name}.token"))
}

/// The token is made already, and nobody has its text, or nobody can use it yet.
fn lost(directory: &Path, name: &TokenName, error: &dyn Error) -> Failure {
    Failure::new(
        ErrorCode::InvalidArgument,
        format!(
            "the token {name} was made, and {} cannot be written to",
            directory.display()
        ),
    )
    .because(causes(error))
    .fix(format!("fleetward token revoke {name} --yes"))
}

fn unwritable(directory: &Path, error: &dyn Error) -> Failure {
    Failure::new(
        ErrorCode::InvalidArgument,
        format!("cannot write to {}", directory.display()),
    )
    .because(causes(error))
    .fix("--out DIR, a directory that can be written")
}
