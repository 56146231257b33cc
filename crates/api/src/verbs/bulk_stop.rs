use crate::verbs::verb;

verb! {
    /// Begins nothing more of a bulk request, and follows its jobs no longer. The jobs go on; its answer says which.
    BulkStop = post "/v1/bulk/{bulk}/stop" ("bulk" = "of its first line"),
    operation: "bulk_stop" in "vms",
    access: Operator in Open,
    request: none,
    answer: nothing { 204 },
}
