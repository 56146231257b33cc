//! Alerts and their targets.

use super::layout::Rows;
use super::{NONE, moment, or_none};
use fleetward_api::controller::{AlertTargetView, AlertView};
use fleetward_model::ErrorCode;

pub(crate) fn alerts(alerts: &[AlertView]) -> String {
    let mut table = Rows::new(&["SINCE", "CODE", "SUBJECT"]);
    let mut below = String::new();
    for alert in alerts {
        table.add([
            moment(alert.since),
            alert.code.as_str().to_owned(),
            alert.subject.clone(),
        ]);
        let AlertView { message, fix, .. } = alert;
        below.push_str(&format!("\n{message}\n  fix: {fix}"));
    }
    table.text() + &below
}

pub(crate) fn alert_targets(targets: &[AlertTargetView]) -> String {
    let mut table = Rows::new(&[
        "NAME",
        "KIND",
        "TO",
        "BY",
        "ONLY",
        ">WAITING",
        "LAST TOLD",
        "STATE",
    ]);
    let mut below = String::new();
    for target in targets {
        let only: Vec<_> = target
            .codes
            .iter()
            .copied()
            .map(ErrorCode::as_str)
            .collect();
        table.add([
            target.name.to_string(),
            target.kind.into_str().to_owned(),
            target.to.clone(),
            or_none(target.by.as_deref()),
            match only.is_empty() {
                true => NONE.to_owned(),
                false => only.join(", "),
            },
            target.waiting.to_string(),
            target.last_told.map_or_else(|| NONE.to_owned(), moment),
            match &target.failure {
                None => "good".to_owned(),
                Some(_) => "failing".to_owned(),
            },
        ]);
        if let Some(failure) = &target.failure {
            let (name, what, because) = (&target.name, &failure.what, &failure.because);
            below.push_str(&format!("\n{name}: {what}: {because}"));
        }
    }
    table.text() + &below
}
