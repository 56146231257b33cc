//! The HTTP client of every program: over a Unix socket, or over TLS to one expected server.
//!
//! Connections are reused. Bodies stream in both directions; lines and server-sent events are read as they arrive. A
//! status of 400 or more is an error that carries the body, so no caller can overlook it.

use crate::dial::{self, DialError};
use crate::local;
use crate::patience::within;
use crate::tls::{ALPN_HTTP, ClientTls};
use base64::Engine;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, TryStreamExt};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::rt::ReadBufCursor;
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::ReaderStream;
use zeroize::Zeroizing;

mod lines;

pub use lines::{Event, Events, Lines};

/// Largest response body that is read at once, in bytes.
pub const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// Longest line or event of a stream, in bytes.
pub const MAX_LINE: usize = 4 * 1024 * 1024;

const MAX_ERROR_BODY: usize = 1024 * 1024;
const UPLOAD_CHUNK: usize = 256 * 1024;

/// A record of TLS, and the most that the head of an answer may take. What a connection has read into once it keeps.
///
/// Source: RFC 8446, section 5.1.
const READ_AT_ONCE: usize = 16 * 1024;

/// Shorter than the idle timeout of servers, so that the client closes the connection first.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// The IO of a connection after an upgrade, for example to a WebSocket.
pub type UpgradedIo = TokioIo<Upgraded>;

/// Time limits for the parts of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Reaching the peer, TLS included.
    pub connect: Duration,
    /// From the last byte of the request's header to the response's header; includes uploads.
    pub response: Option<Duration>,
    /// Between two pieces of a response's body.
    pub idle: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: dial::CONNECT_TIMEOUT,
            response: Some(Duration::from_secs(60)),
            idle: Some(Duration::from_secs(60)),
        }
    }
}

/// A client of one server. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    pool: legacy::Client<Connector, Body>,
    timeouts: Timeouts,
    /// Of every request.
    headers: HeaderMap,
}

type Body = UnsyncBoxBody<Bytes, BoxError>;
type BoxError = Box<dyn Error + Send + Sync>;

impl Client {
    /// A client of the server behind a Unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Endpoint::Unix(path.into()), Timeouts::default())
    }

    /// A client of the server at `address` (`host:port`), which must be who `tls` expects.
    pub fn tls(address: impl Into<String>, tls: ClientTls) -> Self {
        Self::new(
            Endpoint::Tls {
                address: address.into(),
                tls,
            },
            Timeouts::default(),
        )
    }

    fn new(endpoint: Endpoint, timeouts: Timeouts) -> Self {
        let endpoint = Arc::new(endpoint);
        let connector = Connector {
            endpoint: endpoint.clone(),
            timeout: timeouts.connect,
        };
        let pool = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .http1_max_buf_size(READ_AT_ONCE)
            .build(connector);
        Self {
            endpoint,
            pool,
            timeouts,
            headers: HeaderMap::new(),
        }
    }

    /// Says in every request who makes it, with an API token (RFC 6750, section 2.1).
    ///
    /// # Errors
    /// A token of characters that no header can carry.
    pub fn with_token(mut self, token: &str) -> Result<Self, ClientError> {
        let said = Zeroizing::new(format!("Bearer {token}"));
        let mut value = HeaderValue::from_str(&said).map_err(|_| ClientError::Token)?;
        value.set_sensitive(true);
        self.headers.insert(header::AUTHORIZATION, value);
        Ok(self)
    }

    /// A client with other time limits and connections of its own.
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        let endpoint = Arc::unwrap_or_clone(self.endpoint);
        Self {
            headers: self.headers,
            ..Self::new(endpoint, timeouts)
        }
    }

    /// The server's address, for messages.
    pub fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    /// Begins a request; `path` starts with a slash and may carry a query.
    pub fn request(&self, method: Method, path: &str) -> Request<'_> {
        Request {
            client: self,
            method,
            path: path.to_owned(),
            headers: self.headers.clone(),
            body: Ok(Empty::new().map_err(|never| match never {}).boxed_unsync()),
            timeouts: self.timeouts,
        }
    }

    /// Reads a JSON document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path).send().await?.json().await
    }

    /// Posts a JSON document and reads one.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::POST, path).json(body);
        request.send().await?.json().await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// A request that is being built.
#[must_use = "a request does nothing until it is sent"]
pub struct Request<'c> {
    client: &'c Client,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Result<Body, ClientError>,
    timeouts: Timeouts,
}

impl Request<'_> {
    /// Sends a JSON document.
    pub fn json(mut self, value: &impl Serialize) -> Self {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        self.headers.insert(header::CONTENT_TYPE, JSON);
        self.body = serde_json::to_vec(value)
            .map(|json| {
                Full::new(Bytes::from(json))
                    .map_err(|never| match never {})
                    .boxed_unsync()
            })
            .map_err(ClientError::Encode);
        self
    }

    /// Streams `reader` as the body. With `length` the server knows the size beforehand.
    pub fn upload(self, reader: impl AsyncRead + Send + 'static, length: Option<u64>) -> Self {
        self.stream(ReaderStream::with_capacity(reader, UPLOAD_CHUNK), length)
    }

    /// Streams `stream` as the body.
    pub fn stream(
        mut self,
        stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        length: Option<u64>,
    ) -> Self {
        const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
        self.headers.entry(header::CONTENT_TYPE).or_insert(BYTES);
        if let Some(length) = length {
            self.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let frames = stream.map_ok(Frame::data).map_err(BoxError::from);
        self.body = Ok(StreamBody::new(frames).boxed_unsync());
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Changes the time for the response's header; `None` waits for ever.
    pub fn response_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeouts.response = timeout;
        self
    }

    /// Changes the time between two pieces of the response's body; `None` waits for ever.
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeouts.idle = timeout;
        self
    }

    /// Sends it and waits for the response's header.
    pub async fn send(self) -> Result<Response, ClientError> {
        let endpoint = self.client.endpoint.clone();
        let idle = self.timeouts.idle;
        let (parts, body) = self.exchange().await?.into_parts();
        let response = Response {
            status: parts.status,
            headers: parts.headers,
            body,
            endpoint,
            idle,
        };
        if response.status.is_client_error() || response.status.is_server_error() {
            let code = response.status;
            let body = response.bytes(MAX_ERROR_BODY).await.unwrap_or_default();
            return Err(ClientError::Status { code, body });
        }
        Ok(response)
    }

    /// Upgrades to a WebSocket and returns the raw connection, for a WebSocket client.
    pub async fn upgrade_to_websocket(mut self) -> Result<UpgradedIo, ClientError> {
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| ClientError::Randomness)?;
        let key = base64::engine::general_purpose::STANDARD.encode(nonce);
        let key = HeaderValue::try_from(key).expect("base64 fits a header");
        for (name, value) in [
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static("websocket")),
            (
                header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            ),
            (header::SEC_WEBSOCKET_KEY, key),
        ] {
            self.headers.insert(name, value);
        }
        self.switch_protocols().await
    }

    /// Upgrades to `protocol` and returns the raw connection.
    pub async fn upgrade(mut self, protocol: &'static str) -> Result<UpgradedIo, ClientError> {
        for (name, value) in [
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static(protocol)),
        ] {
            self.headers.insert(name, value);
        }
        self.switch_protocols().await
    }

    async fn switch_protocols(self) -> Result<UpgradedIo, ClientError> {
        let endpoint = self.client.endpoint.clone();
        let response = self.exchange().await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let code = response.status();
            let body = http_body_util::Limited::new(response.into_body(), MAX_ERROR_BODY)
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            return Err(ClientError::Status { code, body });
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| ClientError::broken(&endpoint, error))?;
        Ok(TokioIo::new(upgraded))
    }

    async fn exchange(self) -> Result<http::Response<Incoming>, ClientError> {
        let endpoint = &self.client.endpoint;
        let uri: Uri = format!("http://fleetward{}", self.path)
            .parse()
            .map_err(|_| ClientError::Path { path: self.path })?;
        let mut request = http::Request::new(self.body?);
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers;

        let response = self.client.pool.request(request);
        let response = match self.timeouts.response {
            None => response.await,
            Some(limit) => within(limit, response)
                .await
                .ok_or_else(|| ClientError::timeout(endpoint, limit))?,
        };
        response.map_err(|error| ClientError::broken(endpoint, error))
    }
}

/// A response whose body has not been read.
#[derive(Debug)]
pub struct Response {
    /// The status, below 400.
    pub status: StatusCode,
    /// The header.
    pub headers: HeaderMap,
    body: Incoming,
    endpoint: Arc<Endpoint>,
    idle: Option<Duration>,
}

impl Response {
    /// The next piece of the body, `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = self.body.frame();
            let frame = match self.idle {
                None => frame.await,
                Some(limit) => within(limit, frame)
                    .await
                    .ok_or_else(|| ClientError::timeout(&self.endpoint, limit))?,
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(ClientError::broken(&self.endpoint, error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes, ClientError> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > limit {
                return Err(ClientError::TooLong { limit });
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// The whole body as a JSON document.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let body = self.bytes(MAX_RESPONSE).await?;
        serde_json::from_slice(&body).map_err(ClientError::Decode)
    }

    /// The body line by line, as its lines come.
    pub fn lines(self) -> Lines {
        self.lines_of(MAX_LINE)
    }

    /// The same, with lines of at most `limit` bytes.
    pub fn lines_of(self, limit: usize) -> Lines {
        Lines::new(self, limit)
    }

    /// The body as server-sent events, as they come.
    pub fn events(self) -> Events {
        Events::new(self.lines())
    }

    /// The body as a stream of its pieces.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, ClientError>> + Send {
        futures_util::stream::try_unfold(self, |mut response| async {
            Ok(response.chunk().await?.map(|chunk| (chunk, response)))
        })
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server was not reached, or has another identity than expected.
    #[error(transparent)]
    Dial(DialError),
    /// The server was reached but did not answer in time.
    #[error("{endpoint} did not answer within {} s", .after.as_secs_f32())]
    Timeout {
        /// Where.
        endpoint: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server answered with an error.
    #[error("the server answered {code}")]
    Status {
        /// The status, 400 or more (or, for an upgrade, other than 101).
        code: StatusCode,
        /// The body, at most 1 MiB, empty if it could not be read.
        body: Bytes,
    },
    /// The connection broke during the exchange. It is unknown whether the server has acted.
    #[error("the connection to {endpoint} broke")]
    Broken {
        /// Where.
        endpoint: String,
        /// Why.
        source: BoxError,
    },
    /// A body or line above the size limit.
    #[error("the answer has more than {limit} bytes")]
    TooLong {
        /// Bytes.
        limit: usize,
    },
    /// A line that is no UTF-8.
    #[error("the answer is not text")]
    NotText,
    /// An answer that does not match the expected type.
    #[error("the answer cannot be understood")]
    Decode(#[source] serde_json::Error),
    /// A request that cannot be written as JSON.
    #[error("the request cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// A path that is no part of a URI.
    #[error("{path:?} is no path of a request")]
    Path {
        /// What was given.
        path: String,
    },
    /// A text that is no API token.
    #[error("the API token has characters that cannot be sent")]
    Token,
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Randomness,
}

impl ClientError {
    /// Whether the request certainly did not reach the server, so that it can be repeated on any connection.
    pub fn is_unreached(&self) -> bool {
        matches!(self, Self::Dial(_) | Self::Path { .. } | Self::Encode(_))
    }

    fn timeout(endpoint: &Endpoint, after: Duration) -> Self {
        Self::Timeout {
            endpoint: endpoint.to_string(),
            after,
        }
    }

    fn broken(endpoint: &Endpoint, error: impl Error + Send + Sync + 'static) -> Self {
        let mut next: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            if let Some(dial) = cause.downcast_ref::<DialError>() {
                return Self::Dial(dial.clone());
            }
            next = cause.source();
        }
        if let Some(tls @ rustls::Error::AlertReceived(_)) = dial::tls_error_in(&error) {
            return Self::Dial(DialError::from_tls(&endpoint.to_string(), tls));
        }
        Self::Broken {
            endpoint: endpoint.to_string(),
            source: Box::new(error),
        }
    }
}

#[derive(Debug, Clone)]
enum Endpoint {
    Unix(PathBuf),
    Tls { address: String, tls: ClientTls },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tls { address, .. } => f.write_str(address),
        }
    }
}

impl Endpoint {
    async fn connect(&self, timeout: Duration) -> Result<Wire, DialError> {
        let stream: Box<dyn Duplex> = match self {
            Self::Unix(path) => Box::new(local::connect_in_turn(path, timeout).await?),
            Self::Tls { address, tls } => {
                Box::new(dial::dial(address, tls, ALPN_HTTP, timeout).await?)
            }
        };
        Ok(Wire(TokioIo::new(stream)))
    }
}

/// Opens a new connection for the pool. The URI is ignored: a client has one server.
#[derive(Clone)]
struct Connector {
    endpoint: Arc<Endpoint>,
    timeout: Duration,
}

impl tower::Service<Uri> for Connector {
    type Response = Wire;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Wire, DialError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let (endpoint, timeout) = (self.endpoint.clone(), self.timeout);
        async move { endpoint.connect(timeout).await }.boxed()
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Adapts a connection to the pool's trait.
struct Wire(TokioIo<Box<dyn Duplex>>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0)
            .poll_read(cx, buf)
            .map_err(dial::in_words)
    }
}

impl hyper::rt::Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
