//! Reads ahead of TLS, which asks for a few kilobytes at a time: one system call brings many records.
//!
//! ```text
//!   nothing buffered ──read──► buffered ──all handed on──► nothing buffered
//!          └── nothing has arrived: the buffer is given back, so a connection at rest has none
//! ```

use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// How much is read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// Requests and events: the size of a TLS record.
    Api,
    /// Memory and disks of VMs.
    Tunnel,
}

impl Window {
    const fn bytes(self) -> usize {
        match self {
            Self::Api => 16 * 1024,
            Self::Tunnel => 256 * 1024,
        }
    }
}

/// A stream that is read ahead of its reader. Writes go straight through.
#[derive(Debug)]
pub(crate) struct ReadAhead<S> {
    stream: S,
    buffer: BytesMut,
    window: Window,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            window: Window::Api,
        }
    }

    /// How much is read at once from now on.
    pub(crate) fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.buffer.capacity()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream,
            buffer,
            window,
        } = &mut *self;
        if buffer.is_empty() {
            if out.remaining() >= window.bytes() {
                return Pin::new(stream).poll_read(cx, out);
            }
            buffer.reserve(window.bytes());
            let read = poll_read_buf(Pin::new(stream), cx, buffer);
            if read.is_pending() {
                *buffer = BytesMut::new();
            }
            ready!(read)?;
        }
        let some = buffer.len().min(out.remaining());
        out.put_slice(&buffer[..some]);
        buffer.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Reads `whole` in pieces as TLS does, and gives what is held while nothing arrives.
    async fn held_at_rest(window: Window, whole: &[u8]) -> usize {
        let (mut there, here) = tokio::io::duplex(whole.len());
        let mut here = ReadAhead::new(here);
        here.set_window(window);
        there.write_all(whole).await.expect("room for all");
        let mut read = vec![0; whole.len()];
        for piece in read.chunks_mut(4096) {
            here.read_exact(piece).await.expect("what was written");
        }
        assert_eq!(read, whole);
        let mut one = [0];
        assert!(poll!(std::pin::pin!(here.read(&mut one))).is_pending());
        let held = here.held();
        there.write_all(b"x").await.expect("room");
        assert_eq!(here.read(&mut one).await.expect("one"), 1);
        held
    }

    #[tokio::test]
    async fn a_connection_at_rest_holds_no_buffer() {
        let whole: Vec<u8> = (0..1 << 20).map(|n| n as u8).collect();
        for window in [Window::Api, Window::Tunnel] {
            assert_eq!(held_at_rest(window, &whole).await, 0, "{window:?}");
        }
    }

    #[tokio::test]
    async fn an_api_connection_holds_no_more_than_a_record() {
        let (mut there, here) = tokio::io::duplex(1 << 20);
        let mut here = ReadAhead::new(here);
        there.write_all(&[7; 1 << 20]).await.expect("room for all");
        for _ in 0..200 {
            let mut piece = [0; 4096];
            here.read_exact(&mut piece).await.expect("what was written");
            assert!(here.held() <= Window::Api.bytes(), "{}", here.held());
        }
    }

    #[tokio::test]
    async fn the_end_is_passed_on() {
        let (mut there, here) = tokio::io::duplex(64);
        let mut here = ReadAhead::new(here);
        there.write_all(b"last").await.expect("room");
        drop(there);
        let mut all = Vec::new();
        here.read_to_end(&mut all).await.expect("the rest");
        assert_eq!(all, b"last");
    }
}
