//! Reads screenshots, far enough to tell one screen from another.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::io::Cursor;

/// Width and height of a character on the guest's text screen, pixels.
const CHARACTER: (usize, usize) = (8, 16);

/// The same on the firmware's.
const FIRMWARE_CHARACTER: (usize, usize) = (8, 19);

/// What a screen showed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Red, green, blue of each pixel, row by row.
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    /// A PNG file, as `vm screenshot` writes it.
    pub(crate) fn read(png: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(Cursor::new(png)).read_info()?;
        let mut rgb = vec![0; reader.output_buffer_size().context("too large")?];
        let frame = reader.next_frame(&mut rgb)?;
        ensure!(frame.color_type == png::ColorType::Rgb, "not RGB");
        let pixels = rgb.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
        Ok(Self {
            width: frame.width as usize,
            height: frame.height as usize,
            pixels,
        })
    }

    /// Pixels as a screen sends them: four bytes each, blue first.
    pub(crate) fn of_bgrx(width: usize, height: usize, bytes: &[u8]) -> Self {
        let pixels = bytes.chunks_exact(4).map(|p| [p[2], p[1], p[0]]).collect();
        Self {
            width,
            height,
            pixels,
        }
    }

    fn row(&self, y: usize) -> &[[u8; 3]] {
        &self.pixels[y * self.width..(y + 1) * self.width]
    }

    /// How many colours there are.
    pub(crate) fn colours(&self) -> usize {
        self.pixels.iter().collect::<BTreeSet<_>>().len()
    }

    /// The share of black pixels, 0 to 1.
    pub(crate) fn black(&self) -> f64 {
        let black = self.pixels.iter().filter(|p| **p == [0; 3]).count();
        black as f64 / self.pixels.len() as f64
    }

    /// Whether there is a light area in the middle: the firmware's logo.
    pub(crate) fn has_logo(&self) -> bool {
        let (left, top) = (self.width / 2 - 80, self.height / 2 - 20);
        let rows = (top..top + 40).map(|y| &self.row(y)[left..left + 160]);
        let light = rows
            .flatten()
            .filter(|p| p.iter().all(|c| *c > 200))
            .count();
        light > 160 * 40 / 2
    }

    /// Which pixels of the character at that place of a text screen are not black, row by row.
    pub(crate) fn glyph(&self, column: usize, line: usize) -> Vec<bool> {
        let (left, top) = (column * CHARACTER.0, line * CHARACTER.1);
        let rows = (top..top + CHARACTER.1).map(|y| &self.row(y)[left..left + CHARACTER.0]);
        rows.flatten().map(|pixel| *pixel != [0; 3]).collect()
    }

    /// Whether the firmware shows this text somewhere: equal characters have equal glyphs, and others others.
    pub(crate) fn firmware_says(&self, text: &str) -> bool {
        let (width, height) = FIRMWARE_CHARACTER;
        let characters: Vec<char> = text.chars().collect();
        let length = characters.len() * width;
        let is_here = |left: usize, top: usize| {
            let glyph = |n: usize| {
                let left = left + n * width;
                let rows = (top..top + height).map(move |y| &self.row(y)[left..left + width]);
                rows.flatten().map(|pixel| *pixel != [0; 3])
            };
            (0..characters.len())
                .all(|i| (0..i).all(|j| glyph(i).eq(glyph(j)) == (characters[i] == characters[j])))
        };
        let tops = 0..=self.height.saturating_sub(height);
        tops.into_iter().any(|top| {
            let mut lefts = 0..=self.width.saturating_sub(length);
            lefts.any(|left| is_here(left, top))
        })
    }

    /// The glyphs of the first characters of a line.
    pub(crate) fn line(&self, line: usize, characters: usize) -> Vec<Vec<bool>> {
        (0..characters)
            .map(|column| self.glyph(column, line))
            .collect()
    }
}
