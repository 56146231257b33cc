use crate::controller::RebuildView;
use crate::verbs::verb;

verb! {
    /// Forgets what is remembered of VMs and asks every host anew.
    FleetRebuild = post "/v1/rebuild" (),
    operation: "rebuild" in "fleet",
    access: Admin,
    request: none,
    answer: json(RebuildView) { 200 },
    patience: long,
}
