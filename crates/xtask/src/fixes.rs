//! No command in a message of ours has a placeholder where a name belongs: `fleetward vm stop NAME`.
//!
//! The rule reads string literals in the source of all crates: a message is made where its names are known, and a usual fix of
//! an error code has slots (`fleetward_model::fix`). Comments and tests may have placeholders.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Programs whose commands are looked for in literals.
const PROGRAMS: [&str; 2] = ["fleetward ", "fleetward-agent "];

/// Fails with every literal that has one.
pub(crate) fn check() -> Result<()> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("crates/")?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(crates)? {
        let source = entry?.path().join("src");
        if source.is_dir() {
            collect(&source, &mut files)?;
        }
    }
    files.sort();
    let mut found = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file)?;
        let shown = file.strip_prefix(crates).unwrap_or(file).display();
        for (line, placeholder) in placeholders(&text) {
            found.push(format!("crates/{shown}:{line}: {placeholder}"));
        }
    }
    if !found.is_empty() {
        bail!(
            "a command in a message has a placeholder; put the name there, or write a sentence:\n{}",
            found.join("\n")
        );
    }
    println!(
        "{} files: no command in a message has a placeholder",
        files.len()
    );
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "tests" {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
    Ok(())
}

/// Placeholders in the commands of a file's literals, each with its line. What comes after `#[cfg(test)]` is a test.
fn placeholders(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut command = false;
    for (index, line) in source.lines().enumerate() {
        let line = line.trim();
        if line == "#[cfg(test)]" {
            break;
        }
        if line.starts_with("//") {
            continue;
        }
        // A literal that goes on in the next line ends with a backslash.
        if !command && !PROGRAMS.iter().any(|program| line.contains(program)) {
            continue;
        }
        let mut rest = line;
        if !command {
            let begin = PROGRAMS.iter().filter_map(|p| line.find(p)).min();
            rest = &line[begin.unwrap_or(0)..];
        }
        for word in rest.split_whitespace() {
            if stands_for_a_name(word) {
                found.push((index + 1, rest.to_owned()));
                break;
            }
        }
        command = line.ends_with('\\');
    }
    found
}

/// `NAME`, `KEY=VALUE`, `HOST:PORT`. `TPM`, `UEFI` and the like are words, and `VM` alone is one, too, unless a command ends
/// with it.
fn stands_for_a_name(word: &str) -> bool {
    const WORDS: [&str; 15] = [
        "NAME", "HOST", "ID", "JOB", "GROUP", "GUARDIAN", "IMAGE", "TEMPLATE", "NEW", "FILE",
        "DIR", "TOKEN", "ROLE", "V", "VALUE",
    ];
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let mut parts = bare.split(['=', ':', '|', '/']);
    parts.any(|part| WORDS.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_in_a_command_of_a_message_is_found() {
        for line in [
            "fix(\"fleetward vm stop NAME\")",
            "format!(\"fleetward guardian grant {vm} --to HOST, and again\")",
            "\"on the host: fleetward-agent guardian list --credential-file FILE; while\"",
            "\"fleetward vm migrate {vm} \\\n --to HOST\"",
        ] {
            assert_eq!(placeholders(line).len(), 1, "{line}");
        }
    }

    #[test]
    fn names_sentences_comments_and_tests_are_not_placeholders() {
        for text in [
            "fix(format!(\"fleetward vm stop {}\", vm.name))",
            "\"fleetward vm show says which TPM the VM has\"",
            "/// fleetward vm stop NAME",
            "value_name = \"NAME\"",
            "#[cfg(test)]\nmod tests { fn f() { g(\"fleetward vm stop NAME\") } }",
        ] {
            assert_eq!(placeholders(text), [], "{text}");
        }
    }

    #[test]
    fn no_message_of_ours_has_a_placeholder() {
        check().expect("commands with names");
    }
}
