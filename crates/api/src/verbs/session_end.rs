use crate::verbs::verb;

verb! {
    /// Logs out: ends all sessions of whoever makes the request.
    SessionEnd = delete "/v1/session" (),
    operation: "session_end" in "fleet",
    access: Viewer in Open,
    request: none,
    answer: nothing { 204 },
}
