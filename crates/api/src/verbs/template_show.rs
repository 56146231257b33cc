use crate::controller::TemplateView;
use crate::verbs::verb;

verb! {
    /// One template.
    TemplateShow = get "/v1/templates/{template}" ("template"),
    operation: "template_show" in "copies",
    access: Viewer in Open,
    request: none,
    answer: json(TemplateView) { 200 },
}
