//! Copies bytes in both directions between two streams, and counts them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Memory and disks of VMs go through here: few large copies rather than many small ones.
const BUFFER: usize = 256 * 1024;

/// How many bytes have been carried. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Directions>);

#[derive(Debug, Default)]
struct Directions {
    forth: AtomicU64,
    back: AtomicU64,
}

impl Traffic {
    /// Bytes from the first stream to the second (for a relay: into the tunnel).
    pub fn forth(&self) -> u64 {
        self.0.forth.load(Ordering::Relaxed)
    }

    /// Bytes from the second stream to the first.
    pub fn back(&self) -> u64 {
        self.0.back.load(Ordering::Relaxed)
    }

    /// Bytes in both directions.
    pub fn total(&self) -> u64 {
        self.forth() + self.back()
    }
}

/// Carries bytes until both directions have ended, passing each end on as soon as it comes.
///
/// The first error ends both directions and drops both streams without a clean end. Dropping the future does
/// the same, which is how a pump is aborted.
pub async fn pump<A, B>(first: A, second: B, traffic: &Traffic) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut first = Counted {
        stream: first,
        read: &traffic.0.forth,
    };
    let mut second = Counted {
        stream: second,
        read: &traffic.0.back,
    };
    tokio::io::copy_bidirectional_with_sizes(&mut first, &mut second, BUFFER, BUFFER)
        .await
        .map(|_| ())
        .map_err(crate::dial::in_words)
}

struct Counted<'a, S> {
    stream: S,
    read: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read
            .fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
