//! A page in English and in Japanese shows the same commands: who follows one does the same as who follows the other.

use std::collections::BTreeMap;
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

/// The pages in a directory, by their names.
fn pages(directory: &Path) -> BTreeMap<String, PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory of pages");
    let paths = entries.map(|e| e.expect("an entry").path());
    let pages = paths.filter(|page| page.extension().is_some_and(|e| e == "md"));
    let named = |page: PathBuf| {
        let name = page.file_name().expect("a name");
        (name.to_string_lossy().into_owned(), page)
    };
    pages.map(named).collect()
}

fn docs() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("crates/cli").join("docs")
}

fn read(page: &Path) -> String {
    std::fs::read_to_string(page).expect("a page")
}

/// Compares two texts; how many lines were the same.
fn compare(page: &str, english: &str, japanese: &str) -> usize {
    let (ours, theirs) = (blocks(english), blocks(japanese));
    assert_eq!(ours.len(), theirs.len(), "{page}: blocks");
    let mut compared = 0;
    for (one, other) in ours.iter().zip(&theirs) {
        assert_eq!(one, other, "{page}: English left, Japanese right");
        compared += one.len();
    }
    compared
}

#[test]
fn both_languages_show_the_same_commands() {
    let docs = docs();
    let english = pages(&docs.join("from-scvmm"));
    let japanese = pages(&docs.join("ja/from-scvmm"));
    assert!(english.keys().eq(japanese.keys()), "pages in one language");
    let mut compared = 0;
    for (page, english) in &english {
        compared += compare(page, &read(english), &read(&japanese[page]));
    }
    assert!(compared > 50, "only {compared} lines were compared");

    let english = pages(&docs);
    let mut japanese = pages(&docs.join("ja"));
    // Of the guide, there are the chapters about images and VMs, what hosts are about, and those that are marked.
    let guide = japanese.remove("user-guide.md").expect("a guide");
    let english_guide = read(&english["user-guide.md"]);
    let part = |from: &str, to: &str| {
        let (_, after) = english_guide.split_once(from).expect(from);
        let (part, _) = after.split_once(to).unwrap_or((after, "the last chapter"));
        part.to_owned()
    };
    let networks = part("\n**Networks.**", "\n### ");
    let certificates = part("\n### Certificates of hosts\n", "\n### ");
    let images = part("\n## Images\n", "\n## ");
    let guide = read(&guide);
    let mut chapters = networks + &certificates + &images + &part("\n## VMs\n", "\n## ");
    // What follows them says which chapter of the English page it is.
    for marked in guide.split("<!-- as in: ").skip(1) {
        let title = marked.split_once(" -->").expect("an end").0;
        chapters += &part(&format!("# {title}\n"), "\n##");
    }
    compared = compare("user-guide.md", &chapters, &guide);
    assert!(compared > 50, "only {compared} lines were compared");

    assert!(!japanese.is_empty(), "no page beside the guide");
    for (page, japanese) in &japanese {
        compare(page, &read(&english[page]), &read(japanese));
    }
    for page in english.keys().filter(|page| page.starts_with("first-")) {
        assert!(japanese.contains_key(page), "{page} is in English only");
    }
}

#[test]
fn a_comment_is_no_command_and_a_missing_line_shows() {
    let page = "text\n```sh\nfleetward host list   # all\n# alone\n\nfleetward check\n```\n";
    assert_eq!(blocks(page), [["fleetward host list", "fleetward check"]]);
    assert_ne!(blocks(page), blocks(&page.replace("fleetward check", "")));
}
