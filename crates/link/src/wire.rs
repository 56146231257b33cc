//! A TCP connection that can be ended from outside, whoever has it at the moment: TLS, HTTP, a WebSocket.

use crate::refused::Admitted;
use crate::visit::Visit;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A TCP connection that can be cut.
pub(crate) struct Wire {
    tcp: TcpStream,
    cut: Option<Cut>,
}

/// What cuts a connection. Reading and writing wait for it each by itself, because two tasks may do them.
struct Cut {
    read: Pin<Box<WaitForCancellationFutureOwned>>,
    write: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Who cuts knows of the connection for as long as this lives.
    _known: Known,
}

enum Known {
    /// To the list of certificates that are refused.
    Certificate { _admitted: Admitted },
    /// To those who made requests over it.
    Visit { _visit: Visit },
}

impl Cut {
    fn by(cut: CancellationToken, known: Known) -> Self {
        Self {
            read: Box::pin(cut.clone().cancelled_owned()),
            write: Box::pin(cut.cancelled_owned()),
            _known: known,
        }
    }
}

impl Wire {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self { tcp, cut: None }
    }

    /// From now on the connection ends when the certificate is refused.
    pub(crate) fn bind(&mut self, admitted: Admitted) {
        let cut = admitted.cut().clone();
        self.cut = Some(Cut::by(
            cut,
            Known::Certificate {
                _admitted: admitted,
            },
        ));
    }

    /// From now on the connection ends when one of those who made requests over it is not welcome any more.
    pub(crate) fn end_with(&mut self, visit: Visit) {
        let cut = visit.cut().clone();
        self.cut = Some(Cut::by(cut, Known::Visit { _visit: visit }));
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tcp.fmt(f)
    }
}

fn was_cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "what the other side came in with was revoked",
    )
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(cut) = &mut self.cut
            && cut.read.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(cut) = &mut self.cut
            && cut.write.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(cut) = &mut self.cut
            && cut.write.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.tcp).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
