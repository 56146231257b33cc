//! By how much commands hold up each other: each is asked alone, then all of them beside each other, each over connections of
//! its own and without a pause.
//!
//! On a machine whose cores are all busy, commands beside each other share them: what they are held up by includes that.

use super::controller::Controller;
use super::latencies::{Latencies, Summary};
use super::lists::{self, Place};
use super::{LARGEST, any_vm};
use crate::fleet::RunningFleet;
use anyhow::{Context, Result};
use fleetward_link::Client;
use futures_util::future::try_join_all;
use http::Method;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long commands are asked, alone and beside each other.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// A command, alone and beside the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Beside {
    pub alone: Summary,
    pub beside: Summary,
    /// What the others add to the median.
    pub held_up_p50_ms: f64,
    /// What the others add to the 99th percentile.
    pub held_up_p99_ms: f64,
}

/// What somebody asks with one command.
#[derive(Clone, Copy)]
struct Command {
    name: &'static str,
    /// The one with that number.
    path: fn(&RunningFleet, u32) -> String,
    /// Every page of a list, whose path then ends where the page is named.
    whole_list: bool,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "status",
        path: |_, _| "/v1/status".to_owned(),
        whole_list: false,
    },
    Command {
        name: "host_list",
        path: |_, _| "/v1/hosts?".to_owned(),
        whole_list: true,
    },
    Command {
        name: "check_by_host",
        path: |_, _| "/v1/check/hosts?".to_owned(),
        whole_list: true,
    },
    Command {
        name: "metrics",
        path: |_, _| "/metrics".to_owned(),
        whole_list: false,
    },
    Command {
        name: "audit_of_vm",
        path: |fleet, at| format!("/v1/audit?vm={}&", any_vm(fleet, at)),
        whole_list: true,
    },
    Command {
        name: "vm",
        path: |fleet, at| format!("/v1/vms/{}", any_vm(fleet, at)),
        whole_list: false,
    },
    Command {
        name: "vms_page",
        path: |fleet, at| format!("/v1/vms?limit=100&after={}", any_vm(fleet, at)),
        whole_list: false,
    },
];

/// Each command by its name. They are asked for `time`, within bounds, each alone and all together.
pub async fn measure(
    controller: &Controller,
    fleet: &RunningFleet,
    time: Duration,
) -> Result<BTreeMap<String, Beside>> {
    let time = time.clamp(SHORTEST, LONGEST);
    // Of an empty fleet there is no VM to ask for.
    let of_vms =
        |command: &&Command| fleet.plan.vms > 0 || !(command.path)(fleet, 0).contains("vm");
    let commands: Vec<&Command> = COMMANDS.iter().filter(of_vms).collect();
    let mut alone = Vec::new();
    for command in &commands {
        alone.push(keep_asking(&controller.another_client(), fleet, command, time).await?);
    }
    let together = commands.iter().map(|command| async move {
        let client = controller.another_client();
        keep_asking(&client, fleet, command, time).await
    });
    let beside = try_join_all(together).await?;
    let pairs = alone.into_iter().zip(beside);
    let held_up = commands
        .iter()
        .zip(pairs)
        .map(|(command, (alone, beside))| {
            let found = Beside {
                alone,
                beside,
                held_up_p50_ms: (beside.p50_ms - alone.p50_ms).max(0.0),
                held_up_p99_ms: (beside.p99_ms - alone.p99_ms).max(0.0),
            };
            (command.name.to_owned(), found)
        });
    Ok(held_up.collect())
}

/// One after the other for that time, and at least once.
async fn keep_asking(
    client: &Client,
    fleet: &RunningFleet,
    command: &Command,
    time: Duration,
) -> Result<Summary> {
    let mut times = Latencies::default();
    let begin = Instant::now();
    for at in 0.. {
        let path = (command.path)(fleet, at);
        let answer = async {
            match command.whole_list {
                true => lists::all::<Place>(client, &path).await.map(drop),
                false => {
                    let response = client.request(Method::GET, &path).send().await?;
                    anyhow::Ok(response.bytes(LARGEST).await.map(drop)?)
                }
            }
        };
        times.time(answer).await.context(path)?;
        if begin.elapsed() > time {
            break;
        }
    }
    Ok(times.summary())
}
