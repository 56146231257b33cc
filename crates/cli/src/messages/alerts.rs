//! Messages about alerts.

use std::fmt::Display;

pub(crate) fn alert_target_added(name: &impl Display) -> String {
    format!("{name}: alerts are sent there; try it: fleetward alert test {name}")
}

pub(crate) fn alert_tested(name: &impl Display) -> String {
    format!("{name}: the test was taken")
}

pub(crate) fn confirm_remove_alert_target(name: &impl Display) -> String {
    format!("Remove alert target {name}? What it was not told yet, it is told no more")
}

pub(crate) fn alert_target_removed(name: &impl Display) -> String {
    format!("{name}: alert target removed")
}
