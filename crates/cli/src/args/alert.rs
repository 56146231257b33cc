//! `fleetward alert ...`.

use super::Rows;
use super::parse::parse_word;
use clap::{Args, Subcommand};
use fleetward_api::controller::MailTls;
use fleetward_model::{AlertTargetName, ErrorCode};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    /// What needs somebody now, oldest first
    Now {
        #[command(flatten)]
        rows: Rows,
    },
    /// Where alerts are sent to, and whether they arrive
    List {
        #[command(flatten)]
        rows: Rows,
    },
    /// Sends alerts to an address as a POST with JSON
    AddWebhook(WebhookArgs),
    /// Sends alerts by mail
    AddMail(MailArgs),
    /// Sends a test, and waits until it has arrived
    Test { name: AlertTargetName },
    /// Removes a target and its secrets
    Remove { name: AlertTargetName },
}

#[derive(Debug, Args)]
pub struct WebhookArgs {
    pub name: AlertTargetName,
    /// Address, https; http only to a loopback address
    #[arg(long, value_name = "URL", required_unless_present = "url_file")]
    pub url: Option<String>,
    /// File with the address, for one that is a secret itself
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub url_file: Option<PathBuf>,
    /// File with a secret of 16 characters or more, which messages are signed with
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    #[command(flatten)]
    pub common: TargetArgs,
}

#[derive(Debug, Args)]
pub struct MailArgs {
    pub name: AlertTargetName,
    /// Who gets it; may be repeated
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub to: Vec<String>,
    /// Who it comes from
    #[arg(long, value_name = "ADDRESS")]
    pub from: String,
    /// Mail server
    #[arg(long, value_name = "HOST:PORT")]
    pub smtp: String,
    /// How the connection is protected: `starttls`, `tls` from the first byte, or `none`, only to a loopback address
    #[arg(long, value_name = "starttls|tls|none", default_value = "starttls", value_parser = parse_word::<MailTls>)]
    pub tls: MailTls,
    /// Name to log in with at the server
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// File with the password for --user
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    #[command(flatten)]
    pub common: TargetArgs,
}

/// What every kind of target has.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// File with the authorities to believe, PEM; default: those that the controller's machine believes
    #[arg(long = "authority", value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// Only alerts with this code; may be repeated
    #[arg(long = "code", value_name = "CODE", value_parser = parse_code)]
    pub codes: Vec<ErrorCode>,
}

fn parse_code(text: &str) -> Result<ErrorCode, String> {
    let known = ErrorCode::ALL.iter().find(|code| code.as_str() == text);
    known
        .copied()
        .ok_or_else(|| "there is no such code; fleetward explain lists them".to_owned())
}
