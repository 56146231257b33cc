//! Budgets: the most that a measured number may be, by its name in the report.
//!
//! ```toml
//! "idle.cpu_percent" = 5
//! "requests.vm.p99_ms" = 5
//! ```

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Names of numbers in a report, and the most that each may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget(BTreeMap<String, f64>);

impl Budget {
    pub fn read(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read the budget {}", path.display());
        let text = std::fs::read_to_string(path).with_context(cannot)?;
        toml::from_str(&text).map(Self).with_context(cannot)
    }

    /// What is over its budget, or is not in the report at all.
    pub fn exceeded(&self, report: &Value) -> Vec<String> {
        let over = self.0.iter().filter_map(|(name, most)| {
            match name.split('.').try_fold(report, |at, key| at.get(key)) {
                Some(Value::Number(found)) if found.as_f64() <= Some(*most) => None,
                Some(Value::Number(found)) => Some(format!("{name} is {found}, budget {most}")),
                _ => Some(format!("{name} is no number of this report")),
            }
        });
        over.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_over_its_budget_or_was_not_measured_is_named() {
        let budget = toml::from_str("\"a.b\" = 5\n\"a.c\" = 2.5\n\"d\" = 1").expect("TOML");
        let exceeded = Budget(budget).exceeded(&json!({ "a": { "b": 5, "c": 2.6 } }));
        assert_eq!(
            exceeded,
            ["a.c is 2.6, budget 2.5", "d is no number of this report"]
        );
    }
}
