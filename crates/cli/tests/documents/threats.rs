//! Every claim of the threat model names the tests that hold it, or says that it is prose only; the tests it names exist.

use std::collections::BTreeSet;
use std::path::Path;

/// The column of a table of claims that names its tests.
const HELD_BY: &str = "held by";
const PROSE: &str = "*prose only*";

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The name of a test as the test programs print it: several words with underscores.
fn is_test_name(word: &str) -> bool {
    word.matches('_').count() >= 2
        && word
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// What is wrong with the claims of one page, one sentence each; `tests` are the names of all tests.
fn faults(text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut in_table = false;
    for (index, line) in text.lines().enumerate() {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let last = cells.last().copied().unwrap_or_default();
        if !line.starts_with('|') {
            in_table = false;
        } else if last == HELD_BY {
            in_table = true;
        } else if in_table && !line.starts_with("|--") {
            let named = quoted(last).any(is_test_name)
                || quoted(last).any(|word| word.starts_with("cargo xtask "));
            if !named && !last.contains(PROSE) {
                faults.push(format!("line {}: no test holds: {}", index + 1, cells[0]));
            }
        }
        for name in quoted(line).filter(|word| is_test_name(word)) {
            if !tests.contains(name) {
                faults.push(format!("line {}: there is no test {name}", index + 1));
            }
        }
    }
    faults
}

/// The names of all tests below `directory`: functions, and the cases of the end-to-end suites, which are texts.
fn collect(directory: &Path, tests: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, tests);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            let functions = text
                .split("fn ")
                .skip(1)
                .filter_map(|rest| rest.split('(').next());
            let cases = text.split('"').filter(|word| {
                path.components().any(|c| c.as_os_str() == "e2e") && is_test_name(word)
            });
            tests.extend(
                functions
                    .chain(cases)
                    .filter(|n| is_test_name(n))
                    .map(str::to_owned),
            );
        }
    }
}

#[test]
fn every_claim_of_the_threat_model_names_tests_that_exist_or_is_called_prose() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("crates/cli");
    let mut tests = BTreeSet::new();
    collect(&root.join("crates"), &mut tests);
    let page = std::fs::read_to_string(root.join("docs/threat-model.md")).expect("the page");
    assert_eq!(
        page.matches(&format!("| {HELD_BY} |")).count(),
        3,
        "the tables of boundaries, attackers and standing checks each have the column"
    );
    let wrong = faults(&page, &tests);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_claim_without_a_test_and_a_test_that_is_gone_are_named() {
    let tests = BTreeSet::from(["the_gate_is_shut".to_owned()]);
    let page = "| claim | held by |\n|---|---|\n| one | `the_gate_is_shut` |\n| two | nobody |\n| three | *prose only* |\n\
                | four | `the_gate_was_shut` |\n";
    assert_eq!(
        faults(page, &tests),
        [
            "line 4: no test holds: two",
            "line 6: there is no test the_gate_was_shut"
        ]
    );
}
