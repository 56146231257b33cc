//! What a viewer sends, message by message.

use crate::{Encoding, Inbox, PixelFormat, Reader, Stop, Unreadable};

/// FramebufferUpdateRequest (RFC 6143, 7.5.3).
pub(crate) const REQUEST: u8 = 3;

/// A message of a viewer, as it came or as it may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewerMessage {
    SetPixelFormat(PixelFormat),
    /// Those that may pass, in the viewer's order.
    SetEncodings(Vec<Encoding>),
    /// Input, a request for an update, text that was cut: whole.
    Other(Vec<u8>),
}

impl ViewerMessage {
    /// Whether the viewer asks for a part of the picture (FramebufferUpdateRequest).
    pub fn asks_for_picture(&self) -> bool {
        matches!(self, Self::Other(bytes) if bytes.first() == Some(&REQUEST))
    }

    pub fn write(&self) -> Vec<u8> {
        match self {
            Self::SetPixelFormat(format) => [&[0; 4][..], &format.bytes()].concat(),
            Self::SetEncodings(encodings) => {
                let count = u16::try_from(encodings.len()).expect("as many as were read");
                let mut bytes = vec![2, 0];
                bytes.extend(count.to_be_bytes());
                bytes.extend(
                    encodings
                        .iter()
                        .flat_map(|encoding| encoding.0.to_be_bytes()),
                );
                bytes
            }
            Self::Other(bytes) => bytes.clone(),
        }
    }
}

/// Cuts what a viewer sends into messages.
#[derive(Debug, Default)]
pub struct ViewerMessages {
    inbox: Inbox,
}

impl ViewerMessages {
    /// Longest text that a viewer may paste, bytes.
    const LONGEST_TEXT: usize = 1 << 20;

    pub fn push(&mut self, bytes: &[u8]) {
        self.inbox.push(bytes);
    }

    /// The next message, if it is whole.
    ///
    /// # Errors
    /// What the viewer sent cannot be read, and its further messages cannot be found.
    pub fn take(&mut self) -> Result<Option<ViewerMessage>, Unreadable> {
        let next = self.inbox.next(read)?;
        Ok(next.map(|(found, bytes)| found.unwrap_or(ViewerMessage::Other(bytes))))
    }
}

/// None where the message is passed on as it is.
fn read(reader: &mut Reader<'_>) -> Result<Option<ViewerMessage>, Stop> {
    match reader.u8()? {
        0 => {
            reader.skip(1, 3)?;
            let format = PixelFormat::read(reader.array()?)?;
            return Ok(Some(ViewerMessage::SetPixelFormat(format)));
        }
        2 => {
            reader.skip(1, 1)?;
            let count = reader.u16()?;
            let mut encodings = Vec::new();
            for _ in 0..count {
                let encoding = Encoding(reader.i32()?);
                if encoding.passes() {
                    encodings.push(encoding);
                }
            }
            return Ok(Some(ViewerMessage::SetEncodings(encodings)));
        }
        REQUEST => reader.skip(1, 9)?,
        // KeyEvent
        4 => reader.skip(1, 7)?,
        // PointerEvent
        5 => reader.skip(1, 5)?,
        // ClientCutText
        6 => {
            reader.skip(1, 3)?;
            let length = reader.u32()?;
            if length > ViewerMessages::LONGEST_TEXT {
                return Err(Unreadable::TooLong.into());
            }
            reader.skip(length, 1)?;
        }
        // SetDesktopSize
        251 => {
            reader.skip(1, 5)?;
            let screens = reader.u8()?;
            reader.skip(1, 1)?;
            reader.skip(usize::from(screens), 16)?;
        }
        // QEMU's: a key with its place on the keyboard
        255 => match reader.u8()? {
            0 => reader.skip(1, 10)?,
            _ => return Err(Unreadable::Message(255).into()),
        },
        other => return Err(Unreadable::Message(other).into()),
    }
    Ok(None)
}
