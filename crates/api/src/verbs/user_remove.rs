use crate::controller::UserView;
use crate::verbs::verb;

verb! {
    /// Removes a user, and ends all sessions of the user.
    UserRemove = delete "/v1/users/{user}" ("user"),
    operation: "user_remove" in "fleet",
    access: Admin,
    request: none,
    answer: json(UserView) { 200 = "the user as it was" },
}
