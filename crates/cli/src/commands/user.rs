//! `fleetward user ...`: people who log in with a password.

use super::{Context, some_groups};
use crate::args::UserCommand;
use crate::confirm::confirm;
use crate::controller::causes;
use crate::exit::{Exit, Stop};
use crate::{messages, table};
use fleetward_api::controller::{MAX_PASSWORD, Password, UserChange, UserRequest, UserView};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::{UserAdd, UserList, UserRemove, UserSet};
use fleetward_model::{ErrorCode, Failure, UserName};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use zeroize::Zeroizing;

pub(super) async fn run(context: &Context, command: UserCommand) -> Result<Exit, Stop> {
    match command {
        UserCommand::Add {
            name,
            role,
            groups,
            password_file,
        } => {
            let password = match password_file {
                Some(file) => read_password(&file)?,
                None => ask_twice(&name)?,
            };
            let request = UserRequest {
                name,
                role,
                groups: some_groups(groups),
                password,
            };
            let added = context.controller.call::<UserAdd>([], &request).await?;
            context
                .output
                .success(&added, || messages::user_added(&added))?;
        }
        UserCommand::List { rows } => {
            let query = LibraryQuery {
                after: rows.after,
                ..LibraryQuery::default()
            };
            let all: Vec<UserView> = context
                .controller
                .list::<UserList, _>(query, rows.limit)
                .await?;
            context.output.document(&all, || table::users(&all))?;
        }
        UserCommand::Set {
            name,
            role,
            groups,
            whole_fleet,
            new_password,
            password_file,
        } => {
            let password = match (password_file, new_password) {
                (Some(file), _) => Some(read_password(&file)?),
                (None, true) => Some(ask_twice(&name)?),
                (None, false) => None,
            };
            let groups = match (some_groups(groups), whole_fleet) {
                (None, false) => None,
                (groups, _) => Some(groups),
            };
            let change = UserChange {
                role,
                groups,
                password,
            };
            let changed = context
                .controller
                .call::<UserSet>([name.as_str()], &change)
                .await?;
            context
                .output
                .success(&changed, || messages::user_changed(&changed))?;
        }
        UserCommand::Remove { name } => {
            confirm(context.yes, &messages::confirm_remove_user(&name))?;
            let removed = context
                .controller
                .call::<UserRemove>([name.as_str()], &())
                .await?;
            context
                .output
                .success(&removed, || messages::user_removed(&name))?;
        }
    }
    Ok(Exit::Done)
}

/// The first line of a file, without its end.
fn read_password(file: &Path) -> Result<Password, Failure> {
    // Twice as much as is taken, so that what is too long is refused for that.
    let most = 2 * MAX_PASSWORD;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most));
    let read = match file == Path::new("-") {
        true => io::stdin().take(most as u64).read_to_end(&mut bytes),
        false => File::open(file).and_then(|file| file.take(most as u64).read_to_end(&mut bytes)),
    };
    let unusable = |because: String| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("there is no password in {}", file.display()),
        )
        .because(because)
        .fix("name a file whose first line is the password")
    };
    read.map_err(|error| unusable(causes(&error)))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| unusable("it is not UTF-8".into()))?;
    match text.lines().next() {
        None | Some("") => Err(unusable("its first line is empty".into())),
        Some(line) => Ok(Password::from(line.to_owned())),
    }
}

/// From the terminal, which does not show it.
fn ask_twice(user: &UserName) -> Result<Password, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            "there is nobody to ask for the password",
        )
        .because("standard input is no terminal")
        .fix("--password-file FILE, or --password-file - for standard input"));
    }
    let ask = |prompt: String| {
        rpassword::prompt_password(prompt)
            .map(Zeroizing::new)
            .map_err(|error| {
                Failure::new(ErrorCode::InvalidArgument, "cannot ask for the password")
                    .because(causes(&error))
                    .fix("--password-file FILE")
            })
    };
    let first = ask(messages::ask_password(user))?;
    let second = ask(messages::ask_password_again())?;
    if *first != *second {
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            "the two passwords are not the same",
        )
        .fix("give the command again"));
    }
    Ok(Password::from(first.to_string()))
}
