//! The listener for people and programs that have no certificate of the fleet.
//!
//! ```text
//!   --console-cert, --console-key ── looked at every ten seconds ────┐
//!   none given: DATA/console.pem, made here, renewed before its end ─┴─► the certificate that it presents
//! ```
//! What it serves is the API, as everywhere: only how somebody says who they are differs (`http::ways_in`).

use anyhow::{Context, bail};
use axum::Router;
use fleetward_api::controller::ConsoleView;
use fleetward_durable::{self as durable, Access};
use fleetward_link::web::self_made;
use fleetward_link::{LiveWebCertificate, ServerTls, TlsServer, WebCertificate};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// How often it is looked whether there is another certificate.
const LOOK: Duration = Duration::from_secs(10);
/// One of our own making is replaced this long before its end.
const RENEW_BEFORE: time::Duration = time::Duration::days(30);

/// How people and programs without a certificate of the fleet come in.
#[derive(Debug, Clone)]
pub struct ConsoleOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it presents; none: a certificate of its own making.
    pub certificate: Option<CertificateFiles>,
}

/// Files that somebody else renews.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// PEM, the server's own first.
    pub chain: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// A chain and its key, both PEM.
#[derive(PartialEq, Eq)]
struct Pair {
    /// The files may be one, with the key in it.
    chain: Zeroizing<String>,
    key: Zeroizing<String>,
}

impl Pair {
    fn read(files: &CertificateFiles) -> io::Result<Self> {
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).map(Zeroizing::new);
            text.map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        };
        Ok(Self {
            chain: read(&files.chain)?,
            key: read(&files.key)?,
        })
    }

    fn certificate(&self) -> anyhow::Result<WebCertificate> {
        Ok(WebCertificate::from_pem(&self.chain, &self.key)?)
    }
}

/// Where the certificate comes from.
struct Source {
    files: CertificateFiles,
    /// The names and addresses of one that is made here; none: the files are somebody's.
    made_for: Option<Vec<String>>,
    present: Pair,
}

impl Source {
    /// The certificate to begin with.
    fn open(
        given: Option<CertificateFiles>,
        data: &Path,
        names: Vec<String>,
        now: OffsetDateTime,
    ) -> anyhow::Result<(Self, WebCertificate)> {
        let (files, made_for) = match given {
            Some(files) => (files, None),
            None => (own_files(data), Some(names)),
        };
        let read = || -> anyhow::Result<_> {
            let present = Pair::read(&files)?;
            let certificate = present.certificate()?;
            // The controller may have got another name or address.
            let lacks = |name: &&String| !certificate.names().contains(*name);
            match made_for.iter().flatten().find(lacks) {
                Some(name) => bail!("the former one is not for {name}"),
                None => Ok((present, certificate)),
            }
        };
        let (present, certificate) = match (read(), &made_for) {
            (Ok(read), _) => read,
            // One of ours that is not there, is damaged, or is for other names.
            (Err(error), Some(names)) => {
                tracing::warn!(
                    because = format!("{error:#}"),
                    "making a certificate for the console"
                );
                make(&files, names, now)?;
                read()?
            }
            (Err(error), None) => {
                return Err(error.context(
                    "cannot use the certificate of the console (--console-cert, --console-key)",
                ));
            }
        };
        let mut source = Self {
            files,
            made_for,
            present,
        };
        let renewed = source.renewed(&certificate, now)?;
        Ok((source, renewed.unwrap_or(certificate)))
    }

    /// One that is not as before: somebody renewed theirs, or ours was near its end.
    fn renewed(
        &mut self,
        certificate: &WebCertificate,
        now: OffsetDateTime,
    ) -> anyhow::Result<Option<WebCertificate>> {
        if let Some(names) = &self.made_for
            && certificate.not_after() - RENEW_BEFORE <= now
        {
            make(&self.files, names, now)?;
        }
        let pair = Pair::read(&self.files)?;
        if pair == self.present {
            return Ok(None);
        }
        let renewed = pair.certificate()?;
        self.present = pair;
        Ok(Some(renewed))
    }
}

/// One file, so that certificate and key always fit.
fn own_files(data: &Path) -> CertificateFiles {
    let file = data.join("console.pem");
    CertificateFiles {
        chain: file.clone(),
        key: file,
    }
}

fn make(files: &CertificateFiles, names: &[String], now: OffsetDateTime) -> anyhow::Result<()> {
    let made = self_made(names.to_vec(), now)?;
    durable::replace(&files.chain, made.as_bytes(), Access::PRIVATE)
        .with_context(|| format!("cannot write {}", files.chain.display()))
}

/// What a certificate of our own making is for: this machine, and what it listens on. Addresses are in their usual form.
fn names(listen: IpAddr, advertise: &str) -> Vec<String> {
    let mut names = BTreeSet::from(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    if !listen.is_unspecified() {
        names.insert(listen.to_string());
    }
    if let Some((host, _)) = advertise.rsplit_once(':') {
        let host = host.trim_matches(['[', ']']);
        let address = host.parse::<IpAddr>();
        names.insert(address.map_or_else(|_| host.to_owned(), |address| address.to_string()));
    }
    // Without it the certificate is for the addresses alone.
    if let Ok(machine) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        names.insert(machine.trim().to_owned());
    }
    names.remove("0.0.0.0");
    names.remove("::");
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

/// Where it is reached. A server that listens everywhere is where hosts reach the controller.
fn url(address: SocketAddr, advertise: &str) -> String {
    match (address.ip().is_unspecified(), advertise.rsplit_once(':')) {
        (true, Some((host, _))) => format!("https://{host}:{}", address.port()),
        _ => format!("https://{address}"),
    }
}

/// What is to be known of it while it runs. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    url: String,
    certificate: LiveWebCertificate,
    self_made: bool,
}

impl Console {
    pub(crate) fn view(&self) -> ConsoleView {
        let certificate = self.certificate.current();
        ConsoleView {
            url: self.url.clone(),
            sha256: certificate.fingerprint().to_string(),
            not_after: certificate.not_after(),
            self_made: self.self_made,
        }
    }

    /// The certificate if it was made here, PEM.
    pub(crate) fn self_made_certificate(&self) -> Option<String> {
        self.self_made.then(|| self.certificate.current().to_pem())
    }
}

/// The server, before it serves.
pub(crate) struct WebServer {
    server: TlsServer,
    source: Source,
    console: Console,
}

impl WebServer {
    pub(crate) async fn bind(
        options: ConsoleOptions,
        data: &Path,
        advertise: &str,
        now: OffsetDateTime,
    ) -> anyhow::Result<Self> {
        let ConsoleOptions {
            listen,
            certificate,
        } = options;
        let (source, certificate) =
            Source::open(certificate, data, names(listen.ip(), advertise), now)?;
        let certificate = LiveWebCertificate::new(certificate);
        let server = TlsServer::bind(listen, ServerTls::web(certificate.clone()))
            .await
            .with_context(|| format!("cannot listen on {listen}, the address of --console"))?;
        let console = Console {
            url: url(server.local_addr()?, advertise),
            certificate,
            self_made: source.made_for.is_some(),
        };
        let ConsoleView { url, sha256, .. } = console.view();
        tracing::info!(
            url,
            certificate_sha256 = sha256,
            "people and programs come in here"
        );
        Ok(Self {
            server,
            source,
            console,
        })
    }

    pub(crate) fn console(&self) -> Console {
        self.console.clone()
    }

    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) -> io::Result<()> {
        let Self {
            server,
            source,
            console,
        } = self;
        let (served, ()) = tokio::join!(
            server.serve(router, stop.clone()),
            keep_current(source, console.certificate, stop)
        );
        served
    }
}

/// Presents what lies there now. What cannot be used is said once, and the former goes on.
async fn keep_current(
    mut source: Source,
    certificate: LiveWebCertificate,
    stop: CancellationToken,
) {
    let mut said = None;
    while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
        match source.renewed(&certificate.current(), OffsetDateTime::now_utc()) {
            Ok(None) => said = None,
            Ok(Some(renewed)) => {
                tracing::info!(certificate_sha256 = %renewed.fingerprint(), until = %renewed.not_after(), "the console has another certificate");
                certificate.replace(renewed);
                said = None;
            }
            Err(error) => {
                let error = format!("{error:#}");
                if said.as_ref() != Some(&error) {
                    tracing::warn!(
                        error,
                        "the new certificate of the console cannot be used, the former stays"
                    );
                    said = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn open(
        given: Option<CertificateFiles>,
        dir: &TempDir,
    ) -> anyhow::Result<(Source, WebCertificate)> {
        open_for(&["localhost"], given, dir)
    }

    fn open_for(
        names: &[&str],
        given: Option<CertificateFiles>,
        dir: &TempDir,
    ) -> anyhow::Result<(Source, WebCertificate)> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Source::open(given, dir.path(), names, now())
    }

    #[test]
    fn one_of_our_own_is_made_anew_where_the_controller_has_another_name() {
        let dir = tempfile::tempdir().expect("directory");
        let both = ["localhost", "fd00::1"];
        let (_, made) = open_for(&both, None, &dir).expect("made");
        let fewer = open_for(&both[..1], None, &dir).expect("read").1;
        assert_eq!(made.fingerprint(), fewer.fingerprint());
        let other = open_for(&["localhost", "fleet.example"], None, &dir)
            .expect("made")
            .1;
        assert_ne!(made.fingerprint(), other.fingerprint());
        assert!(other.names().contains("fleet.example"));
    }

    #[test]
    fn one_of_our_own_stays_until_it_is_near_its_end_or_damaged() {
        let dir = tempfile::tempdir().expect("directory");
        let (_, made) = open(None, &dir).expect("made");
        let (mut source, same) = open(None, &dir).expect("read");
        assert_eq!(made.fingerprint(), same.fingerprint());
        assert!(source.renewed(&same, now()).expect("looked").is_none());

        let near = same.not_after() - RENEW_BEFORE + time::Duration::MINUTE;
        let renewed = source
            .renewed(&same, near)
            .expect("looked")
            .expect("another");
        assert!(renewed.not_after() > same.not_after() + time::Duration::days(300));
        assert_eq!(
            open(None, &dir).expect("read").1.fingerprint(),
            renewed.fingerprint()
        );

        std::fs::write(dir.path().join("console.pem"), "rubbish").expect("damaged");
        let (_, anew) = open(None, &dir).expect("made anew");
        assert_ne!(anew.fingerprint(), renewed.fingerprint());
    }

    #[test]
    fn one_that_is_given_is_taken_when_it_changes_and_never_written() {
        let dir = tempfile::tempdir().expect("directory");
        let files = CertificateFiles {
            chain: dir.path().join("chain.pem"),
            key: dir.path().join("key.pem"),
        };
        assert!(open(Some(files.clone()), &dir).is_err(), "nothing is there");
        let give = |which: &[&Path]| {
            let text = self_made(vec!["c.example".to_owned()], now()).expect("a certificate");
            for path in which {
                std::fs::write(path, text.as_bytes()).expect("written");
            }
        };
        give(&[&files.chain, &files.key]);
        let (mut source, first) = open(Some(files.clone()), &dir).expect("usable");
        let late = first.not_after() + time::Duration::DAY;
        assert!(
            source.renewed(&first, late).expect("looked").is_none(),
            "it is not ours to renew"
        );
        // Half of the new one is there: the former goes on, until the other half comes.
        give(&[&files.chain]);
        assert!(source.renewed(&first, now()).is_err());
        give(&[&files.chain, &files.key]);
        let second = source
            .renewed(&first, now())
            .expect("looked")
            .expect("another");
        assert_ne!(first.fingerprint(), second.fingerprint());
    }

    #[test]
    fn a_certificate_of_our_own_is_for_what_people_may_write() {
        let everywhere = names([0, 0, 0, 0].into(), "fleet.example:7440");
        assert!(everywhere.contains(&"fleet.example".to_owned()));
        assert!(everywhere.contains(&"localhost".to_owned()));
        assert!(!everywhere.contains(&"0.0.0.0".to_owned()));
        let one = names([10, 0, 0, 1].into(), "[FD00:0::1]:7440");
        assert!(one.contains(&"10.0.0.1".to_owned()) && one.contains(&"fd00::1".to_owned()));
        self_made(one, now()).expect("all of them fit");
        let listen = SocketAddr::from(([0, 0, 0, 0], 7480));
        assert_eq!(
            url(listen, "fleet.example:7440"),
            "https://fleet.example:7480"
        );
        let listen = SocketAddr::from(([10, 0, 0, 1], 7480));
        assert_eq!(url(listen, "fleet.example:7440"), "https://10.0.0.1:7480");
    }
}
