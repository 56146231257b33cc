//! Durable jobs: named steps with undo, recorded before and after, resumed after a crash.
//!
//! A [`JobKind`] names its [`Steps`]; the [`Registry`] knows all kinds without running them; the
//! [`Engine`] runs jobs out of a [`fleetward_store::Store`]. Of several engines on one store one leads
//! and runs jobs; all submit, cancel, read and watch.
//!
//! This crate does not know what the steps do.
//!
//! Guarantees, also after a kill at any line:
//! - a step that began is either recorded as done, or run again, or undone;
//! - before the point of no return a job ends as done or as if it had never been; past it, as done; what a party that
//!   stays away would have to do for that is written down as its debt ([`Absence`]);
//! - no two engines run one job, no two jobs hold one lock, and each attempt has a larger generation.
//!
//! ```
//! use fleetward_jobs::{JobKind, Step, StepContext, StepError, Steps, UndoStep, async_trait};
//!
//! struct Greet;
//!
//! impl JobKind for Greet {
//!     const NAME: &'static str = "greet";
//!     type Input = String;
//!     fn locks(name: &String) -> Vec<String> {
//!         vec![format!("person/{name}")]
//!     }
//!     fn steps(&self) -> Steps<String> {
//!         Steps::new().step(SayHello)
//!     }
//! }
//!
//! struct SayHello;
//!
//! #[async_trait]
//! impl Step<String> for SayHello {
//!     const NAME: &'static str = "say-hello";
//!     type Output = String;
//!     async fn run(&self, cx: &StepContext<String>) -> Result<String, StepError> {
//!         Ok(format!("hello {}", cx.input()))
//!     }
//! }
//!
//! #[async_trait]
//! impl UndoStep<String> for SayHello {
//!     async fn undo(&self, _cx: &StepContext<String>) -> Result<(), StepError> {
//!         Ok(())
//!     }
//! }
//!
//! # async fn example(store: std::sync::Arc<dyn fleetward_store::Store>) -> Result<(), fleetward_jobs::JobError> {
//! use fleetward_jobs::{Engine, EngineOptions, Registry};
//!
//! let engine = Engine::start(store, Registry::new().with(Greet), EngineOptions::default());
//! let id = engine.submit::<Greet>(&"Ada".to_owned(), "admin").await?;
//! let job = engine.wait(id).await?;
//! assert_eq!(job.output::<String>("say-hello").as_deref(), Some("hello Ada"));
//! # Ok(()) }
//! ```

mod context;
mod debt;
mod engine;
mod error;
mod kind;
mod leader;
mod ledger;
mod observe;
mod payment;
mod plan;
mod record;
mod runner;
mod step;

pub use async_trait::async_trait;
pub use context::{ProgressReporter, StepContext};
pub use debt::{Absence, Debt, DebtBook, Debtor, Owed, Settled};
pub use engine::{Backoff, Engine, EngineOptions, Patience, Retention, Submission};
pub use error::JobError;
pub use fleetward_model::job::JobState;
pub use kind::{JobKind, KindInfo, Registry, Steps};
pub use observe::JobUpdates;
pub use record::{CancelRequest, Job, JobFilter, Progress, StepRecord, StepState, Waiting};
pub use step::{Data, Recourse, Step, StepError, StepInfo, UndoStep};
