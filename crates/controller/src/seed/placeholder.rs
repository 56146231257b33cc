//! Placeholders such as `{{fleetward.name}}`. Everything else in braces is somebody else's (cloud-init's own templates use
//! `{{ }}`, PowerShell `@{ }`) and stays.

use super::invalid;
use fleetward_model::Failure;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

const OPEN: &str = "{{fleetward.";
const CLOSE: &str = "}}";

/// What placeholders stand for: a value, or why there is none.
pub(super) struct Values(BTreeMap<String, Result<Zeroizing<String>, String>>);

impl Values {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), Ok(Zeroizing::new(value)));
    }

    /// Asking for this one is an error.
    pub(super) fn refuse(&mut self, key: &str, because: String) {
        self.0.insert(key.to_owned(), Err(because));
    }

    pub(super) fn is_known(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// `template` with every placeholder replaced by `escaped` of its value. `what` is the file, for the error.
    pub(super) fn fill(
        &self,
        template: &str,
        what: &str,
        escaped: &dyn Fn(&str) -> String,
    ) -> Result<Zeroizing<String>, Failure> {
        let mut filled = Zeroizing::new(String::with_capacity(template.len()));
        let mut rest = template;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let line = template.len() - after.len();
            let line = template[..line].matches('\n').count() + 1;
            let Some((key, after)) = after.split_once(CLOSE) else {
                return Err(invalid(format!(
                    "a placeholder in line {line} of the {what} does not end with {CLOSE}"
                )));
            };
            filled.push_str(before);
            match self.0.get(key) {
                Some(Ok(value)) => filled.push_str(&Zeroizing::new(escaped(value))),
                Some(Err(because)) => {
                    return Err(invalid(format!(
                        "line {line} of the {what} asks for {key}: {because}"
                    )));
                }
                None => {
                    let known: Vec<_> = self.0.keys().map(String::as_str).collect();
                    return Err(invalid(format!(
                        "line {line} of the {what} asks for {key}, which is not among {}",
                        known.join(", ")
                    )));
                }
            }
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }
}
