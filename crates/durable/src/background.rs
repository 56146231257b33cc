//! The same operations for async code, on threads that may block.

use crate::Access;
use serde::Serialize;
use std::io;
use std::path::Path;

/// As [`crate::replace`].
pub async fn replace(path: &Path, content: Vec<u8>, access: Access) -> io::Result<()> {
    on(path, move |path| crate::replace(path, &content, access)).await
}

/// As [`crate::replace_json`].
pub async fn replace_json(path: &Path, value: &impl Serialize, access: Access) -> io::Result<()> {
    replace(path, serde_json::to_vec(value)?, access).await
}

/// As [`crate::create`].
pub async fn create(path: &Path, content: Vec<u8>, access: Access) -> io::Result<bool> {
    on(path, move |path| crate::create(path, &content, access)).await
}

/// As [`crate::Draft::put`].
pub async fn put(draft: crate::Draft, place: &Path) -> io::Result<()> {
    on(place, move |place| draft.put(place)).await
}

/// As [`crate::remove`].
pub async fn remove(path: &Path) -> io::Result<()> {
    on(path, crate::remove).await
}

/// As [`crate::remove_tree`].
pub async fn remove_tree(path: &Path) -> io::Result<()> {
    on(path, crate::remove_tree).await
}

/// As [`crate::rename`]; a missing file is no error.
pub async fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    let to = to.to_owned();
    on(from, move |from| match crate::rename(from, &to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    })
    .await
}

/// As [`crate::make_directory`].
pub async fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    on(path, move |path| crate::make_directory(path, mode)).await
}

/// As [`crate::sweep`].
pub async fn sweep(directory: &Path) -> io::Result<usize> {
    on(directory, crate::sweep).await
}

async fn on<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || work(&path)).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and has not begun the work.
            Err(_) => Err(io::ErrorKind::Interrupted.into()),
        },
    }
}
