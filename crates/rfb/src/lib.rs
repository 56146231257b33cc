//! RFB, the protocol of VNC (RFC 6143), as far as a screen that outlives its connection needs it: where messages end, and
//! what a viewer has asked for, so that it can be asked for again on another connection. No I/O, no pixels.
//!
//! ```text
//!   viewer ── ViewerMessages ──► Wishes::note ──► server         a message is passed on whole, or not at all
//!   viewer ◄── ServerMessages ◄─────────────────── server        the server ends in the middle of a message: it is dropped
//!                        another server: Wishes::again, then as before
//! ```
//! A compressor goes on from one rectangle to the next, so a viewer cannot read a second server's data where the first one's
//! ended. Of the encodings that a viewer offers only those pass ([`Encoding::passes`]) that have no such memory, or, as
//! Tight, can tell the viewer to begin anew.
//!
//! Every length is checked against [`MAX_MESSAGE`] before memory is taken for it. Foreign bytes never panic; what cannot be
//! read is [`Unreadable`], after which the connection is of no use.

mod encoding;
mod handshake;
mod server;
mod viewer;
mod wishes;

pub use encoding::Encoding;
pub use handshake::{Init, VERSION, Version};
pub use server::{ServerMessage, ServerMessages};
pub use viewer::{ViewerMessage, ViewerMessages};
pub use wishes::Wishes;

/// Longest message, bytes: a picture of 7680 by 4320 pixels without compression fits.
pub const MAX_MESSAGE: usize = 1 << 27;

/// What the other side sent cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it speaks no RFB")]
    NoRfb,
    #[error("it sent a message of unknown type {0}")]
    Message(u8),
    #[error("it used encoding {0}, which was not asked for")]
    Encoding(i32),
    #[error("it sent a message of more than {MAX_MESSAGE} bytes")]
    TooLong,
    #[error("it has a pixel format that there is not")]
    PixelFormat,
}

/// How pixels are sent: 16 bytes (RFC 6143, 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelFormat([u8; 16]);

impl PixelFormat {
    pub const SIZE: usize = 16;

    /// 32 bits, little-endian: blue, green, red, nothing.
    pub const BGRX: Self = Self([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);

    /// # Errors
    /// [`Unreadable::PixelFormat`] when pixels have not 8, 16 or 32 bits.
    pub fn read(bytes: [u8; Self::SIZE]) -> Result<Self, Unreadable> {
        match bytes[0] {
            8 | 16 | 32 => Ok(Self(bytes)),
            _ => Err(Unreadable::PixelFormat),
        }
    }

    pub fn bytes(self) -> [u8; Self::SIZE] {
        self.0
    }

    /// Bytes of a pixel: 1, 2 or 4.
    pub fn pixel(self) -> usize {
        usize::from(self.0[0] / 8)
    }

    /// Bytes of a pixel in Tight, which leaves out the fourth where it says nothing.
    fn tight_pixel(self) -> usize {
        let maximum = |at: usize| u16::from_be_bytes([self.0[at], self.0[at + 1]]);
        let bytes_of_colour = [4, 6, 8].map(maximum) == [255; 3];
        if self.0[0] == 32 && self.0[1] == 24 && self.0[3] != 0 && bytes_of_colour {
            3
        } else {
            self.pixel()
        }
    }
}

/// Reads big-endian numbers off the front of what has come; what is still missing is said by how much there must be.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Why a message cannot be read to its end.
enum Stop {
    /// It has at least so many bytes.
    Needs(usize),
    Unreadable(Unreadable),
}

impl From<Unreadable> for Stop {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let end = self
            .at
            .checked_add(length)
            .filter(|end| *end <= MAX_MESSAGE);
        let end = end.ok_or(Unreadable::TooLong)?;
        let taken = self.bytes.get(self.at..end).ok_or(Stop::Needs(end))?;
        self.at = end;
        Ok(taken)
    }

    /// Passes over `count` times `size` bytes.
    fn skip(&mut self, count: usize, size: usize) -> Result<(), Stop> {
        let length = count.checked_mul(size).ok_or(Unreadable::TooLong)?;
        self.take(length).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("as many as were asked for"))
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<usize, Stop> {
        self.array().map(u16::from_be_bytes).map(usize::from)
    }

    fn u32(&mut self) -> Result<usize, Stop> {
        let number = self.array().map(u32::from_be_bytes)?;
        usize::try_from(number).map_err(|_| Unreadable::TooLong.into())
    }

    fn i32(&mut self) -> Result<i32, Stop> {
        self.array().map(i32::from_be_bytes)
    }
}

/// Bytes that have come, of messages that are taken off whole.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// Before there are so many, the first message is not whole.
    needs: usize,
}

impl Inbox {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The first message, if it is whole; `read` goes over it to its end.
    fn next<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Stop>,
    ) -> Result<Option<(T, Vec<u8>)>, Unreadable> {
        if self.bytes.len() < self.needs.max(1) {
            return Ok(None);
        }
        let mut reader = Reader::new(&self.bytes);
        match read(&mut reader) {
            Ok(value) => {
                let rest = self.bytes.split_off(reader.at);
                let message = std::mem::replace(&mut self.bytes, rest);
                self.needs = 0;
                Ok(Some((value, message)))
            }
            Err(Stop::Needs(needs)) => {
                self.needs = needs;
                Ok(None)
            }
            Err(Stop::Unreadable(unreadable)) => Err(unreadable),
        }
    }
}
