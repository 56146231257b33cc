//! Where an image comes from: a file here, or an address on the web that this program fetches.
//!
//! The controller fetches nothing: it may stand where it reaches services that whoever names an address must not reach.
//! What goes on to the controller is whole or visibly broken off: the last piece is held back until the source has ended
//! well and the digest is right.

use bytes::Bytes;
use fleetward_model::{ErrorCode, Failure, error};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::io::ReaderStream;

const CHUNK: usize = 256 * 1024;
const MAX_REDIRECTS: usize = 10;
const CONNECT: Duration = Duration::from_secs(20);
/// Between two pieces.
const IDLE: Duration = Duration::from_secs(60);

/// What an image is made of, as it comes.
pub(crate) struct Source {
    pieces: BoxStream<'static, Result<Bytes, Failure>>,
    /// Bytes; none where the server does not say.
    pub(crate) length: Option<u64>,
}

impl Source {
    /// Opens a file, or asks for an `http://` or `https://` address.
    pub(crate) async fn open(name: &Path) -> Result<Self, Failure> {
        match name.to_str().filter(|text| is_address(text)) {
            Some(address) => Self::fetch(address).await,
            None => Self::read(name).await,
        }
    }

    async fn read(path: &Path) -> Result<Self, Failure> {
        let what = format!("cannot read {}", path.display());
        let unreadable = move |error: io::Error| {
            Failure::new(ErrorCode::InvalidArgument, what.clone())
                .because(error)
                .fix("name a readable file, or an address that begins with https://")
        };
        let file = tokio::fs::File::open(path).await.map_err(&unreadable)?;
        let metadata = file.metadata().await.map_err(&unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::other("it is no regular file")));
        }
        let pieces = ReaderStream::with_capacity(file, CHUNK).map_err(unreadable);
        Ok(Self {
            pieces: pieces.boxed(),
            length: Some(metadata.len()),
        })
    }

    async fn fetch(address: &str) -> Result<Self, Failure> {
        let failed = {
            let what = format!("cannot fetch {}", shown(address));
            move |because: String| {
                Failure::new(ErrorCode::DownloadFailed, what.clone()).because(because)
            }
        };
        let of_client = {
            let failed = failed.clone();
            // Its own text repeats the address, which may hold a password.
            move |error: reqwest::Error| failed(error::chain(&error.without_url()))
        };
        // The one provider of the programs. There is one already where this is not the first address.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("fleetward/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(IDLE)
            .redirect(redirects())
            .build()
            .map_err(&of_client)?;
        let response = client.get(address).send().await.map_err(&of_client)?;
        let status = response.status();
        if status != reqwest::StatusCode::OK {
            return Err(failed(format!("the server answered {status}")));
        }
        let length = response.content_length();
        Ok(Self {
            pieces: response.bytes_stream().map_err(of_client).boxed(),
            length,
        })
    }

    /// The pieces, for an upload; `check` learns of them, and of what goes wrong.
    pub(crate) fn checked(
        self,
        check: Arc<Check>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let state = Some((self.pieces, None::<Bytes>, check));
        futures_util::stream::unfold(state, |state| async {
            let (mut pieces, mut held, check) = state?;
            loop {
                match pieces.next().await {
                    Some(Ok(piece)) => {
                        check.observe(&piece);
                        if let Some(before) = held.replace(piece) {
                            return Some((Ok(before), Some((pieces, held, check))));
                        }
                    }
                    Some(Err(failure)) => return Some((Err(check.fail(failure)), None)),
                    None => {
                        let last = match check.end() {
                            Ok(()) => Ok(held?),
                            Err(failure) => Err(check.fail(failure)),
                        };
                        return Some((last, None));
                    }
                }
            }
        })
    }
}

fn is_address(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// An address without user, password and query, which may be secrets.
fn shown(address: &str) -> String {
    let plain = address.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => plain.to_owned(),
    }
}

/// Follows a few, and never from TLS to plain text.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error(format!("it is redirected more than {MAX_REDIRECTS} times"));
        }
        let was_safe = attempt.previous().iter().any(|url| url.scheme() == "https");
        if was_safe && attempt.url().scheme() != "https" {
            return attempt.error("it is redirected from https to an address without TLS");
        }
        attempt.follow()
    })
}

/// What has come so far, and why it ended where it ended badly.
#[derive(Debug)]
pub(crate) struct Check {
    wanted: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    digest: Sha256,
    ended: bool,
    failure: Option<Failure>,
}

impl Check {
    /// `wanted` is the SHA-256 that it must have, in hex.
    pub(crate) fn new(wanted: Option<String>) -> Self {
        Self {
            wanted: wanted.map(|wanted| wanted.to_ascii_lowercase()),
            state: Mutex::default(),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("nothing panics while holding it"))
    }

    fn observe(&self, piece: &[u8]) {
        self.with(|state| {
            state.bytes += piece.len() as u64;
            state.digest.update(piece);
        });
    }

    fn end(&self) -> Result<(), Failure> {
        let found = self.sha256();
        match &self.wanted {
            Some(wanted) if *wanted != found => Err(Failure::new(
                ErrorCode::DigestDiffers,
                "the file is not the one that is meant",
            )
            .because(format!("its sha256 is {found}, not {wanted}"))),
            _ => {
                self.with(|state| state.ended = true);
                Ok(())
            }
        }
    }

    fn fail(&self, failure: Failure) -> io::Error {
        let error = io::Error::other(failure.what.clone());
        self.with(|state| state.failure = Some(failure));
        error
    }

    /// Bytes that have come.
    pub(crate) fn bytes(&self) -> u64 {
        self.with(|state| state.bytes)
    }

    /// Whether all has come.
    pub(crate) fn has_ended(&self) -> bool {
        self.with(|state| state.ended)
    }

    /// Why it was broken off, if it was.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.with(|state| state.failure.take())
    }

    /// Of what has come, in hex.
    pub(crate) fn sha256(&self) -> String {
        hex::encode(self.with(|state| state.digest.clone()).finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that answers each request with the next of `answers`; its address.
    async fn server(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let own = address.clone();
        tokio::spawn(async move {
            for answer in answers.iter().cycle().take(40) {
                let Ok((mut stream, _)) = listener.accept().await else {
                    return;
                };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = answer.replace("OWN", &own);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    /// All of it, or why not.
    async fn fetched(address: &str, sha256: Option<&str>) -> Result<Vec<u8>, Failure> {
        let source = Source::open(Path::new(address)).await?;
        let check = Arc::new(Check::new(sha256.map(str::to_owned)));
        let pieces: Vec<_> = source.checked(check.clone()).collect().await;
        match check.failure() {
            Some(failure) => {
                assert!(
                    pieces.last().is_some_and(Result::is_err),
                    "the upload is broken off"
                );
                Err(failure)
            }
            None => Ok(pieces
                .into_iter()
                .map(Result::unwrap)
                .collect::<Vec<_>>()
                .concat()),
        }
    }

    fn answer(head: &str, body: &str) -> Vec<String> {
        vec![format!(
            "HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body}"
        )]
    }

    #[tokio::test]
    async fn a_file_from_the_web_comes_whole_or_not_at_all() {
        let good = server(answer("200 OK\r\nContent-Length: 5", "image")).await;
        let sha256 = hex::encode(Sha256::digest(b"image"));
        assert_eq!(fetched(&good, None).await.expect("fetched"), b"image");
        assert_eq!(
            fetched(&good, Some(&sha256)).await.expect("fetched"),
            b"image"
        );
        let other = fetched(&good, Some(&sha256.replace('a', "b"))).await;
        assert_eq!(other.expect_err("another").code, ErrorCode::DigestDiffers);
        let unsized_ = server(answer("200 OK", "image")).await;
        assert_eq!(fetched(&unsized_, None).await.expect("fetched"), b"image");
    }

    #[tokio::test]
    async fn what_goes_wrong_on_the_way_is_named() {
        for (answers, word) in [
            (answer("404 Not Found", "no"), "404"),
            (
                answer("206 Partial Content\r\nContent-Length: 1", "x"),
                "206",
            ),
            (
                answer("302 Found\r\nLocation: OWN/again", ""),
                "redirected more than",
            ),
            (answer("200 OK\r\nContent-Length: 500", "cut off"), "body"),
            (vec![String::new()], "request"),
        ] {
            let address = server(answers).await;
            let failure = fetched(&address, None).await.expect_err(word);
            assert_eq!(failure.code, ErrorCode::DownloadFailed, "{failure}");
            assert!(failure.because.contains(word), "{word}: {failure}");
        }
        let nobody = fetched("http://127.0.0.1:1/x", None)
            .await
            .expect_err("nobody");
        assert_eq!(nobody.code, ErrorCode::DownloadFailed);
    }

    #[tokio::test]
    async fn a_certificate_of_nobody_known_is_refused() {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der())
                    .expect("a key"),
            )
            .expect("a configuration");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        let refused = fetched(&format!("https://localhost:{port}/x"), None).await;
        let refused = refused.expect_err("a stranger's certificate");
        assert_eq!(refused.code, ErrorCode::DownloadFailed);
        assert!(refused.because.contains("certificate"), "{refused}");
    }

    #[test]
    fn what_is_shown_of_an_address_holds_no_secret() {
        let shown = shown("https://me:secret@example.org/a/b.vhdx?token=secret#x");
        assert_eq!(shown, "https://example.org/a/b.vhdx");
    }
}
