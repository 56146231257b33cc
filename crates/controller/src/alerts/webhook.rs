//! Tells a target by a POST. It follows no redirect and reads nothing of the answer but its status, so that an address which
//! somebody names tells them nothing of what stands behind it.

use super::notice::Notice;
use super::targets::{is_loopback, require_secret, unusable};
use aws_lc_rs::hmac;
use fleetward_api::controller::Webhook;
use fleetward_model::error::chain;
use fleetward_model::{ErrorCode, Failure};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};
use std::fmt;
use std::time::Duration;
use time::OffsetDateTime;

const CONNECT: Duration = Duration::from_secs(10);
/// From the beginning to the header of the answer.
const WHOLE: Duration = Duration::from_secs(30);
const SHORTEST_SECRET: usize = 16;
const LONGEST_URL: usize = 2048;

/// `t=UNIX_SECONDS,v1=HEX`: HMAC-SHA256 of `UNIX_SECONDS.BODY`.
const SIGNATURE: &str = "fleetward-signature";

pub(super) struct Caller {
    url: Url,
    /// Without what may be secret.
    origin: String,
    key: Option<hmac::Key>,
    client: Client,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl Caller {
    /// # Errors
    /// An address, a secret or certificates that cannot be used.
    pub(super) fn new(webhook: &Webhook) -> Result<Self, Failure> {
        const WHAT: &str = "the webhook cannot be used";
        const HTTPS: &str = "give an address that begins with https://";
        let text = webhook.url.reveal();
        if text.len() > LONGEST_URL {
            let because = format!("its address has more than {LONGEST_URL} bytes");
            return Err(unusable(WHAT, because, HTTPS));
        }
        let url = Url::parse(text).map_err(|error| unusable(WHAT, error, HTTPS))?;
        let host = url.host_str().unwrap_or_default();
        let local = is_loopback(host);
        match url.scheme() {
            "https" => {}
            "http" if local => {}
            _ => {
                let because = "without TLS, messages go to a loopback address only";
                return Err(unusable(WHAT, because, HTTPS));
            }
        }
        if let Some(secret) = &webhook.secret {
            require_secret(secret.reveal(), SHORTEST_SECRET, "--secret-file")?;
        }
        // The one provider of the programs. There is one already where this is not the first target.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut client = Client::builder()
            .user_agent(concat!("fleetward/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .redirect(Policy::none())
            .pool_max_idle_per_host(0);
        if local {
            client = client.no_proxy();
        }
        if let Some(pem) = &webhook.ca {
            const CA: &str = "--authority names a file with PEM certificates";
            let authorities = Certificate::from_pem_bundle(pem.as_bytes());
            let authorities = authorities.map_err(|error| unusable(WHAT, chain(&error), CA))?;
            if authorities.is_empty() {
                return Err(unusable(WHAT, "there is no certificate in the file", CA));
            }
            client = client.tls_certs_only(authorities);
        }
        let client = client.build();
        let client = client.map_err(|error| unusable(WHAT, chain(&error), HTTPS))?;
        let port = url
            .port()
            .map_or_else(String::new, |port| format!(":{port}"));
        let key = webhook.secret.as_ref();
        Ok(Self {
            origin: format!("{}://{host}{port}", url.scheme()),
            key: key.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes())),
            url,
            client,
        })
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) const fn signs(&self) -> bool {
        self.key.is_some()
    }

    /// # Errors
    /// It did not get there, or the answer is no success.
    pub(super) async fn send(&self, notice: &Notice, now: OffsetDateTime) -> Result<(), Failure> {
        let body = serde_json::to_vec(notice).expect("plain fields are JSON");
        let mut request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("fleetward-message", notice.message.to_string());
        if let Some(key) = &self.key {
            request = request.header(SIGNATURE, signature(key, now.unix_timestamp(), &body));
        }
        let answer = request.body(body).send().await;
        // Its own text repeats the address, which may be a secret.
        let answer = answer.map_err(|error| self.failed(chain(&error.without_url())))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let because = match status.is_redirection() {
            true => format!("the server answered {status}, and redirects are not followed"),
            false => format!("the server answered {status}"),
        };
        Err(self.failed(because))
    }

    fn failed(&self, because: String) -> Failure {
        let what = format!("{} did not take the message", self.origin);
        Failure::new(ErrorCode::AlertTargetFailing, what).because(because)
    }
}

fn signature(key: &hmac::Key, at: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{at}.").as_bytes());
    context.update(body);
    format!("t={at},v1={}", hex::encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_api::controller::Secret;

    fn webhook(url: &str, secret: Option<&str>) -> Result<Caller, Failure> {
        Caller::new(&Webhook {
            url: Secret::new(url.to_owned()),
            secret: secret.map(|text| Secret::new(text.to_owned())),
            ca: None,
        })
    }

    #[test]
    fn an_address_without_tls_is_taken_on_this_machine_alone() {
        for url in [
            "https://a.example/x",
            "http://127.0.0.1:8080/x",
            "http://[::1]/x",
        ] {
            webhook(url, None).expect(url);
        }
        for url in [
            "http://a.example/x",
            "http://127.0.0.1.example/",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "a.example",
            "",
        ] {
            let refused = webhook(url, None).expect_err(url);
            assert_eq!(refused.code, ErrorCode::InvalidArgument, "{url}");
        }
    }

    #[test]
    fn what_may_be_secret_in_an_address_is_not_shown() {
        let caller = webhook("https://u:p@a.example:8443/T0/B0/token?k=v", None).expect("usable");
        assert_eq!(caller.origin(), "https://a.example:8443");
        let shown = format!("{caller:?} {}", caller.failed("no".into()));
        assert!(
            !shown.contains("token") && !shown.contains("u:p"),
            "{shown}"
        );
    }

    #[test]
    fn secrets_have_bounds() {
        let long = "x".repeat(1025);
        for secret in ["short", &long, "0123456789abcdef\n"] {
            let refused = webhook("https://a.example/", Some(secret)).expect_err("refused");
            assert!(!refused.to_string().contains(secret), "{refused}");
        }
        webhook("https://a.example/", Some("0123456789abcdef")).expect("usable");
    }

    /// `printf '1.{}' | openssl dgst -sha256 -hmac 0123456789abcdef`
    #[test]
    fn a_signature_is_what_other_programs_compute() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        assert_eq!(
            signature(&key, 1, b"{}"),
            "t=1,v1=2af693cb56b22c16912222aeefdc75a01de562bf70ee2015f41ecea48382997f"
        );
    }
}
