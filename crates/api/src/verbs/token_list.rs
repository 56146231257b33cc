use crate::controller::ApiTokenView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// API tokens, those included whose time is over; never their secrets.
    TokenList = get "/v1/tokens" (),
    operation: "token_list" in "fleet",
    access: Admin,
    request: query(LibraryQuery),
    answer: pages(ApiTokenView) { 200 },
}
