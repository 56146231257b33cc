//! What is said between the controller and those who call it: bodies and queries. Which verb takes which is declared in
//! [`crate::verbs`].

mod act;
mod alert;
mod check;
mod ek;
mod host;
mod image;
mod job;
mod keys;
mod load;
mod secure_boot;
mod template;
mod token;
mod user;
mod vm;

pub use act::*;
pub use alert::*;
pub use check::*;
pub use ek::*;
pub use fleetward_model::job::JobState;
pub use fleetward_model::role::Role;
pub use host::*;
pub use image::*;
pub use job::*;
pub use keys::*;
pub use load::*;
pub use secure_boot::*;
pub use template::*;
pub use token::*;
pub use user::*;
pub use vm::*;
