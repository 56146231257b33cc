use crate::controller::SessionView;
use crate::verbs::verb;

verb! {
    /// Who makes this request, and until when it is known.
    SessionShow = get "/v1/session" (),
    operation: "session" in "fleet",
    access: Viewer in Open,
    request: none,
    answer: json(SessionView) { 200 },
}
