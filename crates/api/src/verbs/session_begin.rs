use crate::controller::{Login, SessionView};
use crate::verbs::verb;

verb! {
    /// Logs in. The session is in a cookie that no script reads; it ends 12 hours later, or after 30 minutes without a request.
    SessionBegin = post "/v1/session" (),
    operation: "session_begin" in "fleet",
    access: Password,
    request: json(Login),
    answer: json(SessionView) { 200 },
}
