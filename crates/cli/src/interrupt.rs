//! Ctrl-C while waiting: one cancellation token for all waits.

use tokio_util::sync::CancellationToken;

/// Takes Ctrl-C over from now on. Before the first call it ends the program, as usual.
pub(crate) fn on_ctrl_c() -> CancellationToken {
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            cancel.cancel();
        }
    });
    token
}
