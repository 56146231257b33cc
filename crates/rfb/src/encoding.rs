//! Encodings of rectangles: which pass, and how long their data is.

use crate::{PixelFormat, Reader, Stop, Unreadable};

/// A number that stands for an encoding, or for something else that a viewer can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding(pub i32);

impl Encoding {
    pub const RAW: Self = Self(0);
    pub const COPY_RECT: Self = Self(1);
    pub const HEXTILE: Self = Self(5);
    pub const TIGHT: Self = Self(7);
    /// The picture has another size.
    pub const DESKTOP_SIZE: Self = Self(-223);
    /// The same, with the screens that it consists of.
    pub const EXTENDED_DESKTOP_SIZE: Self = Self(-308);
    const CURSOR: Self = Self(-239);
    const DESKTOP_NAME: Self = Self(-307);
    /// QEMU: the pointer is absolute or relative.
    const POINTER_TYPE: Self = Self(-257);
    /// QEMU: keys come with their place on the keyboard.
    const EXTENDED_KEYS: Self = Self(-258);
    /// QEMU: the lights of the keyboard.
    const LEDS: Self = Self(-261);

    /// Whether a viewer may be given this: its length can be told, and another server can go on with it.
    pub fn passes(self) -> bool {
        match self {
            Self::RAW
            | Self::COPY_RECT
            | Self::HEXTILE
            | Self::TIGHT
            | Self::DESKTOP_SIZE
            | Self::EXTENDED_DESKTOP_SIZE
            | Self::CURSOR
            | Self::DESKTOP_NAME
            | Self::POINTER_TYPE
            | Self::EXTENDED_KEYS
            | Self::LEDS => true,
            // How strongly Tight compresses, and how good its pictures are.
            Self(-256..=-247 | -32..=-23) => true,
            Self(_) => false,
        }
    }

    /// Passes over the data of a rectangle of that size; where the first byte of Tight is, if it is one.
    pub(crate) fn skip(
        self,
        reader: &mut Reader<'_>,
        format: PixelFormat,
        width: usize,
        height: usize,
    ) -> Result<Option<usize>, Stop> {
        let pixel = format.pixel();
        match self {
            Self::RAW => reader.skip(width * height, pixel)?,
            Self::COPY_RECT => reader.skip(1, 4)?,
            Self::HEXTILE => skip_hextile(reader, pixel, width, height)?,
            Self::TIGHT => {
                let at = reader.at;
                skip_tight(reader, format.tight_pixel(), width, height)?;
                return Ok(Some(at));
            }
            Self::DESKTOP_SIZE | Self::POINTER_TYPE | Self::EXTENDED_KEYS => {}
            Self::EXTENDED_DESKTOP_SIZE => {
                let screens = reader.u8()?;
                reader.skip(1, 3)?;
                reader.skip(usize::from(screens), 16)?;
            }
            Self::CURSOR => {
                reader.skip(width * height, pixel)?;
                reader.skip(width.div_ceil(8), height)?;
            }
            Self::DESKTOP_NAME => {
                let length = reader.u32()?;
                reader.skip(length, 1)?;
            }
            Self::LEDS => reader.skip(1, 1)?,
            Self(other) => return Err(Unreadable::Encoding(other).into()),
        }
        Ok(None)
    }
}

/// RFC 6143, 7.7.4.
fn skip_hextile(
    reader: &mut Reader<'_>,
    pixel: usize,
    width: usize,
    height: usize,
) -> Result<(), Stop> {
    const TILE: usize = 16;
    for top in (0..height).step_by(TILE) {
        for left in (0..width).step_by(TILE) {
            let kind = reader.u8()?;
            let [raw, background, foreground, rectangles, coloured] =
                [1, 2, 4, 8, 16].map(|bit| kind & bit != 0);
            if raw {
                reader.skip((width - left).min(TILE) * (height - top).min(TILE), pixel)?;
                continue;
            }
            reader.skip(usize::from(background) + usize::from(foreground), pixel)?;
            if rectangles {
                let count = usize::from(reader.u8()?);
                reader.skip(count, 2 + if coloured { pixel } else { 0 })?;
            }
        }
    }
    Ok(())
}

/// The community's description of RFB, "Tight Encoding".
fn skip_tight(
    reader: &mut Reader<'_>,
    pixel: usize,
    width: usize,
    height: usize,
) -> Result<(), Stop> {
    const FILL: u8 = 8;
    const JPEG: u8 = 9;
    /// What is shorter is not compressed.
    const SHORTEST: usize = 12;
    let control = reader.u8()?;
    let length = match control >> 4 {
        FILL => return reader.skip(1, pixel),
        JPEG => {
            let length = compact(reader)?;
            return reader.skip(length, 1);
        }
        0..FILL => {
            let filter = if control & 0x40 == 0 { 0 } else { reader.u8()? };
            match filter {
                // as they are, or as differences
                0 | 2 => width * height * pixel,
                // a palette
                1 => {
                    let colours = usize::from(reader.u8()?) + 1;
                    reader.skip(colours, pixel)?;
                    match colours {
                        ..=2 => width.div_ceil(8) * height,
                        3.. => width * height,
                    }
                }
                3.. => return Err(Unreadable::Encoding(Encoding::TIGHT.0).into()),
            }
        }
        _ => return Err(Unreadable::Encoding(Encoding::TIGHT.0).into()),
    };
    let length = match length {
        ..SHORTEST => length,
        SHORTEST.. => compact(reader)?,
    };
    reader.skip(length, 1)
}

/// A length of up to 22 bits, seven in a byte, the lowest first.
fn compact(reader: &mut Reader<'_>) -> Result<usize, Stop> {
    let first = reader.u8()?;
    let mut length = usize::from(first & 0x7f);
    if first & 0x80 != 0 {
        let second = reader.u8()?;
        length |= usize::from(second & 0x7f) << 7;
        if second & 0x80 != 0 {
            length |= usize::from(reader.u8()?) << 14;
        }
    }
    Ok(length)
}
