//! The engine's claims, with steps that do as they are told.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

mod cancel;
mod care;
mod children;
mod debts;
mod progress;
mod scene;
mod steps;
mod submission;
mod succession;
