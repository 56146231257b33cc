//! What is said before the first message: versions, and what the server's screen is.

use crate::{PixelFormat, Reader, Stop, Unreadable};

/// The version that we speak.
pub const VERSION: [u8; 12] = *b"RFB 003.008\n";

/// A version of the other side, as far as the handshake differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The server alone decides about security.
    V3_3,
    /// The viewer chooses; that there is no password is not confirmed.
    V3_7,
    V3_8,
}

impl Version {
    /// # Errors
    /// [`Unreadable::NoRfb`].
    pub fn read(said: [u8; 12]) -> Result<Self, Unreadable> {
        let [b'R', b'F', b'B', b' ', major @ .., b'.', h, t, o, b'\n'] = said else {
            return Err(Unreadable::NoRfb);
        };
        let digits = |digits: [u8; 3]| {
            digits.iter().try_fold(0_u16, |number, digit| match digit {
                b'0'..=b'9' => Ok(number * 10 + u16::from(digit - b'0')),
                _ => Err(Unreadable::NoRfb),
            })
        };
        match (digits(major)?, digits([h, t, o])?) {
            (3, 8..) | (4.., _) => Ok(Self::V3_8),
            (3, 7) => Ok(Self::V3_7),
            (3, 3..7) => Ok(Self::V3_3),
            _ => Err(Unreadable::NoRfb),
        }
    }
}

/// The server's first words about its screen (RFC 6143, 7.3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    pub width: u16,
    pub height: u16,
    pub format: PixelFormat,
    pub name: Vec<u8>,
}

impl Init {
    /// Longest name that is read, bytes.
    const LONGEST_NAME: usize = 4096;

    /// Reads it off the front of `bytes`, with its length; none when more must come.
    ///
    /// # Errors
    /// The server's screen cannot be used.
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, Unreadable> {
        let mut reader = Reader::new(bytes);
        match Self::take(&mut reader) {
            Ok(init) => Ok(Some((init, reader.at))),
            Err(Stop::Needs(_)) => Ok(None),
            Err(Stop::Unreadable(unreadable)) => Err(unreadable),
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, Stop> {
        let [width, height] = [reader.array()?, reader.array()?].map(u16::from_be_bytes);
        let format = PixelFormat::read(reader.array()?)?;
        let length = reader.u32()?;
        if length > Self::LONGEST_NAME {
            return Err(Unreadable::TooLong.into());
        }
        Ok(Self {
            width,
            height,
            format,
            name: reader.take(length)?.to_vec(),
        })
    }

    pub fn write(&self) -> Vec<u8> {
        let mut bytes = [self.width.to_be_bytes(), self.height.to_be_bytes()].concat();
        bytes.extend(self.format.bytes());
        let length = u32::try_from(self.name.len()).expect("a name that was read");
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.name);
        bytes
    }
}
