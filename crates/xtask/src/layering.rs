//! Checks the table of allowed dependencies in `docs/architecture.md` against the dependencies that cargo resolves.
//!
//! Three rules: each of our crates depends only on the crates in its row; some foreign crates are direct dependencies
//! of one crate only; and crates that must never open a key protector do not depend on the code that does, directly or
//! indirectly.

use crate::step::cargo_output;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// Our crates, ground floor first, and which of ours each may depend on. A crate that is not here may not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("fleetward-model", &[]),
    ("fleetward-durable", &[]),
    ("fleetward-failpoint", &[]),
    ("fleetward-rfb", &[]),
    ("fleetward-uefi", &["fleetward-model"]),
    ("fleetward-store", &["fleetward-durable"]),
    ("fleetward-protector", &["fleetward-model"]),
    (
        "fleetward-protector-open",
        &["fleetward-model", "fleetward-protector"],
    ),
    ("fleetward-api", &["fleetward-model"]),
    (
        "fleetward-link",
        &[
            "fleetward-model",
            "fleetward-durable",
            "fleetward-protector",
        ],
    ),
    (
        "fleetward-sim",
        &[
            "fleetward-model",
            "fleetward-durable",
            "fleetward-protector",
            "fleetward-protector-open",
            "fleetward-api",
            "fleetward-link",
        ],
    ),
    ("fleetward-hypervisor", &["fleetward-model"]),
    (
        "fleetward-hypervisor-libvirt",
        &[
            "fleetward-model",
            "fleetward-durable",
            "fleetward-hypervisor",
        ],
    ),
    (
        "fleetward-jobs",
        &["fleetward-model", "fleetward-store", "fleetward-failpoint"],
    ),
    (
        "fleetward-agent",
        &[
            "fleetward-model",
            "fleetward-durable",
            "fleetward-protector",
            "fleetward-protector-open",
            "fleetward-uefi",
            "fleetward-failpoint",
            "fleetward-api",
            "fleetward-link",
            "fleetward-hypervisor",
        ],
    ),
    (
        "fleetward-controller",
        &[
            "fleetward-model",
            "fleetward-durable",
            "fleetward-protector",
            "fleetward-uefi",
            "fleetward-failpoint",
            "fleetward-api",
            "fleetward-link",
            "fleetward-store",
            "fleetward-jobs",
        ],
    ),
    (
        "fleetward-cli",
        &[
            "fleetward-model",
            "fleetward-durable",
            "fleetward-rfb",
            "fleetward-api",
            "fleetward-link",
        ],
    ),
    ("fleetward", &["fleetward-cli", "fleetward-controller"]),
    (
        "fleetward-agent-program",
        &[
            "fleetward-agent",
            "fleetward-hypervisor",
            "fleetward-hypervisor-libvirt",
            "fleetward-durable",
            "fleetward-model",
        ],
    ),
    // Tools: nothing depends on them.
    ("fleetward-lab", &["fleetward-durable"]),
    ("fleetward-e2e", &["fleetward-failpoint"]),
    (
        "fleetward-fuzz",
        &[
            "fleetward-model",
            "fleetward-protector",
            "fleetward-protector-open",
            "fleetward-uefi",
            "fleetward-api",
            "fleetward-link",
            "fleetward-hypervisor-libvirt",
            "fleetward-controller",
        ],
    ),
    ("fleetward-xtask", &[]),
];

/// Foreign crates that only some of ours may name.
const HOMES: &[(&str, &[&str])] = &[
    ("virt", &["fleetward-hypervisor-libvirt"]),
    ("virt-sys", &["fleetward-hypervisor-libvirt"]),
    ("p12-keystore", &["fleetward-protector-open"]),
    ("rusqlite", &["fleetward-store"]),
];

/// Crates without I/O and time, and the only foreign crates that they may name.
const PURE: &[&str] = &[
    "fleetward-model",
    "fleetward-rfb",
    "fleetward-uefi",
    "fleetward-protector",
    "fleetward-protector-open",
];
const PURE_MAY_NAME: &[&str] = &[
    "aws-lc-rs",
    "base64",
    "cms",
    "const-oid",
    "der",
    "encoding_rs",
    "hex",
    "icu_normalizer",
    "litemap",
    "p12-keystore",
    "pkcs1",
    "rcgen",
    "rustls-pki-types",
    "rustls-webpki",
    "secrecy",
    "serde",
    "serde_json",
    "sha1",
    "sha2",
    "shlex",
    "spki",
    "strum",
    "subtle",
    "thiserror",
    "time",
    "utoipa",
    "uuid",
    "x509-cert",
    "zeroize",
];
/// What the code of such a crate may not name, tests aside.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::env",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "now_utc",
    "now_local",
];

/// Programs and rooms that never open a key protector or touch a hypervisor, and what does.
const BLIND: &[&str] = &["fleetward-controller", "fleetward-cli", "fleetward"];
const OPENING: &[&str] = &[
    "fleetward-protector-open",
    "fleetward-hypervisor-libvirt",
    "p12-keystore",
    "virt",
    "virt-sys",
];

/// Checks the workspace.
pub(crate) fn check() -> Result<()> {
    let metadata = resolved()?;
    let graph = Graph::from_metadata(&metadata).context("cargo metadata has another shape")?;
    let mut violations = violations(&graph);
    violations.extend(impure_code()?);
    violations.extend(crate::names::violations()?);
    if violations.is_empty() {
        println!(
            "{} crates of ours, {} in all: every arrow is allowed",
            graph.ours.len(),
            graph.arrows.len()
        );
        return Ok(());
    }
    for violation in &violations {
        eprintln!("{violation}");
    }
    bail!("{} arrows that must not be", violations.len())
}

/// What cargo resolves for this platform; other platforms' crates would have to be fetched to be looked at.
pub(crate) fn resolved() -> Result<Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = cargo_output(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &platform,
    ])?;
    serde_json::from_slice(&metadata).context("cargo metadata is no JSON")
}

/// Names of packages and their normal dependencies. Two versions of a package are one here, which can only make the
/// check stricter.
#[derive(Debug, Default)]
struct Graph {
    ours: BTreeSet<String>,
    arrows: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn from_metadata(metadata: &Value) -> Option<Self> {
        let mut names = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            names.insert(package["id"].as_str()?, package["name"].as_str()?);
        }
        let mut graph = Self::default();
        for member in metadata["workspace_members"].as_array()? {
            graph
                .ours
                .insert((*names.get(member.as_str()?)?).to_owned());
        }
        for node in metadata["resolve"]["nodes"].as_array()? {
            let from = *names.get(node["id"].as_str()?)?;
            let arrows = graph.arrows.entry(from.to_owned()).or_default();
            for dependency in node["deps"].as_array()? {
                let kinds = dependency["dep_kinds"].as_array()?;
                // Build and development dependencies do not end in the program.
                if kinds.iter().any(|kind| kind["kind"].is_null()) {
                    arrows.insert((*names.get(dependency["pkg"].as_str()?)?).to_owned());
                }
            }
        }
        Some(graph)
    }

    fn from(&self, name: &str) -> impl Iterator<Item = &str> {
        self.arrows
            .get(name)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// The shortest way from one package to another.
    fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut came_from = BTreeMap::from([(from, from)]);
        let mut queue = VecDeque::from([from]);
        while let Some(here) = queue.pop_front() {
            if here == to {
                let mut way = vec![to.to_owned()];
                let mut at = to;
                while at != from {
                    at = came_from[at];
                    way.push(at.to_owned());
                }
                way.reverse();
                return Some(way);
            }
            for next in self.from(here) {
                if let std::collections::btree_map::Entry::Vacant(entry) = came_from.entry(next) {
                    entry.insert(here);
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

fn violations(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for ours in &graph.ours {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == ours) else {
            found.push(format!("{ours} has no row in the table of arrows"));
            continue;
        };
        for to in graph.from(ours) {
            if graph.ours.contains(to) && !allowed.contains(&to) {
                found.push(format!("{ours} -> {to}: not in the table of arrows"));
            }
            if let Some((_, homes)) = HOMES.iter().find(|(name, _)| *name == to)
                && !homes.contains(&ours.as_str())
            {
                found.push(format!("{ours} -> {to}: belongs to {}", homes.join(", ")));
            }
            if PURE.contains(&ours.as_str())
                && !graph.ours.contains(to)
                && !PURE_MAY_NAME.contains(&to)
            {
                found.push(format!(
                    "{ours} -> {to}: not in the list of what a crate without I/O may name"
                ));
            }
        }
    }
    for blind in BLIND {
        for opening in OPENING {
            if let Some(way) = graph.way(blind, opening) {
                found.push(format!("{}: must not be reachable", way.join(" -> ")));
            }
        }
    }
    found
}

/// Places in the crates without I/O whose code names a file, a socket, a process, a thread or a clock.
fn impure_code() -> Result<Vec<String>> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for name in PURE {
        let directory = name.strip_prefix("fleetward-").expect("our own name");
        for file in source_files(&crates.join(directory).join("src"))? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            found.extend(impure_lines(&text).map(|(number, what)| {
                format!("{}:{number}: {what} in a crate without I/O", file.display())
            }));
        }
    }
    Ok(found)
}

/// Numbers of the lines that name something with I/O, with its name. Comments do not count, nor do tests, which stand last.
fn impure_lines(text: &str) -> impl Iterator<Item = (usize, &'static str)> {
    let code = text
        .lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter_map(|(at, line)| {
            let named = IMPURE.iter().find(|name| line.contains(**name))?;
            Some((at + 1, *named))
        })
}

/// The Rust files below a directory.
pub(crate) fn source_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(source_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_reads_a_clock_or_a_file_is_found_and_tests_are_left_alone() {
        let text = "// std::fs is not used\nuse std::fmt;\nlet now = OffsetDateTime::now_utc();\n\
                    std::fs::read(path)\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        let found: Vec<_> = impure_lines(text).collect();
        assert_eq!(found, [(3, "now_utc"), (4, "std::fs")]);
        assert_eq!(impure_code().expect("the sources can be read"), [""; 0]);
    }

    fn graph(arrows: &[(&str, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        for (from, to) in arrows {
            if from.starts_with("fleetward") {
                graph.ours.insert((*from).to_owned());
            }
            let to = to.iter().map(|name| (*name).to_owned()).collect();
            graph.arrows.insert((*from).to_owned(), to);
        }
        graph
    }

    #[test]
    fn a_way_round_to_the_key_opener_is_found_and_named() {
        let graph = graph(&[
            ("fleetward-cli", &["helper"]),
            ("helper", &["other"]),
            ("other", &["p12-keystore"]),
        ]);
        assert_eq!(
            violations(&graph),
            ["fleetward-cli -> helper -> other -> p12-keystore: must not be reachable"]
        );
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_a_violation() {
        let graph = graph(&[
            ("fleetward-model", &["tokio", "serde"]),
            ("fleetward-controller", &["fleetward-agent", "rusqlite"]),
            ("fleetward-agent", &[]),
            ("fleetward-new", &[]),
        ]);
        assert_eq!(violations(&graph).len(), 4);
    }

    #[test]
    fn the_table_itself_has_arrows_downward_only() {
        let mut above: BTreeSet<&str> = BTreeSet::new();
        for (name, allowed) in ARROWS {
            for lower in *allowed {
                assert!(above.contains(lower), "{name} -> {lower} points upward");
            }
            above.insert(name);
        }
    }
}
