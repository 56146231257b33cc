//! Connects to a member of the fleet: TCP, then TLS, within one deadline.

use crate::identity::Identity;
use crate::patience::within;
use crate::read_ahead::{ReadAhead, Window};
use crate::tls::{self, ALPN_TUNNEL, ClientTls, Moments, OutOfTime, PeerError};
use crate::wire::Wire;
use nix::sys::socket::{setsockopt, sockopt};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

/// Default time limit for a connection, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a verified member.
pub(crate) type MemberStream = TlsStream<ReadAhead<Wire>>;

/// A peer that has lost power sends no notice. These values bound the time until that is detected: 10 s, whether data is
/// in transit or not. A command ends within 30 s of a host's death, and the job needs the rest of that time.
const KEEPALIVE_IDLE_SECONDS: u32 = 4;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 2;
const KEEPALIVE_PROBES: u32 = 3;
const UNACKNOWLEDGED_MILLISECONDS: u32 = 10_000;

/// Connects to `address` (`host:port`) and verifies that it is who `tls` expects.
pub(crate) async fn dial(
    address: &str,
    tls: &ClientTls,
    protocol: &[u8],
    timeout: Duration,
) -> Result<MemberStream, DialError> {
    let attempt = async {
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|error| DialError::from_connect(address, error))?;
        prepare(&tcp).map_err(|error| DialError::from_connect(address, error))?;
        let config = tls
            .config(protocol)
            .map_err(|error| DialError::from_tls(address, &error))?;
        let stream = TlsConnector::from(config)
            .connect(tls.server_name(), unread(tcp))
            .await
            .map_err(|error| DialError::from_handshake(address, error))?;
        let mut stream = TlsStream::from(stream);
        widen(&mut stream);
        tls.admit(&mut stream)
            .map_err(|error| DialError::from_tls(address, &error.into()))?;
        Ok(stream)
    };
    match within(timeout, attempt).await {
        Some(result) => result,
        None => Err(DialError::Timeout {
            address: address.to_owned(),
            after: timeout,
        }),
    }
}

/// Sets the socket options of every connection between members, on both sides.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    setsockopt(tcp, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MILLISECONDS)?;
    Ok(())
}

/// A connection before its handshake.
pub(crate) fn unread(tcp: TcpStream) -> ReadAhead<Wire> {
    ReadAhead::new(Wire::new(tcp))
}

/// Lets a connection read as much at once as the protocol needs that the handshake agreed on.
pub(crate) fn widen(stream: &mut MemberStream) {
    let (wire, tls) = stream.get_mut();
    if tls.alpn_protocol() == Some(ALPN_TUNNEL) {
        wire.set_window(Window::Tunnel);
    }
}

/// Why the connection failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// No process listens at the address.
    #[error("{address} refuses connections")]
    Refused {
        /// Where, an address or a socket path.
        address: String,
    },
    /// There is no route, or the name does not resolve.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        source: Arc<io::Error>,
    },
    /// No answer in time.
    #[error("{address} did not answer within {} s", .after.as_secs_f32())]
    Timeout {
        /// Where.
        address: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The peer is another member of the fleet than expected.
    #[error("{address} is {found}, not {expected}")]
    IdentityMismatch {
        /// Where.
        address: String,
        /// Who was called.
        expected: Box<Identity>,
        /// Who answered.
        found: Box<Identity>,
    },
    /// One side refused the other's certificate.
    #[error("{address} and we do not trust each other: {reason}")]
    TlsRefused {
        /// Where.
        address: String,
        /// Which of the checks failed.
        reason: String,
    },
    /// The certificate of the other side is of the fleet, and its time is over.
    #[error("the certificate of {address} has ended: at {ended}, and the clock here says {clock}")]
    CertificateEnded {
        /// Where.
        address: String,
        /// When.
        ended: OffsetDateTime,
        /// This machine's time.
        clock: OffsetDateTime,
    },
    /// The certificate of the other side is of the fleet, and its time has not come.
    #[error("the certificate of {address} begins at {begins}, and the clock here says {clock}")]
    CertificateNotYet {
        /// Where.
        address: String,
        /// When.
        begins: OffsetDateTime,
        /// This machine's time.
        clock: OffsetDateTime,
    },
    /// The other side says that our certificate is out of its time.
    #[error(
        "{address} takes our certificate for out of its time; the clock here says {clock}, and the one there is not told"
    )]
    OutOfTimeThere {
        /// Where.
        address: String,
        /// This machine's time.
        clock: OffsetDateTime,
    },
    /// The certificate of the other side is of the fleet, and is refused before its end.
    #[error("{address}: {reason}")]
    CertificateRefused {
        /// Where.
        address: String,
        /// Whose, and why.
        reason: String,
    },
    /// The connection broke during the handshake.
    #[error("the connection to {address} broke during the handshake")]
    Broken {
        /// Where.
        address: String,
        /// Why.
        source: Arc<io::Error>,
    },
}

impl DialError {
    pub(crate) fn from_connect(address: &str, error: io::Error) -> Self {
        let address = address.to_owned();
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Self::Refused { address },
            _ => Self::Unreachable {
                address,
                source: Arc::new(error),
            },
        }
    }

    pub(crate) fn from_tls(address: &str, error: &rustls::Error) -> Self {
        let address = address.to_owned();
        match tls::peer_error(error) {
            Some(PeerError::Mismatch { expected, found }) => Self::IdentityMismatch {
                address,
                expected: Box::new(expected.clone()),
                found: Box::new(found.clone()),
            },
            Some(refused @ PeerError::Refused { .. }) => Self::CertificateRefused {
                address,
                reason: refused.to_string(),
            },
            Some(other) => Self::TlsRefused {
                address,
                reason: other.to_string(),
            },
            None => match tls::out_of_time(error) {
                Some(OutOfTime::Ended(Moments { named, clock })) => Self::CertificateEnded {
                    address,
                    ended: named,
                    clock,
                },
                Some(OutOfTime::NotYet(Moments { named, clock })) => Self::CertificateNotYet {
                    address,
                    begins: named,
                    clock,
                },
                None if takes_ours_for_out_of_time(error) => Self::OutOfTimeThere {
                    address,
                    clock: OffsetDateTime::now_utc(),
                },
                None => Self::TlsRefused {
                    address,
                    reason: error.to_string(),
                },
            },
        }
    }

    fn from_handshake(address: &str, error: io::Error) -> Self {
        match tls_error_in(&error) {
            Some(tls) => Self::from_tls(address, tls),
            None => Self::Broken {
                address: address.to_owned(),
                source: Arc::new(error),
            },
        }
    }
}

/// Also for one whose time has not come.
///
/// Source: RFC 8446, section 6.2, `certificate_expired`.
fn takes_ours_for_out_of_time(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired)
    )
}

/// Replaces the message of rustls for a connection that the other side closed: it contains a link to the rustls
/// manual, and would appear in the reason why a job waits.
pub(crate) fn in_words(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof && tls_error_in(&error).is_none() {
        return io::Error::new(io::ErrorKind::UnexpectedEof, BROKEN_OFF);
    }
    error
}

/// Message for an end without TLS's close_notify, which happens when the peer dies.
const BROKEN_OFF: &str =
    "the other side broke off without a word, as a process or machine that died does";

/// The TLS error at the bottom of an error, if there is one.
///
/// With TLS 1.3 the client completes its handshake before the server has checked the client's certificate, so a
/// refusal arrives as an error of the first read or write.
pub(crate) fn tls_error_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An I/O error hides what it wraps from the chain of sources.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_broke_off_is_told_without_a_link() {
        let raw = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls";
        let told = in_words(io::Error::new(io::ErrorKind::UnexpectedEof, raw));
        assert_eq!(told.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(told.to_string(), BROKEN_OFF);
    }

    #[test]
    fn an_alert_and_a_reset_stay_what_they_are() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::BadCertificate);
        let told = in_words(io::Error::new(io::ErrorKind::UnexpectedEof, alert));
        assert!(tls_error_in(&told).is_some());
        let told = in_words(io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(told.kind(), io::ErrorKind::ConnectionReset);
    }
}
