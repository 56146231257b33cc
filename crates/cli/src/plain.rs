//! Text as a terminal gets it. Names, errors and warnings come from hosts, guests and files: none of them moves the cursor,
//! changes a colour, turns the direction of writing, or looks like a line of ours.
//!
//! JSON and YAML are not concerned: they are for programs, and escape what they must.

use fleetward_model::text::is_invisible;
use std::borrow::Cow;

/// What stands for a character that would turn or hide what is around it.
const REPLACEMENT: char = '\u{fffd}';

/// The text with its line feeds, and without what a terminal would obey.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    replaced(text, |c| c == '\n')
}

/// The same as one line.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    replaced(text, |_| false)
}

fn replaced(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let harmless = |c: char| stays(c) || !(c.is_control() || is_invisible(c));
    if text.chars().all(&harmless) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|c| match c {
        c if harmless(c) => c,
        // As wide as what people expect of a tab or a line feed in a line.
        c if c.is_control() => ' ',
        _ => REPLACEMENT,
    });
    Cow::Owned(shown.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        let hostile = "a\u{1b}[2J\u{7}b\u{9b}31mc\rd\u{202e}e\u{2066}f\u{200b}g\u{7f}h\ti";
        assert_eq!(
            text(hostile),
            "a [2J b 31mc d\u{fffd}e\u{fffd}f\u{fffd}g h i"
        );
        assert_eq!(line("one\nerror[FALSE]: two"), "one error[FALSE]: two");
        assert_eq!(text("one\ntwo"), "one\ntwo");
    }

    #[test]
    fn words_of_all_languages_stay() {
        for words in ["büro", "仮想マシン", "שרת", "сервер", "🔒", "e\u{301}"] {
            assert_eq!(line(words), words);
        }
    }
}
