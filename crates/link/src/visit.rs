//! A connection whose other side has shown no certificate, as the code behind the router sees it.
//!
//! It begins as a stranger's, with little time. A request that says who makes it, and is believed, changes that.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::{CancellationToken, DropGuard};

/// In the extensions of every request over such a connection. Clones are of the same connection.
#[derive(Debug, Clone)]
pub struct Visit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    welcome: CancellationToken,
    cut: CancellationToken,
    /// By what the connection may be cut.
    ends: Mutex<BTreeSet<String>>,
    /// Ends what waits for those, with the connection.
    over: CancellationToken,
    _over: DropGuard,
}

impl Visit {
    pub(crate) fn new() -> Self {
        let over = CancellationToken::new();
        Self(Arc::new(Shared {
            welcome: CancellationToken::new(),
            cut: CancellationToken::new(),
            ends: Mutex::default(),
            _over: over.clone().drop_guard(),
            over,
        }))
    }

    /// Somebody who is known makes a request here: the connection is not a stranger's any more. It is cut, with all that
    /// still goes on over it, when `end` is over; `name` is what that end belongs to, and is waited for once.
    pub fn welcome(&self, name: &str, end: impl Future<Output = ()> + Send + 'static) {
        let mut ends = self.0.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if !ends.insert(name.to_owned()) {
            return;
        }
        drop(ends);
        let (cut, over) = (self.0.cut.clone(), self.0.over.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = over.cancelled() => {}
                () = end => cut.cancel(),
            }
        });
        self.0.welcome.cancel();
    }

    pub(crate) async fn welcomed(&self) {
        self.0.welcome.cancelled().await;
    }

    pub(crate) fn cut(&self) -> &CancellationToken {
        &self.0.cut
    }
}
