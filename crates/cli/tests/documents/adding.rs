//! `docs/adding.md` names files that exist, and no list in it is longer than it says.

use std::path::Path;

/// Files in the list of a verb, tests and generated pages included.
const MOST_FILES_OF_A_VERB: usize = 15;

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("crates/cli")
}

/// The paths between backticks, each with its line. `<noun>` and the like stand for a name.
fn paths(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().flat_map(|(index, line)| {
        let spans = line.split('`').skip(1).step_by(2);
        let paths = spans.filter(|span| {
            !span.contains(' ') && (span.starts_with("crates/") || span.starts_with("docs/"))
        });
        paths.map(move |path| (index + 1, path))
    })
}

#[test]
fn every_file_that_a_change_touches_exists() {
    let text = std::fs::read_to_string(root().join("docs/adding.md")).expect("docs/adding.md");
    let mut checked = 0;
    let mut missing = Vec::new();
    for (line, path) in paths(&text) {
        let known = match path.split_once('<') {
            None => path,
            Some((before, _)) => before.rsplit_once('/').expect("a directory").0,
        };
        checked += 1;
        if !root().join(known).exists() {
            missing.push(format!("docs/adding.md:{line}: {path}"));
        }
    }
    assert!(checked > 30, "only {checked} paths were found");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn the_list_of_a_verb_keeps_to_its_goal() {
    let text = std::fs::read_to_string(root().join("docs/adding.md")).expect("docs/adding.md");
    let verb = text
        .split("\n## ")
        .find(|part| part.starts_with("A verb\n"));
    let rows = verb.expect("the section").lines().filter(|line| {
        let cell = line
            .strip_prefix("| ")
            .and_then(|row| row.split(' ').next());
        cell.is_some_and(|cell| cell.parse::<u32>().is_ok())
    });
    let count = rows.count();
    assert!(
        (10..=MOST_FILES_OF_A_VERB).contains(&count),
        "{count} files"
    );
}
