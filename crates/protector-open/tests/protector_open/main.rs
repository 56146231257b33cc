//! Key protectors, stored guardians and PFX files: made, opened, damaged, and read by other programs.
//!
//! One program: to link each file on its own takes minutes and gigabytes.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

mod arbitrary_bytes;
mod emergency;
mod openssl;
mod pfx;
mod pfx_elsewhere;
mod pfx_forms;
mod pfx_passwords;
mod pfx_structures;
mod sealing;
mod storage;
mod support;
