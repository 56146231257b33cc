use crate::controller::ImageView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// The images of the library.
    ImageList = get "/v1/images" (),
    operation: "image_list" in "images",
    access: Viewer in Open,
    request: query(LibraryQuery),
    answer: pages(ImageView) { 200 },
}
