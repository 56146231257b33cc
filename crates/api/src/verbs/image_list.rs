use crate::controller::ImageView;
use crate::verbs::verb;

verb! {
    /// The images of the library.
    ImageList = get "/v1/images" (),
    operation: "image_list" in "images",
    access: Viewer,
    request: none,
    answer: list(ImageView) { 200 },
}
