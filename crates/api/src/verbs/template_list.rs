use crate::controller::TemplateView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// The templates of the library.
    TemplateList = get "/v1/templates" (),
    operation: "template_list" in "copies",
    access: Viewer in Open,
    request: query(LibraryQuery),
    answer: pages(TemplateView) { 200 },
}
