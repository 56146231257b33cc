//! The fix of an error: a command that can be pasted, or a sentence.
//!
//! The usual fix of an error code is a [`UsualFix`]: text with slots for the names of the objects that the error is about,
//! and text that needs no names. [`Names`] fills the slots where an error is made or passed on. A slot that has no name is
//! never shown: the error then has the text that needs none.

use std::fmt::Display;

/// The names of the objects that an error is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<(&'static str, String)>);

impl Names {
    #[must_use]
    pub fn vm(self, name: impl Display) -> Self {
        self.with("vm", name)
    }

    #[must_use]
    pub fn host(self, name: impl Display) -> Self {
        self.with("host", name)
    }

    #[must_use]
    pub fn job(self, id: impl Display) -> Self {
        self.with("job", id)
    }

    fn with(mut self, slot: &'static str, name: impl Display) -> Self {
        self.0.retain(|(other, _)| *other != slot);
        self.0.push((slot, quoted(&name.to_string())));
        self
    }

    fn of(&self, slot: &str) -> Option<&str> {
        let mut named = self.0.iter().filter(|(other, _)| *other == slot);
        named.next().map(|(_, name)| name.as_str())
    }
}

/// What usually helps against an error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsualFix {
    /// Has slots, `{vm}`, `{host}` or `{job}`, if `general` differs from it.
    pub named: &'static str,
    /// Needs no names.
    pub general: &'static str,
}

impl UsualFix {
    /// The text with the names in it; none if a slot has no name.
    pub fn with(self, names: &Names) -> Option<String> {
        replace_slots(self.named, |slot| names.of(slot).map(str::to_owned))
    }

    /// The text as the documentation shows it: `fleetward vm stop VM`.
    pub fn documented(self) -> String {
        replace_slots(self.named, |slot| Some(slot.to_uppercase())).unwrap_or_default()
    }
}

fn replace_slots(text: &str, name: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}')?;
        filled.push_str(before);
        filled.push_str(&name(slot)?);
        rest = after;
    }
    filled.push_str(rest);
    Some(filled)
}

/// A command line that can be pasted: the words, each quoted for a POSIX shell where it needs to be.
pub fn command<I, W>(words: I) -> String
where
    I: IntoIterator<Item = W>,
    W: AsRef<str>,
{
    let words = words.into_iter().map(|word| quoted(word.as_ref()));
    words.collect::<Vec<_>>().join(" ")
}

/// One word of a command line. A NUL byte, which no argument can contain, is left out.
pub fn quoted(word: &str) -> String {
    let word = word.replace('\0', "");
    shlex::try_quote(&word).map_or_else(|_| String::new(), |quoted| quoted.into_owned())
}

/// Words that documents and help texts put in the place of a name.
const PLACEHOLDERS: [&str; 16] = [
    "NAME", "VM", "HOST", "ID", "JOB", "GROUP", "GUARDIAN", "IMAGE", "TEMPLATE", "NEW", "FILE",
    "DIR", "TOKEN", "ROLE", "V", "CODE",
];

/// The first word in a command of `text` that stands for a name, such as `NAME` in `fleetward vm stop NAME`. Outside of
/// commands such a word is ordinary English.
pub fn placeholder(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    let mut command = false;
    words.find(|word| {
        let bare = word.trim_matches(|c: char| "`'\"()".contains(c));
        if bare == "fleetward" || bare == "fleetward-agent" {
            command = true;
            return false;
        }
        let stands_for_a_name = command
            && (bare
                .trim_end_matches([',', ';', ':', '.'])
                .split(['=', ':', '|', '/']))
            .any(|part| PLACEHOLDERS.contains(&part));
        if word.ends_with([',', ';', ':', '.', ')', '`']) {
            command = false;
        }
        stands_for_a_name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: UsualFix = UsualFix {
        named: "fleetward vm stop {vm}; or look at host {host}",
        general: "stop the VM",
    };

    #[test]
    fn a_fix_is_shown_with_all_of_its_names_or_with_none() {
        let names = Names::default().vm("web");
        assert_eq!(STOP.with(&names), None);
        assert_eq!(
            STOP.with(&names.host("a")).as_deref(),
            Some("fleetward vm stop web; or look at host a")
        );
        assert_eq!(
            STOP.documented(),
            "fleetward vm stop VM; or look at host HOST"
        );
    }

    #[test]
    fn a_word_is_quoted_so_that_a_shell_reads_it_back() {
        assert_eq!(quoted("web-1.example"), "web-1.example");
        assert_eq!(command(["mkdir", "-m", "700", "/a/b"]), "mkdir -m 700 /a/b");
        for word in ["/var/lib/a b", "it's", "$(reboot)", "a\nb", "", "!x"] {
            let line = command(["fleetward", word]);
            assert_eq!(
                shlex::split(&line).expect("a command line"),
                ["fleetward", word]
            );
        }
    }

    #[test]
    fn a_placeholder_is_a_word_of_a_command() {
        for text in [
            "fleetward vm stop NAME",
            "wait: fleetward job watch ID; or cancel it",
            "`fleetward host show HOST`",
            "(4) fleetward-agent guardian export-pfx ID --out DIR",
            "fleetward vm set web --label VM=x",
        ] {
            assert!(placeholder(text).is_some(), "{text}");
        }
        for text in [
            "fleetward vm stop web, and the VM is off",
            "stop the VM on that HOST",
            "fleetward host list: choose a host of the VM's group",
        ] {
            assert_eq!(placeholder(text), None, "{text}");
        }
    }
}
