use crate::controller::{UserChange, UserView};
use crate::verbs::verb;

verb! {
    /// Gives a user another role or password, and ends all sessions of the user.
    UserSet = patch "/v1/users/{user}" ("user"),
    operation: "user_set" in "fleet",
    access: Admin,
    request: json(UserChange),
    answer: json(UserView) { 200 },
}
