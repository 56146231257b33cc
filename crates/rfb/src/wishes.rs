//! What a viewer has asked for: enough to ask another server for the same.

use crate::viewer::REQUEST;
use crate::{Encoding, Init, PixelFormat, ViewerMessage};

/// The wishes of one viewer, and the picture that it believes there is.
#[derive(Debug, Clone)]
pub struct Wishes {
    format: PixelFormat,
    encodings: Option<Vec<Encoding>>,
    size: (u16, u16),
}

impl Wishes {
    /// Those of a viewer that has been told of `init`, and has wished for nothing.
    pub fn of(init: &Init) -> Self {
        Self {
            format: init.format,
            encodings: None,
            size: (init.width, init.height),
        }
    }

    /// The format in which the viewer expects pixels.
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    /// Takes note of what the viewer sends.
    pub fn note(&mut self, message: &ViewerMessage) {
        match message {
            ViewerMessage::SetPixelFormat(format) => self.format = *format,
            ViewerMessage::SetEncodings(encodings) => self.encodings = Some(encodings.clone()),
            ViewerMessage::Other(_) => {}
        }
    }

    /// The viewer has been told that the picture has another size.
    pub fn note_size(&mut self, size: (u16, u16)) {
        self.size = size;
    }

    /// Asks a server that has just introduced itself with `init` for the same, and for the whole picture.
    pub fn again(&self, init: &Init) -> Vec<u8> {
        let mut bytes = ViewerMessage::SetPixelFormat(self.format).write();
        if let Some(encodings) = &self.encodings {
            bytes.extend(ViewerMessage::SetEncodings(encodings.clone()).write());
        }
        bytes.extend(request(init.width, init.height));
        bytes
    }

    /// Asks for a corner of the picture, changed or not: a server sends it at once.
    pub fn sign_of_life() -> Vec<u8> {
        request(1, 1)
    }

    /// What the viewer must be told of the size of the picture of `init`: nothing, when it is the one that it knows.
    ///
    /// # Errors
    /// The viewer cannot take another size.
    pub fn resized(&self, init: &Init) -> Result<Vec<u8>, OtherSize> {
        let size = (init.width, init.height);
        if size == self.size {
            return Ok(Vec::new());
        }
        let can = |encoding| self.encodings.iter().flatten().any(|one| *one == encoding);
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 0];
        bytes.extend(size.0.to_be_bytes());
        bytes.extend(size.1.to_be_bytes());
        if can(Encoding::DESKTOP_SIZE) {
            bytes.extend(Encoding::DESKTOP_SIZE.0.to_be_bytes());
        } else if can(Encoding::EXTENDED_DESKTOP_SIZE) {
            bytes.extend(Encoding::EXTENDED_DESKTOP_SIZE.0.to_be_bytes());
            // one screen, number 0, all of the picture
            bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend(size.0.to_be_bytes());
            bytes.extend(size.1.to_be_bytes());
            bytes.extend([0; 4]);
        } else {
            return Err(OtherSize);
        }
        Ok(bytes)
    }
}

/// A request for a part of the picture, from its upper left corner on, whether or not it has changed.
fn request(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = vec![REQUEST, 0, 0, 0, 0, 0];
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes
}

/// The picture has another size, and the viewer cannot change to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the screen has another size now, and the viewer cannot change to it")]
pub struct OtherSize;
