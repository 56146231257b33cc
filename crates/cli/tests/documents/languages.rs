//! A page in English and in Japanese shows the same commands: who follows one does the same as who follows the other.

use std::path::{Path, PathBuf};

/// The lines of each fenced block of a page, without comments, which are in the page's language.
fn blocks(text: &str) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    let mut block: Option<Vec<String>> = None;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            match block.take() {
                Some(ended) => blocks.push(ended),
                None => block = Some(Vec::new()),
            }
        } else if let Some(block) = &mut block {
            let said = line.split_once(" # ").map_or(line, |(said, _)| said);
            let said = said.trim_end();
            if !said.is_empty() && !said.starts_with('#') {
                block.push(said.to_owned());
            }
        }
    }
    blocks
}

fn pages(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory of pages");
    let mut pages: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    pages.retain(|page| page.extension().is_some_and(|e| e == "md"));
    pages.sort();
    pages
}

#[test]
fn both_languages_show_the_same_commands() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = here.ancestors().nth(2).expect("crates/cli").join("docs");
    let english = pages(&docs.join("from-scvmm"));
    let japanese = pages(&docs.join("ja/from-scvmm"));
    let names = |pages: &[PathBuf]| -> Vec<_> {
        let names = pages.iter().filter_map(|page| page.file_name());
        names.map(ToOwned::to_owned).collect()
    };
    assert_eq!(names(&english), names(&japanese), "pages in one language");
    let mut compared = 0;
    for (english, japanese) in english.iter().zip(&japanese) {
        let read = |page| blocks(&std::fs::read_to_string(page).expect("a page"));
        let (ours, theirs) = (read(english), read(japanese));
        let page = english.file_name().expect("a name").to_string_lossy();
        assert_eq!(ours.len(), theirs.len(), "{page}: blocks");
        for (one, other) in ours.iter().zip(&theirs) {
            assert_eq!(one, other, "{page}: English left, Japanese right");
            compared += one.len();
        }
    }
    assert!(compared > 50, "only {compared} lines were compared");
}

#[test]
fn a_comment_is_no_command_and_a_missing_line_shows() {
    let page = "text\n```sh\nfleetward host list   # all\n# alone\n\nfleetward check\n```\n";
    assert_eq!(blocks(page), [["fleetward host list", "fleetward check"]]);
    assert_ne!(blocks(page), blocks(&page.replace("fleetward check", "")));
}
