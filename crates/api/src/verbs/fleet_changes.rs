use crate::controller::ChangesView;
use crate::verbs::verb;

verb! {
    /// What changes from now on: which VMs and hosts are to be read anew. At first everything.
    FleetChanges = get "/v1/changes" (),
    operation: "changes" in "fleet",
    access: Viewer in Rows,
    request: none,
    answer: lines(ChangesView) { 200 },
}
