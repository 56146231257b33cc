//! Every page in `docs/decisions/` has the form that `docs/decisions/README.md` describes, and the index there names it.

use std::path::Path;

const OPTIONAL: &str = "Consequences";
const SECTIONS: [&str; 5] = [
    "Problem",
    "Options",
    "Choice",
    OPTIONAL,
    "What would change it",
];

/// What is wrong with the form of one page, one sentence each.
fn faults(file: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let number = file.get(..4).unwrap_or_default();
    if number.len() != 4
        || !number.bytes().all(|b| b.is_ascii_digit())
        || file.get(4..5) != Some("-")
    {
        faults.push("the file name does not begin with four digits and a hyphen".to_owned());
    }
    let lines: Vec<_> = text.lines().collect();
    let line = |index: usize| lines.get(index).copied().unwrap_or_default();
    let title = line(0).strip_prefix(&format!("# {number} "));
    if title.is_none_or(|title| title.trim().is_empty()) {
        faults.push(format!("line 1 is not `# {number} Title`: {}", line(0)));
    }
    if line(2)
        .strip_prefix("Date: ")
        .is_none_or(|date| !is_date(date))
    {
        faults.push(format!("line 3 is not `Date: YYYY-MM-DD`: {}", line(2)));
    }
    let status = line(3).strip_prefix("Status: ");
    if !status.is_some_and(|status| {
        matches!(status, "proposed" | "accepted")
            || status
                .strip_prefix("superseded by ")
                .is_some_and(|by| by.len() == 4 && by.bytes().all(|b| b.is_ascii_digit()))
    }) {
        faults.push(format!(
            "line 4 is not `Status: proposed`, `accepted` or `superseded by NNNN`: {}",
            line(3)
        ));
    }
    let sections: Vec<_> = lines.iter().filter_map(|l| l.strip_prefix("## ")).collect();
    let required = SECTIONS.iter().filter(|s| **s != OPTIONAL);
    if !(sections.iter().eq(SECTIONS.iter()) || sections.iter().eq(required)) {
        faults.push(format!("the sections are {sections:?}, not {SECTIONS:?}"));
    }
    for (section, body) in sections.iter().zip(text.split("\n## ").skip(1)) {
        if body.lines().skip(1).all(|line| line.trim().is_empty()) {
            faults.push(format!("the section {section} is empty"));
        }
    }
    faults
}

fn is_date(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let digits =
        |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_digit());
    matches!(parts[..], [year, month, day] if digits(year, 4) && digits(month, 2) && digits(day, 2))
}

#[test]
fn every_decision_has_the_one_form_and_a_row_in_the_index() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("crates/cli");
    let directory = root.join("docs/decisions");
    let index = std::fs::read_to_string(directory.join("README.md")).expect("the index");
    let mut wrong = Vec::new();
    let mut numbers = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(&directory).expect("docs/decisions") {
        let path = entry.expect("an entry").path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file == "README.md" {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a decision");
        wrong.extend(faults(&file, &text).iter().map(|f| format!("{file}: {f}")));
        let number = file.chars().take(4).collect::<String>();
        if !index.contains(&format!("[{number}]({file})")) {
            wrong.push(format!("{file}: README.md has no row for it"));
        }
        if let Some(other) = numbers.insert(number, file.clone().into_owned()) {
            wrong.push(format!("{file}: has the number of {other}"));
        }
    }
    assert!(numbers.len() >= 12, "only {} decisions", numbers.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_page_that_differs_from_the_form_is_named() {
    let page = "# 0099 A title\n\nDate: 2026-11-26\nStatus: accepted\n\n## Problem\np\n\n## Options\no\n\n## Choice\nc\n\n## What would change it\nw\n";
    assert_eq!(faults("0099-a-title.md", page), [""; 0]);
    let with_consequences = page.replace("\n## What", "\n## Consequences\nk\n\n## What");
    assert_eq!(faults("0099-a-title.md", &with_consequences), [""; 0]);
    for (from, to) in [
        ("# 0099 ", "# 99. "),
        ("Date: 2026-11-26", "Date: November"),
        ("Status: accepted", "Status: fine"),
        ("## Options", "## Choices"),
        ("## Problem\np\n", "## Problem\n"),
    ] {
        let changed = page.replace(from, to);
        assert_eq!(faults("0099-a-title.md", &changed).len(), 1, "{to}");
    }
}
