//! Keys for a VM's keyboard: from text and names of keys to chords of Linux key codes, for a US layout.
//!
//! ```text
//!   {"press": "ctrl-alt-del"} ─► one chord      [29, 56, 111]
//!   {"text": "Hi"}            ─► a chord each   [42, 35] [23]
//! ```
//! A keyboard sends places of keys, not characters, so what a guest makes of them depends on its layout. Everything is
//! parsed before anything is typed: a character that the layout does not have refuses the whole. Codes are those of
//! `linux/input-event-codes.h`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest text, and largest number of chords of one request.
pub const MAX_CHORDS: usize = 1_000;
/// Keys of one chord; hypervisors take no more.
pub const MAX_KEYS: usize = 16;
/// Highest key code that a keyboard of a PC has.
pub const MAX_CODE: u16 = 255;

/// A piece of what is to be typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyInput {
    /// Keys that are pressed together, by name: `ctrl-alt-del`, `f8`, `shift-tab`.
    Press(String),
    /// Text, character by character. A line feed is Enter, a tab Tab.
    Text(String),
}

/// Keys that are held down together, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chord(Vec<u16>);

impl Chord {
    pub fn codes(&self) -> &[u16] {
        &self.0
    }

    /// Whether a keyboard can send it: one key to [`MAX_KEYS`], each with a code that there is.
    pub fn is_possible(&self) -> bool {
        (1..=MAX_KEYS).contains(&self.0.len())
            && self.0.iter().all(|code| (1..=MAX_CODE).contains(code))
    }
}

/// Why something cannot be typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("there is no key {0:?}")]
    NoSuchKey(String),
    #[error("character {position} of the text, {character:?}, is on no key of a US keyboard")]
    NoSuchCharacter { character: char, position: usize },
    #[error("{0} keys cannot be pressed together, at most {MAX_KEYS}")]
    TooManyTogether(usize),
    #[error("it takes more than {MAX_CHORDS} keystrokes")]
    TooLong,
    #[error("there is nothing to type")]
    Nothing,
}

/// Everything that is to be typed, in order.
///
/// # Errors
/// The first piece that cannot be typed.
pub fn chords(pieces: &[KeyInput]) -> Result<Vec<Chord>, KeysError> {
    let mut chords = Vec::new();
    for piece in pieces {
        match piece {
            KeyInput::Press(names) => chords.push(chord(names)?),
            KeyInput::Text(text) => type_text(text, &mut chords)?,
        }
        if chords.len() > MAX_CHORDS {
            return Err(KeysError::TooLong);
        }
    }
    if chords.is_empty() {
        return Err(KeysError::Nothing);
    }
    Ok(chords)
}

/// One word of a command line: names of keys where it is made of them, with at least one that is longer than a
/// character; else text.
pub fn word(word: &str) -> KeyInput {
    let names: Vec<&str> = word.split('-').collect();
    let named = names.iter().any(|name| name.chars().count() > 1);
    if named && names.iter().all(|name| key(name).is_some()) {
        KeyInput::Press(word.to_owned())
    } else {
        KeyInput::Text(word.to_owned())
    }
}

/// The names of all keys, for help.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, _)| *name)
}

fn chord(names: &str) -> Result<Chord, KeysError> {
    let keys = names.split('-').map(|name| {
        let code = key(name);
        code.ok_or_else(|| KeysError::NoSuchKey(name.chars().take(40).collect()))
    });
    let keys = keys.take(MAX_CHORDS).collect::<Result<Vec<u16>, _>>()?;
    match keys.len() {
        1..=MAX_KEYS => Ok(Chord(keys)),
        more => Err(KeysError::TooManyTogether(more)),
    }
}

fn type_text(text: &str, chords: &mut Vec<Chord>) -> Result<(), KeysError> {
    for (index, character) in text.chars().enumerate() {
        if chords.len() > MAX_CHORDS {
            return Err(KeysError::TooLong);
        }
        let (shift, code) = on_us_layout(character).ok_or(KeysError::NoSuchCharacter {
            character,
            position: index + 1,
        })?;
        chords.push(Chord(match shift {
            true => vec![LEFT_SHIFT, code],
            false => vec![code],
        }));
    }
    Ok(())
}

/// The code of a named key, or of the key that a single character is on without Shift.
fn key(name: &str) -> Option<u16> {
    let lower = name.to_ascii_lowercase();
    if let Some((_, code)) = NAMES.iter().find(|(known, _)| *known == lower) {
        return Some(*code);
    }
    let mut characters = lower.chars();
    match (characters.next(), characters.next()) {
        (Some(character), None) => match on_us_layout(character) {
            Some((false, code)) => Some(code),
            Some((true, _)) | None => None,
        },
        _ => None,
    }
}

const LEFT_SHIFT: u16 = 42;

/// Whether Shift is held, and the key.
fn on_us_layout(character: char) -> Option<(bool, u16)> {
    match character {
        ' ' => return Some((false, 57)),
        '\n' | '\r' => return Some((false, 28)),
        '\t' => return Some((false, 15)),
        _ => {}
    }
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let at = |row: &str| row.chars().position(|c| c == character);
        let code = |at: usize| first + u16::try_from(at).unwrap_or(0);
        at(plain)
            .map(|at| (false, code(at)))
            .or_else(|| at(shifted).map(|at| (true, code(at))))
    })
}

/// Runs of keys whose codes count up: the first code, the characters without and with Shift.
const ROWS: &[(u16, &str, &str)] = &[
    (2, "1234567890-=", "!@#$%^&*()_+"),
    (16, "qwertyuiop[]", "QWERTYUIOP{}"),
    (30, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (43, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
];

const NAMES: &[(&str, u16)] = &[
    ("ctrl", 29),
    ("control", 29),
    ("shift", LEFT_SHIFT),
    ("alt", 56),
    ("altgr", 100),
    ("win", 125),
    ("super", 125),
    ("meta", 125),
    ("menu", 127),
    ("esc", 1),
    ("escape", 1),
    ("tab", 15),
    ("enter", 28),
    ("return", 28),
    ("space", 57),
    ("backspace", 14),
    ("del", 111),
    ("delete", 111),
    ("insert", 110),
    ("home", 102),
    ("end", 107),
    ("pageup", 104),
    ("pagedown", 109),
    ("up", 103),
    ("down", 108),
    ("left", 105),
    ("right", 106),
    ("minus", 12),
    ("capslock", 58),
    ("numlock", 69),
    ("scrolllock", 70),
    ("print", 99),
    ("sysrq", 99),
    ("pause", 119),
    ("f1", 59),
    ("f2", 60),
    ("f3", 61),
    ("f4", 62),
    ("f5", 63),
    ("f6", 64),
    ("f7", 65),
    ("f8", 66),
    ("f9", 67),
    ("f10", 68),
    ("f11", 87),
    ("f12", 88),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(pieces: &[KeyInput]) -> Vec<Vec<u16>> {
        let chords = chords(pieces).expect("can be typed");
        assert!(chords.iter().all(Chord::is_possible));
        chords.into_iter().map(|chord| chord.0).collect()
    }

    #[test]
    fn a_word_of_key_names_is_pressed_and_another_one_typed() {
        for keys in ["ctrl-alt-del", "Ctrl-Alt-F1", "enter", "win-r", "alt-tab"] {
            assert_eq!(word(keys), KeyInput::Press(keys.into()));
        }
        for text in [
            "hello",
            "a-b",
            "x",
            "ctrl-",
            "-",
            "",
            "ctrl-alt-nothing",
            "p@ss-word",
        ] {
            assert_eq!(word(text), KeyInput::Text(text.into()));
        }
    }

    #[test]
    fn the_keys_of_a_chord_are_held_together() {
        let pressed = codes(&[word("ctrl-alt-del"), word("f12")]);
        assert_eq!(pressed, [vec![29, 56, 111], vec![88]]);
    }

    #[test]
    fn text_is_typed_with_shift_where_the_layout_needs_it() {
        let typed = codes(&[KeyInput::Text("aB ~/\\\n".into())]);
        let wanted = [
            vec![30],
            vec![42, 48],
            vec![57],
            vec![42, 41],
            vec![53],
            vec![43],
            vec![28],
        ];
        assert_eq!(typed, wanted);
    }

    #[test]
    fn every_printable_character_of_ascii_has_a_key_of_its_own() {
        let all: String = (' '..='~').collect();
        let typed = codes(&[KeyInput::Text(all.clone())]);
        let distinct: std::collections::BTreeSet<_> = typed.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn a_character_without_a_key_refuses_the_whole() {
        let pieces = [word("enter"), KeyInput::Text("pä".into())];
        let refused = KeysError::NoSuchCharacter {
            character: 'ä',
            position: 2,
        };
        assert_eq!(chords(&pieces), Err(refused));
        let named = chords(&[KeyInput::Press("ctrl-alt-x1".into())]);
        assert_eq!(named, Err(KeysError::NoSuchKey("x1".into())));
    }

    #[test]
    fn too_much_and_nothing_are_refused() {
        let text = |length: usize| [KeyInput::Text("a".repeat(length))];
        assert_eq!(codes(&text(MAX_CHORDS)).len(), MAX_CHORDS);
        assert_eq!(chords(&text(MAX_CHORDS + 1)), Err(KeysError::TooLong));
        assert_eq!(chords(&text(10_000_000)), Err(KeysError::TooLong));
        assert_eq!(chords(&[]), Err(KeysError::Nothing));
        let many = ["a"; MAX_KEYS + 1].join("-");
        assert_eq!(
            chords(&[KeyInput::Press(many)]),
            Err(KeysError::TooManyTogether(MAX_KEYS + 1))
        );
    }
}
