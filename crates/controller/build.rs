//! Has the controller built anew when the console was: its files are in the program. Without Node there are none.

use std::path::Path;

#[expect(
    clippy::disallowed_methods,
    reason = "an empty directory among sources, of which nothing can be lost"
)]
fn main() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../console/dist");
    println!("cargo:rerun-if-changed={}", files.display());
    if let Err(error) = std::fs::create_dir_all(&files) {
        println!("cargo:warning=no directory for the console: {error}");
    }
}
