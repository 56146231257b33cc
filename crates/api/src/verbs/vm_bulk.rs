use crate::bulk::{BulkEvent, BulkRequest};
use crate::verbs::verb;

verb! {
    /// Asks the same of several VMs: each gets a job of its own, and a line as it ends. Needs the role operator, unless it is
    /// a dry run, which changes nothing.
    VmBulk = post "/v1/bulk" (),
    operation: "vm_bulk" in "vms",
    access: Viewer in Rows,
    request: json(BulkRequest),
    answer: lines(BulkEvent) { 200 },
}
