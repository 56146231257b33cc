//! Kinds of jobs and the registry of all of them, readable without running anything.

use crate::context::Core;
use crate::{Absence, Data, Owed, Step, StepContext, StepError, StepInfo, UndoStep};
use async_trait::async_trait;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// A kind of job: its name, its input, what it locks, its steps.
///
/// The value carries what the steps need (clients, caches) and hands it to them in `steps`.
pub trait JobKind: Send + Sync + 'static {
    /// Unique, lower-case with dashes: `vm-create`.
    const NAME: &'static str;

    type Input: Data;

    /// What no two jobs may work on at once, as store-key text: `vm/<id>`, `vm-name/<name>`. Taken
    /// with the submission, released with the job's end; also how jobs are found by what they concern.
    fn locks(input: &Self::Input) -> Vec<String>;

    /// The steps in order. The same for every job of the kind.
    fn steps(&self) -> Steps<Self::Input>;
}

/// The steps of a job in order: first those that can be taken back, then those that cannot.
///
/// ```text
///   .check(a) .step(b) .step(c)            | .forward(d) .forward(e)
///   failure or cancel: take back c, b, end | retried until they succeed
///                              point of no return: when c has succeeded
/// ```
#[must_use]
pub struct Steps<I> {
    steps: Vec<Box<dyn AnyStep>>,
    forward_from: Option<usize>,
    input: PhantomData<fn() -> I>,
}

impl<I: Data> Steps<I> {
    #[expect(
        clippy::new_without_default,
        reason = "a job without steps is no default"
    )]
    pub fn new() -> Self {
        Self {
            steps: Vec::new(),
            forward_from: None,
            input: PhantomData,
        }
    }

    /// A step that leaves something behind and can be taken back.
    pub fn step(self, step: impl UndoStep<I>) -> Self {
        self.before_the_point(Undoable {
            step,
            input: PhantomData,
        })
    }

    /// A step that only looks: it leaves nothing behind and has no undo.
    pub fn check(self, step: impl Step<I>) -> Self {
        self.before_the_point(Plain {
            step,
            input: PhantomData,
        })
    }

    /// A step past the point of no return. The first one marks the point: once all steps before it
    /// have succeeded (or, if it comes first, once it has begun), the job only goes forward.
    pub fn forward(mut self, step: impl Step<I>) -> Self {
        self.forward_from.get_or_insert(self.steps.len());
        self.steps.push(Box::new(Plain {
            step,
            input: PhantomData,
        }));
        self
    }

    fn before_the_point(mut self, step: impl AnyStep + 'static) -> Self {
        let name = step.info().name;
        assert!(
            self.forward_from.is_none(),
            "step {name} comes behind the point of no return"
        );
        self.steps.push(Box::new(step));
        self
    }
}

/// All kinds of jobs a program knows.
#[derive(Default, Clone)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<AnyKind>>,
}

/// What can be known of a kind without running it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindInfo {
    pub name: &'static str,
    pub steps: Vec<StepInfo>,
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind.
    ///
    /// # Panics
    /// On a kind or step name that is taken or would not do as a file name, and on a job without
    /// steps: mistakes in the program, found when it starts.
    #[must_use]
    pub fn with<K: JobKind>(mut self, kind: K) -> Self {
        let kind = AnyKind::of(kind);
        let taken = self.kinds.insert(kind.name, Arc::new(kind));
        assert!(taken.is_none(), "two job kinds are called {}", K::NAME);
        self
    }

    /// Every kind with every step, in order.
    pub fn kinds(&self) -> Vec<KindInfo> {
        let info = |kind: &Arc<AnyKind>| KindInfo {
            name: kind.name,
            steps: kind.step_infos(),
        };
        self.kinds.values().map(info).collect()
    }

    pub(crate) fn kind(&self, name: &str) -> Option<&Arc<AnyKind>> {
        self.kinds.get(name)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.kinds.keys()).finish()
    }
}

/// A job's record is one value in the store: what a step hands on must leave room for the others.
const LARGEST_OUTPUT: usize = 64 * 1024;

/// A kind with its input type forgotten.
pub(crate) struct AnyKind {
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<Box<dyn AnyStep>>,
    forward_from: Option<usize>,
}

impl AnyKind {
    fn of<K: JobKind>(kind: K) -> Self {
        let Steps {
            steps,
            forward_from,
            ..
        } = kind.steps();
        assert!(!steps.is_empty(), "job kind {} has no steps", K::NAME);
        check_name(K::NAME);
        for (i, step) in steps.iter().enumerate() {
            let name = step.info().name;
            check_name(name);
            let earlier = steps[..i].iter().any(|other| other.info().name == name);
            assert!(!earlier, "job kind {} has two steps called {name}", K::NAME);
        }
        Self {
            name: K::NAME,
            steps,
            forward_from,
        }
    }

    /// The step whose success is the point of no return.
    pub(crate) fn crossing(&self) -> Option<usize> {
        self.forward_from.and_then(|first| first.checked_sub(1))
    }

    /// The step whose effect may prove irrevocable when it is to be undone: the last one that has an undo to ask.
    pub(crate) fn last_before_return(&self) -> Option<usize> {
        self.forward_from.unwrap_or(self.steps.len()).checked_sub(1)
    }

    /// Whether already the beginning of the first step is the point of no return.
    pub(crate) fn is_forward_only(&self) -> bool {
        self.forward_from == Some(0)
    }

    pub(crate) fn step_infos(&self) -> Vec<StepInfo> {
        let mut infos: Vec<StepInfo> = self.steps.iter().map(|step| step.info()).collect();
        if let Some(crossing) = self.crossing() {
            infos[crossing].point_of_no_return = true;
        }
        infos
    }
}

fn check_name(name: &str) {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    assert!(
        !name.is_empty() && name.chars().all(plain),
        "{name:?} is no name for a kind or step"
    );
}

/// A step with its types forgotten.
#[async_trait]
pub(crate) trait AnyStep: Send + Sync {
    fn info(&self) -> StepInfo;
    fn retry_for(&self) -> Duration;
    fn applies(&self, core: Core) -> bool;
    /// Of the step itself, or of its undo.
    fn absence(&self, core: Core, of: Owed) -> Absence;
    async fn run(&self, core: Core) -> Result<Value, StepError>;
    async fn undo(&self, core: Core) -> Result<(), StepError>;
}

struct Undoable<S, I> {
    step: S,
    input: PhantomData<fn() -> I>,
}

struct Plain<S, I> {
    step: S,
    input: PhantomData<fn() -> I>,
}

#[async_trait]
impl<I: Data, S: UndoStep<I>> AnyStep for Undoable<S, I> {
    fn info(&self) -> StepInfo {
        StepInfo {
            name: S::NAME,
            point_of_no_return: false,
            undoable: true,
        }
    }

    fn retry_for(&self) -> Duration {
        S::RETRY_FOR
    }

    fn applies(&self, core: Core) -> bool {
        applies(&self.step, core)
    }

    fn absence(&self, core: Core, of: Owed) -> Absence {
        match (StepContext::<I>::of(core), of) {
            (Ok(cx), Owed::Run) => self.step.absence(&cx),
            (Ok(cx), Owed::Undo) => self.step.undo_absence(&cx),
            (Err(_), _) => Absence::Wait,
        }
    }

    async fn run(&self, core: Core) -> Result<Value, StepError> {
        run(&self.step, core).await
    }

    async fn undo(&self, core: Core) -> Result<(), StepError> {
        self.step.undo(&StepContext::<I>::of(core)?).await
    }
}

#[async_trait]
impl<I: Data, S: Step<I>> AnyStep for Plain<S, I> {
    fn info(&self) -> StepInfo {
        StepInfo {
            name: S::NAME,
            point_of_no_return: false,
            undoable: false,
        }
    }

    fn retry_for(&self) -> Duration {
        S::RETRY_FOR
    }

    fn applies(&self, core: Core) -> bool {
        applies(&self.step, core)
    }

    fn absence(&self, core: Core, of: Owed) -> Absence {
        match (StepContext::<I>::of(core), of) {
            (Ok(cx), Owed::Run) => self.step.absence(&cx),
            (Ok(_), Owed::Undo) | (Err(_), _) => Absence::Wait,
        }
    }

    async fn run(&self, core: Core) -> Result<Value, StepError> {
        run(&self.step, core).await
    }

    /// Nothing was left behind; the plan does not even ask.
    async fn undo(&self, _core: Core) -> Result<(), StepError> {
        Ok(())
    }
}

/// An input that cannot be read is for `run` to complain of.
fn applies<I: Data, S: Step<I>>(step: &S, core: Core) -> bool {
    StepContext::<I>::of(core).map_or(true, |cx| step.applies(&cx))
}

async fn run<I: Data, S: Step<I>>(step: &S, core: Core) -> Result<Value, StepError> {
    let output = step.run(&StepContext::<I>::of(core)?).await?;
    let text = serde_json::to_string(&output)
        .map_err(|e| StepError::internal(format!("cannot record the output of {}", S::NAME), e))?;
    if text.len() > LARGEST_OUTPUT {
        let what = format!("the output of {} is too large to record", S::NAME);
        return Err(StepError::internal(what, format!("{} bytes", text.len())));
    }
    serde_json::from_str(&text)
        .map_err(|e| StepError::internal(format!("cannot record the output of {}", S::NAME), e))
}
