//! How machines of a fleet talk: mutual TLS between known identities, join tokens, HTTP in both directions and
//! byte tunnels. Knows nothing of VMs, and nothing of what is said.
//!
//! | module | owns |
//! |---|---|
//! | [`identity`] | who a certificate speaks for, roles and rights |
//! | [`authority`] | the controller's key: members' certificates, statements |
//! | [`ek_root`] | the root of the TPMs' endorsement-key certificates |
//! | [`trust`] | the pinned authority, as everybody else knows it |
//! | [`credential`] | a program's own certificate and key, exchanged while running |
//! | [`token`] | join tokens |
//! | [`tls`] | who must show a certificate, whom one believes |
//! | [`serve`], [`peer`] | the server: TLS and Unix socket in front of one router |
//! | [`client`], [`dial`] | the HTTP client, over either |
//! | [`tunnel`] | byte tunnels and relays |
//! | [`local`] | Unix sockets |

pub mod authority;
mod authority_files;
pub mod client;
pub mod credential;
pub mod dial;
mod durable;
pub mod ek_root;
pub mod identity;
pub mod local;
pub mod peer;
pub mod serve;
pub mod tls;
pub mod token;
pub mod trust;
pub mod tunnel;

pub use authority::{AuthorityError, FleetAuthority, Validity};
pub use client::{Client, ClientError};
pub use credential::{Credential, CredentialError, KeyRequest, LiveCredential};
pub use dial::DialError;
pub use ek_root::EkRoot;
pub use identity::{AdminName, FleetId, FleetIdentity, Identity, IdentityError, Right, Role};
pub use local::SocketSpec;
pub use peer::Peer;
pub use serve::{Limits, TlsServer, UnixServer};
pub use tls::{ClientCertificates, ClientTls, ServerTls};
pub use token::{JoinSecret, JoinToken, SecretHash, TokenError};
pub use trust::{Fingerprint, FleetTrust, TrustError};
