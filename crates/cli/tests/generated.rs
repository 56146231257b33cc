//! The pages that are made from the definitions are up to date. `cargo xtask generate` writes them.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_cli::reference;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("crates/cli").to_owned()
}

fn generating() -> bool {
    std::env::var_os("FLEETWARD_GENERATE").is_some()
}

fn hold_against(path: &str, made: &str) {
    let file = workspace().join(path);
    if generating() {
        std::fs::create_dir_all(file.parent().expect("a file in docs")).expect("a directory");
        std::fs::write(&file, made).expect("written");
        return;
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == made, "{path} is out of date: cargo xtask generate");
}

#[test]
fn the_reference_of_commands_is_up_to_date() {
    hold_against("docs/reference/cli.md", &reference::commands_page());
}

#[test]
fn the_reference_of_error_codes_is_up_to_date() {
    hold_against("docs/reference/errors.md", &reference::errors_page());
}

#[test]
fn man_pages_and_completions_can_be_made() {
    let kept = tempfile::tempdir().expect("a directory");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target");
    let directory = if generating() { target } else { kept.path() };

    reference::write_man_pages(&directory.join("man")).expect("written");
    assert!(directory.join("man/fleetward-vm-migrate.1").exists());

    let completions = directory.join("completions");
    std::fs::create_dir_all(&completions).expect("a directory");
    for (shell, file) in [
        (clap_complete::Shell::Bash, "fleetward.bash"),
        (clap_complete::Shell::Zsh, "_fleetward"),
        (clap_complete::Shell::Fish, "fleetward.fish"),
    ] {
        let script = reference::completion(shell);
        assert!(!script.is_empty());
        std::fs::write(completions.join(file), script).expect("written");
    }
}
