use crate::controller::{UserRequest, UserView};
use crate::verbs::verb;

verb! {
    /// Makes a user: a person who logs in with a password.
    UserAdd = post "/v1/users" (),
    operation: "user_add" in "fleet",
    access: Admin,
    request: json(UserRequest),
    answer: json(UserView) { 200 },
}
