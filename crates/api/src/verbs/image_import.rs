use crate::controller::{ImageView, ImportQuery};
use crate::verbs::verb;

verb! {
    /// The body is the file.
    ImageImport = put "/v1/images/{image}" ("image"),
    operation: "image_import" in "images",
    access: Operator,
    request: upload(ImportQuery),
    answer: json(ImageView) { 200 },
}
