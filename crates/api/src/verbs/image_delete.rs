use crate::verbs::verb;

verb! {
    /// Deletes an image that no VM uses.
    ImageDelete = delete "/v1/images/{image}" ("image"),
    operation: "image_delete" in "images",
    access: Operator,
    request: none,
    answer: nothing { 204 },
}
