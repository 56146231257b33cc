//! Messages about users.

use fleetward_api::controller::UserView;
use fleetward_model::UserName;

pub(crate) fn ask_password(user: &UserName) -> String {
    format!("Password for {user}: ")
}

pub(crate) fn ask_password_again() -> String {
    "The same again: ".to_owned()
}

pub(crate) fn user_added(user: &UserView) -> String {
    format!("{}: user added, role {}", user.name, user.role)
}

pub(crate) fn user_changed(user: &UserView) -> String {
    format!(
        "{}: user changed, role {}; all former sessions are over",
        user.name, user.role
    )
}

pub(crate) fn confirm_remove_user(name: &UserName) -> String {
    format!("Remove user {name}? All sessions of the user end")
}

pub(crate) fn user_removed(name: &UserName) -> String {
    format!("{name}: user removed")
}
