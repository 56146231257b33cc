//! Templates: disks and settings from which VMs are made. A template has no machine's identity.
//!
//! ```text
//!   DATA/templates/<name>.json   what is known of it: the name's existence is this file's
//!   DATA/images/<sha256>         its disks and UEFI variables, among the images' content
//! ```

use fleetward_api::controller::TemplateView;
use fleetward_durable::{self as durable, Access};
use fleetward_model::{ErrorCode, Failure, TemplateName};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

/// All templates.
#[derive(Debug)]
pub(crate) struct Templates {
    dir: PathBuf,
    known: RwLock<BTreeMap<TemplateName, TemplateView>>,
}

impl Templates {
    pub(crate) async fn open(data: &Path) -> io::Result<Self> {
        let dir = data.join("templates");
        durable::background::make_directory(&dir, 0o700).await?;
        durable::background::sweep(&dir).await?;
        let mut known = BTreeMap::new();
        let mut files = tokio::fs::read_dir(&dir).await?;
        while let Some(file) = files.next_entry().await? {
            let path = file.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match serde_json::from_slice::<TemplateView>(&tokio::fs::read(&path).await?) {
                Ok(template) => {
                    known.insert(template.name.clone(), template);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "not a template's record");
                }
            }
        }
        Ok(Self {
            dir,
            known: RwLock::new(known),
        })
    }

    pub(crate) fn all(&self) -> Vec<TemplateView> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    pub(crate) fn of(&self, name: &TemplateName) -> Result<TemplateView, Failure> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let missing = || Failure::new(ErrorCode::TemplateNotFound, format!("no template {name}"));
        known.get(name).cloned().ok_or_else(missing)
    }

    /// Refuses a name that is taken.
    pub(crate) fn require_name(&self, name: &TemplateName) -> Result<(), Failure> {
        match self.of(name) {
            Err(_) => Ok(()),
            Ok(_) => Err(
                Failure::new(ErrorCode::NameTaken, format!("there is a template {name}")).fix(
                    format!("choose another name, or first: fleetward template delete {name}"),
                ),
            ),
        }
    }

    /// Whether a template needs that content.
    pub(crate) fn holds(&self, sha256: &str) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .values()
            .any(|template| contents(template).any(|content| content == sha256))
    }

    /// Keeps a template; the same one again is fine.
    pub(crate) async fn keep(&self, template: &TemplateView) -> Result<(), Failure> {
        let content = serde_json::to_vec_pretty(template).expect("plain fields are JSON");
        let place = self.record(&template.name);
        let written = durable::background::replace(&place, content, Access::PRIVATE).await;
        written.map_err(|error| failed(&template.name, &error))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(template.name.clone(), template.clone());
        Ok(())
    }

    /// Removes a template; gives what it needed. A missing one is fine.
    pub(crate) async fn remove(&self, name: &TemplateName) -> Result<Vec<String>, Failure> {
        let Ok(template) = self.of(name) else {
            return Ok(Vec::new());
        };
        let removed = durable::background::remove(&self.record(name)).await;
        removed.map_err(|error| failed(name, &error))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(name);
        Ok(contents(&template).map(str::to_owned).collect())
    }

    fn record(&self, name: &TemplateName) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}

fn contents(template: &TemplateView) -> impl Iterator<Item = &str> {
    let disks = template.disks.iter().map(|disk| disk.sha256.as_str());
    disks.chain(template.uefi_variables.as_deref())
}

fn failed(name: &TemplateName, error: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::Internal,
        format!("the record of template {name} cannot be changed"),
    )
    .because(error)
}
