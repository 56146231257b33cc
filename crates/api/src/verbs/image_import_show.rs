use crate::controller::ImportView;
use crate::verbs::verb;

verb! {
    /// How far the import of an image is, while it is under way.
    ImageImportShow = get "/v1/images/{image}/import" ("image"),
    operation: "image_import_show" in "images",
    access: Viewer,
    request: none,
    answer: json(ImportView) { 200 },
}
