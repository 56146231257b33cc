//! How the verbs of the controller's API are called, and how errors of that become [`Failure`]s. What each verb takes and
//! gives is declared in `fleetward_api::verbs`. Knows nothing of terminals.

use crate::args::Global;
use crate::messages;
use crate::way;
use bytes::Bytes;
use fleetward_api::lists::{Paged, Row};
use fleetward_api::verbs::{self, Carried, Form, Verb};
use fleetward_link::DialError;
use fleetward_link::client::{Client, ClientError, Lines, Request, UpgradedIo};
use fleetward_model::{ErrorCode, Failure};
use futures_util::Stream;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

/// A quiet stream says nothing; the controller sends an empty line more often than this.
const SILENCE: Duration = Duration::from_secs(60);

/// Answers to requests that ask all hosts take longer than others.
const SLOW: Duration = Duration::from_secs(180);

/// Rows asked for at once.
const PAGE: usize = 500;

/// The controller, reached over its socket or over TLS.
#[derive(Debug, Clone)]
pub(crate) struct Controller {
    client: Client,
    /// It says who it is with an API token, to a server of the web.
    has_token: bool,
}

impl Controller {
    /// The controller that the options name. Does not connect yet.
    pub(crate) fn from_options(options: &Global) -> Result<Self, Failure> {
        let client = way::client(options)?;
        let has_token = options.token_file.is_some();
        Ok(Self { client, has_token })
    }

    /// Asks for `V`; `path` are the values of its path's parameters, in their order.
    pub(crate) async fn call<V: Verb>(
        &self,
        path: V::Path<'_>,
        request: &V::Request,
    ) -> Result<V::Answer, Failure> {
        self.read::<V, V::Answer>(path, request).await
    }

    /// The same for an answer that is read as something else: in full, where a newer controller may say more.
    pub(crate) async fn read<V: Verb, T: DeserializeOwned>(
        &self,
        path: V::Path<'_>,
        request: &V::Request,
    ) -> Result<T, Failure> {
        let sent = self.request::<V>(path, request)?.send().await;
        let response = sent.map_err(|e| self.failure(e))?;
        match V::FORM {
            Form::Nothing => serde_json::from_str("null")
                .map_err(|error| self.failure(ClientError::Decode(error))),
            Form::Json
            | Form::Pages
            | Form::Document
            | Form::Lines
            | Form::Text
            | Form::Picture
            | Form::WebSocket => response.json().await.map_err(|e| self.failure(e)),
        }
    }

    /// The rows of the list that `V` gives: at most `limit`, or all.
    pub(crate) async fn list<V, T>(
        &self,
        query: V::Request,
        limit: Option<usize>,
    ) -> Result<Vec<T>, Failure>
    where
        V: for<'a> Verb<Path<'a> = [&'a str; 0]>,
        V::Request: Paged,
        T: Row + DeserializeOwned,
    {
        self.pages::<V, T>(query, limit).all().await
    }

    /// All rows of a list about one thing, which `path` names.
    pub(crate) async fn list_of<'c, V, T>(&'c self, path: V::Path<'c>) -> Result<Vec<T>, Failure>
    where
        V: Verb,
        V::Request: Paged + Default,
        T: Row + DeserializeOwned,
    {
        let pages: Pages<'c, V, T> = self.pages_of(path, V::Request::default(), None);
        pages.all().await
    }

    /// The rows of a list, a page at a time.
    pub(crate) fn pages<V, T>(&self, query: V::Request, limit: Option<usize>) -> Pages<'_, V, T>
    where
        V: for<'a> Verb<Path<'a> = [&'a str; 0]>,
        V::Request: Paged,
        T: Row + DeserializeOwned,
    {
        self.pages_of([], query, limit)
    }

    fn pages_of<'c, V, T>(
        &'c self,
        path: V::Path<'c>,
        query: V::Request,
        limit: Option<usize>,
    ) -> Pages<'c, V, T>
    where
        V: Verb,
        V::Request: Paged,
    {
        Pages {
            controller: self,
            path,
            after: query.after().map(str::to_owned),
            query,
            wanted: limit.unwrap_or(usize::MAX),
            first: None,
            is_over: false,
            of: PhantomData,
        }
    }

    /// Asks for `V` and sends what `content` gives, `length` bytes where that is known.
    pub(crate) async fn upload<V: Verb>(
        &self,
        path: V::Path<'_>,
        request: &V::Request,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        length: Option<u64>,
    ) -> Result<V::Answer, Failure> {
        let sent = self
            .request::<V>(path, request)?
            .stream(content, length)
            .response_timeout(None)
            .send()
            .await;
        let response = sent.map_err(|e| self.failure(e))?;
        response.json().await.map_err(|e| self.failure(e))
    }

    /// Asks for `V`, whose answer is a value now and then, until the controller ends it.
    pub(crate) async fn follow<V: Verb>(
        &self,
        path: V::Path<'_>,
        request: &V::Request,
    ) -> Result<Values<'_, V::Answer>, Failure> {
        let request = self.request::<V>(path, request)?;
        let sent = request.idle_timeout(Some(SILENCE)).send().await;
        let response = sent.map_err(|e| self.failure(e))?;
        Ok(Values {
            controller: self,
            lines: response.lines(),
            of: PhantomData,
        })
    }

    /// The file that `V` answers with, at most `limit` bytes.
    pub(crate) async fn download<V: Verb>(
        &self,
        path: V::Path<'_>,
        request: &V::Request,
        limit: usize,
    ) -> Result<Bytes, Failure> {
        let sent = self.request::<V>(path, request)?.send().await;
        let response = sent.map_err(|e| self.failure(e))?;
        response.bytes(limit).await.map_err(|e| self.failure(e))
    }

    /// The bytes of the WebSocket that `V` opens.
    pub(crate) async fn open<V: Verb>(
        &self,
        path: V::Path<'_>,
        request: &V::Request,
    ) -> Result<UpgradedIo, Failure> {
        let upgraded = self.request::<V>(path, request)?.upgrade_to_websocket();
        upgraded.await.map_err(|e| self.failure(e))
    }

    fn request<V: Verb>(
        &self,
        path: V::Path<'_>,
        request: &V::Request,
    ) -> Result<Request<'_>, Failure> {
        let method = V::METHOD
            .parse()
            .expect("verbs have methods that there are");
        let uri = verbs::uri::<V>(path, request);
        let uri = uri.map_err(|error| unsendable(V::OPERATION, &error))?;
        let mut sent = self.client.request(method, &uri);
        if V::CARRIED == Carried::Body {
            sent = sent.json(request);
        }
        if V::LONG {
            sent = sent.response_timeout(Some(SLOW));
        }
        Ok(sent)
    }

    fn failure(&self, error: ClientError) -> Failure {
        let is_not_believed =
            matches!(error, ClientError::Dial(DialError::TlsRefused { .. })) && self.has_token;
        let failure = failure_of(&self.client.endpoint(), error);
        match is_not_believed {
            true => failure.fix(messages::WHOM_TO_BELIEVE),
            false => failure,
        }
    }
}

/// A list that comes a page at a time.
pub(crate) struct Pages<'c, V: Verb, T> {
    controller: &'c Controller,
    path: V::Path<'c>,
    query: V::Request,
    /// Rows that are still wanted.
    wanted: usize,
    after: Option<String>,
    /// Where the list began.
    first: Option<String>,
    is_over: bool,
    of: PhantomData<T>,
}

impl<V, T> Pages<'_, V, T>
where
    V: Verb,
    V::Request: Paged,
    T: Row + DeserializeOwned,
{
    /// What is left of the list.
    async fn all(mut self) -> Result<Vec<T>, Failure> {
        let mut rows = Vec::new();
        while let Some(page) = self.next().await? {
            rows.extend(page);
        }
        Ok(rows)
    }

    /// The next page; the first may be empty, the others are not.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<T>>, Failure> {
        if self.is_over {
            return Ok(None);
        }
        let length = PAGE.min(self.wanted);
        self.query.set_page(length as u32, self.after.take());
        let asked = self.controller.read::<V, Vec<T>>(self.path, &self.query);
        let mut page = asked.await?;
        let begins = page.first().map(T::cursor);
        // A controller that knows of no pages gives the list whole, however often it is asked.
        let is_first = self.first.is_none();
        let is_repeated = !is_first && begins == self.first;
        self.after = page.last().map(T::cursor);
        self.is_over = page.len() != length || is_repeated;
        if is_repeated || (!is_first && page.is_empty()) {
            return Ok(None);
        }
        page.truncate(self.wanted);
        self.wanted -= page.len();
        self.is_over |= self.wanted == 0;
        self.first = self.first.take().or(begins);
        Ok(Some(page))
    }
}

/// Values that come over time.
pub(crate) struct Values<'c, T> {
    controller: &'c Controller,
    lines: Lines,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Values<'_, T> {
    /// The next one; `None` when the controller ends the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, Failure> {
        let next = self.lines.next_json().await;
        next.map_err(|e| self.controller.failure(e))
    }
}

fn unsendable(operation: &str, error: &dyn Error) -> Failure {
    let what = format!("the request for {operation} cannot be put into words");
    Failure::new(ErrorCode::Internal, what).because(error)
}

/// What went wrong, in the words of the contract.
fn failure_of(endpoint: &str, error: ClientError) -> Failure {
    let because = causes(&error);
    let unreachable = || {
        Failure::new(
            ErrorCode::ControllerUnreachable,
            format!("the controller at {endpoint} does not answer"),
        )
    };
    match error {
        ClientError::Dial(
            DialError::TlsRefused { .. }
            | DialError::IdentityMismatch { .. }
            | DialError::CertificateEnded { .. }
            | DialError::CertificateNotYet { .. }
            | DialError::OutOfTimeThere { .. }
            | DialError::CertificateRefused { .. },
        ) => Failure::new(
            ErrorCode::CredentialsRefused,
            format!("the controller at {endpoint} and this client do not trust each other"),
        )
        .because(because),
        ClientError::Dial(DialError::Unreachable { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            unreachable()
                .because("this user may not open the socket")
                .fix("run it as root, or use --controller with a client certificate")
        }
        ClientError::Dial(_) | ClientError::Timeout { .. } | ClientError::Broken { .. } => {
            unreachable().because(because)
        }
        ClientError::Status { code, body } => {
            serde_json::from_slice(&body).unwrap_or_else(|_| failure_of_status(code, &body))
        }
        ClientError::TooLong { .. }
        | ClientError::NotText
        | ClientError::Decode(_)
        | ClientError::Encode(_)
        | ClientError::Path { .. }
        | ClientError::Token
        | ClientError::Randomness => Failure::new(
            ErrorCode::Internal,
            format!("the controller at {endpoint} and this client do not understand each other"),
        )
        .because(because)
        .fix("use the same version of both: fleetward --version"),
    }
}

/// For errors that do not come from the controller's handlers: a newer controller's codes, a proxy.
fn failure_of_status(status: http::StatusCode, body: &[u8]) -> Failure {
    const SHOWN: usize = 200;
    let code = match status.as_u16() {
        401 | 403 => ErrorCode::CredentialsRefused,
        404 => ErrorCode::NotFound,
        413 => ErrorCode::TooLarge,
        400..500 => ErrorCode::InvalidRequest,
        503 | 504 => ErrorCode::ControllerUnreachable,
        _ => ErrorCode::Internal,
    };
    let text = String::from_utf8_lossy(body);
    Failure::new(code, format!("the controller answered {status}"))
        .because(text.trim().chars().take(SHOWN).collect::<String>())
}

pub(crate) use fleetward_model::error::chain as causes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_no_failure_still_gets_a_code() {
        let failure = failure_of(
            "here",
            ClientError::Status {
                code: http::StatusCode::BAD_GATEWAY,
                body: Bytes::from_static(b"<html>bad gateway</html>"),
            },
        );
        assert_eq!(failure.code, ErrorCode::Internal);
        assert!(failure.because.contains("bad gateway"));
    }
}
