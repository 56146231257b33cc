//! Opening tunnels to other members of the fleet.

use super::{Answer, Tunnel, TunnelError, TunnelHeader, read_frame, write_frame};
use crate::dial::{self, DialError, MemberStream};
use crate::identity::Identity;
use crate::live::LiveCredential;
use crate::refused::Refusals;
use crate::tls::{ALPN_TUNNEL, ClientTls};
use crate::trust::FleetTrust;
use std::io;
use std::time::Duration;

/// Opens tunnels in the name of one member. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TunnelDialer {
    credential: LiveCredential,
    trust: FleetTrust,
    refusals: Refusals,
    timeout: Duration,
}

impl TunnelDialer {
    /// A dialer that shows `credential`.
    pub fn new(credential: LiveCredential, trust: FleetTrust) -> Self {
        Self {
            credential,
            trust,
            refusals: Refusals::default(),
            timeout: dial::CONNECT_TIMEOUT,
        }
    }

    /// Also refuses peers whose certificates are on this list.
    pub fn with_refusals(mut self, refusals: Refusals) -> Self {
        self.refusals = refusals;
        self
    }

    /// Sets the time for reaching the peer, and again for its answer.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens a tunnel to `expected` at `address` (`host:port`).
    pub async fn dial(
        &self,
        address: &str,
        expected: &Identity,
        header: &TunnelHeader,
    ) -> Result<Tunnel, TunnelError> {
        let tls = ClientTls::member(
            self.credential.clone(),
            self.trust.clone(),
            expected.clone(),
        )
        .with_refusals(self.refusals.clone());
        let mut stream = dial::dial(address, &tls, ALPN_TUNNEL, self.timeout).await?;
        let answer = tokio::time::timeout(self.timeout, ask(&mut stream, header))
            .await
            .map_err(|_| TunnelError::NoAnswer)?;
        match answer {
            Ok(Answer::Accepted) => Ok(Tunnel {
                stream,
                peer: expected.clone(),
            }),
            Ok(Answer::Refused { code, message }) => Err(TunnelError::Refused { code, message }),
            Err(error) => Err(match dial::tls_error_in(&error) {
                Some(tls) => DialError::from_tls(address, tls).into(),
                None => TunnelError::Stream(dial::in_words(error)),
            }),
        }
    }
}

async fn ask(stream: &mut MemberStream, header: &TunnelHeader) -> io::Result<Answer> {
    let sent = write_frame(stream, header).await;
    // A peer that refuses our certificate has closed by now; its reason is still to be read.
    match (read_frame(stream).await, sent) {
        (Ok(answer), _) => Ok(answer),
        (Err(error), Ok(())) => Err(error),
        (Err(read), Err(_)) if dial::tls_error_in(&read).is_some() => Err(read),
        (Err(_), Err(sent)) => Err(sent),
    }
}
