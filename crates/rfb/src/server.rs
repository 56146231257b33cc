//! What a server sends, message by message.

use crate::{Encoding, Inbox, PixelFormat, Reader, Stop, Unreadable};

/// A message of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerMessage {
    /// As it came.
    pub bytes: Vec<u8>,
    /// The size that the picture has from now on, where the message says so: width, height.
    pub size: Option<(u16, u16)>,
    /// Where the first data of Tight begins.
    tight: Option<usize>,
    /// Whether it has a part of the picture in it.
    pub picture: bool,
}

impl ServerMessage {
    /// Tells the viewer to begin anew with all compressors of Tight; whether there was any place to say so.
    pub fn restart_tight(&mut self) -> bool {
        const ALL: u8 = 0x0f;
        if let Some(at) = self.tight {
            self.bytes[at] |= ALL;
        }
        self.tight.is_some()
    }
}

/// Cuts what a server sends into messages.
#[derive(Debug)]
pub struct ServerMessages {
    inbox: Inbox,
    format: PixelFormat,
}

impl ServerMessages {
    /// `format` is what the server uses until a viewer wishes otherwise.
    pub fn new(format: PixelFormat) -> Self {
        Self {
            inbox: Inbox::default(),
            format,
        }
    }

    /// The server has been told to use that format.
    pub fn set_format(&mut self, format: PixelFormat) {
        self.format = format;
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.inbox.push(bytes);
    }

    /// The next message, if it is whole.
    ///
    /// # Errors
    /// What the server sent cannot be read, and its further messages cannot be found.
    pub fn take(&mut self) -> Result<Option<ServerMessage>, Unreadable> {
        let format = self.format;
        let next = self.inbox.next(|reader| read(reader, format))?;
        Ok(next.map(|(found, bytes)| ServerMessage { bytes, ..found }))
    }
}

fn read(reader: &mut Reader<'_>, format: PixelFormat) -> Result<ServerMessage, Stop> {
    let mut message = ServerMessage {
        bytes: Vec::new(),
        size: None,
        tight: None,
        picture: false,
    };
    match reader.u8()? {
        0 => read_update(reader, format, &mut message)?,
        // SetColourMapEntries
        1 => {
            reader.skip(1, 3)?;
            let count = reader.u16()?;
            reader.skip(count, 6)?;
        }
        // Bell
        2 => {}
        // ServerCutText
        3 => {
            reader.skip(1, 3)?;
            let length = reader.u32()?;
            reader.skip(length, 1)?;
        }
        other => return Err(Unreadable::Message(other).into()),
    }
    Ok(message)
}

fn read_update(
    reader: &mut Reader<'_>,
    format: PixelFormat,
    message: &mut ServerMessage,
) -> Result<(), Stop> {
    reader.skip(1, 1)?;
    for _ in 0..reader.u16()? {
        reader.skip(1, 4)?;
        let [width, height] = [reader.array()?, reader.array()?].map(u16::from_be_bytes);
        let encoding = Encoding(reader.i32()?);
        if matches!(
            encoding,
            Encoding::DESKTOP_SIZE | Encoding::EXTENDED_DESKTOP_SIZE
        ) {
            message.size = Some((width, height));
        }
        message.picture |= encoding.0 >= 0;
        let tight = encoding.skip(reader, format, width.into(), height.into())?;
        message.tight = message.tight.or(tight);
    }
    Ok(())
}
