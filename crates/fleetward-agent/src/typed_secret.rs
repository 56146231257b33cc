//! Passwords of PFX files and join tokens: from a file, from standard input, or from a terminal without echo. Never from the
//! command line, which every user of the machine can read while the command runs.

use anyhow::Context;
use fleetward_model::fix::quoted;
use fleetward_model::{ErrorCode, Failure};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;
use zeroize::Zeroizing;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secret {
    Password,
    Token,
}

impl Secret {
    /// Its name, and the option that names a file with it.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Password => ("password", "--password-file"),
            Self::Token => ("join token", "--token-file"),
        }
    }
}

/// Longest file read, in bytes.
const MAX_FILE: u64 = 4096;

/// What Windows' editors put before UTF-8 text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The secret in a file: its first line, without its line end and a byte order mark.
pub(crate) fn read(path: &Path, secret: Secret) -> anyhow::Result<Zeroizing<String>> {
    let (name, _) = secret.words();
    let from = || format!("the {name} in {}", path.display());
    // Room for all of it at once: a vector that grows leaves its bytes behind.
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 2));
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if content.len() as u64 > MAX_FILE {
        return Err(Failure::new(ErrorCode::InvalidArgument, from())
            .because(format!("the file has more than {MAX_FILE} bytes"))
            .fix(format!(
                "name the file that holds the {name} and nothing else"
            ))
            .into());
    }
    let text = std::str::from_utf8(&content).map_err(|_| not_utf_8(path, &content, from()))?;
    Ok(Zeroizing::new(first_line(text).to_owned()))
}

fn not_utf_8(path: &Path, content: &[u8], what: String) -> Failure {
    let (because, encoding) = match content {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => (
            "the file is UTF-16, which Windows PowerShell's > writes, and not UTF-8",
            "UTF-16",
        ),
        _ => (
            "the file is not UTF-8 text; Japanese programs for Windows write Shift_JIS, and Windows PowerShell's > writes UTF-16",
            "SHIFT_JIS",
        ),
    };
    let file = quoted(&path.display().to_string());
    Failure::new(ErrorCode::InvalidArgument, what)
        .because(because)
        .fix(format!(
            "save it as UTF-8, for example: (umask 077; iconv -f {encoding} -t UTF-8 {file} > {file}.utf8)"
        ))
}

fn first_line(text: &str) -> &str {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let line = text.split('\n').next().unwrap_or_default();
    line.strip_suffix('\r').unwrap_or(line)
}

/// A new password, asked for twice.
pub(crate) fn ask_new() -> anyhow::Result<Zeroizing<String>> {
    let first = ask("Password for the PFX files: ", Secret::Password)?;
    let second = ask("Once more: ", Secret::Password)?;
    if *first != *second {
        return Err(Failure::new(ErrorCode::InvalidArgument, "the password")
            .because("the two that were typed differ")
            .fix("type the same one twice")
            .into());
    }
    Ok(first)
}

/// The join token: typed where there is a terminal, else the first line of standard input.
pub(crate) fn token() -> anyhow::Result<Zeroizing<String>> {
    if io::stdin().is_terminal() {
        return ask("Join token (it is not shown): ", Secret::Token);
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 2));
    io::stdin()
        .lock()
        .take(MAX_FILE)
        .read_to_string(&mut text)
        .context("cannot read the join token from standard input")?;
    Ok(Zeroizing::new(first_line(&text).to_owned()))
}

/// Reads a line that is not shown.
pub(crate) fn ask(prompt: &str, secret: Secret) -> anyhow::Result<Zeroizing<String>> {
    if !io::stdin().is_terminal() {
        let (name, option) = secret.words();
        return Err(
            Failure::new(ErrorCode::InvalidArgument, format!("the {name}"))
                .because("there is no terminal to ask on")
                .fix(format!("give it in a file, with {option}"))
                .into(),
        );
    }
    let _quiet = Quiet::new()?;
    eprint!("{prompt}");
    let mut line = Zeroizing::new(String::new());
    io::stdin().lock().read_line(&mut line)?;
    eprintln!();
    Ok(Zeroizing::new(first_line(&line).to_owned()))
}

/// The terminal without echo, until dropped.
struct Quiet(Termios);

impl Quiet {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // The process is about to end or to go on; a terminal without echo is put right with `stty sane`.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(content: &[u8]) -> anyhow::Result<String> {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("password");
        std::fs::write(&path, content).expect("write");
        read(&path, Secret::Password).map(|password| password.to_string())
    }

    #[test]
    fn a_password_is_the_same_from_every_editor() {
        for password in [
            "a long password",
            "パスワード-四五六七八",
            "Schlüßel-Ångström",
        ] {
            for before in ["", "\u{feff}"] {
                for after in ["", "\n", "\r\n", "\nsecond line\n", "\r\nsecond line\r\n"] {
                    let content = format!("{before}{password}{after}");
                    let read = of_file(content.as_bytes()).expect("read");
                    assert_eq!(read, password, "{content:?}");
                }
            }
        }
    }

    #[test]
    fn only_one_line_end_and_one_mark_are_taken_off() {
        for (content, password) in [
            (" spaces stay \n", " spaces stay "),
            ("a\rb\r\r\n", "a\rb\r"),
            ("\u{feff}\u{feff}x", "\u{feff}x"),
            ("", ""),
        ] {
            assert_eq!(of_file(content.as_bytes()).expect("read"), password);
        }
    }

    #[test]
    fn a_file_in_utf_16_is_named_as_such() {
        let error = of_file(b"\xff\xfea\0b\0").expect_err("refused");
        let failure = error.downcast_ref::<Failure>().expect("a failure");
        assert!(failure.because.contains("is UTF-16"), "{failure}");
        assert!(failure.fix.contains("iconv -f UTF-16"), "{failure}");
        assert!(of_file(&vec![b'x'; 5000]).is_err());
    }

    #[test]
    fn a_file_in_shift_jis_is_never_taken_for_another_password() {
        // "パスワード" as Windows' Japanese programs save it.
        let error = of_file(b"\x83p\x83X\x83\x8f\x81[\x83h\r\n").expect_err("refused");
        let failure = error.downcast_ref::<Failure>().expect("a failure");
        assert_eq!(failure.code, ErrorCode::InvalidArgument);
        assert!(failure.because.contains("Shift_JIS"), "{failure}");
        assert!(failure.fix.contains("iconv -f SHIFT_JIS"), "{failure}");
    }
}
