use crate::verbs::verb;

verb! {
    /// VMs made from it keep their disks.
    TemplateDelete = delete "/v1/templates/{template}" ("template"),
    operation: "template_delete" in "copies",
    access: Operator,
    request: none,
    answer: nothing { 204 },
}
