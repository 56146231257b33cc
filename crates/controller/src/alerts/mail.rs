//! Tells a target by mail. `lettre` writes headers and body and speaks with the server; what it is given has no control
//! character, and addresses are read by its grammar.

use super::notice::Notice;
use super::targets::{is_loopback, require_secret, unusable};
use fleetward_api::controller::{Mail, MailTls};
use fleetward_model::error::chain;
use fleetward_model::{ErrorCode, Failure};
use lettre::message::header::{
    ContentTransferEncoding, ContentType, Header, HeaderName, HeaderValue,
};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// For each answer of the server.
const ANSWER: Duration = Duration::from_secs(20);
const MOST_RECIPIENTS: usize = 20;
const WHAT: &str = "the mail target cannot be used";

pub(super) struct Postman {
    from: Mailbox,
    to: Vec<Mailbox>,
    server: String,
    has_password: bool,
    transport: AsyncSmtpTransport<Tokio1Executor>,
}

impl fmt::Debug for Postman {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postman")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// RFC 3834: no machine answers to it.
#[derive(Debug, Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

impl Postman {
    /// # Errors
    /// Addresses, a server, a password or certificates that cannot be used.
    pub(super) fn new(mail: &Mail) -> Result<Self, Failure> {
        let address = |text: &String| {
            const FIX: &str = "give addresses such as ops@example.org";
            if text.chars().any(char::is_control) {
                let because = format!("{text:?} has control characters");
                return Err(unusable(WHAT, because, FIX));
            }
            text.parse::<Mailbox>()
                .map_err(|error| unusable(WHAT, format!("{text:?}: {error}"), FIX))
        };
        if mail.to.is_empty() || mail.to.len() > MOST_RECIPIENTS {
            let because = format!("it has {} recipients", mail.to.len());
            let fix = format!("--to, once to {MOST_RECIPIENTS} times");
            return Err(unusable(WHAT, because, &fix));
        }
        let to: Vec<_> = mail.to.iter().map(address).collect::<Result<_, _>>()?;
        let (host, port) = server(&mail.smtp)?;
        let credentials = match (&mail.user, &mail.password) {
            (Some(user), Some(password)) => {
                require_secret(password.reveal(), 1, "--password-file")?;
                require_secret(user, 1, "--user")?;
                let password = password.reveal().to_owned();
                Some(Credentials::new(user.clone(), password))
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                let because = "a user needs a password, and a password a user";
                return Err(unusable(WHAT, because, "--user NAME --password-file FILE"));
            }
        };
        let has_password = credentials.is_some();
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(port)
            .timeout(Some(ANSWER))
            .tls(protection(mail, host)?);
        if let Some(credentials) = credentials {
            transport = transport.credentials(credentials);
        }
        Ok(Self {
            from: address(&mail.from)?,
            to,
            server: mail.smtp.clone(),
            has_password,
            transport: transport.build(),
        })
    }

    pub(super) const fn knows_password(&self) -> bool {
        self.has_password
    }

    /// # Errors
    /// The server did not take it.
    pub(super) async fn send(&self, notice: &Notice) -> Result<(), Failure> {
        let to = self.to.iter().cloned();
        let message = to
            .fold(Message::builder(), MessageBuilder::to)
            .from(self.from.clone())
            .subject(notice.subject())
            .message_id(Some(format!("<{}@fleetward.invalid>", notice.message)))
            .header(AutoSubmitted)
            .header(ContentType::TEXT_PLAIN)
            .header(ContentTransferEncoding::QuotedPrintable)
            .body(notice.text());
        let message = message.map_err(|error| self.failed(&error))?;
        let sent = self.transport.send(message).await;
        sent.map(drop).map_err(|error| self.failed(&error))
    }

    /// What a server says is a stranger's text.
    fn failed(&self, error: &dyn Error) -> Failure {
        const LONGEST: usize = 300;
        let said = chain(error);
        let said = said.chars().map(|c| if c.is_control() { ' ' } else { c });
        let said: String = said.take(LONGEST).collect();
        let what = format!("mail server {} did not take the message", self.server);
        Failure::new(ErrorCode::AlertTargetFailing, what).because(said)
    }
}

fn server(text: &str) -> Result<(&str, u16), Failure> {
    let wrong = || {
        let because = format!("{text:?} is no host:port");
        unusable(WHAT, because, "--smtp mail.example.org:587")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(is_name) {
        return Err(wrong());
    }
    Ok((host, port))
}

fn protection(mail: &Mail, host: &str) -> Result<Tls, Failure> {
    const CA: &str = "--authority names a file with PEM certificates";
    if mail.tls == MailTls::None {
        if is_loopback(host) {
            return Ok(Tls::None);
        }
        let because = "without TLS, mail goes to a server on a loopback address only";
        return Err(unusable(WHAT, because, "--tls starttls, or --tls tls"));
    }
    // The one provider of the programs. There is one already where this is not the first target.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut parameters = TlsParameters::builder(host.to_owned());
    if let Some(pem) = &mail.ca {
        // A file without any would make a target that believes nobody.
        if CertificateDer::pem_slice_iter(pem.as_bytes())
            .next()
            .is_none()
        {
            return Err(unusable(WHAT, "there is no certificate in the file", CA));
        }
        let authority = Certificate::from_pem(pem.as_bytes());
        let authority = authority.map_err(|error| unusable(WHAT, chain(&error), CA))?;
        parameters = parameters
            .certificate_store(CertificateStore::None)
            .add_root_certificate(authority);
    }
    let parameters = parameters.build_rustls();
    let parameters = parameters.map_err(|error| unusable(WHAT, chain(&error), CA))?;
    Ok(match mail.tls {
        MailTls::Tls => Tls::Wrapper(parameters),
        MailTls::Starttls | MailTls::None => Tls::Required(parameters),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_api::controller::Secret;

    fn mail() -> Mail {
        Mail {
            to: vec!["ops@example.org".to_owned()],
            from: "fleetward@example.org".to_owned(),
            smtp: "mail.example.org:587".to_owned(),
            tls: MailTls::Starttls,
            user: None,
            password: None,
            ca: None,
        }
    }

    #[tokio::test]
    async fn what_would_become_a_header_or_a_command_is_no_address() {
        Postman::new(&mail()).expect("usable");
        let evil = "ops@example.org\r\nBcc: eve@example.org";
        for refused in [
            Mail {
                to: vec![evil.to_owned()],
                ..mail()
            },
            Mail {
                to: Vec::new(),
                ..mail()
            },
            Mail {
                from: evil.to_owned(),
                ..mail()
            },
            Mail {
                smtp: "mail.example.org\r\nRSET:25".to_owned(),
                ..mail()
            },
            Mail {
                smtp: "mail.example.org".to_owned(),
                ..mail()
            },
            Mail {
                tls: MailTls::None,
                ..mail()
            },
            Mail {
                user: Some("kim".to_owned()),
                ..mail()
            },
            Mail {
                user: Some("kim".to_owned()),
                password: Some(Secret::new("x\r\nRSET".to_owned())),
                ..mail()
            },
            Mail {
                ca: Some("no certificate".to_owned()),
                ..mail()
            },
        ] {
            let failure = Postman::new(&refused).expect_err(&format!("{refused:?}"));
            assert_eq!(failure.code, ErrorCode::InvalidArgument, "{refused:?}");
        }
    }
}
