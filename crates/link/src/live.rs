//! What a running program presents in handshakes, replaceable while it runs.

use crate::credential::Credential;
use crate::web::WebCertificate;
use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;

/// A certificate with its key.
pub(crate) trait Presented {
    fn certified(&self) -> &Arc<CertifiedKey>;
}

/// What is presented. Replacing it does not affect open connections.
pub struct Live<T>(Arc<ArcSwap<T>>);

/// Of a member of the fleet.
pub type LiveCredential = Live<Credential>;
/// Of a web server.
pub type LiveWebCertificate = Live<WebCertificate>;

impl<T> Live<T> {
    /// Starts with `first`.
    pub fn new(first: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(first)))
    }

    /// Presents `next` in all later handshakes.
    pub fn replace(&self, next: T) {
        self.0.store(Arc::new(next));
    }

    /// The present one.
    pub fn current(&self) -> Arc<T> {
        self.0.load_full()
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.current()).finish()
    }
}

impl<T: Presented + fmt::Debug + Send + Sync> ResolvesServerCert for Live<T> {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().certified().clone())
    }
}

impl ResolvesClientCert for LiveCredential {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().certified().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
