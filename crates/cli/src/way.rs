//! How the controller is reached, and who it is told that we are: the socket, a client certificate, or an API token.

use crate::args::Global;
use crate::controller::causes;
use fleetward_link::{
    Client, ClientTls, Credential, FleetTrust, Identity, LiveCredential, MAX_API_TOKEN,
};
use fleetward_model::{ErrorCode, Failure};
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use zeroize::Zeroizing;

/// Of the controller's listener for the fleet, and of the one for people and programs.
const FLEET_PORT: u16 = 7440;
const CONSOLE_PORT: u16 = 7480;

/// The client that the options name. Does not connect yet.
pub(crate) fn client(options: &Global) -> Result<Client, Failure> {
    match (&options.controller, &options.token_file) {
        (None, None) => Ok(Client::unix(&options.socket)),
        (Some(url), None) => Ok(Client::tls(
            Address::of(url, FLEET_PORT)?.to_string(),
            member(options)?,
        )),
        (Some(url), Some(token)) => program(url, token, options),
        (None, Some(_)) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            "--token-file needs --controller",
        )
        .because("an API token is good where the controller's --console listens")
        .fix("name that address with --controller, or in FLEETWARD_CONTROLLER")),
    }
}

/// With an API token.
fn program(url: &str, token: &Path, options: &Global) -> Result<Client, Failure> {
    if options.cert.is_some() {
        return Err(Failure::new(
            ErrorCode::InvalidArgument,
            "it is not clear who you want to be",
        )
        .because("both a client certificate (--cert) and an API token (--token-file) are given")
        .fix(
            "leave one of them away; they may be set as FLEETWARD_CERT and FLEETWARD_TOKEN_FILE",
        ));
    }
    let address = Address::of(url, CONSOLE_PORT)?;
    let unusable = |path: &Path, error: &dyn Error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("{} cannot be used", path.display()),
        )
        .because(causes(error))
    };
    let roots = (options.ca.as_deref())
        .map(|path| {
            std::fs::read(path)
                .map_err(|error| unusable(path, &error).fix("name a file with certificates (PEM)"))
        })
        .transpose()?;
    let text = read_token(token).map_err(|error| {
        unusable(token, &error).fix("name the file with the text that fleetward token create gave")
    })?;
    let refused = |error: &dyn Error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            format!("{url} cannot be called"),
        )
        .because(causes(error))
        .fix("give the certificate to believe with --ca FILE")
    };
    let tls = ClientTls::web(&address.host, roots.as_deref()).map_err(|error| refused(&error))?;
    Client::tls(address.to_string(), tls)
        .with_token(text.trim())
        .map_err(|error| refused(&error))
}

/// No more than a token has, whatever the file is.
fn read_token(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_API_TOKEN));
    File::open(path)?
        .take(MAX_API_TOKEN as u64)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// With a certificate of the fleet.
fn member(options: &Global) -> Result<ClientTls, Failure> {
    let missing = |option: &str, variable: &str| {
        Failure::new(
            ErrorCode::CredentialsMissing,
            format!("--controller needs {option}"),
        )
        .because("neither a client certificate (--cert) nor an API token (--token-file) is given")
        .fix(format!("give a file with {option}, or set {variable}"))
    };
    let cert = (options.cert.as_deref()).ok_or_else(|| missing("--cert", "FLEETWARD_CERT"))?;
    let ca = (options.ca.as_deref()).ok_or_else(|| missing("--ca", "FLEETWARD_CA"))?;
    let key = options.key.as_deref().unwrap_or(cert);
    let unusable = |path: &Path, error: &dyn Error| {
        Failure::new(
            ErrorCode::CredentialsRefused,
            format!("{} cannot be used", path.display()),
        )
        .because(causes(error))
        .fix("get new files with fleetward admin create, on the controller's machine")
    };
    let credential = Credential::load_pair(cert, key).map_err(|error| unusable(cert, &error))?;
    let trust = FleetTrust::load(ca).map_err(|error| unusable(ca, &error))?;
    Ok(ClientTls::member(
        LiveCredential::new(credential),
        trust,
        Identity::Controller,
    ))
}

/// Where a controller listens.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    /// A name or an address, one of IPv6 without its brackets.
    host: String,
    port: u16,
}

impl Address {
    /// Of an `https://` address, with the port that it has without one.
    fn of(url: &str, default: u16) -> Result<Self, Failure> {
        let refuse = || {
            Failure::new(
                ErrorCode::InvalidArgument,
                format!("{url:?} is no address of a controller"),
            )
            .fix(format!(
                "write it like https://controller.example:{default}"
            ))
        };
        let uri: http::Uri = url.parse().map_err(|_| refuse())?;
        let (Some("https"), Some(authority), "" | "/") =
            (uri.scheme_str(), uri.authority(), uri.path())
        else {
            return Err(refuse());
        };
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => default,
            Some(_) => authority.port_u16().ok_or_else(refuse)?,
            None => return Err(refuse()),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_with_a_host_is_an_address() {
        let read = |url| Address::of(url, FLEET_PORT).map(|address| address.to_string());
        assert_eq!(read("https://c:7440").as_deref(), Ok("c:7440"));
        assert_eq!(read("https://10.0.0.1").as_deref(), Ok("10.0.0.1:7440"));
        assert_eq!(read("https://[fd00::1]:1").as_deref(), Ok("[fd00::1]:1"));
        for bad in [
            "http://c",
            "c:7440",
            "https://",
            "https://c/v1",
            "",
            "https://c:99999",
            "https://me@c",
        ] {
            let refused = read(bad).expect_err(bad);
            assert_eq!(refused.code, ErrorCode::InvalidArgument);
        }
    }
}
