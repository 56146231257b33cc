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

    fn write(self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if !text.is_empty() {
            stdout.write_all(text.as_bytes())?;
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }
}
