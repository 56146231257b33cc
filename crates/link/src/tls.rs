//! TLS 1.3 under the fleet's authority: which peers must show a certificate, and which peers are accepted.
//!
//! A peer is identified by the [`Identity`] in its certificate, never by DNS name or address. Sessions are never
//! resumed, so every connection verifies certificates. Versions below TLS 1.3 are not offered.

use crate::dial::MemberStream;
use crate::identity::{FleetIdentity, Identity, IdentityError};
use crate::live::{LiveCredential, LiveWebCertificate};
use crate::refused::{MemberCertificate, Refusals};
use crate::trust::{Fingerprint, FleetTrust, TrustError};
use fleetward_model::certificate::WhyRefused;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use time::OffsetDateTime;

/// The protocol of the HTTP APIs.
pub(crate) const ALPN_HTTP: &[u8] = b"http/1.1";
/// The protocol of byte tunnels.
pub(crate) const ALPN_TUNNEL: &[u8] = b"fleetward-tunnel/1";

/// The cryptography of all connections.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    &PROVIDER
}

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Required; for agents.
    Required,
    /// Optional; for the controller, where a joining host has only its token. A peer without a certificate is
    /// anonymous. A certificate that is shown must be valid.
    Optional,
}

/// TLS configuration of a server.
#[derive(Debug, Clone)]
pub struct ServerTls(Server);

#[derive(Debug, Clone)]
enum Server {
    Fleet(FleetServer),
    Web(LiveWebCertificate),
}

#[derive(Debug, Clone)]
struct FleetServer {
    credential: LiveCredential,
    trust: FleetTrust,
    clients: ClientCertificates,
    refusals: Refusals,
}

impl ServerTls {
    /// A server that presents `credential` and accepts clients of `trust`.
    pub fn new(credential: LiveCredential, trust: FleetTrust, clients: ClientCertificates) -> Self {
        Self(Server::Fleet(FleetServer {
            credential,
            trust,
            clients,
            refusals: Refusals::default(),
        }))
    }

    /// A server that presents an ordinary certificate, and asks for none: every client is anonymous to it.
    pub fn web(certificate: LiveWebCertificate) -> Self {
        Self(Server::Web(certificate))
    }

    /// Also refuses clients whose certificates are on this list, from the moment on at which they are.
    pub fn with_refusals(mut self, refusals: Refusals) -> Self {
        if let Server::Fleet(fleet) = &mut self.0 {
            fleet.refusals = refusals;
        }
        self
    }

    /// The configuration for `protocols`; a client that offers only others is refused.
    pub(crate) fn config(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
        let builder = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = match &self.0 {
            Server::Fleet(fleet) => {
                let FleetServer {
                    trust,
                    clients,
                    refusals,
                    credential,
                } = fleet;
                let verifier = FleetClientVerifier::new(trust, *clients, refusals)?;
                builder
                    .with_client_cert_verifier(Arc::new(verifier))
                    .with_cert_resolver(Arc::new(credential.clone()))
            }
            Server::Web(certificate) => builder
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(certificate.clone())),
        };
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The client of a finished handshake, `None` if it showed no certificate. The connection ends when the certificate is
    /// refused.
    pub(crate) fn client_identity(
        &self,
        stream: &mut MemberStream,
    ) -> Result<Option<Identity>, PeerError> {
        match &self.0 {
            Server::Fleet(fleet) => admit(&fleet.trust, &fleet.refusals, stream),
            Server::Web(_) => Ok(None),
        }
    }
}

/// Whose the certificate of the other side is; the connection ends when it is refused.
fn admit(
    trust: &FleetTrust,
    refusals: &Refusals,
    stream: &mut MemberStream,
) -> Result<Option<Identity>, PeerError> {
    let own = (stream.get_ref().1.peer_certificates()).and_then(<[_]>::first);
    let Some(own) = own else {
        return Ok(None);
    };
    let certificate = member_of(trust, own)?;
    let identity = certificate.identity.identity.clone();
    let why = refusals.judge(&certificate);
    match refusals.admit(certificate) {
        Some(admitted) => stream.get_mut().0.get_mut().bind(admitted),
        None => {
            return Err(PeerError::Refused {
                peer: identity,
                why: why.unwrap_or(WhyRefused::Revoked),
            });
        }
    }
    Ok(Some(identity))
}

/// TLS configuration of a client for one expected server.
#[derive(Debug, Clone)]
pub struct ClientTls(Expected);

#[derive(Debug, Clone)]
enum Expected {
    Member {
        verifier: Arc<ServerVerifier>,
        credential: Option<LiveCredential>,
    },
    /// Whoever has a certificate for this name or address.
    Web {
        name: ServerName<'static>,
        verifier: Arc<dyn ServerCertVerifier>,
    },
}

impl ClientTls {
    /// A member of the fleet that connects only to `expected`.
    pub fn member(credential: LiveCredential, trust: FleetTrust, expected: Identity) -> Self {
        Self(Expected::Member {
            verifier: Arc::new(ServerVerifier {
                anchor: Anchor::Pinned(trust),
                expected,
                refusals: Refusals::default(),
            }),
            credential: Some(credential),
        })
    }

    /// Also refuses a server whose certificate is on this list, from the moment on at which it is.
    pub fn with_refusals(mut self, refusals: Refusals) -> Self {
        if let Expected::Member { verifier, .. } = &mut self.0 {
            let ServerVerifier {
                anchor, expected, ..
            } = &**verifier;
            *verifier = Arc::new(ServerVerifier {
                anchor: anchor.clone(),
                expected: expected.clone(),
                refusals,
            });
        }
        self
    }

    /// A client of a web server: it shows no certificate, and the server's must be for `host`, a DNS name or an address.
    /// Whom it believes: the certificates in `roots` (PEM) alone, or without them the authorities that this machine trusts.
    ///
    /// # Errors
    /// A host that is no name, roots that are no certificates, or a machine that trusts nobody.
    pub fn web(host: &str, roots: Option<&[u8]>) -> Result<Self, Error> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::General(format!("{host:?} is no name of a server")))?;
        let verifier: Arc<dyn ServerCertVerifier> = match roots {
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| {
                        Error::General(format!("the certificates to believe: {error}"))
                    })?;
                    roots.add(certificate)?;
                }
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider().clone())
                    .build()
                    .map_err(|error| Error::General(error.to_string()))?
            }
            None => Arc::new(rustls_platform_verifier::Verifier::new(provider().clone())?),
        };
        Ok(Self(Expected::Web { name, verifier }))
    }

    /// A joining host: it has no certificate, and knows only the authority's fingerprint.
    ///
    /// The server must present the authority's certificate in its chain and be its fleet's controller.
    pub fn join(authority: Fingerprint) -> Self {
        Self(Expected::Member {
            verifier: Arc::new(ServerVerifier {
                anchor: Anchor::Fingerprint(authority),
                expected: Identity::Controller,
                refusals: Refusals::default(),
            }),
            credential: None,
        })
    }

    /// Binds a finished handshake to the server's certificate.
    pub(crate) fn admit(&self, stream: &mut MemberStream) -> Result<(), PeerError> {
        let Expected::Member { verifier, .. } = &self.0 else {
            return Ok(());
        };
        match &verifier.anchor {
            Anchor::Pinned(trust) => admit(trust, &verifier.refusals, stream).map(drop),
            // It knows no list.
            Anchor::Fingerprint(_) => Ok(()),
        }
    }

    /// Under which the server is asked for. Members of a fleet have none, and rustls wants one.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        match &self.0 {
            Expected::Member { .. } => {
                ServerName::try_from("member.fleetward.invalid").expect("a well-formed DNS name")
            }
            Expected::Web { name, .. } => name.clone(),
        }
    }

    pub(crate) fn config(&self, protocol: &[u8]) -> Result<Arc<ClientConfig>, Error> {
        let builder = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            // Not weaker than the standard verifier: the same chain check, another notion of name.
            .dangerous();
        let mut config = match &self.0 {
            Expected::Member {
                verifier,
                credential,
            } => {
                let builder = builder.with_custom_certificate_verifier(verifier.clone());
                match credential {
                    Some(credential) => {
                        builder.with_client_cert_resolver(Arc::new(credential.clone()))
                    }
                    None => builder.with_no_client_auth(),
                }
            }
            Expected::Web { verifier, .. } => builder
                .with_custom_certificate_verifier(verifier.clone())
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        config.enable_sni = matches!(self.0, Expected::Web { .. });
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// Why a peer with a valid certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// A member of the fleet, but not the one that was called.
    #[error("expected {expected}, found {found}")]
    Mismatch {
        /// Who was called.
        expected: Identity,
        /// Who answered.
        found: Identity,
    },
    /// A certificate that is refused before its end.
    #[error("the certificate of {peer} is not good any more: {why}")]
    Refused {
        /// Whose it is.
        peer: Identity,
        /// Why.
        why: WhyRefused,
    },
    /// A certificate that names another fleet than its authority's.
    #[error("the certificate names another fleet")]
    ForeignFleet,
    /// A certificate that names nobody.
    #[error("the certificate names no member of a fleet")]
    Identity(#[from] IdentityError),
    /// The chain lacks the authority that the join token names.
    #[error("the server does not belong to the authority named by the join token")]
    OtherAuthority,
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The peer error inside a TLS error, if that is what it is.
pub(crate) fn peer_error(error: &Error) -> Option<&PeerError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref()
        }
        _ => None,
    }
}

/// Whether the first certificate of a chain is good now, under `trust`.
pub(crate) fn is_issued_by(
    trust: &FleetTrust,
    chain: &[CertificateDer<'_>],
    now: OffsetDateTime,
) -> bool {
    let Some((own, intermediates)) = chain.split_first() else {
        return false;
    };
    let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
    let verified = ParsedCertificate::try_from(own).and_then(|own| {
        verify_server_cert_signed_by_trust_anchor(
            &own,
            trust.roots(),
            intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            provider().signature_verification_algorithms.all,
        )
    });
    verified.is_ok()
}

/// How a certificate is out of time.
pub(crate) enum OutOfTime {
    Ended(Moments),
    NotYet(Moments),
}

/// The moment that a certificate names, and the clock here.
pub(crate) struct Moments {
    pub(crate) named: OffsetDateTime,
    pub(crate) clock: OffsetDateTime,
}

/// Whether we refused the other side's certificate because it is not valid by the clock here.
pub(crate) fn out_of_time(error: &Error) -> Option<OutOfTime> {
    let moments = |named: UnixTime, clock: UnixTime| {
        let [named, clock] = [named, clock].map(|moment| {
            let seconds = i64::try_from(moment.as_secs()).ok()?;
            OffsetDateTime::from_unix_timestamp(seconds).ok()
        });
        Some(Moments {
            named: named?,
            clock: clock?,
        })
    };
    match error {
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            moments(*not_after, *time).map(OutOfTime::Ended)
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            moments(*not_before, *time).map(OutOfTime::NotYet)
        }
        _ => None,
    }
}

fn member_of(trust: &FleetTrust, certificate: &[u8]) -> Result<MemberCertificate, PeerError> {
    let certificate = MemberCertificate::from_der(certificate)?;
    let FleetIdentity { fleet, .. } = certificate.identity;
    if fleet != trust.fleet() {
        return Err(PeerError::ForeignFleet);
    }
    Ok(certificate)
}

#[derive(Debug, Clone)]
enum Anchor {
    Pinned(FleetTrust),
    Fingerprint(Fingerprint),
}

#[derive(Debug)]
struct ServerVerifier {
    anchor: Anchor,
    expected: Identity,
    refusals: Refusals,
}

impl ServerVerifier {
    fn trust(&self, intermediates: &[CertificateDer<'_>]) -> Result<FleetTrust, Error> {
        match &self.anchor {
            Anchor::Pinned(trust) => Ok(trust.clone()),
            Anchor::Fingerprint(wanted) => {
                let authority = intermediates
                    .iter()
                    .find(|certificate| Fingerprint::of(certificate) == *wanted)
                    .ok_or(PeerError::OtherAuthority)?;
                FleetTrust::from_der(authority).map_err(|error| match error {
                    TrustError::Identity(error) => PeerError::Identity(error).into(),
                    other => Error::General(other.to_string()),
                })
            }
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let trust = self.trust(intermediates)?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            trust.roots(),
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )?;
        let certificate = member_of(&trust, end_entity)?;
        let refused = self.refusals.judge(&certificate);
        let found = certificate.identity.identity;
        if found != self.expected {
            return Err(PeerError::Mismatch {
                expected: self.expected.clone(),
                found,
            }
            .into());
        }
        if let Some(why) = refused {
            return Err(PeerError::Refused { peer: found, why }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The standard check of client certificates; also requires that the certificate names a member of this fleet.
struct FleetClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust: FleetTrust,
    refusals: Refusals,
}

impl FleetClientVerifier {
    fn new(
        trust: &FleetTrust,
        clients: ClientCertificates,
        refusals: &Refusals,
    ) -> Result<Self, Error> {
        let builder =
            WebPkiClientVerifier::builder_with_provider(trust.roots().clone(), provider().clone());
        let builder = match clients {
            ClientCertificates::Required => builder,
            ClientCertificates::Optional => builder.allow_unauthenticated(),
        };
        let chain = builder
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self {
            chain,
            trust: trust.clone(),
            refusals: refusals.clone(),
        })
    }
}

impl fmt::Debug for FleetClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetClientVerifier")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for FleetClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let certificate = member_of(&self.trust, end_entity)?;
        if let Some(why) = self.refusals.judge(&certificate) {
            let peer = certificate.identity.identity;
            tracing::warn!(%peer, serial = %certificate.facts.serial, %why, "refused a certificate");
            // By this name the other side learns of it, and can say what to do.
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
