use crate::verbs::verb;

verb! {
    /// This description of the API.
    ApiDescription = get "/v1/openapi.json" (),
    operation: "openapi" in "openapi",
    access: Viewer in Open,
    request: none,
    answer: document { 200 = "This description." },
}
