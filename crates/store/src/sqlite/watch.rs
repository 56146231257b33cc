//! Watches: read from the file until they have caught up, then from their queue, and from the file again if they are too
//! slow.
//!
//! ```text
//!   behind ── all of the file seen ──► live ── queue full ──► behind
//!      └── history gone ──► ended          └── store closed ──► ended
//! ```
//!
//! The queue begins before the first read of the file, and revisions below `next` are dropped, so every change
//! is reported exactly once.

use super::live::{Ended, Queue};
use super::reader::Readers;
use crate::{Change, Revision, StoreError, Watch};
use futures_util::{StreamExt, stream};
use std::collections::VecDeque;
use std::sync::Arc;

enum State {
    Behind,
    Live,
    Ended,
}

struct Follower {
    prefix: String,
    /// The first revision not yet seen.
    next: Revision,
    state: State,
    ready: VecDeque<Change>,
    live: Queue,
    readers: Arc<Readers>,
}

pub(super) fn follow(prefix: String, from: Revision, live: Queue, readers: Arc<Readers>) -> Watch {
    // revision 0 has no change: "from the very beginning" starts with 1
    let next = from.max(Revision::ZERO.next());
    let follower = Follower {
        prefix,
        next,
        state: State::Behind,
        ready: VecDeque::new(),
        live,
        readers,
    };
    stream::unfold(follower, |mut follower| async move {
        let item = follower.next_change().await?;
        Some((item, follower))
    })
    .boxed()
}

impl Follower {
    async fn next_change(&mut self) -> Option<Result<Change, StoreError>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            match self.state {
                State::Behind => match self.readers.changes(self.prefix.clone(), self.next).await {
                    Ok(caught) => {
                        self.ready.extend(caught.changes);
                        self.next = caught.next;
                        if caught.complete {
                            self.state = State::Live;
                        }
                    }
                    Err(error) => return self.end(error),
                },
                State::Live => match self.live.next().await {
                    Ok(change) => self.take(change),
                    Err(Ended::Lagged) => {
                        self.live.restart();
                        self.state = State::Behind;
                    }
                    Err(Ended::Closed) => return self.end(StoreError::Closed),
                },
                State::Ended => return None,
            }
        }
    }

    /// Passes over what was read from the file before.
    fn take(&mut self, change: Change) {
        if change.revision >= self.next {
            self.next = change.revision.next();
            self.ready.push_back(change);
        }
    }

    fn end(&mut self, error: StoreError) -> Option<Result<Change, StoreError>> {
        self.state = State::Ended;
        Some(Err(error))
    }
}
