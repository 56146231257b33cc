//! What the workspace depends on: nothing that no code names, and nothing that `deny.toml` refuses (licences, banned crates,
//! second versions, sources).

use crate::layering::{resolved, source_files};
use crate::step::script;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;

/// Checks the workspace.
pub(crate) fn check() -> Result<()> {
    let unused = unused(&resolved()?)?;
    for line in &unused {
        eprintln!("{line}");
    }
    if !unused.is_empty() {
        bail!("{} dependencies that no code names", unused.len());
    }
    script("scripts/cargo-deny", &["bans", "licenses", "sources"])
}

/// Dependencies of our crates that their code does not name: normal ones in `src`, the others anywhere.
fn unused(metadata: &Value) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let members = metadata["workspace_members"]
        .as_array()
        .into_iter()
        .flatten();
    for member in members {
        let of = |list: &Value| {
            let all = list.as_array().into_iter().flatten();
            all.clone().find(|one| one["id"] == *member).cloned()
        };
        let package = of(&metadata["packages"]).context("a member without a package")?;
        let node = of(&metadata["resolve"]["nodes"]).context("a member without a node")?;
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let directory = Path::new(manifest).parent().unwrap_or(Path::new("."));
        let in_src = text_of(directory, &["src"])?;
        let anywhere = text_of(directory, &["src", "tests", "examples", "benches"])?;
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let name = dependency["name"].as_str().unwrap_or_default();
            let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            let normal = kinds.clone().any(|kind| kind["kind"].is_null());
            let text = if normal { &in_src } else { &anywhere };
            if !names(text, name) {
                let package = package["name"].as_str().unwrap_or_default();
                let place = if normal { "its src" } else { "its code" };
                found.push(format!("{package} -> {name}: {place} does not name it"));
            }
        }
    }
    Ok(found)
}

fn text_of(directory: &Path, parts: &[&str]) -> Result<String> {
    let mut text = String::new();
    for part in parts {
        let place = directory.join(part);
        if !place.is_dir() {
            continue;
        }
        for file in source_files(&place)? {
            let own = std::fs::read_to_string(&file)?;
            for shared in elsewhere(&own) {
                text.push_str(&std::fs::read_to_string(file.with_file_name(shared))?);
            }
            text.push_str(&own);
        }
    }
    Ok(text)
}

/// Files of other crates that a file takes in as modules.
fn elsewhere(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let path = line
            .trim()
            .strip_prefix("#[path = \"")?
            .strip_suffix("\"]")?;
        path.starts_with("../").then_some(path)
    })
}

/// Whether a word stands in a text.
fn names(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_named_by_its_whole_word() {
        assert!(names("use hex::encode;", "hex"));
        assert!(!names("use hexa::encode; fn from_hex()", "hex"));
    }
}
