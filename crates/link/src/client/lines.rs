//! Bodies that are read as they come: line by line, or as server-sent events.

use super::{ClientError, MAX_LINE, Response};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, LinesCodec, LinesCodecError};

/// A line of more bytes is rare, and its room is not kept.
const LONG_LINE: usize = 64 * 1024;

/// A body read line by line.
#[derive(Debug)]
pub struct Lines {
    response: Response,
    pieces: Pieces,
}

impl Lines {
    pub(super) fn new(response: Response, limit: usize) -> Self {
        Self {
            response,
            pieces: Pieces::new(limit),
        }
    }

    /// The next line without its end, `None` after the last.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(line) = self.pieces.line()? {
                return Ok(Some(line));
            }
            match self.response.chunk().await? {
                Some(piece) => self.pieces.push(&piece),
                None => return self.pieces.last(),
            }
        }
    }

    /// What follows the lines read so far, as a stream of pieces: for bodies that begin with lines only.
    pub fn into_rest(self) -> impl Stream<Item = Result<Bytes, ClientError>> + Send {
        let first = futures_util::stream::iter([Ok(self.pieces.rest())]);
        futures_util::StreamExt::chain(first, self.response.into_stream())
    }

    /// The next line as a JSON document; skips empty lines.
    pub async fn next_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        while let Some(line) = self.next().await? {
            if !line.is_empty() {
                return serde_json::from_str(&line)
                    .map(Some)
                    .map_err(ClientError::Decode);
            }
        }
        Ok(None)
    }
}

/// What has arrived and was not read yet.
#[derive(Debug)]
struct Pieces {
    buffer: BytesMut,
    codec: LinesCodec,
}

impl Pieces {
    fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            codec: LinesCodec::new_with_max_length(limit),
        }
    }

    fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole line. Room is given back when all was read, and what a long line took at once: a stream of events
    /// begins with everything, and then mostly waits, for as long as it lasts and one for each host.
    fn line(&mut self) -> Result<Option<String>, ClientError> {
        let line = self.codec.decode(&mut self.buffer);
        let line = line.map_err(|error| self.unreadable(&error))?;
        if self.buffer.is_empty() || line.as_ref().is_some_and(|line| line.len() > LONG_LINE) {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        Ok(line)
    }

    /// What is left at the end, if it is a line.
    fn last(&mut self) -> Result<Option<String>, ClientError> {
        let line = self.codec.decode_eof(&mut self.buffer);
        line.map_err(|error| self.unreadable(&error))
    }

    fn rest(self) -> Bytes {
        self.buffer.freeze()
    }

    fn unreadable(&self, error: &LinesCodecError) -> ClientError {
        match error {
            LinesCodecError::MaxLineLengthExceeded => ClientError::TooLong {
                limit: self.codec.max_length(),
            },
            LinesCodecError::Io(_) => ClientError::NotText,
        }
    }
}

/// One server-sent event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The kind of event; empty if the server gave none.
    pub event: String,
    /// The event's id, if the server gave one.
    pub id: Option<String>,
    /// The data; several data lines are joined by line feeds.
    pub data: String,
}

impl Event {
    /// The data as a JSON document.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_str(&self.data).map_err(ClientError::Decode)
    }
}

/// A body read as server-sent events.
#[derive(Debug)]
pub struct Events {
    lines: Lines,
}

impl Events {
    pub(super) fn new(lines: Lines) -> Self {
        Self { lines }
    }

    /// The next event, `None` when the server has ended the stream. Skips comments, which only keep the stream alive.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        let mut event = Event::default();
        let mut has_data = false;
        while let Some(line) = self.lines.next().await? {
            if line.is_empty() {
                if has_data {
                    return Ok(Some(event));
                }
                event = Event::default();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut event.event),
                "id" => event.id = Some(value.to_owned()),
                "data" => {
                    if has_data {
                        event.data.push('\n');
                    }
                    event.data.push_str(value);
                    has_data = true;
                    if event.data.len() > MAX_LINE {
                        return Err(ClientError::TooLong { limit: MAX_LINE });
                    }
                }
                // Comments have an empty field name; fields we do not know mean nothing to us.
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_long_line_is_given_back() {
        let mut pieces = Pieces::new(MAX_LINE);
        let long = "x".repeat(3 << 20);
        for piece in long.as_bytes().chunks(8192) {
            pieces.push(piece);
            assert_eq!(pieces.line().expect("too short a line yet"), None);
        }
        pieces.push(b"\nshort\nbeg");
        assert_eq!(pieces.line().expect("a line"), Some(long));
        assert_eq!(pieces.line().expect("a line").as_deref(), Some("short"));
        pieces.push(b"un\n");
        assert_eq!(pieces.line().expect("a line").as_deref(), Some("begun"));
        for _ in 0..1000 {
            pieces.push(&[b'y'; 8192]);
            pieces.push(b"\n");
            assert_eq!(pieces.line().expect("a line").map(|l| l.len()), Some(8192));
        }
        // Nothing is held that the next piece could take.
        assert_eq!(pieces.buffer.capacity(), 0);
        pieces.buffer.reserve(1);
        assert!(pieces.buffer.capacity() <= 64);
        pieces.push(b"a whole line\nand a part");
        assert_eq!(
            pieces.line().expect("a line").as_deref(),
            Some("a whole line")
        );
        assert_eq!(&pieces.buffer[..], b"and a part");
    }
}
