use crate::controller::UserView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// The users, by name.
    UserList = get "/v1/users" (),
    operation: "users" in "fleet",
    access: Admin,
    request: query(LibraryQuery),
    answer: pages(UserView) { 200 },
}
