//! Communication between the machines of a fleet: mutual TLS between known identities, join tokens, HTTP in both
//! directions, and byte tunnels. This crate does not know VMs, or the content of what it carries.
//!
//! | module | owns |
//! |---|---|
//! | [`identity`] | the identity in a certificate, roles and rights |
//! | [`authority`] | the controller's key, which signs members' certificates and statements |
//! | [`ek_root`] | the root of the TPMs' endorsement-key certificates |
//! | [`trust`] | the pinned certificate of the authority |
//! | [`credential`] | a program's own certificate and key |
//! | `live` | what a running program presents, replaceable while it runs |
//! | [`token`] | join tokens |
//! | [`api_token`] | what programs show instead of a certificate |
//! | [`refused`] | certificates that are refused before their end, and connections under them |
//! | [`tls`] | which peers must show a certificate, and which peers are accepted |
//! | [`serve`], [`peer`] | the server: one router behind TLS and a Unix socket |
//! | `strangers` | who may connect without a certificate, and how many at once |
//! | [`web`], `visit` | the server and its connections for people and programs without a certificate of the fleet |
//! | [`client`], [`dial`] | the HTTP client, over either |
//! | `patience` | waiting for a peer, without its own delays |
//! | `wire` | a TCP connection that can be ended from outside |
//! | `read_ahead` | how much is read from a connection at once |
//! | [`tunnel`] | byte tunnels and relays |
//! | [`local`] | Unix sockets |

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they like"
    )
)]

pub mod api_token;
pub mod authority;
mod authority_files;
pub mod client;
pub mod credential;
pub mod dial;
pub mod ek_root;
pub mod identity;
mod live;
pub mod local;
mod patience;
pub mod peer;
mod read_ahead;
pub mod refused;
pub mod serve;
mod strangers;
pub mod tls;
pub mod token;
pub mod trust;
pub mod tunnel;
mod visit;
pub mod web;
mod wire;

pub use api_token::{ApiToken, MAX_API_TOKEN};
pub use authority::{AuthorityError, FleetAuthority, Validity};
pub use client::{Client, ClientError};
pub use credential::{Credential, CredentialError, KeyRequest, certificate_pem, pem};
pub use dial::DialError;
pub use ek_root::EkRoot;
pub use identity::{AdminName, FleetId, FleetIdentity, Identity, IdentityError};
pub use live::{Live, LiveCredential, LiveWebCertificate};
pub use local::SocketSpec;
pub use peer::Peer;
pub use refused::{MemberCertificate, Refusals, member_name};
pub use serve::{Limits, TlsServer, UnixServer};
pub use strangers::StrangerLimits;
pub use tls::{ClientCertificates, ClientTls, ServerTls};
pub use token::{JoinSecret, JoinToken, SecretHash, SessionSecret, TokenError};
pub use trust::{Fingerprint, FleetTrust, TrustError};
pub use visit::Visit;
pub use web::WebCertificate;
