//! Wire types and paths of the HTTP APIs between command line, controller and agents.
//!
//! This crate does not know how a service works. Every body is JSON; streams are newline-delimited JSON
//! (`application/x-ndjson`), one value per line. Errors are a [`fleetward_model::Failure`] with the HTTP status of its
//! code's class.

pub mod agent;
pub mod bulk;
pub mod controller;
pub mod following;
pub mod lists;
pub mod reports;
pub mod seed;
pub mod tpm;
pub mod verbs;

/// Content type of streams.
pub const NDJSON: &str = "application/x-ndjson";

/// Largest JSON body either service takes, bytes.
pub const MAX_BODY: usize = 1 << 20;
