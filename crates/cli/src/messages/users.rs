//! Messages about users.

use fleetward_api::controller::UserView;
use fleetward_model::{GroupName, UserName};

pub(crate) fn ask_password(user: &UserName) -> String {
    format!("Password for {user}: ")
}

pub(crate) fn ask_password_again() -> String {
    "The same again: ".to_owned()
}

/// `operator in desktops, lab`.
fn rights(user: &UserView) -> String {
    let place = match &user.groups {
        None => "the whole fleet".to_owned(),
        Some(groups) => {
            let names: Vec<_> = groups.iter().map(GroupName::as_str).collect();
            names.join(", ")
        }
    };
    format!("{} in {place}", user.role)
}

pub(crate) fn user_added(user: &UserView) -> String {
    format!("{}: user added, {}", user.name, rights(user))
}

pub(crate) fn user_changed(user: &UserView) -> String {
    format!(
        "{}: user changed, {}; all former sessions are over",
        user.name,
        rights(user)
    )
}

pub(crate) fn confirm_remove_user(name: &UserName) -> String {
    format!("Remove user {name}? All sessions of the user end")
}

pub(crate) fn user_removed(name: &UserName) -> String {
    format!("{name}: user removed")
}
