use crate::controller::TemplateView;
use crate::verbs::verb;

verb! {
    /// The templates of the library.
    TemplateList = get "/v1/templates" (),
    operation: "template_list" in "copies",
    access: Viewer,
    request: none,
    answer: list(TemplateView) { 200 },
}
