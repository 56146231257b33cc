//! Pictures as QEMU writes them: PNG, or PPM by an older one. Pure: bytes in, pixels out.
//!
//! A guest that broke out writes these bytes, so sizes are checked before memory is taken, and what comes out has nothing of
//! the file but its pixels.

use fleetward_hypervisor::{MAX_PIXELS, Picture};
use std::io::Cursor;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The picture in a file.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(file: &[u8]) -> Result<Picture, String> {
    if file.starts_with(PNG) {
        read_png(file)
    } else {
        read_ppm(file)
    }
}

fn read_png(file: &[u8]) -> Result<Picture, String> {
    let broken = |error: png::DecodingError| format!("as PNG: {error}");
    let limits = png::Limits {
        bytes: MAX_PIXELS as usize * 4,
    };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(broken)?;
    let (width, height) = reader.info().size();
    let pixels = pixels(width, height)?;
    let mut buffer = vec![0; reader.output_buffer_size().ok_or("it is too large")?];
    let frame = reader.next_frame(&mut buffer).map_err(broken)?;
    let samples = frame.color_type.samples();
    let used = buffer.get(..pixels * samples).ok_or("it is cut off")?;
    let rgb = match frame.color_type {
        png::ColorType::Rgb => used.to_vec(),
        png::ColorType::Rgba => used
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        png::ColorType::Grayscale => used.iter().flat_map(|p| [*p; 3]).collect(),
        png::ColorType::GrayscaleAlpha => used.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        png::ColorType::Indexed => return Err("its palette was not resolved".into()),
    };
    Ok(Picture { width, height, rgb })
}

/// `P6`, width, height, 255, one white space, and three bytes a pixel.
fn read_ppm(file: &[u8]) -> Result<Picture, String> {
    const LONGEST_HEADER: usize = 1024;
    let mut rest = file
        .strip_prefix(b"P6")
        .ok_or("it is neither PNG nor PPM")?;
    let mut numbers = [0_u32; 3];
    for number in &mut numbers {
        rest = skip_blanks(rest);
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 || file.len() - rest.len() > LONGEST_HEADER {
            return Err("its header cannot be read".into());
        }
        *number = std::str::from_utf8(&rest[..digits])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or("a number of its header is too large")?;
        rest = &rest[digits..];
    }
    let [width, height, most] = numbers;
    let pixels = pixels(width, height)?;
    match rest.split_first() {
        Some((blank, content)) if blank.is_ascii_whitespace() && most == 255 => {
            let rgb = content.get(..pixels * 3).ok_or("it is cut off")?;
            Ok(Picture {
                width,
                height,
                rgb: rgb.to_vec(),
            })
        }
        _ => Err("its header cannot be read".into()),
    }
}

/// Without white space and comments.
fn skip_blanks(mut bytes: &[u8]) -> &[u8] {
    loop {
        match bytes {
            [b'#', ..] => {
                let end = bytes
                    .iter()
                    .position(|b| *b == b'\n')
                    .unwrap_or(bytes.len());
                bytes = &bytes[end..];
            }
            [blank, rest @ ..] if blank.is_ascii_whitespace() => bytes = rest,
            _ => return bytes,
        }
    }
}

fn pixels(width: u32, height: u32) -> Result<usize, String> {
    match u64::from(width) * u64::from(height) {
        0 => Err("it is empty".into()),
        pixels if pixels > MAX_PIXELS => Err(format!("it has {width} by {height} pixels")),
        pixels => Ok(pixels as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png_of(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().expect("header");
        writer.write_image_data(rgb).expect("pixels");
        writer.finish().expect("end");
        file
    }

    #[test]
    fn both_formats_give_the_same_pixels() {
        let rgb: Vec<u8> = (0..18).collect();
        let wanted = Picture {
            width: 3,
            height: 2,
            rgb: rgb.clone(),
        };
        assert_eq!(read(&png_of(3, 2, &rgb)).as_ref(), Ok(&wanted));
        let ppm = [b"P6\n# by QEMU\n3 2\n255\n", &rgb[..]].concat();
        assert_eq!(read(&ppm).as_ref(), Ok(&wanted));
    }

    #[test]
    fn a_size_that_no_screen_has_is_refused_before_memory_is_taken() {
        let ppm = b"P6 4000000000 4000000000 255 ";
        assert!(read(ppm).expect_err("too large").contains("pixels"));
        let mut png = png_of(1, 1, &[0; 3]);
        // The width, and the checksum that the decoder holds it against.
        png[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(read(&png).is_err());
    }

    #[test]
    fn no_mutant_of_a_picture_panics_or_gives_the_wrong_number_of_pixels() {
        let rgb: Vec<u8> = (0..=255).cycle().take(16 * 16 * 3).collect();
        let ppm = [b"P6 16 16 255\n", &rgb[..]].concat();
        for file in [png_of(16, 16, &rgb), ppm] {
            for at in 0..file.len() {
                for change in [0x01, 0x80, 0xff] {
                    let mut mutant = file.clone();
                    mutant[at] ^= change;
                    if let Ok(picture) = read(&mutant) {
                        let pixels = (picture.width * picture.height) as usize;
                        assert_eq!(picture.rgb.len(), pixels * 3);
                    }
                }
                let _ = read(&file[..at]);
            }
        }
    }
}
