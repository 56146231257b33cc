//! Named places at which a test can hold a process, in order to kill it there.
//!
//! A program calls [`hold`] at each place where a test may want a crash. Without the environment variable
//! `FLEETWARD_HOLD_DIR` that is one atomic load. With it, each point that is passed creates a file
//! `<dir>/<name>.reached`, so one run lists all points. A point whose file `<dir>/<name>.hold` exists blocks its
//! caller until that file is removed.
//!
//! ```text
//!   passing ── no .hold ──────────────────────────────► gone on
//!      └────── .hold exists ──► held ── .hold removed ──┘
//!                                 └── the harness kills the process
//! ```
//!
//! The test harness knows what happens at a point, and what must be true after a crash there.

#![allow(
    clippy::disallowed_methods,
    reason = "marks between a test and the program that it holds, which need not survive a crash"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

/// The environment variable that arms the points of a process.
pub const HOLD_DIR_VARIABLE: &str = "FLEETWARD_HOLD_DIR";

const POLL: Duration = Duration::from_millis(10);

static ARMED: LazyLock<Option<HoldPoints>> =
    LazyLock::new(|| std::env::var_os(HOLD_DIR_VARIABLE).map(HoldPoints::in_directory));

/// Passes the point `name`, waiting there while the harness holds it.
pub async fn hold(name: &str) {
    if let Some(points) = &*ARMED {
        points.pass(name).await;
    }
}

/// The same as [`hold`], for threads that may block.
pub fn hold_blocking(name: &str) {
    if let Some(points) = &*ARMED {
        points.pass_blocking(name);
    }
}

/// Whether the points of this process are armed.
pub fn is_armed() -> bool {
    ARMED.is_some()
}

/// The points of one directory. Programs use [`hold`]; a harness uses this to read and set them.
#[derive(Debug, Clone)]
pub struct HoldPoints {
    dir: PathBuf,
}

impl HoldPoints {
    /// The points whose files lie in `dir`.
    pub fn in_directory(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Asks that the next caller who passes `name` is held there.
    pub fn set(&self, name: &str) -> std::io::Result<()> {
        fs::write(self.hold_file(name), [])?;
        remove_if_there(&self.reached_file(name))
    }

    /// Lets callers held at `name` go on.
    pub fn release(&self, name: &str) -> std::io::Result<()> {
        remove_if_there(&self.hold_file(name))
    }

    /// Whether a caller has passed or is held at `name` since the last [`set`](Self::set).
    pub fn is_reached(&self, name: &str) -> bool {
        self.reached_file(name).exists()
    }

    /// The names of all points reached so far, in the order they were last reached.
    pub fn reached(&self) -> std::io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let file = entry.file_name();
            if let Some(name) = file.to_str().and_then(|f| f.strip_suffix(".reached")) {
                found.push((entry.metadata()?.modified()?, name.to_owned()));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, name)| name).collect())
    }

    /// Passes `name`, waiting while it is held.
    pub async fn pass(&self, name: &str) {
        self.mark_reached(name);
        let hold = self.hold_file(name);
        if !hold.exists() {
            return;
        }
        tracing::info!(point = name, "held");
        while hold.exists() {
            self.keep_mark(name);
            tokio::time::sleep(POLL).await;
        }
        tracing::info!(point = name, "released");
    }

    fn pass_blocking(&self, name: &str) {
        self.mark_reached(name);
        let hold = self.hold_file(name);
        while hold.exists() {
            self.keep_mark(name);
            std::thread::sleep(POLL);
        }
    }

    /// Leaves the mark. A harness whose directory has gone away must not bring the program down.
    fn mark_reached(&self, name: &str) {
        if let Err(error) = fs::write(self.reached_file(name), format!("{}\n", std::process::id()))
        {
            tracing::warn!(point = name, %error, "cannot mark a hold point as reached");
        }
    }

    /// A caller may arrive in the middle of [`set`](Self::set) and lose its mark to it.
    fn keep_mark(&self, name: &str) {
        if !self.is_reached(name) {
            self.mark_reached(name);
        }
    }

    fn reached_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}.reached", file_stem(name)))
    }

    fn hold_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}.hold", file_stem(name)))
    }
}

/// Point names may carry the name of a VM or a step: nothing in them may leave the directory.
fn file_stem(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => c,
            _ => '_',
        })
        .collect()
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> (tempfile::TempDir, HoldPoints) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let points = HoldPoints::in_directory(dir.path());
        (dir, points)
    }

    #[tokio::test]
    async fn a_point_nobody_holds_is_passed_and_listed() {
        let (_dir, points) = points();
        points.pass("job.create.before").await;
        points.pass("job.create.after").await;
        let mut names = points.reached().expect("list");
        names.sort();
        assert_eq!(names, ["job.create.after", "job.create.before"]);
    }

    #[tokio::test]
    async fn a_held_point_keeps_its_caller_until_released() {
        let (_dir, points) = points();
        points.set("step").expect("set");
        let caller = tokio::spawn({
            let points = points.clone();
            async move { points.pass("step").await }
        });
        while !points.is_reached("step") {
            tokio::time::sleep(POLL).await;
        }
        tokio::time::sleep(POLL * 5).await;
        assert!(!caller.is_finished());

        points.release("step").expect("release");
        tokio::time::timeout(Duration::from_secs(5), caller)
            .await
            .expect("released in time")
            .expect("no panic");
    }

    #[tokio::test]
    async fn names_cannot_leave_the_directory() {
        let (dir, points) = points();
        points.pass("../../etc/x y").await;
        assert!(dir.path().join(".._.._etc_x_y.reached").exists());
    }

    #[tokio::test]
    async fn a_missing_directory_does_not_stop_the_program() {
        HoldPoints::in_directory("/nonexistent/points")
            .pass("step")
            .await;
    }

    #[tokio::test]
    async fn an_unarmed_process_passes_at_once() {
        assert!(!is_armed());
        hold("anything").await;
        hold_blocking("anything");
    }
}
