use crate::controller::{NewPassword, SessionView};
use crate::verbs::verb;

verb! {
    /// Gives whoever has logged in another password, ends all other sessions of theirs, and begins a new one.
    PasswordChange = put "/v1/session/password" (),
    operation: "password_change" in "fleet",
    access: Viewer in Open,
    request: json(NewPassword),
    answer: json(SessionView) { 200 },
}
