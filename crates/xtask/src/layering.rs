//! Checks the table of allowed dependencies in `docs/architecture.md` against the dependencies that cargo resolves.
//!
//! Three rules: each of our crates depends only on the crates in its row; some foreign crates are direct dependencies
//! of one crate only; and crates that must never open a key protector do not depend on the code that does, directly or
//! indirectly.

use crate::step::cargo_output;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Our crates, ground floor first, and which of ours each may depend on. A crate that is not here may not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("fleetward-model", &[]),
    ("fleetward-failpoint", &[]),
    ("fleetward-store", &[]),
    ("fleetward-protector", &["fleetward-model"]),
    (
        "fleetward-protector-open",
        &["fleetward-model", "fleetward-protector"],
    ),
    ("fleetward-api", &["fleetward-model"]),
    (
        "fleetward-link",
        &["fleetward-model", "fleetward-protector"],
    ),
    ("fleetward-hypervisor", &["fleetward-model"]),
    (
        "fleetward-hypervisor-libvirt",
        &["fleetward-model", "fleetward-hypervisor"],
    ),
    (
        "fleetward-jobs",
        &["fleetward-model", "fleetward-store", "fleetward-failpoint"],
    ),
    (
        "fleetward-agent",
        &[
            "fleetward-model",
            "fleetward-protector",
            "fleetward-protector-open",
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
            "fleetward-protector",
            "fleetward-failpoint",
            "fleetward-api",
            "fleetward-link",
            "fleetward-store",
            "fleetward-jobs",
        ],
    ),
    (
        "fleetward-cli",
        &["fleetward-model", "fleetward-api", "fleetward-link"],
    ),
    ("fleetward", &["fleetward-cli", "fleetward-controller"]),
    (
        "fleetward-agent-program",
        &[
            "fleetward-agent",
            "fleetward-hypervisor",
            "fleetward-hypervisor-libvirt",
            "fleetward-model",
        ],
    ),
    // Tools: nothing depends on them.
    ("fleetward-lab", &[]),
    ("fleetward-e2e", &["fleetward-failpoint"]),
    ("fleetward-xtask", &[]),
];

/// Foreign crates that only some of ours may name.
const HOMES: &[(&str, &[&str])] = &[
    ("virt", &["fleetward-hypervisor-libvirt"]),
    ("virt-sys", &["fleetward-hypervisor-libvirt"]),
    ("p12-keystore", &["fleetward-protector-open"]),
    ("rusqlite", &["fleetward-store"]),
];

/// Rooms without I/O and time, and what would bring it in.
const PURE: &[&str] = &[
    "fleetward-model",
    "fleetward-protector",
    "fleetward-protector-open",
];
const IMPURE: &[&str] = &["tokio", "nix", "tracing", "axum", "hyper"];

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
    // Other platforms' crates would have to be fetched to be looked at.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = cargo_output(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &platform,
    ])?;
    let metadata = serde_json::from_slice(&metadata).context("cargo metadata is no JSON")?;
    let graph = Graph::from_metadata(&metadata).context("cargo metadata has another shape")?;
    let violations = violations(&graph);
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
            if PURE.contains(&ours.as_str()) && IMPURE.contains(&to) {
                found.push(format!("{ours} -> {to}: a room without I/O"));
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

#[cfg(test)]
mod tests {
    use super::*;

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
