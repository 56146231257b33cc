//! The command lines that the documents show, taken out of Markdown. Shared with the agent's program, whose commands the
//! documents show too.

use std::path::{Path, PathBuf};

/// One command line of a document.
#[derive(Debug)]
pub(crate) struct Shown {
    /// File and line.
    pub(crate) place: String,
    /// The program first.
    pub(crate) words: Vec<String>,
    /// In running text, where only the command may be named and not what it needs.
    pub(crate) inline: bool,
}

/// Every command line that begins with `program` in the pages that people write: READMEs and `docs/`, without what is made
/// from the definitions and without decisions, which tell of their day.
pub(crate) fn shown(program: &str) -> Vec<Shown> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/x");
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(root).expect("the workspace") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("README") {
            pages.push(path);
        }
    }
    collect(&root.join("docs"), &mut pages);
    pages.sort();
    let mut found = Vec::new();
    for page in pages {
        let text = std::fs::read_to_string(&page).expect("a page");
        let name = page.strip_prefix(root).expect("below the root").display();
        for (number, line, inline) in lines(&text) {
            let Some(words) = words(&line, program) else {
                continue;
            };
            found.push(Shown {
                place: format!("{name}:{number}"),
                words,
                inline,
            });
        }
    }
    found
}

/// Other words to put for those that stand for something, such as NAME: the first that parses is good enough.
pub(crate) fn readings(words: &[String]) -> impl Iterator<Item = Vec<String>> + '_ {
    ["", "name", "1", "1h"].into_iter().map(|value| {
        let read = |word: &String| {
            let stands_for_something = word.len() > 1
                && word.chars().any(|c| c.is_ascii_uppercase())
                && word
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || "|_=".contains(c));
            match word.as_str() {
                _ if value.is_empty() || !stands_for_something => word.clone(),
                "GUARDIAN" => "0a".repeat(32),
                word if word.contains('=') => "a=b".to_owned(),
                _ => value.to_owned(),
            }
        };
        words.iter().map(read).collect()
    })
}

fn collect(directory: &Path, pages: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && name != "reference" && name != "decisions" {
            collect(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
}

/// Lines of code blocks, and code spans in running text, with their line numbers.
fn lines(text: &str) -> Vec<(usize, String, bool)> {
    let mut found = Vec::new();
    let mut block = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            block = !block;
        } else if block {
            found.push((number + 1, line.trim().to_owned(), false));
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.map(|span| (number + 1, span.to_owned(), true)));
        }
    }
    found
}

fn words(line: &str, program: &str) -> Option<Vec<String>> {
    let line = line
        .strip_prefix("$ ")
        .or_else(|| line.strip_prefix("# "))
        .unwrap_or(line);
    let mut line = line.strip_prefix(program)?;
    if !line.starts_with(' ') {
        return None;
    }
    for end in [" # ", "  #", " | ", " > ", " && ", "; "] {
        line = line.split(end).next().unwrap_or(line);
    }
    // What may be left out is left out.
    let mut depth = 0_i32;
    let mut kept = String::new();
    for letter in line.chars() {
        match letter {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ if depth == 0 => kept.push(letter),
            _ => {}
        }
    }
    let words = shlex::split(&kept)?
        .into_iter()
        .filter(|word| word != "...");
    Some(std::iter::once(program.to_owned()).chain(words).collect())
}
