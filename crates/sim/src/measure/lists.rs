//! Whole lists, page by page, as the command line reads them.

use anyhow::{Context, Result};
use fleetward_api::lists::{LONGEST_PAGE, Row};
use fleetward_link::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Every row of the list at `path`, which carries a query (`/v1/hosts?`, `/v1/vms?host=a&`).
pub async fn all<T: Row + DeserializeOwned>(client: &Client, path: &str) -> Result<Vec<T>> {
    let mut rows: Vec<T> = Vec::new();
    loop {
        let after = rows.last().map(|last| format!("&after={}", last.cursor()));
        let page = format!("{path}limit={LONGEST_PAGE}{}", after.unwrap_or_default());
        let page: Vec<T> = client.get(&page).await.with_context(|| page.clone())?;
        let full = page.len() == LONGEST_PAGE as usize;
        rows.extend(page);
        if !full {
            return Ok(rows);
        }
    }
}

/// A row of hosts, of checks of hosts or of audit records, of which only the place in its list is read.
#[derive(Debug, Clone, Deserialize)]
pub struct Place {
    name: Option<String>,
    host: Option<String>,
    seq: Option<u64>,
}

impl Row for Place {
    fn cursor(&self) -> String {
        let name = self.name.as_ref().or(self.host.as_ref());
        let name = name.cloned().unwrap_or_default();
        match self.seq {
            Some(seq) => format!("{name}/{seq}"),
            None => name,
        }
    }
}
