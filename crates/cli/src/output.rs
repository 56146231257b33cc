//! Prints results on stdout: one document, in the requested format. A closed stdout is an error value, never a panic.

use crate::args::Format;
use crate::plain;
use serde::Serialize;
use std::io::{self, Write};

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// The same place, another form.
    pub(crate) fn with_format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// A text that has a form of its own.
    pub(crate) fn text(self, text: &str) -> io::Result<()> {
        self.write(plain::text(text).trim_end_matches('\n'))
    }

    /// Whether people read it.
    pub(crate) fn is_table(self) -> bool {
        self.format == Format::Table
    }

    /// What was asked for: `value` for scripts, `table` for people.
    pub(crate) fn document(
        self,
        value: &impl Serialize,
        table: impl FnOnce() -> String,
    ) -> io::Result<()> {
        let text = match self.format {
            Format::Table => plain::text(&table()).into_owned(),
            Format::Json => serde_json::to_string_pretty(value).map_err(io::Error::other)?,
            Format::Yaml => serde_norway::to_string(value).map_err(io::Error::other)?,
        };
        self.write(text.trim_end_matches('\n'))
    }

    /// Word of success: `value` for scripts, a sentence for people unless they want quiet.
    pub(crate) fn success(
        self,
        value: &impl Serialize,
        sentence: impl FnOnce() -> String,
    ) -> io::Result<()> {
        match self.format {
            Format::Table if self.quiet => Ok(()),
            _ => self.document(value, sentence),
        }
    }

    /// A line for people while the document is still to come.
    pub(crate) fn line(self, text: &str) -> io::Result<()> {
        match self.format {
            Format::Table if !self.quiet => self.write(&plain::text(text)),
            _ => Ok(()),
        }
    }

    /// A list that is printed as its pages come.
    pub(crate) fn listing(self) -> Listing {
        Listing {
            output: self,
            is_begun: false,
        }
    }

    fn write(self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if !text.is_empty() {
            stdout.write_all(text.as_bytes())?;
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }
}

/// A list, of which some is printed already. All of it is what [`Output::document`] prints of the whole list; where it ends
/// without [`Listing::end`], JSON is left without its last bracket, so that no program takes it for whole.
#[derive(Debug)]
pub(crate) struct Listing {
    output: Output,
    is_begun: bool,
}

impl Listing {
    pub(crate) fn page<T: Serialize>(
        &mut self,
        values: &[T],
        table: impl FnOnce() -> String,
    ) -> io::Result<()> {
        let text = match self.output.format {
            Format::Table => plain::text(&table()).into_owned(),
            Format::Json => json_rows(values, self.is_begun).map_err(io::Error::other)?,
            Format::Yaml if values.is_empty() => String::new(),
            Format::Yaml => serde_norway::to_string(values).map_err(io::Error::other)?,
        };
        // an empty list is said at its end
        self.is_begun |= !values.is_empty();
        let text = text.trim_end_matches('\n');
        match self.output.format {
            // without a line feed: a comma may follow
            Format::Json => print(text),
            Format::Table | Format::Yaml => self.output.write(text),
        }
    }

    pub(crate) fn end(self) -> io::Result<()> {
        match (self.output.format, self.is_begun) {
            (Format::Table, _) | (Format::Yaml, true) => Ok(()),
            (Format::Json, true) => print("\n]\n"),
            (Format::Json | Format::Yaml, false) => self.output.write("[]"),
        }
    }
}

/// Values of a list in the form of `serde_json::to_string_pretty`.
fn json_rows<T: Serialize>(values: &[T], is_begun: bool) -> serde_json::Result<String> {
    let mut text = String::new();
    for (n, value) in values.iter().enumerate() {
        let begin = if n == 0 && !is_begun { "[" } else { "," };
        text.push_str(begin);
        for line in serde_json::to_string_pretty(value)?.lines() {
            text.push_str("\n  ");
            text.push_str(line);
        }
    }
    Ok(text)
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn pages_of_json_are_the_document() {
        let rows: Vec<Value> = (0..5)
            .map(|n| json!({ "n": n, "of": [n, {}], "text": "a\nb" }))
            .collect();
        let whole = serde_json::to_string_pretty(&rows).expect("JSON");
        for length in 1..=6 {
            let mut text = String::new();
            for page in rows.chunks(length) {
                text += &json_rows(page, !text.is_empty()).expect("JSON");
            }
            assert_eq!(text + "\n]", whole, "{length} at once");
        }
    }
}
