use crate::controller::{AcceptedWithWarnings, TemplateRequest};
use crate::verbs::verb;

verb! {
    /// Makes a template of a VM, its TPM on or off; nothing of the TPM goes into it.
    TemplateCreate = post "/v1/templates" (),
    operation: "template_create" in "copies",
    access: Operator,
    request: json(TemplateRequest),
    answer: json(AcceptedWithWarnings) { 202, 200 = "a dry run" },
}
