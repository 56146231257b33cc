//! The agent from outside: over its real API, with a hypervisor that is none.
//!
//! One program: to link each file on its own takes minutes and gigabytes.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
#![allow(unreachable_pub, reason = "what tests share is used by some of them")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

mod by_itself;
mod certificates;
mod change;
mod conformance;
mod conversions;
mod ek;
mod former;
mod guardian_store;
mod imported;
mod migration;
mod operations;
mod screens;
mod secure_boot;
mod storage;
mod support;
mod tpm_states;
