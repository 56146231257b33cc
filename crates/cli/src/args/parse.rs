//! Values of options that are no type of the model.

use fleetward_api::controller::Role;
use fleetward_model::LabelKey;
use serde::de::DeserializeOwned;
use std::ops::RangeInclusive;
use std::time::Duration;
use time::OffsetDateTime;

pub(super) fn parse_limit(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|limit| *limit > 0)
        .ok_or_else(|| "a number from 1 on".to_owned())
}

/// A word of the API, such as a state.
pub(crate) fn parse_word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

pub(super) fn parse_parallel(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|parallel| (1..=64).contains(parallel))
        .ok_or_else(|| "1 to 64".to_owned())
}

pub(crate) fn parse_label(text: &str) -> Result<(LabelKey, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form KEY=VALUE"))?;
    let key = key.parse().map_err(|error| format!("{error}"))?;
    Ok((key, value.to_owned()))
}

pub(super) fn parse_role(text: &str) -> Result<Role, String> {
    text.parse()
        .map_err(|_| "the roles are viewer, operator, keeper and admin".to_owned())
}

pub(super) fn parse_since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339) {
        return Ok(time);
    }
    let age = humantime::parse_duration(text).map_err(|_| {
        "neither a time such as 2026-11-23T08:00:00Z nor an age such as 1h".to_owned()
    })?;
    OffsetDateTime::now_utc()
        .checked_sub(age.try_into().map_err(|_| "too long ago".to_owned())?)
        .ok_or_else(|| "too long ago".to_owned())
}

/// Between two looks for alerts.
pub(super) fn parse_alert_every(text: &str) -> Result<Duration, String> {
    const BOUNDS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match BOUNDS.contains(&every) {
        true => Ok(every),
        false => Err("it is 1s to 1h".to_owned()),
    }
}
