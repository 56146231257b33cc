//! The command line from outside: the program is run, against a fake controller on a Unix socket, and what it prints
//! and how it ends is held against the contract.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]
// A panic in a test is a failed claim, in the helpers too.
#![allow(clippy::unwrap_used)]

mod bulk;
mod change;
mod contract;
mod fake;
mod guardians;
mod help;
mod hosts;
mod jobs;
mod lists;
mod screen;
mod tokens;
mod tpm;
